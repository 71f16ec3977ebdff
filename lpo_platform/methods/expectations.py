"""What a method declares about its runs, for lpo-plan, lpo-doctor and hardware.micro_batch=auto.

Everything has a default, so a method that declares nothing is planned and examined, too. Only an online method without
`examples` and `sampling_work` cannot be counted, and lpo-plan says so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

REFERENCE_DIFFERS = "the reference is not the policy's start: check what is frozen, and when"


class Samples(Protocol):
    """Training samples without values, on the meta device: their shapes are all that counting needs."""

    def batch(self, count: int) -> dict[str, Tensor]:
        """A micro-batch with `position`, the columns that the method needs, and `weight` where it reads preferences."""
        ...

    def column(self, name: str, count: int) -> Tensor:
        """One column, whether the method needs it or not: moments, tokens, text, control, loser, target, labels."""
        ...


@dataclass(frozen=True)
class FirstLoss:
    """What the first loss shows, against its closed form.

    Args:
        what: in words, with the number that was found.
        error: how far it is from the closed form.
        limit: the error that rounding explains.
        advice: what else would explain a larger one.
    """

    what: str
    error: float
    limit: float
    advice: str


def preference_loss(value: float) -> FirstLoss:
    """The first loss of a preference: -log sigmoid(0), while policy and reference agree."""
    what = f"the first loss is {value:.4f}; -log sigmoid(0) = 0.6931 while policy and reference agree"
    return FirstLoss(what, abs(value - math.log(2)), 0.02, REFERENCE_DIFFERS)


@dataclass(frozen=True)
class SamplingWork:
    """What one prompt of a round costs.

    Args:
        predictions: guided outputs of the model.
        more: what else is computed for it, to be counted by running it on the meta device, and how many times.
    """

    predictions: int
    more: tuple[tuple[int, Callable[[], object]], ...] = ()


@dataclass(frozen=True)
class ConstantRewards:
    """Rewards that were the same for everything in the first round.

    Args:
        what: which, in words.
        hopeless: whether nothing can be learned. A part of a reward that is rarely given may still come.
    """

    what: str
    hopeless: bool
