"""Rectified flow (arXiv:2209.03003) as a process: straight paths between data and noise, with shifted times.

The noise of a step is a choice. With d = s' - s < 0 for a step from s to s', velocity v, x0_hat = x - s v and
e_hat = x + (1 - s) v, a step is a Gaussian with these means and standard deviations:

    sde        x + d (v + eta^2 / (2 (1 - s)) e_hat)         eta sqrt(s / (1 - s)) sqrt(-d)
    posterior  (1 - s') x0_hat + sqrt(s'^2 - std^2) e_hat    eta s' sqrt(1 - (s' (1 - s) / (s (1 - s')))^2)
    cps        (1 - s') x0_hat + sqrt(s'^2 - std^2) e_hat    s' sin(pi eta / 2)
    constant   x + d (v + eta^2 / (2 s) e_hat)               eta sqrt(-d)

`sde` is that of Flow-GRPO (arXiv:2505.05470, eq. 9, whose a is eta): it adds noise and removes as much along the score
-e_hat / s. Where steps are long it leaves too much noise behind; `posterior`, the form of DDIM that holds for any
path, and `cps` (coefficients-preserving sampling, arXiv:2509.05952) do not. `constant` is that of DanceGRPO
(arXiv:2505.07818). With eta = 0 all of them are Euler's step.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion import noise as keyed
from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.diffusion.gaussian import Gaussian

Noise = Literal["sde", "posterior", "cps", "constant"]
OTHER_SCHEDULES = ("shift_terminal", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class Flow:
    """The process x_t = (1 - s) x_0 + s e with s = t / 1000. The model predicts the velocity e - x_0.

    Args:
        shift: moves the sampling times, s -> shift s / (1 + (shift - 1) s). Above 1, more of them have much noise.
        last: the last of the n times before it is moved. None is 1 / n, as FLUX's pipeline asks for; a number is
            where diffusers' own grid ends.
        noise: of a step with eta above 0.
    """

    num_train_steps = 1000

    def __init__(self, *, shift: float = 1.0, last: float | None = None, noise: Noise = "sde") -> None:
        if noise not in get_args(Noise):
            raise ValueError(f"noise={noise!r}: must be one of {', '.join(get_args(Noise))}")
        self.shift, self.last, self.noise, self.device = shift, last, noise, torch.device("cpu")

    @classmethod
    def from_config(
        cls, config: Mapping[str, object], tokens: int, *, own_grid: bool = False, noise: Noise = "sde"
    ) -> "Flow":
        """From a diffusers scheduler_config.json and the number of tokens of a picture, on which FLUX's shift depends.

        own_grid: whether the pipeline leaves the times to the scheduler, as that of Stable Diffusion 3 does. They then
        end at 1 / 1000, which a static shift has moved once already when it moves all of them.
        Raises ValueError on a scheduler or a form of its schedule that is not implemented.
        """
        if other := [name for name in OTHER_SCHEDULES if config.get(name)]:
            raise ValueError(f"{', '.join(other)}: only shifted sigmas are implemented")
        end = 1 / cls.num_train_steps
        if not config.get("use_dynamic_shifting"):
            shift = float(config["shift"])
            return cls(shift=shift, last=shifted(end, shift) if own_grid else None, noise=noise)
        (low, few), (high, many) = (
            (config[f"{name}_shift"], config[f"{name}_image_seq_len"]) for name in ("base", "max")
        )
        mu = low + (high - low) * (tokens - few) / (many - few)
        shift = math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu
        return cls(shift=shift, last=end if own_grid else None, noise=noise)

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
        u = s / (s + self.shift * (1 - s))
        place = num_steps * u if self.last is None else num_steps - (1 - u) / (1 - self.last) * (num_steps - 1)
        return self._time(place.round() - 1, num_steps)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for x0, noise (B, C, H, W) and t (B,)."""
        s = self._share(t)
        return (1 - s) * x0.float() + s * noise.float()

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model is trained to predict: the velocity."""
        return noise.float() - x0.float()

    def clean(self, output: Tensor, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates (x0_hat, e_hat) that follow from an output at x_t, (B, C, H, W) each."""
        s, output, x = self._share(t), output.float(), x.float()
        return x - s * output, x + (1 - s) * output

    def noise_share(self, t: Tensor) -> Tensor:
        """s itself, (B,)."""
        return self._share(t).flatten()

    def as_ddim(self, t: Tensor) -> Tensor:
        """The timestep of Stable Diffusion's DDIM with the nearest ratio of noise to signal, (B,) int64."""
        table = _of_ddim().to(t.device)
        return torch.bucketize(self.noise_share(t).contiguous(), (table[1:] + table[:-1]) / 2)

    def up_to(self, timestep: int) -> tuple[float, float]:
        """The time with the ratio of noise to signal of a timestep of Stable Diffusion's DDIM, and the share of
        training times up to it."""
        share = _of_ddim()[timestep].item()
        return self.num_train_steps * share, torch.special.ndtr(torch.tensor(share).logit()).item()

    def sigma(self, t: Tensor, previous: Tensor, eta: float) -> Tensor:
        """Standard deviation of the step t -> previous, (B, 1, 1, 1)."""
        s, ahead = self._share(t), self._share(previous)
        if self.noise == "sde":
            return eta * (s / (1 - self._bounded(s, ahead)) * (s - ahead)).sqrt()
        if self.noise == "constant":
            return eta * (s - ahead).sqrt()
        if self.noise == "cps":
            return ahead * math.sin(0.5 * math.pi * eta)
        if eta > 1:
            raise UserError(f"eta={eta}: noise=posterior has at most the noise of the next time; what works: 0 to 1")
        kept = ahead * (1 - s) / (s * (1 - ahead))
        return eta * ahead * (1 - kept**2).clamp_min(0).sqrt()

    def step(self, output: Tensor, t: Tensor, previous: Tensor, x: Tensor, *, eta: float) -> Gaussian:
        """p(x_previous | x_t) for the output at (x, t): Euler's step for eta = 0, else one with noise."""
        s, ahead, std = self._share(t), self._share(previous), self.sigma(t, previous, eta)
        clean, noise = self.clean(output, t, x)
        if self.noise in ("posterior", "cps"):
            return Gaussian((1 - ahead) * clean + (ahead**2 - std**2).clamp_min(0).sqrt() * noise, std)
        pull = 0.5 * eta**2 / (1 - self._bounded(s, ahead) if self.noise == "sde" else s)
        return Gaussian(x.float() + (ahead - s) * (output.float() + pull * noise), std)

    def _bounded(self, s: Tensor, ahead: Tensor) -> Tensor:
        """s in divisions by 1 - s. At s = 1, the first step, it is the next s, as in yifan123/flow_grpo."""
        return torch.where(s < 1, s, ahead)

    def _time(self, place: Tensor, num_steps: int) -> Tensor:
        """The sampling time at this place, 0 to num_steps. float64 makes the last one exactly 1000."""
        place = place.double()
        u = place / num_steps
        if self.last is not None:
            u = torch.where(place > 0, 1 - (1 - self.last) * (num_steps - place) / max(1, num_steps - 1), 0.0)
        return (self.num_train_steps * shifted(u, self.shift)).float()

    def _share(self, t: Tensor) -> Tensor:
        return (t.float() / self.num_train_steps).view(-1, 1, 1, 1)


def shifted(u: float | Tensor, shift: float) -> float | Tensor:
    """A time in [0, 1] moved by a shift."""
    return shift * u / (1 + (shift - 1) * u)


@cache
def _of_ddim() -> Tensor:
    """The share of noise at every timestep of Stable Diffusion's DDIM, (1000,)."""
    return DDIM().noise_share(torch.arange(1000))
