"""A table of captioned pictures as a data option, with the conditions that it may have annotated."""

import hashlib
import heapq
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
from PIL import Image
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Seed, Whole
from lpo_platform.data.phrases import Phrases
from lpo_platform.data.reading_report import Findings
from lpo_platform.data.source import ENOUGH, Sample, too_few
from lpo_platform.data.tables.count import rows_of
from lpo_platform.data.tables.decode import (
    Unusable,
    check_agreement,
    check_upright,
    label_map,
    people,
    picture,
    square,
    texts,
)
from lpo_platform.data.tables.hub import local_folder
from lpo_platform.data.tables.json_lines import LineFiles
from lpo_platform.data.tables.parquet import SUFFIXES, RowFiles, Unreadable, find_split, values_of
from lpo_platform.data.tables.webdataset import TarFiles
from lpo_platform.runs.files import fingerprint
from lpo_platform.tasks.task import Task

log = logging.getLogger(__name__)

VERSION = 2  # raise it when a row is decoded differently
NO_CAPTION = "row without a caption"
LOST = "row that its file does not give"
PIECE = 1000  # rows that are hashed at once
KINDS = (SUFFIXES, (".tar",), (".jsonl",))


class RowReader(Protocol):
    """The contract of the readers in `tables/`: rows in files, read by number."""

    files: list[Path]

    def __len__(self) -> int: ...

    def identities(self) -> list[str]:
        """Identifies the files in cache keys."""
        ...

    def column(self, name: str) -> pa.Array | pa.ChunkedArray:
        """A narrow column. Raises Unreadable."""
        ...

    def cells(self, row: int, names: Sequence[str]) -> list[object]:
        """Raises Unreadable."""
        ...

    def place(self, row: int) -> str:
        """The file that a row stands in, and where."""
        ...


@dataclass(frozen=True)
class Columns:
    """The place of a split and the names of its columns; None for a column that it does not have."""

    path: str
    split: str
    image: str
    caption: str
    condition: str | None
    loser: str | None
    labels: str | None
    label_offset: int

    def of(self, task: Task | None) -> "Columns":
        """Puts the task's name for `{task}`. Without a task there are no conditions."""
        if task is None:
            return replace(self, condition=None, loser=None, labels=None)
        names = {key: getattr(self, key) for key in ("condition", "loser", "labels")}
        return replace(self, **{key: name and name.replace("{task}", task.name) for key, name in names.items()})

    @property
    def pictures(self) -> list[str]:
        return [name for name in (self.image, self.condition, self.loser) if name is not None]

    @property
    def cells(self) -> list[str]:
        return [*self.pictures, *([self.labels] if self.labels else [])]


