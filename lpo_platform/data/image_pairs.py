"""Pick-a-Pic, or any table of two pictures with a preference, as a data option."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Seed
from lpo_platform.data.pair_prompts import PairPrompts
from lpo_platform.data.reading_report import Findings
from lpo_platform.data.score_file import Scores, Strategy, read_scores
from lpo_platform.data.source import Preference
from lpo_platform.data.tables.count import rows_of
from lpo_platform.data.tables.decode import Unusable, picture, square
from lpo_platform.data.tables.hub import local_folder
from lpo_platform.data.tables.parquet import RowFiles, Unreadable, find_split, values_of
from lpo_platform.diffusion import noise
from lpo_platform.runs.files import fingerprint
from lpo_platform.runs.given_files import clean

logger = logging.getLogger(__name__)

Crop = Literal["squash", "center"]
VERSION = 1  # raise it when a row is judged or decoded differently
PICTURES = ("jpg_0", "jpg_1")
REQUIRED = ("caption", *PICTURES, "label_0", "label_1")
LABELLED, COUNT = "has_label", "num_example_per_prompt"

NO_CAPTION = "row without a caption"
NO_LABEL = "row without a label"
BAD_LABEL = "row whose labels are not two shares of 1"
LOST = "row that its file does not give"
NO_COUNT = f"row without a usable {COUNT}, it weighs 1"
OTHER_TIE = "row that the score file calls a tie and the labels do not, or the reverse: is its order that of the split?"


@dataclass(frozen=True)
class Rows:
    """What is known of the N rows of a split without reading a picture.

    Attributes:
        row: (N,), their numbers in the files.
        label: (N,), the probability that the first picture is preferred.
        gaps: (N, 3), the scores of the first picture minus those of the second; NaN where unknown.
    """

    row: np.ndarray
    captions: pa.Array
    label: np.ndarray
    weight: np.ndarray
    gaps: np.ndarray

    def take(self, kept: np.ndarray) -> "Rows":
        """The rows of a mask, or of a slice."""
        captions = self.captions.take(pa.array(np.arange(len(self.row))[kept]))
        return Rows(self.row[kept], captions, self.label[kept], self.weight[kept], self.gaps[kept])

    def digest(self) -> str:
        result = hashlib.sha256()
        for column in (self.row, self.label, self.weight, self.gaps):
            result.update(np.ascontiguousarray(column))
        return result.hexdigest()


class Pairs:
    """One split, as `data.source.Preferences`. Threads may share it, and rows are cheapest in rising order.

    positions: (N,) number of each item's row in the files. preferred: (N,) probability that the first picture is
    preferred. weights: (N,) how much each counts. num_rows: rows in the files, those included that are no item. flip:
    the seed by which pictures are mirrored, null for none.
    """

    def __init__(
        self, name: str, files: RowFiles, rows: Rows, *, resolution: int, crop: Crop = "squash", flip: int | None = None
    ) -> None:
        self.positions, self.preferred, self.num_rows = rows.row, rows.label, len(files)
        self.weights = torch.from_numpy(rows.weight).float()
        self._name = name
        self._files = files
        self._rows = rows
        self._resolution, self._crop, self._flip = resolution, crop, flip
        form = [] if crop == "squash" and flip is None else [crop, flip]
        self.fingerprint = fingerprint(
            "image_pairs", VERSION, Image.__version__, resolution, name, files.identities(), rows.digest(), *form
        )

    def __len__(self) -> int:
        return len(self._rows.row)

    def id(self, i: int) -> str:
        """`<split>-<number of the row in the files>`."""
        return f"{self._name}-{int(self._rows.row[i]):07d}"

    def caption(self, i: int) -> str:
        """The prompt of item i, without reading a picture."""
        return self._rows.captions[i].as_py()

    @property
    def captions(self) -> list[str]:
        """Every prompt, in order, without reading a picture."""
        return self._rows.captions.to_pylist()

    def __getitem__(self, i: int) -> Preference:
        """Item i, images (2, 3, R, R) float32 in [0, 1].

        The whole picture is resized by Pillow, bilinearly with antialiasing, as torchvision's Resize does. Raises
        Unusable where a picture is missing or broken.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"{self._name} has {len(self)} pairs, number {i} was asked for")
        name = self.id(i)
        try:
            cells = self._files.cells(int(self._rows.row[i]), PICTURES)
        except Unreadable as error:
            raise Unusable(f"{name} ({error})", LOST) from error
        side = self._resolution
        pictures = [picture(cell, f"{name} {key}", side=side) for key, cell in zip(PICTURES, cells, strict=True)]
        first, gaps = float(self._rows.label[i]), self._rows.gaps[i]
        return Preference(
            id=name,
            caption=self.caption(i),
            images=torch.stack([self._shown(shown.image, f"{name}/{n}") for n, shown in enumerate(pictures)]),
            labels=torch.tensor([[0.5, first], [1 - first, 0.5]]),
            gaps=None if np.isnan(gaps).any() else tuple(gaps.tolist()),
        )

    def _shown(self, image: Image.Image, key: str) -> Tensor:
        if self._crop == "center":
            image = central(image, self._resolution)
        pixels = square(image, self._resolution, Image.Resampling.BILINEAR)
        if self._flip is not None and noise.uniform([key], seed=self._flip, stream="flip") < 0.5:
            return pixels.flip(2)
        return pixels


