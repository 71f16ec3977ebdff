"""Decodes picture files of any origin to upright 8-bit RGB. Every kind of file has a defined outcome."""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from lpo_platform.runs.files import fingerprint, write_atomically
from lpo_platform.runs.given_files import read_bytes

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # no EPS, which would start ghostscript
MIN_SIDE = 16
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs, 256 MB of RGB
WHOLE = 10**6  # a side that no picture has: of a JPEG, all of its pixels
SCAN_SIDE = 64  # a JPEG is looked at in reduced form: all of the file is read, few pixels are made
VERSION = 1  # raise it when a picture is judged or decoded differently
EXIF_ORIENTATION = 0x0112

UNREADABLE = "unreadable or truncated"
WORDY = "more than 1 MB of text inside the picture file"
SPECIAL = "no regular file"
LARGE = "more than 1 GiB"
FORBIDDEN = "no permission to read"
TINY = f"smaller than {MIN_SIDE} px"
HUGE = f"more than {MAX_PIXELS / 1e6:.0f} megapixels"
ANIMATED = "animated or several pages, first one used"
TURNED = "turned upright by EXIF orientation"
DEEP = "more than 8 bits, reduced to 8"
TRANSPARENT = "transparent, put on white"
GRAYSCALE = "grayscale"
CMYK = "CMYK, converted to RGB"


@dataclass(frozen=True)
class Look:
    """What is known of a file. One with a `problem` is not used. `notes` are what reading it converts."""

    file: str  # sha256 of the bytes
    content: str  # sha256 of the decoded picture: the same for a PNG and a BMP of the same pixels
    notes: tuple[str, ...] = ()
    problem: str | None = None


class BadPicture(ValueError):
    """A picture that is not used; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Decoded:
    """An upright RGB picture.

    size: width and height of the whole picture, in whose pixels its annotations count; `image` may be a reduced form.
    notes: what had to be converted.
    """

    image: Image.Image
    size: tuple[int, int]
    notes: tuple[str, ...]


def decode(source: Path | bytes, *, side: int = WHOLE, least: int = MIN_SIDE) -> Decoded:
    """The first frame of a file, or of a file's bytes, as upright RGB with transparency on white.

    A JPEG comes in reduced form while that has at least 3 * `side` (the gap from which Pillow calls the
    following resize indistinguishable): large photographs are read several times faster.
    Raises BadPicture, also for a picture with less than `least` pixels on a side.
    """
    notes = []
    with opened(source, least=least) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":
            notes.append(ANIMATED)
        size = image.size
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            image.draft(image.mode, (3 * side, 3 * side))
        image.load()
        turned, swapped = upright(image)
        if turned is not image:
            notes.append(TURNED)
        size = size[::-1] if swapped else size
        flat, conversion = _flatten(turned)
    return Decoded(flat, size, tuple(notes + ([conversion] if conversion else [])))


@contextlib.contextmanager
def opened(source: Path | bytes, *, least: int = MIN_SIDE) -> Iterator[Image.Image]:
    """A picture whose size has been looked at and whose pixels have not been decoded yet.

    Raises BadPicture, also for whatever a decoder raises inside the block.
    """
    try:
        data = source if isinstance(source, bytes) else read_bytes(source)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if min(width, height) < least:
                raise BadPicture(TINY)
            if width * height > MAX_PIXELS:
                raise BadPicture(HUGE)
            yield image
    except BadPicture:
        raise
    except Exception as error:  # decoders answer a broken file with OSError, SyntaxError, struct.error and others
        raise BadPicture(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """Why a file is no picture, by what opening or decoding it raised."""
    if isinstance(error, PermissionError):
        return FORBIDDEN
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return HUGE
    if "MAX_TEXT" in str(error):  # the name of Pillow's limit stands in its message
        return WORDY
    if isinstance(error, OSError):
        return {errno.EINVAL: SPECIAL, errno.EFBIG: LARGE}.get(error.errno, UNREADABLE)
    return UNREADABLE


def resize(image: Image.Image, crop: str, resolution: int) -> Image.Image:
    """(R, R), bicubic+antialias: the whole picture (`squash`) or its largest central square (`center`)."""
    width, height = image.size
    box = (0.0, 0.0, width, height)
    if crop == "center":
        side = min(width, height)
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    return image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box)


def look(path: Path) -> Look:
    """Read one file completely and say what it is; never raises."""
    try:
        data = read_bytes(path)
        picture = decode(data, side=SCAN_SIDE)
    except BadPicture as error:
        return Look(hashlib.sha256(data).hexdigest(), "", problem=error.reason)
    except Exception as error:  # a file that cannot be opened
        return Look("", "", problem=reason_of(error))
    content = hashlib.sha256(f"{picture.image.size}".encode() + picture.image.tobytes()).hexdigest()
    return Look(hashlib.sha256(data).hexdigest(), content, picture.notes)


def look_at_all(folder: Path, names: list[str], cache_folder: str | Path | None) -> dict[str, Look]:
    """A look at every file `folder / name`; what did not change since the last time comes from the cache."""
    store = None
    if cache_folder is not None:
        key = fingerprint("scan", VERSION, Image.__version__, str(folder))
        store = Path(cache_folder) / f"scan-{key[:16]}.json"
    known = _stored(store)
    states = {name: _state(folder / name) for name in names}
    looks = {name: known[name][1] for name in names if name in known and known[name][0] == states[name]}
    new = [name for name in names if name not in looks]
    looks |= _look_at(folder, new)
    if store is not None and new:
        _store(store, {name: (states[name], looks[name]) for name in names})
    return {name: looks[name] for name in names}


def _look_at(folder: Path, names: list[str]) -> dict[str, Look]:
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit says it in the report
        looks = pool.map(look, [folder / name for name in names])
        title = f"reading {folder.name}"
        bar = tqdm(looks, total=len(names), desc=title, unit=" files", delay=1, leave=False, disable=None)
        return dict(zip(names, bar, strict=True))


def upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """(the picture as its EXIF orientation says, whether its width has become its height)."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        if orientation not in range(2, 9):
            return image, False
        return ImageOps.exif_transpose(image), orientation >= 5
    except Exception:  # a broken EXIF block says nothing about the picture
        return image, False


