"""The noise schedules and the sampling times that a scheduler file of diffusers can name."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")


def alphas_cumprod(
    num_train_steps: int,
    schedule: str,
    beta_start: float,
    beta_end: float,
    *,
    trained_betas: Sequence[float] | None = None,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """abar_t of every training step, (num_train_steps,) float32, computed in float64.

    Args:
        num_train_steps: number of training steps.
        schedule: one of SCHEDULES.
        beta_start: the first beta; squaredcos_cap_v2 has none.
        beta_end: the last beta.
        trained_betas: every beta, in place of a schedule.
        zero_terminal_snr: whether the last abar is moved to 0 (arXiv:2305.08891, algorithm 1).

    Raises ValueError for another schedule and for another number of trained betas.
    """
    if trained_betas is not None:
        betas = torch.tensor(list(trained_betas), dtype=torch.float64)
        if len(betas) != num_train_steps:
            raise ValueError(f"trained_betas: {len(betas)} numbers for num_train_timesteps={num_train_steps}")
    elif schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_steps, dtype=torch.float64) ** 2
    elif schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, num_train_steps, dtype=torch.float64)
    elif schedule == "squaredcos_cap_v2":
        betas = _cosine(num_train_steps)
    else:
        raise ValueError(f"beta_schedule={schedule!r}: what works: {', '.join(SCHEDULES)}")
    abar = torch.cumprod(1 - betas, 0)
    return (_without_signal_at_the_end(abar) if zero_terminal_snr else abar).float()


def _cosine(num_train_steps: int) -> Tensor:
    """The betas of Nichol and Dhariwal's schedule (arXiv:2102.09672), at most 0.999."""
    places = torch.arange(num_train_steps + 1, dtype=torch.float64) / num_train_steps
    abar = ((places + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - abar[1:] / abar[:-1]).clamp_max(0.999)


def _without_signal_at_the_end(abar: Tensor) -> Tensor:
    """sqrt(abar) is moved and stretched, so that its last value is 0 and its first one stays."""
    roots = abar.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def sampling_times(num_train_steps: int, num_steps: int, spacing: str, offset: int) -> Tensor:
    """The timesteps of a chain of `num_steps`, ascending, (num_steps,) int64 (arXiv:2305.08891, table 2).

    offset: what `leading` adds to every timestep; the other spacings have none.
    """
    if spacing == "leading":
        return torch.arange(num_steps) * (num_train_steps // num_steps) + offset
    if spacing == "trailing":  # numpy's numbers, for some places lie between two timesteps
        places = np.arange(num_train_steps, 0, -num_train_steps / num_steps)[:num_steps].round()[::-1] - 1
    else:
        places = np.linspace(0, num_train_steps - 1, num_steps).round()
    return torch.from_numpy(places.astype(np.int64))
