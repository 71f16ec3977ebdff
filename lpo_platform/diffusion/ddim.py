"""DDIM (Song et al., arXiv:2010.02502) as a process: schedule, forward noising and stochastic reverse steps."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lpo_platform.diffusion import noise as keyed
from lpo_platform.diffusion.gaussian import Gaussian

PREDICTIONS = ("epsilon", "v_prediction")


class DDIM:
    """The process x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e, in float32 whatever the model runs in.

    half: noises in this precision instead, as CPO was trained, which makes sigma exactly 0 at t = 0 and 1 in bfloat16
    (methods/README.md, "CPO").
    """

    def __init__(
        self,
        *,
        num_train_steps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        prediction: str = "epsilon",
        steps_offset: int = 1,
        final_alpha_is_one: bool = False,
        half: torch.dtype | None = None,
    ) -> None:
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction={prediction!r}: DDIM knows {', '.join(PREDICTIONS)}")
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_steps, dtype=torch.float64)
        self.alphas_cumprod = torch.cumprod(1 - roots**2, 0).float()
        self.final = torch.ones(()) if final_alpha_is_one else self.alphas_cumprod[0].clone()
        self.num_train_steps, self.prediction, self.steps_offset = num_train_steps, prediction, steps_offset
        self.half = half

    @classmethod
    def from_config(cls, config: Mapping[str, object], *, half: torch.dtype | None = None) -> "DDIM":
        """From a diffusers scheduler_config.json; raises ValueError on a schedule other than scaled_linear."""
        schedule = config.get("beta_schedule", "linear")
        if schedule != "scaled_linear":
            raise ValueError(f"beta_schedule={schedule!r}: only scaled_linear (Stable Diffusion's) is implemented")
        return cls(
            num_train_steps=int(config["num_train_timesteps"]),
            beta_start=float(config["beta_start"]),
            beta_end=float(config["beta_end"]),
            prediction=str(config.get("prediction_type", "epsilon")),
            steps_offset=int(config.get("steps_offset", 0)),
            final_alpha_is_one=bool(config.get("set_alpha_to_one", True)),
            half=half,
        )

    def to(self, device: torch.device | str) -> "DDIM":
        self.alphas_cumprod, self.final = self.alphas_cumprod.to(device), self.final.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    def training_times(self, positions: Sequence[keyed.Key], *, seed: int, stream: str) -> Tensor:
        """t ~ U{0, ..., T-1}, (B,) on the CPU."""
        return keyed.integers(positions, self.num_train_steps, seed=seed, stream=stream)

    def times(self, num_steps: int) -> Tensor:
        """The sampling timesteps, descending, 'leading' spacing: (num_steps,) int64 on the tables' device."""
        if not 1 <= num_steps <= self.num_train_steps:
            raise ValueError(f"num_steps={num_steps}: must lie in [1, {self.num_train_steps}]")
        stride = self.num_train_steps // num_steps
        ascending = torch.arange(num_steps, device=self.alphas_cumprod.device) * stride
        return ascending.flip(0) + self.steps_offset

    def previous(self, t: Tensor, num_steps: int, *, eta: float) -> Tensor:
        """Where a step from t leads, (B,). A deterministic chain ends below 0, at the schedule's final abar; one that
        draws noise ends at 0, because abar = 1 would leave its last step without a density (as released with LPO)."""
        before = t - self.num_train_steps // num_steps
        return before.clamp_min(0) if eta > 0 else before

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for x0, noise (B, C, H, W) and t (B,)."""
        abar, x0, noise = (part.to(self.half or torch.float32) for part in (self._abar(t), x0, noise))
        return (abar.sqrt() * x0 + (1 - abar).sqrt() * noise).float()

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model is trained to output: the noise, or v = sqrt(abar) e - sqrt(1 - abar) x0."""
        if self.prediction == "epsilon":
            return noise.to(self.half or torch.float32).float()
        abar = self._abar(t)
        return abar.sqrt() * noise.float() - (1 - abar).sqrt() * x0.float()

    def clean(self, output: Tensor, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x0_hat, e_hat) that an output at x_t stands for."""
        abar, output, x = self._abar(t), output.float(), x.float()
        if self.prediction == "epsilon":
            return (x - (1 - abar).sqrt() * output) / abar.sqrt(), output
        return abar.sqrt() * x - (1 - abar).sqrt() * output, abar.sqrt() * output + (1 - abar).sqrt() * x

    def sigma(self, t: Tensor, previous: Tensor, eta: float) -> Tensor:
        """Standard deviation of the step t -> previous (Eq. 16), (B, 1, 1, 1); eta = 1 is ancestral sampling."""
        abar, abar_previous = self._abar(t), self._abar(previous)
        variance = (1 - abar_previous) / (1 - abar) * (1 - abar / abar_previous)
        return eta * variance.clamp_min(0).sqrt()

    def step(self, output: Tensor, t: Tensor, previous: Tensor, x: Tensor, *, eta: float) -> Gaussian:
        """p(x_previous | x_t) for the model output at (x, t) (Eq. 12); `previous` < 0 is the end of the chain."""
        x0, noise = self.clean(output, t, x)
        abar_previous, std = self._abar(previous), self.sigma(t, previous, eta)
        direction = (1 - abar_previous - std**2).clamp_min(0).sqrt() * noise
        return Gaussian(abar_previous.sqrt() * x0 + direction, std)

    def _abar(self, t: Tensor) -> Tensor:
        return torch.where(t < 0, self.final, self.alphas_cumprod[t.clamp_min(0)]).view(-1, 1, 1, 1)
