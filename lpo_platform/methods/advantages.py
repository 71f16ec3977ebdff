"""From rewards to advantages: which samples were better than expected, and by how much.

Every function takes the rewards of a whole round, of all processes, and computes in float64. Integer rewards are not
truncated, and equal rewards have an advantage of exactly 0 instead of a rounding error divided by a small number.
"""

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor


def standardise(rewards: Tensor, *, eps: float = 1e-8) -> Tensor:
    """(R - mean R) / (std R + eps) over all rewards, with the population's std as in DDPO: (N,) -> (N,) float32."""
    values = rewards.double()
    return _scale(values, values.mean(), _spread(values), eps)


def standardise_groups(rewards: Tensor, groups: Tensor, *, spread: str = "group", eps: float = 1e-4) -> Tensor:
    """(R - mean of its group) / (std + eps): rewards (N,), numbers of their groups (N,) -> (N,) float32.

    A group holds the pictures of one prompt and condition. A group of one picture, or of equal rewards, has the
    advantage 0.

    Args:
        rewards: (N,).
        groups: (N,) integers; equal ones name the same group.
        spread: divides by the std of the `group` (GRPO, arXiv:2402.03300) or of the whole `batch` (arXiv:2505.05470).
        eps: added to the std; 1e-4 as in yifan123/flow_grpo.

    Raises:
        ValueError: spread is something else.
    """
    if spread not in ("group", "batch"):
        raise ValueError(f"spread={spread!r}: must be group or batch")
    values = rewards.double()
    _, place, count = torch.unique(groups, return_inverse=True, return_counts=True)

    def mean(of: Tensor) -> Tensor:
        return (torch.zeros_like(count, dtype=of.dtype).index_add_(0, place, of) / count)[place]

    # around a member, so that equal rewards have a spread of exactly 0
    first = torch.zeros_like(count, dtype=values.dtype).scatter_(0, place, values)[place]
    center = first + mean(values - first)
    std = mean((values - center).square()).sqrt() if spread == "group" else _spread(values)
    return _scale(values, center, std, eps)


def clip(advantages: Tensor, limit: float) -> Tensor:
    """Clips advantages to [-limit, limit]."""
    return advantages.clamp(-limit, limit)


def _scale(values: Tensor, center: Tensor, std: Tensor, eps: float) -> Tensor:
    return torch.where(std > 0, (values - center) / (std + eps), 0).float()


class Tracker:
    """Statistics of the last rewards of every prompt, over rounds (per-prompt tracking of kvablack/ddpo-pytorch).

    Keys are integers made of the sample id, so that two prompts that a tokenizer cannot tell apart, or one prompt with
    two conditions, do not share a history. The state belongs into checkpoints.

    Args:
        size: rewards of a key that are kept. Published: 16 or 32.
        minimum: with fewer rewards, this round's included, a key uses the statistics of the round. Published: 16.
        eps: added to the std; 1e-6 as released.
    """

    def __init__(self, size: int = 16, minimum: int = 16, *, eps: float = 1e-6) -> None:
        if not 1 <= minimum <= size:
            raise ValueError(f"minimum={minimum}, size={size}: must satisfy 1 <= minimum <= size")
        self.size, self.minimum, self.eps = size, minimum, eps
        self.history: dict[int, deque[float]] = {}

    def __call__(self, rewards: Tensor, keys: Tensor) -> Tensor:
        """Adds the rewards (N,) to the histories of their keys (N,) and returns the advantages, (N,) float32."""
        values = rewards.double().cpu()
        for key, value in zip(keys.tolist(), values.tolist(), strict=True):
            self.history.setdefault(key, deque(maxlen=self.size)).append(value)
        center, std = (torch.zeros_like(values) + of for of in (values.mean(), _spread(values)))
        for place, key in enumerate(keys.tolist()):
            if len(self.history[key]) >= self.minimum:
                past = torch.tensor(self.history[key], dtype=torch.float64)
                center[place], std[place] = past.mean(), _spread(past)
        return _scale(values, center, std, self.eps).to(rewards.device)

    def state_dict(self) -> dict[int, list[float]]:
        return {key: list(past) for key, past in self.history.items()}

    def load_state_dict(self, state: Mapping[int, list[float]]) -> None:
        self.history = {key: deque(past, maxlen=self.size) for key, past in state.items()}


def _spread(values: Tensor) -> Tensor:
    """The standard deviation of the population. It is exactly 0 where all values are equal."""
    return (values - values[0]).std(correction=0)
