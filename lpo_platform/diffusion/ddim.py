"""DDIM (Song et al., arXiv:2010.02502) as a process: schedule, forward noising and stochastic reverse steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lpo_platform.diffusion import noise as keyed
from lpo_platform.diffusion.gaussian import Gaussian
from lpo_platform.diffusion.schedule import SPACINGS, alphas_cumprod, sampling_times

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class DDIM:
    """The process x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e, in float32 whatever the model runs in.

    Args:
        num_train_steps: number of training steps.
        beta_start: the first beta of the schedule.
        beta_end: the last beta of the schedule.
        beta_schedule: one of schedule.SCHEDULES.
        trained_betas: every beta, in place of a schedule.
        zero_terminal_snr: whether the last training step has no signal left.
        prediction: what the model's output is: the noise, v, or the sample itself.
        spacing: which timesteps a chain visits, one of schedule.SPACINGS.
        steps_offset: what `leading` spacing adds to every timestep.
        final_alpha_is_one: whether a deterministic chain ends at abar = 1; otherwise it ends at that of step 0.
        clip: bound on the estimated x_0 of a step; None for no bound.
        half: noises in this precision instead of float32, as CPO was trained, which makes sigma exactly 0 at t = 0
            and 1 in bfloat16 (methods/README.md, "CPO").
    """

    def __init__(
        self,
        *,
        num_train_steps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: Sequence[float] | None = None,
        zero_terminal_snr: bool = False,
        prediction: str = "epsilon",
        spacing: str = "leading",
        steps_offset: int = 1,
        final_alpha_is_one: bool = False,
        clip: float | None = None,
        half: torch.dtype | None = None,
    ) -> None:
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction_type={prediction!r}: what works: {', '.join(PREDICTIONS)}")
        if spacing not in SPACINGS:
            raise ValueError(f"timestep_spacing={spacing!r}: what works: {', '.join(SPACINGS)}")
        if steps_offset < 0:
            raise ValueError(f"steps_offset={steps_offset}: must be at least 0")
        self.alphas_cumprod = alphas_cumprod(
            num_train_steps, beta_schedule, beta_start, beta_end,
            trained_betas=trained_betas, zero_terminal_snr=zero_terminal_snr,
        )  # fmt: skip
        if self.alphas_cumprod[-1] == 0 and prediction == "epsilon" and spacing != "leading":
            raise ValueError(
                f"timestep_spacing={spacing!r} with rescale_betas_zero_snr starts where x_t has no signal, and "
                "prediction_type='epsilon' does not determine x_0 there; what works: 'v_prediction'"
            )
        self.final = torch.ones(()) if final_alpha_is_one else self.alphas_cumprod[0].clone()
        self.num_train_steps, self.prediction, self.steps_offset = num_train_steps, prediction, steps_offset
        self.spacing, self.clip, self.half = spacing, clip, half
        self._times: dict[int, Tensor] = {}  # on the device, for to copy them there in every step would wait for a GPU

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, half: torch.dtype | None = None) -> "DDIM":
        """From the configuration of a DDIMScheduler of diffusers; a field that is not there has that class's default.

        Raises ValueError, which names the field, for what is not implemented.
        """
        if config.get("thresholding"):
            raise ValueError("thresholding: dynamic thresholding is for models of pixels, not of latents")
        clips = config.get("clip_sample", True)
        return cls(
            num_train_steps=int(config.get("num_train_timesteps", 1000)),
            beta_start=float(config.get("beta_start", 0.0001)),
            beta_end=float(config.get("beta_end", 0.02)),
            beta_schedule=str(config.get("beta_schedule", "linear")),
            trained_betas=config.get("trained_betas"),
            zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
            prediction=str(config.get("prediction_type", "epsilon")),
            spacing=str(config.get("timestep_spacing", "leading")),
            steps_offset=int(config.get("steps_offset", 0)),
            final_alpha_is_one=bool(config.get("set_alpha_to_one", True)),
            clip=float(config.get("clip_sample_range", 1.0)) if clips else None,
            half=half,
        )

    def to(self, device: torch.device | str) -> "DDIM":
        self.alphas_cumprod, self.final = self.alphas_cumprod.to(device), self.final.to(device)
        self._times.clear()
        return self

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    def training_times(self, positions: Sequence[keyed.Key], *, seed: int, stream: str) -> Tensor:
        """t ~ U{0, ..., T-1}, (B,) on the CPU."""
        return keyed.integers(positions, self.num_train_steps, seed=seed, stream=stream)

    def times(self, num_steps: int) -> Tensor:
        """The sampling timesteps, descending: (num_steps,) int64 on the tables' device."""
        if not 1 <= num_steps <= self.num_train_steps:
            raise ValueError(f"num_steps={num_steps}: must lie in [1, {self.num_train_steps}]")
        if num_steps in self._times:
            return self._times[num_steps]
        ascending = sampling_times(self.num_train_steps, num_steps, self.spacing, self.steps_offset)
        if ascending[-1] >= self.num_train_steps:
            most = self.num_train_steps - 1
            raise ValueError(
                f"num_steps={num_steps}: with steps_offset={self.steps_offset} the first timestep would be "
                f"{ascending[-1].item()}, and the last one of training is {most}; take fewer steps"
            )
        with torch.inference_mode(False):
            self._times[num_steps] = ascending.flip(0).to(self.device)
        return self._times[num_steps]

    def previous(self, t: Tensor, num_steps: int, *, eta: float) -> Tensor:
        """The timestep that a step from t leads to, (B,).

        A deterministic chain ends below 0, at the schedule's final abar. A chain with noise ends at 0, because abar = 1
        would leave its last step without a density (as in Kwai-Kolors/LPO and kvablack/ddpo-pytorch).
        """
        before = t - self.num_train_steps // num_steps
        return before.clamp_min(0) if eta > 0 else before

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for x0, noise (B, C, H, W) and t (B,)."""
        abar, x0, noise = (part.to(self.half or torch.float32) for part in (self._abar(t), x0, noise))
        return (abar.sqrt() * x0 + (1 - abar).sqrt() * noise).float()

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model is trained to predict: the noise, x0, or v = sqrt(abar) e - sqrt(1 - abar) x0."""
        if self.prediction == "epsilon":
            return noise.to(self.half or torch.float32).float()
        if self.prediction == "sample":
            return x0.float()
        abar = self._abar(t)
        return abar.sqrt() * noise.float() - (1 - abar).sqrt() * x0.float()

    def clean(self, output: Tensor, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates (x0_hat, e_hat) that follow from an output at x_t, (B, C, H, W) each."""
        abar, output, x = self._abar(t), output.float(), x.float()
        if self.prediction == "epsilon":
            return (x - (1 - abar).sqrt() * output) / abar.sqrt(), output
        if self.prediction == "sample":
            return output, (x - abar.sqrt() * output) / (1 - abar).sqrt()
        return abar.sqrt() * x - (1 - abar).sqrt() * output, abar.sqrt() * output + (1 - abar).sqrt() * x

    def noise_share(self, t: Tensor) -> Tensor:
        """The share of noise, (B,), of a straight path at the same ratio of noise to signal."""
        abar = self._abar(t).flatten()
        noise = (1 - abar).sqrt()
        return noise / (abar.sqrt() + noise)

    def as_ddim(self, t: Tensor) -> Tensor:
        return t

    def up_to(self, timestep: int) -> tuple[float, float]:
        """The timestep itself, and the share of training times up to it."""
        return timestep, (timestep + 1) / self.num_train_steps

    def sigma(self, t: Tensor, previous: Tensor, eta: float) -> Tensor:
        """Standard deviation of a step (arXiv:2010.02502, eq. 16), (B, 1, 1, 1). eta = 1 is ancestral sampling."""
        abar, abar_previous = self._abar(t), self._abar(previous)
        variance = (1 - abar_previous) / (1 - abar) * (1 - abar / abar_previous)
        return eta * variance.clamp_min(0).sqrt()

    def step(self, output: Tensor, t: Tensor, previous: Tensor, x: Tensor, *, eta: float) -> Gaussian:
        """p(x_previous | x_t) for the output at (x, t) (arXiv:2010.02502, eq. 12). `previous` < 0 ends the chain."""
        x0, noise = self.clean(output, t, x)
        x0 = x0 if self.clip is None else x0.clamp(-self.clip, self.clip)
        abar_previous, std = self._abar(previous), self.sigma(t, previous, eta)
        direction = (1 - abar_previous - std**2).clamp_min(0).sqrt() * noise
        return Gaussian(abar_previous.sqrt() * x0 + direction, std)

    def _abar(self, t: Tensor) -> Tensor:
        return torch.where(t < 0, self.final, self.alphas_cumprod[t.clamp_min(0)]).view(-1, 1, 1, 1)
