"""The numbers that a setting can be, as types. The check of a command line reads them where a class declares them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`.

    Args:
        low, high: the ends; infinite for none.
        above: whether low itself is outside.
        below: whether high itself is outside.
        why: the reason, for the message.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    why: str = ""

    def __contains__(self, number: float) -> bool:
        over = self.low < number if self.above else self.low <= number
        return over and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        if not math.isinf(self.high):
            text = f"must lie in {'(' if self.above else '['}{self.low}, {self.high}{')' if self.below else ']'}"
        elif self.above:
            text = f"must be above {self.low}"
        else:
            text = "must not be negative" if self.low == 0 else f"must be at least {self.low}"
        return f"{text}; {self.why}" if self.why else text


# Written out, because the check reads them without importing anything.
Count = Annotated[int, Range(1)]
Several = Annotated[int, Range(2)]
Whole = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 4294967295)]  # numpy's generators take 32 bits
SamplingSteps = Annotated[int, Range(1, 999, why="models are trained at 1000 timesteps")]
Timestep = Annotated[int, Range(0, 999)]
Quality = Annotated[int, Range(1, 95)]  # of a JPEG; above, a file grows without looking better
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Part = Annotated[float, Range(0, 1, above=True)]  # of a whole, and never nothing
Decay = Annotated[float, Range(0, 1, below=True)]  # of a moving average
Between = Annotated[float, Range(0, 1, above=True, below=True)]  # neither nothing nor the whole
Guidance = Annotated[float, Range(0, why="0 to 1 are no guidance")]
