"""Decodes a cell of a table as a picture or as labels. What is wrong with a cell is named."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lpo_platform.data.picture_files import MAX_PIXELS, UNREADABLE, BadPicture, Decoded, decode, opened, upright
from lpo_platform.runs.given_files import clean
from lpo_platform.tasks.keypoint_files import BadKeypoints, joints, visible_inside
from lpo_platform.tasks.task import Task

NO_PICTURE = "row without a picture"
BROKEN = f"picture {UNREADABLE}"
NO_MAP = "row whose labels are no map of whole numbers"
LOSSY = "row whose label map is a JPEG, which changes its numbers"
OUTSIDE = "row with a label that is none of the task's classes; data.label_offset is added to each"
TURNED = "row whose label map or control image lies on its side in comparison with its picture"
ELSEWHERE = "row most of whose keypoints lie outside its picture"
DISAGREE = "row whose labels and condition show different things"
UNLABELLED = 255
AGREEMENT = 0.5  # share of labels that the condition has to show


class Unusable(ValueError):
    """A row that proved unusable when it was read, for `Findings.skip(error.reason, error.where)`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.where, self.reason)


def texts(value: object) -> tuple[str, ...]:
    """The captions of a cell, a text or a list of them, without what is empty or no text."""
    found = value if isinstance(value, list) else [value]
    return tuple(filter(None, map(clean, found)))


def picture(cell: object, where: str, *, side: int) -> Decoded:
    """From encoded bytes or, as `datasets` stores a picture, a mapping with `bytes`; `side` as in picture_files.decode.

    Raises Unusable, which names `where`.
    """
    data = _bytes(cell)
    if not data:
        raise Unusable(where, NO_PICTURE)
    try:
        return decode(data, side=side)
    except BadPicture as error:
        raise Unusable(where, f"picture {error.reason}") from error


def square(image: Image.Image, resolution: int, resample: Image.Resampling) -> Tensor:
    """The whole picture as (3, R, R) float32 in [0, 1]."""
    resized = image.resize((resolution, resolution), resample)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous().float() / 255


def label_map(cell: object, where: str, *, size: tuple[int, int], resolution: int, offset: int, classes: int) -> Tensor:
    """(1, R, R) of H lists of W numbers, or of a picture of one channel: each number raised by `offset`, 255 is 0.

    size: width and height of the picture that is labelled. Raises Unusable, also where a number is then not one of 0
    ("no label") to `classes`.
    """
    values = _numbers(cell, where)
    check_upright(values.shape[::-1], size, where)
    resized = Image.fromarray(values).resize((resolution,) * 2, Image.Resampling.NEAREST)
    numbers = np.where(values == UNLABELLED, 0, values.astype(np.int64) + offset)
    if numbers.min() < 0 or numbers.max() > classes:
        raise Unusable(f"{where} ({numbers.min()} to {numbers.max()}, not 0 to {classes})", OUTSIDE)
    found = torch.from_numpy(np.array(resized))[None].float()
    return torch.where(found == UNLABELLED, 0, found + offset)


def people(cell: object, where: str, *, size: tuple[int, int], resolution: int) -> Tensor:
    """(P, K, 3) in a picture of side R, visibility 0 or 1, of people as keypoint_files.joints reads them.

    size: width and height of the picture in whose pixels they stand. Of nobody: one person without visible joints.
    Raises Unusable, also where most of the visible joints lie outside the picture.
    """
    try:
        found = joints(cell, size)
    except BadKeypoints as error:
        raise Unusable(where, f"row whose labels are no keypoints: {error}") from error
    if visible_inside(found, size) < AGREEMENT:
        raise Unusable(where, ELSEWHERE)
    if not len(found):
        found = np.zeros((1, 17, 3))
    scaled = torch.from_numpy(found).float()
    seen = (scaled[..., 2:] > 0).float()
    scale = torch.tensor([resolution / side for side in size])
    return torch.cat([scaled[..., :2] * scale, torch.ones_like(seen)], 2) * seen


def check_upright(size: tuple[int, int], of_picture: tuple[int, int], where: str) -> None:
    """Raises Unusable where an annotation of this size was made before its picture was turned, or the other way."""
    if size == of_picture[::-1] and size != of_picture:
        raise Unusable(where, TURNED)


def check_agreement(task: Task, condition: Tensor, labels: Tensor, where: str) -> None:
    """Raises Unusable where a condition (3, R, R) is not that of the labels, which are an item of the task's maps."""
    share = task.agreement(condition[None], labels[None])
    if share is not None and float(share) < AGREEMENT:
        hint = "; data.label_offset is added to each label, data.labels=null takes the conditions alone"
        raise Unusable(where, DISAGREE + (hint if task.categorical else ""))


def _numbers(cell: object, where: str) -> NDArray[np.int32]:
    data = _bytes(cell)
    try:
        if data:
            with opened(data, least=1) as image:
                lossy = image.format == "JPEG"
                values = np.asarray(upright(image)[0])
        else:
            lossy, values = False, np.array(cell, np.float64)
    except BadPicture as error:
        raise Unusable(where, f"label map {error.reason}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise Unusable(where, NO_MAP) from error
    if lossy:
        raise Unusable(where, LOSSY)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    large = values.ndim == 2 and values.size > MAX_PIXELS
    if values.ndim != 2 or not values.size or large or not np.isfinite(values).all() or (values % 1 != 0).any():
        raise Unusable(where, NO_MAP)
    return values.clip(-(2**31), 2**31 - 1).astype(np.int32)


def _bytes(cell: object) -> bytes | None:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else None
