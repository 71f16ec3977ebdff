"""The empty halves of a `Measure`: most of them speak of every picture by itself, or of the whole set alone."""

from typing import Any

from torch import Tensor

from lpo_platform.evaluation.measure import Pictures


class OfItems:
    """A `Measure` without statistics of the set: subclasses write `score` and `directions`."""

    def features(self, pictures: Pictures) -> dict[str, Tensor]:
        return {}

    def compare(
        self, before: dict[str, Tensor], after: dict[str, Tensor], real: dict[str, Tensor]
    ) -> dict[str, dict[str, Any]]:
        return {}


class OfSets:
    """A `Measure` of the set alone: subclasses write `features` and `compare`."""

    def score(self, pictures: Pictures) -> dict[str, Tensor]:
        return {}

    def directions(self) -> dict[str, bool | None]:
        return {}