class CaptionedRows:
    """One split. Reading rows in rising order costs least.

    Attributes:
        losers: whether the samples have a losing condition.
        phrases: what training adds to captions, None for nothing.
    """

    def __init__(
        self, table: RowReader, rows: Sequence[int], captions: Sequence[tuple[str, ...]], columns: Columns,
        *, several: bool, resolution: int, resample: Image.Resampling, task: Task | None, phrases: Phrases | None,
    ) -> None:  # fmt: skip
        self._table, self._rows, self._captions, self._columns = table, rows, captions, columns
        self._several, self._resolution, self._resample, self._task = several, resolution, resample, task
        self.losers, self.phrases = columns.loser is not None, None if several else phrases
        names = [columns.split, *columns.cells, columns.label_offset]
        told = hashlib.sha256()
        for start in range(0, len(rows), PIECE):
            some = zip(rows[start : start + PIECE], captions[start : start + PIECE], strict=True)
            told.update("".join(map(repr, some)).encode())
        self.fingerprint = fingerprint(
            "captioned", VERSION, Image.__version__, resolution, int(resample), names, table.identities(),
            told.hexdigest(), *([] if self.phrases is None else [repr(self.phrases)]),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._rows)

    def caption(self, i: int) -> str:
        """The first caption of item i, without reading a picture."""
        return self._captions[i][0]

    def __getitem__(self, i: int) -> Sample:
        """Item i. The whole picture is resized to a square, bicubically, as CPO does (arXiv:2511.04753).

        Raises Unusable where a picture or its labels are missing or broken.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"there are {len(self)} rows, number {i} was asked for")
        columns, name = self._columns, f"{self._columns.split}-{self._rows[i]:07d}"
        place = self._table.place(self._rows[i])
        try:
            cells = dict(zip(columns.cells, self._table.cells(self._rows[i], columns.cells), strict=True))
        except Unreadable as error:
            raise Unusable(f"{name} in {place} ({error})", LOST) from error
        shown = picture(cells[columns.image], f"{name} {columns.image} in {place}", side=self._resolution)

        def control(column: str | None) -> Tensor | None:
            if column is None:
                return None
            where = f"{name} {column} in {place}"
            drawing = picture(cells[column], where, side=self._resolution)
            check_upright(drawing.size, shown.size, where)
            return square(drawing.image, self._resolution, self._resample)

        condition, labels = control(columns.condition), None
        if columns.labels is not None:
            labels = self._labels(cells[columns.labels], f"{name} {columns.labels} in {place}", shown.size)
            if condition is not None:
                check_agreement(self._task, condition, labels, f"{name} in {place}")
        return Sample(
            id=name,
            image=square(shown.image, self._resolution, Image.Resampling.BICUBIC),
            caption=self.caption(i),
            captions=self._captions[i] if self._several else (),
            condition=condition,
            loser=control(columns.loser),
            labels=labels,
            prompt=None if self.phrases is None else self.phrases(self.caption(i), self._rows[i]),
        )

    def _labels(self, cell: object, where: str, size: tuple[int, int]) -> Tensor:
        form = {"size": size, "resolution": self._resolution}
        if self._task.annotated == "people":
            return people(cell, where, **form)
        return label_map(cell, where, offset=self._columns.label_offset, classes=self._task.classes, **form)


class Captioned:
    """Captioned pictures from parquet, arrow (also `datasets`' save_to_disk), WebDataset shards or JSON lines.

    Rows without a caption are counted, reported and left out at once. A broken picture raises Unusable when its item is
    read. Names of columns are null for what the data do not have; `{task}` in a name stands for the task's name.

    Args:
        path: a folder, a file, or a hub id, which is fetched.
        split: the beginning of the names of the files to train on (`train-00000-of-00009.parquet`, `train/*.tar`,
            `train.jsonl`). Where `test` is null, files without the name of a split are read, too.
        image: column of the pictures.
        caption: column of a text or of a list of texts, of which every step draws one.
        condition: column of the control images. Null lets the task detect them.
        loser: column of the control images of worse pictures. Null lets method=cpo draw such pictures.
        labels: column of label maps, or of people of 17 keypoints, which hold more than their drawing.
        label_offset: added to a label, so that 0 is "no label" and k the task's class k - 1.
        test: the settings above that differ for the held-out split. Null holds out rows of `path`.
        num_train: how many usable rows are read, from the first; null for all.
        num_test: captions whose rows are held out where `test` is null, chosen by a hash of seed and text, at most half
            of them.
        seed: of that choice.
        bicubic_labels: resizes the colours of labels bicubically, as CPO does, which makes colours that no class has.
            false takes the nearest pixel.
        phrases: phrases of which training adds `num_phrases`, drawn by `seed` and row, to each caption that is a single
            text, and `suffix` behind them. Rewards and evaluation see the caption alone. [] adds nothing.
        num_phrases, suffix: see phrases.
        cache_folder: for what is learned about the files; null for none.
        resolution: side of the pictures in pixels.
        task: the run's; None reads no conditions.

    Raises:
        UserError: nothing is found, or nothing is left.
    """

    gives: ClassVar[tuple[str, ...]] = ("pictures",)
    paths: ClassVar[dict[str, str]] = {"path": "file, folder or hub id"}
    published: ClassVar[dict[str, int]] = {
        "limingcv/Captioned_ADE20K": 20_210,
        "limingcv/Captioned_COCOStuff": 118_287,
        "limingcv/MultiGen-20M_depth": 2_810_604,
    }
    """Rows to train on, as their pages name them."""

    def __init__(
        self,
        path: str,
        split: str = "train",
        image: str = "image",
        caption: str = "text",
        condition: str | None = None,
        loser: str | None = None,
        labels: str | None = None,
        label_offset: int = 0,
        test: dict[str, str | int | None] | None = None,
        num_train: Count | None = None,
        num_test: Count = 200,
        seed: Seed = 0,
        bicubic_labels: bool = False,
        phrases: Sequence[str] = (),
        num_phrases: Whole = 3,
        suffix: str = "",
        cache_folder: str | None = "outputs/cache/folder",
        *,
        resolution: Count,
        task: Task | None = None,
    ) -> None:
        train = Columns(path, split, image, caption, condition, loser, labels, label_offset)
        unknown = sorted(set(test or {}) - {field.name for field in fields(Columns)})
        if unknown:
            names = ", ".join(field.name for field in fields(Columns))
            raise UserError(f"data.test.{unknown[0]}: no such column; what works: {names}")
        for key, number in (("num_train", num_train), ("num_test", num_test)):
            if number is not None and number < 1:
                raise UserError(f"data.{key}={number}; what works: 1 or more")
        if task is not None and task.annotated is None and (labels or (test or {}).get("labels")):
            raise UserError(f"data.labels={labels}: task={task.name} has no labels; what works: data.labels=null")
        nearest = task is not None and task.categorical and not bicubic_labels
        self._findings, self._cache = Findings(), cache_folder
        self._form = {
            "resolution": resolution,
            "resample": Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC,
            "task": task,
        }
        if phrases and not 1 <= num_phrases <= len(phrases):
            raise UserError(f"data.num_phrases={num_phrases}; what works: 1 to {len(phrases)}, of data.phrases")
        added = Phrases(tuple(phrases), num_phrases, suffix, seed) if phrases else None
        rows = self._open(train.of(task), alone=test is None)
        if test is None:
            kept, held_out = hold_out(rows[1], num_test, seed)
            self.train, self.test = self._split(*rows, kept[:num_train], added), self._split(*rows, held_out)
        else:
            self.train = self._split(*rows, range(len(rows[1]))[:num_train], added)
            rows = self._open(replace(train, **test).of(task), alone=False)
            self.test = self._split(*rows, range(len(rows[1])))
        counts = f"{path}: {len(self.train)} pictures to train on, {len(self.test)} held out"
        works = f"more captions, and data.num_test={ENOUGH} or more" if test is None else "a larger data.test"
        found = list(filter(None, [too_few(len(self.test), works), self._findings.line()]))
        log.log(logging.WARNING if found else logging.INFO, "%s", " | ".join([counts, *found]))

    @classmethod
    def count(cls, settings: Mapping[str, Any]) -> int | None:
        where = {field.name: settings.get(field.name) for field in fields(Columns)}
        there, held_out = Path(settings["path"]).expanduser().exists(), settings.get("test") is not None
        files = files_of(Columns(**where), Findings(), alone=not held_out) if there else []
        found = rows_of(files) if there else cls.published.get(settings["path"])
        if found is None:
            return None
        kept = found if held_out else max(1, found - min(settings["num_test"], found // 2))
        return min(kept, settings.get("num_train") or kept)

    def report(self) -> dict[str, object]:
        """Counts, `skipped` and `noted` by reason with up to 3 examples."""
        return {"train": len(self.train), "test": len(self.test), **self._findings.report()}

    def _open(
        self, columns: Columns, *, alone: bool
    ) -> tuple[RowReader, list[tuple[int, tuple[str, ...]]], Columns, bool]:
        """(the table, its usable rows with their captions, its columns, whether it has lists of captions)."""
        files = files_of(columns, self._findings, alone=alone)
        required = [*columns.cells, columns.caption]
        suffix = files[0].suffix if files else ""
        if suffix == ".tar":
            table: RowReader = TarFiles(files, required, self._findings, self._cache)
        elif suffix == ".jsonl":
            table = LineFiles(files, required, self._findings, pictures=columns.pictures)
        else:
            table = RowFiles(files, required, self._findings)
        if not table.files:
            self._refuse(columns, "there are no usable files" if files else "there are no files")
        try:
            captions = table.column(columns.caption)
        except Unreadable as error:
            raise UserError(f"data.path={columns.path}: {error}; what works: another copy of this file") from error
        said = [texts(value) for value in values_of(captions)]
        for row, found in enumerate(said):
            if not found:
                self._findings.skip(NO_CAPTION, f"{columns.split}-{row:07d} in {table.place(row)}")
        rows = [(row, found) for row, found in enumerate(said) if found]
        if len(rows) < 1 + alone:
            self._refuse(columns, f"{len(rows)} of its {len(said)} rows can be used")
        return table, rows, columns, pa.types.is_list(captions.type) or pa.types.is_large_list(captions.type)

    def _split(
        self,
        table: RowReader,
        rows: list,
        columns: Columns,
        several: bool,
        kept: Sequence[int],
        phrases: Phrases | None = None,
    ) -> CaptionedRows:
        numbers, captions = [rows[i][0] for i in kept], [rows[i][1] for i in kept]
        return CaptionedRows(table, numbers, captions, columns, several=several, phrases=phrases, **self._form)

    def _refuse(self, columns: Columns, what: str) -> None:
        details, name = self._findings.line(), columns.split
        raise UserError(
            f"data.path={columns.path}: split {name}: {what}{f' [{details}]' if details else ''}; what works: "
            f"{name}-00000-of-00001.parquet, .arrow, .tar or .jsonl, or a folder {name} of them, with the columns "
            f"{', '.join([*columns.cells, columns.caption])}"
        )


def files_of(columns: Columns, findings: Findings, *, alone: bool) -> list[Path]:
    """The files of a split, all of one kind; where no split is held out (`alone`), those that name none, too."""
    file = Path(columns.path).expanduser()
    if file.is_file():
        return [file.absolute()]
    folder = local_folder(columns.path, [columns.split])
    for suffixes in KINDS:
        files = find_split(folder, columns.split, findings, suffixes)
        files = files or sorted(path for path in folder.iterdir() if alone and path.suffix in suffixes)
        if files:
            return files
    return []


def hold_out(rows: Sequence[tuple[int, tuple[str, ...]]], number: int, seed: int) -> tuple[list[int], list[int]]:
    """(places to train on, places held out): every row of `number` first captions, at most half of them."""
    different = {found[0] for _, found in rows}
    digest = lambda text: hashlib.sha256(f"{seed}|{text}".encode()).digest()  # noqa: E731
    chosen = set(heapq.nsmallest(max(1, min(number, len(different) // 2)), different, key=digest))
    kept = [place for place, (_, found) in enumerate(rows) if found[0] not in chosen]
    return kept, [place for place, (_, found) in enumerate(rows) if found[0] in chosen]
