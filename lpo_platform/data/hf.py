"""Any data set that `datasets` reads, streamed from a model hub or from a folder: no file is downloaded as a whole."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count
from lpo_platform.config.paths import is_hub_id
from lpo_platform.data.source import ENOUGH, Sample, too_few
from lpo_platform.data.tables.decode import Unusable, picture, square, texts
from lpo_platform.diffusion import noise
from lpo_platform.runs.files import file_digest, fingerprint

if TYPE_CHECKING:
    from datasets import IterableDataset

log = logging.getLogger(__name__)

NO_CAPTION = "row without a caption"
Row = dict[str, Any]


class StreamedRows:
    """Rows of a stream by number. Rows of one window are kept together, so that they may be read in any order.

    Attributes:
        window: how many of them. A run reads a window to its end, in an order of its own, before the next one.
    """

    def __init__(self, stream: Stream, first: int, count: int, window: int, resolution: int) -> None:
        self.stream, self.first, self.count, self.window, self.resolution = stream, first, count, window, resolution
        self.fingerprint = fingerprint("streamed", Image.__version__, resolution, first, count, stream.identity)
        self._kept: OrderedDict[int, Row] = OrderedDict()
        self._rows: Iterator[Row] | None = None
        self._next, self._process = 0, os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """For a worker, which opens the stream itself."""
        return self.__dict__ | {"_kept": OrderedDict(), "_rows": None}

    def __len__(self) -> int:
        return self.count

    def order(self, number: int, seed: int) -> Tensor:
        """The rows of a pass: one window after the other, each in an order of its own."""
        starts = range(0, self.count, self.window)
        sizes = [min(self.window, self.count - start) for start in starts]
        drawn = [
            start + noise.permutation(size, seed=seed, stream=f"order/{number}/{start}")
            for start, size in zip(starts, sizes, strict=True)
        ]
        return torch.cat(drawn)

    def caption(self, i: int) -> str:
        return self._captions(i)[0]

    def __getitem__(self, i: int) -> Sample:
        """Raises Unusable for a row without a caption or with a broken picture."""
        captions, row = self._captions(i), self._row(i)
        where = f"row {self.first + i} of {self.stream.path}"
        shown = picture(stored(row[self.stream.image]), where, side=self.resolution)
        return Sample(
            id=f"{self.stream.split}-{self.first + i:09d}",
            image=square(shown.image, self.resolution, Image.Resampling.BICUBIC),
            caption=captions[0],
            captions=captions if len(captions) > 1 else (),
        )

    def _captions(self, i: int) -> tuple[str, ...]:
        found = texts(self._row(i)[self.stream.caption])
        if not found:
            raise Unusable(f"row {self.first + i} of {self.stream.path}", NO_CAPTION)
        return found

    def _row(self, i: int) -> Row:
        if not 0 <= i < self.count:
            raise IndexError(f"there are {self.count} rows, number {i} was asked for")
        if i not in self._kept:
            self._read(i)
        return self._kept[i]

    def _read(self, i: int) -> None:
        """Reads on to row i, or from the start of its window where that lies behind or far ahead."""
        begin = i - i % self.window
        if self._process != os.getpid():  # a fork has a connection that is its parent's
            self._rows, self._process = None, os.getpid()
        if self._rows is None or not self._next <= i < self._next + self.window:
            self._rows, self._next = self.stream.rows(self.first + begin), begin
        while self._next <= i:
            row = next(self._rows, None)
            if row is None:
                raise Unusable(f"row {self.first + self._next} of {self.stream.path}", "row behind the end of the data")
            self._kept[self._next] = row
            self._next += 1
        while len(self._kept) > 2 * self.window:
            self._kept.popitem(last=False)


class Stream:
    """A split of a data set, read from any row on.

    Attributes:
        total: its number of rows; None where nobody says so.
        identity: what tells it from another state of the same data.
    """

    def __init__(self, path: str, name: str | None, split: str, revision: str | None, image: str, caption: str) -> None:
        self.path, self.name, self.split, self.image, self.caption = path, name, split, image, caption
        self.revision = commit_of(path, revision)
        self._open: IterableDataset | None = None
        features = self.opened.features or {}
        if missing := [column for column in (image, caption) if features and column not in features]:
            raise UserError(
                f"data.path={path}: its split {split} has no column {missing[0]}; there are {', '.join(features)} "
                "(data.image=, data.caption=)"
            )
        known = (self.opened.info.splits or {}).get(split)
        self.total: int | None = known.num_examples or None if known is not None else None
        self.identity = [path if self.revision else files_of(path), self.revision, name, split, image, caption]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    @property
    def opened(self) -> IterableDataset:
        """The stream with pictures as they are stored."""
        if self._open is None:
            import datasets

            try:
                found = datasets.load_dataset(
                    self.path, self.name, split=self.split, revision=self.revision, streaming=True
                )
            except (OSError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise UserError(f"data.path={self.path}: `datasets` cannot read it: {reason}") from error
            if isinstance((found.features or {}).get(self.image), datasets.Image):
                found = found.cast_column(self.image, datasets.Image(decode=False))
            self._open = found
        return self._open

    def rows(self, start: int) -> Iterator[Row]:
        return iter(self.opened.skip(start))


def stored(cell: object) -> object:
    """A picture as it is stored. Of a folder of files `datasets` gives the place of a file, here or on a hub."""
    if not isinstance(cell, Mapping) or cell.get("bytes") or not cell.get("path"):
        return cell
    from datasets.utils.file_utils import xopen

    with xopen(cell["path"], "rb") as file:
        return {"bytes": file.read()}


def commit_of(path: str, revision: str | None) -> str | None:
    """The commit of a hub id, so that a run reads the same rows to its end; None for what lies here."""
    if Path(path).expanduser().exists():
        return None
    if not is_hub_id(path):
        raise UserError(f"data.path={path}: no such folder or file, and no hub id")
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(path, revision=revision).sha
    except Exception as error:  # each transport has its own exceptions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"data.path={path}: the hub does not give it: {reason}") from error


def files_of(path: str) -> list[tuple[str, str]]:
    """Names and digests of what lies here."""
    place = Path(path).expanduser()
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    return [(file.name, file_digest(file)) for file in files]


class Streamed:
    """Captioned pictures streamed by `datasets` (extra `hf`): a hub id, or a folder that `datasets` reads.

    Args:
        path: of the data set.
        name: of one of its configurations; null for the only one.
        split: to train on.
        test_split: the held-out split; null holds out the first `num_test` rows of `split`.
        image: column of the pictures.
        caption: column of a text or of a list of texts, of which every step draws one.
        revision: of the hub id: a branch, a tag or a commit. A run keeps to the commit that it finds.
        num_train: rows to train on; null for as many as the hub says that there are.
        num_test: held-out rows.
        buffer: rows that are shuffled among each other. They are held in memory as they are stored.
        resolution: side of the pictures in pixels.
    """

    gives: ClassVar[tuple[str, ...]] = ("pictures", "prompts")
    paths: ClassVar[dict[str, str]] = {"path": "file, folder or hub id"}

    @classmethod
    def count(cls, settings: Mapping[str, Any]) -> int | None:
        return settings["num_train"]

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        test_split: str | None = None,
        image: str = "image",
        caption: str = "text",
        revision: str | None = None,
        num_train: Count | None = None,
        num_test: Count = 200,
        buffer: Count = 1000,
        *,
        resolution: Count,
    ) -> None:
        for key, number in (("num_train", num_train), ("num_test", num_test), ("buffer", buffer)):
            if number is not None and number < 1:
                raise UserError(f"data.{key}={number}; what works: 1 or more")
        stream = Stream(path, name, split, revision, image, caption)
        first = 0 if test_split else num_test
        left = None if stream.total is None else stream.total - first
        count = num_train if num_train is not None else left
        if count is None:
            raise UserError(f"data.num_train=null: nobody says how many rows {path} has; say how many to train on")
        if left is not None and count > left:
            raise UserError(f"data.num_train={count}: there are {left}")
        held_out = Stream(path, name, test_split, revision, image, caption) if test_split else stream
        self.train = StreamedRows(stream, first, count, buffer, resolution)
        found = num_test if held_out.total is None else min(num_test, held_out.total)
        self.test = StreamedRows(held_out, 0, found, buffer, resolution)
        if warning := too_few(found, f"data.num_test={ENOUGH} or more"):
            log.warning("%s: %s", path, warning)
