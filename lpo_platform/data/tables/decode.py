"""What a cell of a table holds, as a picture or as labels; what is wrong with it has a name."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lpo_platform.data.picture_files import FORMATS, HUGE, MAX_PIXELS, MIN_SIDE, TINY, UNREADABLE, open_rgb

NO_PICTURE = "row without a picture"
BROKEN = f"picture {UNREADABLE}"
NO_LABELS = "row whose labels are neither a label map nor people of 17 or 133 keypoints"
UNLABELLED = 255


class Unusable(ValueError):
    """A row that proved unusable when it was read, for `Findings.skip(error.reason, error.where)`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.where, self.reason)


def picture(cell: object, where: str, *, side: int) -> Image.Image:
    """RGB, from encoded bytes or, as `datasets` stores a picture, a mapping with `bytes`; `side` as in open_rgb.

    Raises Unusable, which names `where`.
    """
    data = _bytes(cell)
    if not data:
        raise Unusable(where, NO_PICTURE)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
        problem = TINY if min(width, height) < MIN_SIDE else HUGE if width * height > MAX_PIXELS else None
        if problem is None:
            return open_rgb(io.BytesIO(data), side=side)[0]
    except Image.DecompressionBombError:
        problem = HUGE
    except Exception as error:  # decoders answer broken data with OSError, SyntaxError, struct.error and others
        raise Unusable(where, BROKEN) from error
    raise Unusable(where, f"picture {problem}")


def square(image: Image.Image, resolution: int, resample: Image.Resampling) -> Tensor:
    """The whole picture as (3, R, R) float32 in [0, 1]."""
    resized = image.resize((resolution, resolution), resample)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous().float() / 255


def labels(cell: object, where: str, *, size: tuple[int, int], resolution: int, offset: int) -> Tensor:
    """An item of a task's maps.

    cell: a label map, H lists of W numbers or a picture of one channel, which becomes (1, R, R), each number raised by
    `offset`, 255 ("no label") 0; or people, P lists of K = 17 or 133 x, y, visibility in a picture of `size` (width,
    height), which become (P, K, 3) in a picture of side R, visibility 0 or 1. Of nobody: one person without visible
    joints. Raises Unusable.
    """
    try:
        data = _bytes(cell)
        values = np.asarray(Image.open(io.BytesIO(data), formats=FORMATS)) if data else np.array(cell, np.float64)
    except Exception as error:  # ragged lists raise ValueError, and decoders whatever they like
        raise Unusable(where, NO_LABELS) from error
    if values.size == 0:
        values = np.zeros((1, 17, 3))
    if values.ndim == 2:
        resized = Image.fromarray(values.astype(np.int32)).resize((resolution,) * 2, Image.Resampling.NEAREST)
        numbers = torch.from_numpy(np.array(resized))[None].float()
        return torch.where(numbers == UNLABELLED, 0, numbers + offset)
    if values.shape[1:] not in {(17, 3), (133, 3)}:
        raise Unusable(where, NO_LABELS)
    people = torch.from_numpy(values).float()
    seen = (people[..., 2:] > 0).float()
    scale = torch.tensor([resolution / side for side in size])
    return torch.cat([people[..., :2] * scale, torch.ones_like(seen)], 2) * seen


def _bytes(cell: object) -> bytes | None:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else None
