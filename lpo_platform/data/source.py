"""The contract of a data option: two splits of captioned pictures and, if there is one, an independent judge."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.data.reading_report import Findings
from lpo_platform.data.tables.decode import Unusable

ENOUGH = 6  # held-out items from which on evaluation/significance.py gives a verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One captioned picture, with what the data have annotated.

    Attributes:
        id: the name of the sample, which keys the noise of evaluations.
        image: (3, H, W) float32 in [0, 1]; None where the data have captions only.
        caption: the first caption.
        captions: all captions, where there are several.
        condition: (3, H, W) in [0, 1], the control image of the picture.
        loser: (3, H, W) in [0, 1], the control image of a worse picture.
        labels: an item of the task's maps: (1, H, W) label numbers, or (P, 17, 3) keypoints.
        prompt: what training tells the model, where it is more than the caption.
    """

    id: str
    image: Tensor | None
    caption: str
    captions: tuple[str, ...] = ()
    condition: Tensor | None = None
    loser: Tensor | None = None
    labels: Tensor | None = None
    prompt: str | None = None

    @property
    def told(self) -> str:
        """The text that training gives the model: the prompt if there is one, else the caption. Scores use the
        caption."""
        return self.caption if self.prompt is None else self.prompt


class Source(Protocol):
    """One split. Items are deterministic and made in worker processes.

    A split that is read from a stream has `order(number, seed)`, the rows of a pass; the rows of others are shuffled.
    """

    fingerprint: str
    """sha256 hex of everything that determines the samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Sample:
        """Raises Unusable for a row that turns out to be unreadable."""
        ...

    def caption(self, i: int) -> str:
        """The caption of item i, without its picture."""
        ...


def too_few(held_out: int, works: str) -> str:
    """A message for a split that is too small for any verdict; empty where it is large enough."""
    if held_out >= ENOUGH:
        return ""
    return f"{held_out} held out are too few for a verdict, which takes {ENOUGH}; what works: {works}"


def first(source: Source, count: int) -> list[Sample]:
    """Up to `count` samples from the start of a split, without those that cannot be used, which are reported.

    Raises UserError where a split has rows and none can be used.
    """
    findings = Findings()
    found = list(itertools.islice(_usable(source, findings), count))
    if findings.skipped:
        log.warning("%s", findings.line())
    if count and len(source) and not found:
        raise UserError(f"none of {len(source)} held-out rows can be used [{findings.line()}]")
    return found


def _usable(source: Source, findings: Findings) -> Iterator[Sample]:
    for i in range(len(source)):
        try:
            yield source[i]
        except Unusable as error:
            findings.skip(error.reason, error.where)


class Data(Protocol):
    """A data option, as `instantiate(cfg.data, resolution=...)` builds it."""

    gives: ClassVar[tuple[str, ...]] = ()
    """What a method can read here: "pictures", "prompts" or "pairs"."""
    toy: ClassVar[bool] = False
    """Whether the pictures are toy scenes, in which the embedded detectors and judges find something."""
    draws: ClassVar[bool] = False
    """Whether the starting model draws its pictures, which are kept: it then has `prompts`, `open` and `few`, as
    prepared/own_pairs.py has them."""
    paths: ClassVar[dict[str, str]] = {}
    """Arguments that name what must exist, and of what kind: "file", "folder" or "hub id"."""

    train: Source
    test: Source

    @classmethod
    def count(cls, settings: Mapping[str, Any]) -> int | None:
        """How many rows there are to train on, as far as that is known without reading them. It may be left out."""
        ...


@dataclass(frozen=True)
class Preference:
    """One row of preference data: n pictures of one prompt. Pick-a-Pic has n = 2.

    Attributes:
        id: the name of the row.
        caption: the prompt.
        images: (n, 3, H, W) float32 in [0, 1].
        labels: (n, n); labels[i, j] is the probability that i is preferred to j, 0.5 for a tie and on the diagonal.
        gaps: aesthetic, CLIP and VQA score of the first picture minus those of the second; None where unknown.
    """

    id: str
    caption: str
    images: Tensor
    labels: Tensor
    gaps: tuple[float, float, float] | None = None


class Preferences(Protocol):
    """One split of preference data.

    Attributes:
        weights: (N,), how much each row counts; None for equally.
    """

    fingerprint: str
    weights: Tensor | None

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Preference:
        """Raises Unusable for a row that turns out to be unreadable."""
        ...


def alignment_of(data: Data, images: Tensor, captions: list[str]) -> Tensor | None:
    """How well pictures (B, 3, H, W) in [0, 1] show what B captions say: (B,) in [0, 1].

    `data.alignment` grades them. None where data have no such method, because no independent judge exists.
    """
    grade = getattr(data, "alignment", None)
    return None if grade is None else grade(images, captions)


def guards_of(data: Data, images: Tensor, captions: list[str]) -> dict[str, Tensor]:
    """Further measurements of pictures by `data.guards`: name -> (B,), nan where undefined; {} without such a method.

    Higher is better, except for names that begin with "guard/", which a method should not change.
    """
    known = getattr(data, "guards", None)
    return {} if known is None else known(images, captions)
