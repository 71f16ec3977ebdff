"""Which row a run reads at each position: known from the seed, before anything is read or computed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from lpo_platform.diffusion import noise


@dataclass(frozen=True)
class Order:
    """An endless shuffled reading of rows, of which a run takes the first positions.

    A pass has every row once, in an order of its own. Batches, rounds and processes cut the positions; they do not
    change what stands at one.

    Args:
        rows: how many there are.
        positions: how many the run reads.
        seed: of the passes.
        own: (number, seed) -> the rows of a pass, of a source that is read from a stream; None shuffles all of them.
    """

    rows: int
    positions: int
    seed: int
    own: Callable[[int, int], Tensor] | None = None

    @classmethod
    def of(cls, source: Any, positions: int, seed: int) -> "Order":
        """The order in which a source is read."""
        return cls(len(source), positions, seed, getattr(source, "order", None))

    def row(self, position: int, skipped: int = 0) -> int:
        """The row at a position, or the row `skipped` places later in the same pass, which replaces unusable ones."""
        number, place = divmod(position, self.rows)
        return int(self._pass_of(number)[(place + skipped) % self.rows])

    @cached_property
    def reads(self) -> np.ndarray:
        """How often the run reads each row: (rows,)."""
        passes, rest = divmod(self.positions, self.rows)
        counts = np.full(self.rows, passes)
        counts[self._pass_of(passes)[:rest]] += 1
        return counts

    def again(self, position: int) -> bool:
        """Whether the run reads the row of this position again later."""
        return self.reads[self.row(position)] > position // self.rows + 1

    def distinct(self) -> np.ndarray:
        """The rows that the run reads, in the order in which it reads them first."""
        return self._pass_of(0)[: self.positions]

    def _pass_of(self, number: int) -> np.ndarray:
        return _pass(self.rows, self.seed, number, self.own)


@lru_cache(maxsize=4)
def _pass(rows: int, seed: int, number: int, own: Callable[[int, int], Tensor] | None) -> np.ndarray:
    if own is not None:
        return own(number, seed).numpy()
    return noise.permutation(rows, seed=seed, stream=f"order/{number}").numpy()
