"""The interface of `metrics.measures`: what is measured in drawn pictures beside the task's own scores."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """B pictures with what they were drawn from, all on the model's device.

    Attributes:
        images: (B, 3, H, W) in [0, 1], rounded to 8 bits as a PNG would be.
        captions: the caption of each.
        ids: the item of each.
        real: (B, 3, H, W), the pictures of the data; None where the data have captions only.
        target: the maps that the pictures should show; None without a task.
        control: (B, 3, H, W), the condition images; None without a task.
        maps: what the task detects in `images`; None without a task.
        drawn: False where `images` are the real ones themselves, for which only features() is called.
    """

    images: Tensor
    captions: list[str]
    ids: list[str]
    real: Tensor | None = None
    target: Tensor | None = None
    control: Tensor | None = None
    maps: Tensor | None = None
    drawn: bool = True


class Measure(Protocol):
    """One entry of metrics.measures. It is built from its arguments alone; `reward=` takes a node of the reward group.

    A name says what it is, "quality/fid". Every method may return {}. nan is an item of which nothing can be said.
    """

    def score(self, pictures: Pictures) -> dict[str, Tensor]:
        """Metric -> (B,), one number for each picture."""
        ...

    def features(self, pictures: Pictures) -> dict[str, Tensor]:
        """Name -> (B, F): the rows that a statistic of the whole set is made of. Asked of the real pictures, too."""
        ...

    def directions(self) -> dict[str, bool | None]:
        """Every metric of score() -> whether higher is better; None where it should not change."""
        ...

    def compare(
        self, before: dict[str, Tensor], after: dict[str, Tensor], real: dict[str, Tensor]
    ) -> dict[str, dict[str, Any]]:
        """Set metric -> its entry of result.json (statistics.entry), of the features on the CPU.

        Each (N K, F) for N items with K pictures: the first picture of every item, then the second of every item.
        real: (N, F), {} where the data has no pictures.
        """
        ...
