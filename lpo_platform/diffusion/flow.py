"""Rectified flow (arXiv:2209.03003) as a process: straight paths between data and noise, with FLUX's shifted times."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lpo_platform.diffusion import noise as keyed
from lpo_platform.diffusion.gaussian import Gaussian

OTHER_SCHEDULES = ("shift_terminal", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class Flow:
    """The process x_t = (1 - s) x_0 + s e with s = t / 1000. The model predicts the velocity e - x_0.

    Args:
        shift: moves the sampling times, s -> shift s / (1 + (shift - 1) s). Above 1, more of them have much noise.
    """

    num_train_steps = 1000

    def __init__(self, *, shift: float = 1.0) -> None:
        self.shift, self.device = shift, torch.device("cpu")

    @classmethod
    def from_config(cls, config: Mapping[str, object], tokens: int) -> "Flow":
        """From a diffusers scheduler_config.json and the number of tokens of a picture, on which FLUX's shift depends.

        Raises ValueError on a scheduler or a form of its schedule that is not implemented.
        """
        if other := [name for name in OTHER_SCHEDULES if config.get(name)]:
            raise ValueError(f"{', '.join(other)}: only shifted sigmas are implemented")
        if not config.get("use_dynamic_shifting"):
            return cls(shift=float(config["shift"]))
        (low, few), (high, many) = (
            (config[f"{name}_shift"], config[f"{name}_image_seq_len"]) for name in ("base", "max")
        )
        mu = low + (high - low) * (tokens - few) / (many - few)
        return cls(shift=math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu)

    def to(self, device: torch.device | str) -> "Flow":
        self.device = torch.device(device)
        return self

    def training_times(self, positions: Sequence[keyed.Key], *, seed: int, stream: str) -> Tensor:
        """Logit-normal times (arXiv:2403.03206), not shifted, as in diffusers' FLUX trainers: (B,) in (0, 1000)."""
        return self.num_train_steps * keyed.normal(positions, (), seed=seed, stream=stream).sigmoid()

    def times(self, num_steps: int) -> Tensor:
        """The sampling times, descending from 1000: (num_steps,)."""
        if not 1 <= num_steps <= self.num_train_steps:
            raise ValueError(f"num_steps={num_steps}: must lie in [1, {self.num_train_steps}]")
        return self._time(torch.arange(num_steps, 0, -1, device=self.device), num_steps)

    def previous(self, t: Tensor, num_steps: int, *, eta: float) -> Tensor:
        """The time that a step from t leads to, (B,): the next of the sampling times, 0 after the last."""
        s = t.double() / self.num_train_steps
        place = num_steps * s / (s + self.shift * (1 - s))
        return self._time(place.round() - 1, num_steps)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for x0, noise (B, C, H, W) and t (B,)."""
        s = self._share(t)
        return (1 - s) * x0.float() + s * noise.float()

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model is trained to predict: the velocity."""
        return noise.float() - x0.float()

    def clean(self, output: Tensor, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x0_hat, e_hat) that an output at x_t stands for."""
        s, output, x = self._share(t), output.float(), x.float()
        return x - s * output, x + (1 - s) * output

    def sigma(self, t: Tensor, previous: Tensor, eta: float) -> Tensor:
        """Standard deviation of the step t -> previous, (B, 1, 1, 1)."""
        s, ahead = self._share(t), self._share(previous)
        return eta * (s / (1 - self._bounded(s, ahead)) * (s - ahead)).sqrt()

    def step(self, output: Tensor, t: Tensor, previous: Tensor, x: Tensor, *, eta: float) -> Gaussian:
        """p(x_previous | x_t) for the output at (x, t): Euler's step for eta = 0, else that of Flow-GRPO.

        The SDE of Flow-GRPO (arXiv:2505.05470, eq. 9, whose a is eta) adds noise of eta sqrt(s / (1 - s)) per unit of
        time and removes as much along the score -e_hat / s, so that the distribution of x_t is the same at every t.
        """
        s, ahead = self._share(t), self._share(previous)
        pull = 0.5 * eta**2 / (1 - self._bounded(s, ahead))
        mean = x.float() + (ahead - s) * (output.float() + pull * self.clean(output, t, x)[1])
        return Gaussian(mean, self.sigma(t, previous, eta))

    def _bounded(self, s: Tensor, ahead: Tensor) -> Tensor:
        """s in divisions by 1 - s. At s = 1, the first step, it is the next s, as in yifan123/flow_grpo."""
        return torch.where(s < 1, s, ahead)

    def _time(self, place: Tensor, num_steps: int) -> Tensor:
        """The sampling time at this place, 0 to num_steps. float64 makes the last one exactly 1000."""
        u = place.double() / num_steps
        return (self.num_train_steps * self.shift * u / (1 + (self.shift - 1) * u)).float()

    def _share(self, t: Tensor) -> Tensor:
        return (t.float() / self.num_train_steps).view(-1, 1, 1, 1)
