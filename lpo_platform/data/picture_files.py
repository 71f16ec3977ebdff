"""Picture files of unknown origin, decoded to upright 8-bit RGB; every kind of file has an answer."""

import hashlib
import json
import logging
import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from lpo_platform.runs.files import file_digest, fingerprint, write_atomically

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # no EPS, which would start ghostscript
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MIN_SIDE = 16
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs, 256 MB of RGB
SCAN_SIDE = 64  # a JPEG is looked at in reduced form: all of the file is read, few pixels are made
VERSION = 1  # raise it when a picture is judged or decoded differently
EXIF_ORIENTATION = 0x0112

UNREADABLE = "unreadable or truncated"
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
    """What one look at a file told. With a `problem` it is not used; `notes`: what reading it converts."""

    file: str  # sha256 of the bytes
    content: str  # sha256 of the decoded picture: the same for a PNG and a BMP of the same pixels
    notes: tuple[str, ...] = ()
    problem: str | None = None


def open_rgb(path: Path | BinaryIO, *, side: int) -> tuple[Image.Image, tuple[str, ...]]:
    """The first frame as upright RGB, transparency on white, and what had to be converted for that.

    A JPEG comes in reduced form while that has at least 3 * `side` (the gap from which Pillow calls the
    following resize indistinguishable): large photographs are read several times faster.
    Raises what Pillow raises.
    """
    notes = []
    with Image.open(path, formats=FORMATS) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":
            notes.append(ANIMATED)
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            image.draft(image.mode, (3 * side, 3 * side))
        image.load()
        upright = _upright(image)
        if upright is not image:
            notes.append(TURNED)
        flat, conversion = _flatten(upright)
    return flat, tuple(notes + ([conversion] if conversion else []))


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
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block for ever
            return Look("", "", problem=UNREADABLE)
        digest = file_digest(path)
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
        if min(width, height) < MIN_SIDE:
            return Look(digest, "", problem=TINY)
        if width * height > MAX_PIXELS:
            return Look(digest, "", problem=HUGE)
        picture, notes = open_rgb(path, side=SCAN_SIDE)
        content = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        return Look(digest, content, notes)
    except PermissionError:
        return Look("", "", problem=FORBIDDEN)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Look("", "", problem=HUGE)
    except Exception:  # decoders answer a broken file with OSError, SyntaxError, struct.error and others
        return Look("", "", problem=UNREADABLE)


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


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9)
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # a broken EXIF block says nothing about the picture
        return image


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
        rows = json.loads(store.read_text()) if store else {}
        return {
            name: (state, Look(row["file"], row["content"], tuple(row["notes"]), row["problem"]))
            for name, (state, row) in rows.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _store(store: Path, rows: dict[str, tuple[list[int], Look]]) -> None:
    """Keep what cannot change without the state; permission and network troubles can."""
    fleeting = (FORBIDDEN, UNREADABLE)
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
    """Whole or not at all: what resumes takes a picture that is there for done."""
    content = BytesIO()
    to_pil(image).save(content, "PNG")
    write_atomically(file, content.getvalue())
