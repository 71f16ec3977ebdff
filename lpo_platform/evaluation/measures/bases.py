"""Bases for the two usual kinds of `Measure`: one grades every picture by itself, the other the whole set only."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lpo_platform.evaluation.measure import Pictures


class OfItems:
    """Base of a `Measure` that has no statistics of the set: a subclass has `score` and `directions`."""

    def features(self, pictures: Pictures) -> dict[str, Tensor]:
        return {}

    def compare(
        self, before: dict[str, Tensor], after: dict[str, Tensor], real: dict[str, Tensor]
    ) -> dict[str, dict[str, Any]]:
        return {}


class OfSets:
    """Base of a `Measure` of the set only: a subclass has `features` and `compare`."""

    def score(self, pictures: Pictures) -> dict[str, Tensor]:
        return {}

    def directions(self) -> dict[str, bool | None]:
        return {}


def pictures_of(rows: int, images_per_item: int) -> NDArray[np.int64]:
    """Returns (K, 2 N) numbers of the rows of `before` and `after`, one after the other.

    Column i holds those of item i before, column N + i those of the same item after. Each side has the first picture of
    every item before the second.
    """
    sides = np.arange(rows).reshape(2, images_per_item, -1)
    return np.concatenate(list(sides), axis=1)
