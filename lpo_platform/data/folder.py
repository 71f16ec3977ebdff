"""A folder of pictures as a data option. Files are checked once, read when needed, and split by content."""

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from PIL import Image

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Between, Count, Seed
from lpo_platform.data.caption_files import ORIGINS, Captions, find_captions, is_table, sidecars
from lpo_platform.data.picture_files import (
    FORBIDDEN,
    MIN_SIDE,
    VERSION,
    Look,
    decode,
    look_at_all,
    resize,
)
from lpo_platform.data.reading_report import Findings
from lpo_platform.data.source import ENOUGH, Sample, too_few
from lpo_platform.runs.files import fingerprint
from lpo_platform.runs.given_files import BAD_NAME, PICTURES, is_unicode

logger = logging.getLogger(__name__)

CaptionsFrom = Literal["auto", "jsonl", "table", "sidecar", "filename"]
Crop = Literal["squash", "center"]
NOT_PICTURE = "not a picture file"
DUPLICATE = "same picture as another file, kept on the same side"


@dataclass(frozen=True)
class Picture:
    """One usable file. Its id is its path below the folder."""

    id: str
    path: Path
    caption: str
    look: Look


class Pictures:
    """One split of a folder."""

    def __init__(self, pictures: list[Picture], *, crop: str, resolution: int) -> None:
        self.pictures = pictures
        self._crop = crop
        self._resolution = resolution
        rows = [[picture.id, picture.look.file, picture.caption] for picture in pictures]
        self.fingerprint = fingerprint("folder", VERSION, Image.__version__, crop, resolution, rows)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> Sample:
        """Picture i, (3, R, R) float32 in [0, 1]. Raises UserError when its file is gone or broken since."""
        picture = self.pictures[i]
        try:
            pixels = resize(decode(picture.path, side=self._resolution).image, self._crop, self._resolution)
        except Exception as error:  # decoders raise many types, and the answer to all of them is the same
            raise UserError(
                f"{picture.path}: could be read when the run started and no longer can be ({error}); "
                "bring the file back, or start again without it"
            ) from error
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous().float() / 255
        return Sample(id=picture.id, image=image, caption=picture.caption)

    def caption(self, i: int) -> str:
        return self.pictures[i].caption


class Folder:
    """Captioned pictures in a folder and the folders in it, split into `train` and `test` by content.

    Args:
        path: the folder.
        captions: `jsonl` takes them from JSON lines, `table` from metadata.csv or .parquet, `sidecar` from <name>.txt,
            .caption or .json beside a picture, `filename` from its name. `auto` takes the first of these that a picture
            has (data/caption_files.py).
        test_fraction: share of the different pictures that is held out.
        seed: of the split.
        crop: `squash` resizes the whole picture to a square, as CPO does (arXiv:2511.04753); `center` takes the largest
            central square.
        cache_folder: for what is learned about the files; null for none.
        num_train: of the pictures to train on, the first ones of their shuffled order; null for all.
        num_test: the same of those held out.
        judged: whether to say that the held-out pictures are too few for an evaluation.
        resolution: side of the pictures in pixels.

    Raises:
        UserError: nothing can be used, or nothing could be held out.
    """

    gives: ClassVar[tuple[str, ...]] = ("pictures", "prompts")
    paths: ClassVar[dict[str, str]] = {"path": "folder"}

    def __init__(
        self,
        path: str | Path,
        captions: CaptionsFrom = "auto",
        test_fraction: Between = 0.1,
        seed: Seed = 0,
        crop: Crop = "squash",
        cache_folder: str | Path | None = "outputs/cache/folder",
        num_train: Count | None = None,
        num_test: Count | None = None,
        *,
        resolution: Count,
        judged: bool = True,
    ) -> None:
        _check_options(captions, test_fraction, crop)
        self.path = _existing_folder(path)
        self._findings = Findings()
        files = sorted(_files(self.path, self._findings))
        names = [name for name in files if name.lower().endswith(PICTURES)]
        _note_other_files(files, names, self._findings)
        looks = look_at_all(self.path, names, cache_folder)
        usable = _usable(looks, self._findings)
        origins = ORIGINS if captions == "auto" else (captions,)
        found = find_captions(self.path, usable, files, origins, self._findings)
        pictures = [Picture(name, self.path / name, found.text[name], looks[name]) for name in usable]
        train, test = split(pictures, test_fraction, seed)
        train, test = train[:num_train], test[:num_test]
        counts = {"pictures": len(names), "train": len(train), "test": len(test)}
        self._report: dict[str, object] = {**counts, "captions": found.origins}
        self._check_enough(test, captions, found)
        self.train = Pictures(train, crop=crop, resolution=resolution)
        self.test = Pictures(test, crop=crop, resolution=resolution)
        few = too_few(len(test), _more(len({picture.look.content for picture in pictures}))) if judged else ""
        logger.log(logging.WARNING if self._findings.line() or few else logging.INFO, "%s", self._line(few))

    @classmethod
    def count(cls, settings: Mapping[str, Any]) -> int | None:
        folder = Path(settings["path"]).expanduser()
        if not folder.is_dir():
            return None
        pictures = sum(name.lower().endswith(PICTURES) for name in _files(folder, Findings()))
        kept = pictures - max(1, round(settings["test_fraction"] * pictures))
        return min(kept, settings.get("num_train") or kept)

    def report(self) -> dict[str, object]:
        """Counts, origins of the captions, `skipped` and `noted` by reason with up to 3 examples."""
        return {**self._report, **self._findings.report()}

    def _line(self, few: str) -> str:
        row = self._report
        counts = f"{row['pictures']} pictures, {row['train']} to train on, {row['test']} held out"
        return " | ".join(filter(None, [f"{self.path}: {counts}", few, self._findings.line()]))

    def _check_enough(self, test: list[Picture], captions: str, found: Captions) -> None:
        if test and (captions == "auto" or captions in found.origins):
            return
        works = f"two different pictures of at least {MIN_SIDE} px ({' '.join(PICTURES)}), also nested"
        if test:
            what, works = f"there are no captions for data.captions={captions}", "data.captions=auto"
        elif self._report["train"]:
            what = "there is only one picture, and one is needed to train on, another to hold out"
        elif self._report["pictures"]:
            what = "none of the pictures can be used"
        else:
            what = "there are no pictures"
        details = self._findings.line()
        what += f" [{details}]" if details else ""
        raise UserError(f"data.path={self.path}: {what}; what works: {works}")