def _flatten(image: Image.Image) -> tuple[Image.Image, str | None]:
    """RGB, and the name of the conversion where there was one."""
    if image.mode.startswith(("I", "F")):
        return _eight_bit(image).convert("RGB"), DEEP
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        opaque = layer.getchannel("A").getextrema()[0] == 255
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB"), None if opaque else TRANSPARENT
    conversion = {"1": GRAYSCALE, "L": GRAYSCALE, "CMYK": CMYK}.get(image.mode)
    return image.convert("RGB"), conversion


def _eight_bit(image: Image.Image) -> Image.Image:
    """One channel: 16 bits by their range; 32 bits and floats, whose range is free, by their extremes."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    sixteen = image.mode.startswith("I;16")
    low, high = (0.0, 65535.0) if sixteen else (float(values.min()), float(values.max()))
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(np.round(scaled).astype(np.uint8))


def _state(path: Path) -> list[int]:
    """Size and times of change; empty when the file cannot be asked."""
    try:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    except OSError:
        return []


def _stored(store: Path | None) -> dict[str, tuple[list[int], Look]]:
    try:
        rows = json.loads(store.read_text(encoding="utf-8")) if store else {}
        return {
            name: (state, Look(row["file"], row["content"], tuple(row["notes"]), row["problem"]))
            for name, (state, row) in rows.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _store(store: Path, rows: dict[str, tuple[list[int], Look]]) -> None:
    """Keep what cannot change without the state; permission and network troubles can."""
    fleeting = (FORBIDDEN, SPECIAL, UNREADABLE)
    kept = {n: (state, asdict(row)) for n, (state, row) in rows.items() if row.problem not in fleeting}
    try:
        write_atomically(store, json.dumps(kept).encode())
    except OSError as error:
        logger.warning("%s: cannot be written (%s), so the next run reads again", store, error.strerror)


def grid(rows: list[Tensor], gap: int = 2) -> Tensor:
    """Rows of n pictures each (n, 3, H, W) -> one picture (3, H', W'), white between them."""
    pad = (gap, gap, gap, gap)
    lines = [torch.cat([torch.nn.functional.pad(p, pad, value=1.0) for p in row.cpu()], 2) for row in rows]
    return torch.cat(lines, 1)


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> an 8-bit RGB picture."""
    return Image.fromarray(image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy())


def save_png(image: Tensor, file: Path) -> None:
    """Writes the file whole or not at all, because a resumed command takes an existing picture as done."""
    content = io.BytesIO()
    to_pil(image).save(content, "PNG")
    write_atomically(file, content.getvalue())