def central(image: Image.Image, resolution: int) -> Image.Image:
    """The central square of a picture whose short side was resized to R, as torchvision's Resize and CenterCrop do."""
    sides = [resolution if side == min(image.size) else resolution * side // min(image.size) for side in image.size]
    left, top = (round((side - resolution) / 2) for side in sides)
    resized = image.resize(tuple(sides), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + resolution, top + resolution))


class ImagePairs:
    """Pairs of pictures of one prompt and which of them people preferred, as Pick-a-Pic has them.

    The columns are caption, jpg_0, jpg_1, label_0 and label_1, and, where there are any, has_label and
    num_example_per_prompt, whose inverse is the weight of a row. Rows without a caption or label are counted, reported
    and left out at once. Pictures are read when they are needed, since checking them would read the whole dataset; a
    broken one raises Unusable when its item is read.

    Args:
        path: a folder with the parquet or arrow files of the splits (as downloaded, or of `datasets`' save_to_disk), or
            a hub id, which is fetched.
        scores: a score file (data/score_file.py) with one row for each row of the train split, in its order.
        strategy: 1, 2 or 3 keeps the rows of the train split that are consistent with the scores; null keeps all.
            Published: 2 (arXiv:2502.01051).
        absolute_ties: compares absolute gaps of ties, as the paper writes. false is as the released code.
        train, validation, test: names of the splits. `validation` may be null.
        num_train, num_test: how many usable rows are read, from the first; null for all.
        crop: `squash` resizes the whole picture to a square, as LRM does; `center` resizes the short side and takes the
            central square, as Diffusion-DPO does.
        flip: mirrors every second picture to train on, drawn by `seed`, row and picture, as Diffusion-DPO does.
        seed: of the flips.
        resolution: side of the pictures in pixels.

    Raises:
        UserError: nothing is found, or nothing is left.
    """

    gives: ClassVar[tuple[str, ...]] = ("pairs",)
    paths: ClassVar[dict[str, str]] = {"path": "folder or hub id", "scores": "file"}
    published: ClassVar[dict[str, int]] = {"yuvalkirstain/pickapic_v1": 583_747}
    """Rows to train on, as its page names them."""

    def __init__(
        self,
        path: str | Path,
        scores: str | Path | None = None,
        strategy: Strategy | None = 2,
        absolute_ties: bool = False,
        train: str = "train",
        validation: str | None = "validation_unique",
        test: str = "test_unique",
        num_train: Count | None = None,
        num_test: Count | None = None,
        crop: Crop = "squash",
        flip: bool = False,
        seed: Seed = 0,
        *,
        resolution: Count,
    ) -> None:
        if crop not in get_args(Crop):
            raise UserError(f"data.crop={crop}; what works: {', '.join(get_args(Crop))}")
        if len({train, validation, test}) < 3:
            raise UserError(f"data.train={train}, validation={validation}, test={test}; what works: different splits")
        for key, number in (("num_train", num_train), ("num_test", num_test)):
            if number is not None and number < 1:
                raise UserError(f"data.{key}={number}; what works: 1 or more, or null for all")
        names = [name for name in (train, validation, test) if name is not None]
        self.path = local_folder(path, names)
        self._findings = Findings()
        self._report: dict[str, object] = {}

        def split(key: str, name: str, number: int | None) -> Pairs:
            return self._split(key, name, number, resolution)

        self._form = {"crop": crop, "flip": seed if flip else None}
        self._scores = scores
        self._mpcf = (strategy, absolute_ties)
        self.train = split("train", train, num_train)
        self.validation = split("validation", validation, num_test) if validation is not None else None
        self.test = split("test", test, num_test)
        logger.log(logging.WARNING if self._findings.line() else logging.INFO, "%s", self._line())

    @classmethod
    def count(cls, settings: Mapping[str, Any]) -> int | None:
        """Rows that the score file keeps are counted by it."""
        folder, scores, strategy = Path(settings["path"]).expanduser(), settings.get("scores"), settings.get("strategy")
        files = find_split(folder, settings["train"], Findings()) if folder.is_dir() else []
        found = rows_of(files) if files else cls.published.get(settings["path"])
        if scores is not None and strategy is not None and Path(scores).expanduser().is_file():
            kept = read_scores(scores).consistent(strategy, absolute_ties=settings["absolute_ties"])
            found = int(kept.sum())
        return found and min(found, settings.get("num_train") or found)

    def report(self) -> dict[str, object]:
        """Counts, `filtered` by the score file, `skipped` and `noted` by reason with up to 3 examples."""
        return {**self._report, **self._findings.report()}

    @property
    def prompts(self) -> PairPrompts:
        """What an evaluation draws."""
        return PairPrompts(self.train, self.test)

    def _split(self, key: str, name: str, number: int | None, resolution: int) -> Pairs:
        paths = find_split(self.path, name, self._findings)
        files = RowFiles(paths, REQUIRED, self._findings)
        if not files.files:
            self._refuse(key, name, "there are no usable files" if paths else "there are no files")
        if self._scores is not None and key == "train" and len(files.files) < len(paths):
            self._refuse(key, name, "data.scores is joined by position, and a file cannot be used")
        scores = read_scores(self._scores, len(files)) if key == "train" and self._scores is not None else None
        try:
            rows, usable = _rows(files, name, scores, labelled_only=key != "train", findings=self._findings)
        except Unreadable as error:
            raise UserError(f"data.path={self.path}: {error}; what works: another copy of this file") from error
        if scores is not None and self._mpcf[0] is not None:
            strategy, absolute = self._mpcf
            kept = usable & scores.consistent(strategy, absolute_ties=absolute)
            self._report["filtered"] = int(usable.sum() - kept.sum())
            usable = kept
        rows = rows.take(usable).take(slice(number))
        if not len(rows.row):
            self._refuse(key, name, f"none of its {len(files)} rows can be used")
        self._report[key] = len(rows.row)
        form = self._form if key == "train" else self._form | {"flip": None}
        return Pairs(name, files, rows, resolution=resolution, **form)

    def _refuse(self, key: str, name: str, what: str) -> None:
        details = " | ".join(filter(None, [self._filtered(), self._findings.line()]))
        optional = ", or data.validation=null" if key == "validation" else ""
        raise UserError(
            f"data.path={self.path}: split {name}: {what}{f' [{details}]' if details else ''}; what works: "
            f"{name}-00000-of-00001.parquet or .arrow, or a folder {name}, with the columns {', '.join(REQUIRED)}; "
            f"data.{key}=<name> if the split is called otherwise{optional}"
        )

    def _filtered(self) -> str:
        if "filtered" in self._report:
            return f"{self._report['filtered']} filtered out by data.scores"
        return ""

    def _line(self) -> str:
        row = self._report
        counts = f"{self.path}: {row['train']} pairs to train on, {row['test']} held out"
        return " | ".join(filter(None, [counts, self._filtered(), self._findings.line()]))


