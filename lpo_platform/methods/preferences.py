"""Which of K candidates is preferred, and by how much it has to be (arXiv:2502.01051). Pure functions."""

from typing import Literal, get_args

import torch
from torch import Tensor

Rule = Literal["constant", "linear", "sigma", "variance"]


def thresholds(rule: Rule, low: float, high: float, t: Tensor, sigma: Tensor) -> Tensor:
    """The preference gap that each sampling step asks for, in [low, high]: (T,) for its timesteps and std (T,).

    It rises with the step's noise: th = low + (high - low) (v - min v) / (max v - min v), with v = sigma (LPO's),
    sigma^2 or t. `constant` is high. Raises ValueError for an unknown rule.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"threshold rule {rule!r}: there are {', '.join(get_args(Rule))}")
    if rule == "constant":
        return torch.full_like(sigma, high)
    v = {"linear": t.to(sigma), "sigma": sigma, "variance": sigma**2}[rule]
    return low + (high - low) * (v - v.min()) / (v.max() - v.min()).clamp_min(torch.finfo(v.dtype).tiny)


def select(scores: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Winner, loser and validity of each prompt: scores (K, ...), threshold broadcast to (...) -> three of (...).

    Winner and loser have the largest and the smallest of K scores. The pair is valid where
    softmax(s_w, s_l) = (p_w, p_l) has p_w - p_l = tanh((s_w - s_l) / 2) > threshold.
    """
    best, winner = scores.float().max(0)
    worst, loser = scores.float().min(0)
    return winner, loser, torch.tanh((best - worst) / 2) > threshold
