"""What a data option offers: two splits of captioned pictures, held out by content, and perhaps a judge."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lpo_platform.data.tables.decode import Unusable


@dataclass(frozen=True)
class Sample:
    """One captioned picture; `image` is (3, H, W) float32 in [0, 1], None where the data has captions only.

    captions: all of them where there are several, `caption` is the first. What the data may have annotated:
    condition, loser: (3, H, W) in [0, 1], control images of the picture and of a worse one. labels: an item of the
    task's maps, (1, H, W) label numbers or (P, 17, 3) keypoints.
    """

    id: str
    image: Tensor | None
    caption: str
    captions: tuple[str, ...] = ()
    condition: Tensor | None = None
    loser: Tensor | None = None
    labels: Tensor | None = None


class Source(Protocol):
    """One split. Items are deterministic and cheap enough to be made inside a DataLoader."""

    fingerprint: str
    """sha256 hex of everything that determines the samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Sample:
        """Raises data.cells.Unusable for a row that turns out to be unreadable."""
        ...

    def caption(self, i: int) -> str:
        """The caption of item i, without its picture."""
        ...


def first(source: Source, count: int) -> list[Sample]:
    """Up to `count` samples from the start of a split, without those whose pictures cannot be read."""
    return list(itertools.islice(_readable(source), count))


def _readable(source: Source) -> Iterator[Sample]:
    for i in range(len(source)):
        with contextlib.suppress(Unusable):
            yield source[i]


class Data(Protocol):
    """What the data group builds: `instantiate(cfg.data, resolution=...)`."""

    train: Source
    test: Source

    def alignment(self, images: Tensor, captions: list[str]) -> Tensor | None:
        """(B, 3, H, W) in [0, 1] and B captions -> (B,) in [0, 1]; None where no independent judge exists."""
        ...

    def guards(self, images: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """What else is known of pictures: name -> (B,), nan where it is undefined; {} where nothing is.

        Higher is better, but for names that begin with "guard/": a method should leave those where they are.
        """
        ...


@dataclass(frozen=True)
class Preference:
    """One row of preference data: n pictures of one prompt, n = 2 for Pick-a-Pic.

    images: (n, 3, H, W) float32 in [0, 1]. labels: (n, n), labels[i, j] is the probability that i is preferred to j,
    0.5 for a tie and on the diagonal. weight: 1 / the number of rows with this prompt, 1 where the data does not say.
    gaps: aesthetic, CLIP and VQA score of the first picture less that of the second, None where unknown.
    """

    id: str
    caption: str
    images: Tensor
    labels: Tensor
    weight: float = 1.0
    gaps: tuple[float, float, float] | None = None


class Preferences(Protocol):
    """One split of preference data."""

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Preference:
        """Raises data.cells.Unusable for a row that turns out to be unreadable."""
        ...
