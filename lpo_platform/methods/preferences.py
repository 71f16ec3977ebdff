"""Which of K candidates is preferred, and by how much it must be (arXiv:2502.01051), as pure functions."""

from typing import Literal, get_args

import torch
from torch import Tensor

Rule = Literal["constant", "linear", "sigma", "variance"]


def thresholds(rule: Rule, low: float, high: float, t: Tensor, sigma: Tensor) -> Tensor:
    """The smallest p_w - p_l that each sampling step accepts: timesteps (T,) and their std (T,) -> (T,).

    It rises with the step's noise: th = low + (high - low) (v - min v) / (max v - min v), with v = sigma (the release),
    sigma^2 (`variance`) or t (`linear`). `constant` is high everywhere. Raises ValueError for an unknown rule.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"threshold rule {rule!r}: must be one of {', '.join(get_args(Rule))}")
    if rule == "constant":
        return torch.full_like(sigma, high)
    v = {"linear": t.to(sigma), "sigma": sigma, "variance": sigma**2}[rule]
    return low + (high - low) * (v - v.min()) / (v.max() - v.min()).clamp_min(torch.finfo(v.dtype).tiny)


def select(scores: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Selects a pair among K candidates: scores (K, ...) and thresholds -> winner, loser and validity, (...) each.

    Winner and loser have the largest and the smallest score. With (p_w, p_l) = softmax(s_w, s_l), the pair is valid
    where p_w - p_l = tanh((s_w - s_l) / 2) > threshold.
    """
    best, winner = scores.float().max(0)
    worst, loser = scores.float().min(0)
    return winner, loser, torch.tanh((best - worst) / 2) > threshold