def _rows(
    files: RowFiles, split: str, scores: Scores | None, *, labelled_only: bool, findings: Findings
) -> tuple[Rows, np.ndarray]:
    """Every row of the files, and the mask of those that can be used; the others are reported. Raises Unreadable."""
    said = values_of(files.column("caption"))
    captions = pa.array([text if clean(text) else "" for text in said], pa.large_string())
    first, second = (files.column(name, pa.float64()).to_numpy() for name in ("label_0", "label_1"))
    weight, weightless = _weights(files)
    unlabelled = np.isnan(first) | np.isnan(second)
    if labelled_only and LABELLED in files.columns:
        unlabelled |= ~files.column(LABELLED, pa.bool_()).fill_null(False).to_numpy().astype(bool)
    shares = (first >= 0) & (second >= 0) & (np.abs(first + second - 1) < 1e-6)
    blank = pc.equal(captions, "").to_numpy(zero_copy_only=False)
    usable = ~blank & ~unlabelled & shares

    def tell(report: Callable[[str, str], None], reason: str, mask: np.ndarray) -> None:
        for row in np.flatnonzero(mask):
            report(reason, f"{split}-{row:07d}")

    tell(findings.skip, NO_CAPTION, blank)
    tell(findings.skip, NO_LABEL, unlabelled & ~blank)
    tell(findings.skip, BAD_LABEL, ~shares & ~unlabelled & ~blank)
    tell(findings.note, NO_COUNT, weightless & usable)
    gaps = np.full((len(files), 3), np.nan)
    if scores is not None:
        tell(findings.note, OTHER_TIE, usable & (scores.different != (first != second)))
        gaps = np.where((first < second)[:, None], -scores.gaps, scores.gaps)
    return Rows(np.arange(len(files)), captions, first, weight, gaps), usable


def _weights(files: RowFiles) -> tuple[np.ndarray, np.ndarray]:
    """(1 / num_example_per_prompt, mask of the rows that lack it and weigh 1); the mask is empty without the column."""
    if COUNT not in files.columns:
        return np.ones(len(files)), np.zeros(len(files), bool)
    count = files.column(COUNT, pa.float64()).to_numpy()
    good = np.isfinite(count) & (count >= 1)
    return 1 / np.where(good, count, 1.0), ~good
