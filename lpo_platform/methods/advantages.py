"""From rewards to advantages: which samples were better than expected, and by how much.

Every function takes the rewards of a whole round, all processes', and computes in float64: integer rewards are not
truncated, and equal rewards have the advantage 0 instead of the rounding error divided by a small number.
"""

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor


def standardise(rewards: Tensor, *, eps: float = 1e-8) -> Tensor:
    """(R - mean R) / (std R + eps) over all rewards (N,), the population's std as in DDPO: (N,) float32."""
    values = rewards.double()
    return _scale(values, values.mean(), _spread(values), eps)


def standardise_groups(rewards: Tensor, groups: Tensor, *, spread: str = "group", eps: float = 1e-4) -> Tensor:
    """(R - mean of its group) / (std + eps), rewards (N,) of the groups named by the integers (N,): (N,) float32.

    A group is what was drawn for one sample id, prompt and condition. spread: whose population std divides, that of
    the `group` (GRPO) or of the whole `batch` (Flow-GRPO). A group of one, or of equals, has the advantage 0.
    Raises ValueError for another spread.
    """
    if spread not in ("group", "batch"):
        raise ValueError(f"spread={spread!r}: there are group, batch")
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
    """Advantages cut to [-limit, limit]."""
    return advantages.clamp(-limit, limit)


def _scale(values: Tensor, center: Tensor, std: Tensor, eps: float) -> Tensor:
    return torch.where(std > 0, (values - center) / (std + eps), 0).float()


class Tracker:
    """Statistics of the last `size` rewards of every key, over rounds (DDPO's per-prompt normalisation).

    A key with fewer than `minimum` rewards, this round's included, is scaled by the statistics of the round. Keys are
    integers made of the sample id: two prompts that a tokenizer cannot tell apart, or one prompt with two conditions,
    do not share a history. Its state belongs into checkpoints.
    """

    def __init__(self, size: int = 16, minimum: int = 16, *, eps: float = 1e-6) -> None:
        if not 1 <= minimum <= size:
            raise ValueError(f"minimum={minimum}, size={size}: needs 1 <= minimum <= size, or no history is ever used")
        self.size, self.minimum, self.eps = size, minimum, eps
        self.history: dict[int, deque[float]] = {}

    def __call__(self, rewards: Tensor, keys: Tensor) -> Tensor:
        """Advantages (N,) float32 of rewards (N,) with the keys (N,), which enter the history first."""
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
    """Population standard deviation; exactly 0 where all values are equal."""
    return (values - values[0]).std(correction=0)