def split(pictures: list[Picture], test_fraction: float, seed: int) -> tuple[list[Picture], list[Picture]]:
    """(train, test) in an order that depends on `seed` and content only. Equal pictures stay on one side.

    With two or more different pictures each side has at least one. With a single one test is empty.
    """
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        key = hashlib.sha256(f"{seed}|{picture.look.content}".encode()).hexdigest()
        groups.setdefault(key, []).append(picture)
    order = sorted(groups)
    num_test = max(0, min(max(1, round(test_fraction * len(order))), len(order) - 1))
    test = [picture for key in order[:num_test] for picture in groups[key]]
    return [picture for key in order[num_test:] for picture in groups[key]], test


def _more(contents: int) -> str:
    """How to hold out enough of this number of different pictures."""
    if contents < 2 * ENOUGH:
        return f"{2 * ENOUGH} different pictures and data.test_fraction=0.5"
    return f"data.test_fraction={math.ceil(100 * ENOUGH / contents) / 100:g}"


def _files(folder: Path, findings: Findings) -> Iterator[str]:
    """Every file below `folder`, as a path with `/`; linked folders are entered once."""
    entered = {os.path.realpath(folder)}

    def forbidden(error: OSError) -> None:
        findings.skip(FORBIDDEN, os.path.relpath(error.filename, folder) + "/")

    for here, folders, files in os.walk(folder, onerror=forbidden, followlinks=True):
        real = {name: os.path.realpath(os.path.join(here, name)) for name in sorted(folders)}
        folders[:] = [name for name in real if real[name] not in entered]
        entered.update(real.values())
        below = Path(here).relative_to(folder)
        for name in files:
            if is_unicode(path := (below / name).as_posix()):
                yield path
            else:
                findings.skip(BAD_NAME, path)


def _note_other_files(files: list[str], pictures: list[str], findings: Findings) -> None:
    known = set(pictures).union(*sidecars(pictures, files).values())
    for name in files:
        if name not in known and not name.lower().endswith(".jsonl") and not is_table(name):
            findings.skip(NOT_PICTURE, name)


def _usable(looks: dict[str, Look], findings: Findings) -> list[str]:
    seen = set()
    for name, found in looks.items():
        if found.problem:
            findings.skip(found.problem, name)
            continue
        for conversion in found.notes:
            findings.note(conversion, name)
        if found.content in seen:
            findings.note(DUPLICATE, name)
        seen.add(found.content)
    return [name for name, found in looks.items() if not found.problem]


def _check_options(captions: str, test_fraction: float, crop: str) -> None:
    if captions not in get_args(CaptionsFrom):
        raise UserError(f"data.captions={captions}; what works: {', '.join(get_args(CaptionsFrom))}")
    if crop not in get_args(Crop):
        raise UserError(f"data.crop={crop}; what works: {', '.join(get_args(Crop))}")
    if not 0 < test_fraction < 1:
        raise UserError(f"data.test_fraction={test_fraction}; what works: between 0 and 1, such as 0.1")


def _existing_folder(path: str | Path) -> Path:
    folder = Path(path).expanduser().absolute()
    if not str(path):
        raise UserError("data.path is empty; what works: a folder with pictures, data.path=<folder>")
    if folder.is_file():
        raise UserError(f"data.path={path} is a file; what works: its folder, data.path={folder.parent}")
    if not folder.is_dir():
        near = next(parent for parent in folder.parents if parent.is_dir())
        raise UserError(f"data.path={path}: {folder} does not exist ({near} does); what works: a folder with pictures")
    return folder
