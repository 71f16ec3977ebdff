"""Where weights are: a folder, a name in assets/, or a model hub id. One clear message when they are nowhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lpo_platform.config import UserError

ASSETS = Path(__file__).parents[1] / "assets"
T = TypeVar("T")


def locate(weights: str) -> str:
    """A folder of that path, else the asset of that name, else the string itself as a hub id."""
    for folder in (Path(weights).expanduser(), ASSETS / weights):
        if folder.is_dir():
            return str(folder)
    return weights


def load(from_pretrained: Callable[..., T], weights: str, *, setting: str, **options: object) -> T:
    """from_pretrained(weights), its failures told as one UserError that names the configuration key `setting`."""
    place = locate(weights)
    if _is_path(weights) and not Path(place).is_dir():  # a hub would be asked for it, and asked again
        raise UserError(f"{setting}={weights}: no such folder")
    try:
        return from_pretrained(place, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        kind = "folder" if Path(place).is_dir() else "local folder, bundled asset or reachable hub id"
        part = f" (part {options['subfolder']!r})" if options.get("subfolder") else ""
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{setting}={weights}: no usable weights{part}: not a {kind} in diffusers layout. "
            f"Pass {setting}=<folder>, or download the id first on a machine with network. Reason: {first}"
        ) from error


def _is_path(weights: str) -> bool:
    """A hub id is `name` or `owner/name`."""
    return weights.startswith(("/", ".", "~")) or weights.count("/") > 1


def digest(weights: str) -> str:
    """What identifies the weights in a cache key: sizes and contents of a folder's files, or the hub id."""
    from lpo_platform.data.cache import file_digest

    folder = Path(locate(weights))
    if not folder.is_dir():
        return weights
    files = sorted(p for p in folder.rglob("*") if p.suffix in {".safetensors", ".json", ".bin", ".txt"})
    return json.dumps([(str(p.relative_to(folder)), file_digest(p)) for p in files])
