"""Where weights are: a folder, a name in assets/, or a model hub id. One clear message when they are nowhere."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from torch import nn

from lpo_platform.config.errors import UserError

ASSETS = Path(__file__).parents[1] / "assets"
T = TypeVar("T")


def locate(weights: str) -> str:
    """A folder of that path, else the asset of that name, else the string itself as a hub id."""
    for folder in (Path(weights).expanduser(), ASSETS / weights):
        if folder.is_dir():
            return str(folder)
    return weights


def split(place: str) -> tuple[str, str | None]:
    """The two parts of "<folder or hub id>[::<subfolder>]"."""
    weights, _, subfolder = place.partition("::")
    return weights, subfolder or None


def load(from_pretrained: Callable[..., T], weights: str, *, setting: str, **options: object) -> T:
    """from_pretrained(weights), its failures told as one UserError that names the configuration key `setting`."""
    place = locate(weights)
    if is_path(weights) and not Path(place).is_dir():  # a hub would be asked for it, and asked again
        raise UserError(f"{setting}={weights}: no such folder")
    try:
        return from_pretrained(place, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        kind = "folder" if Path(place).is_dir() else "local folder, bundled asset or reachable hub id"
        part = f" (part {options['subfolder']!r})" if options.get("subfolder") else ""
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{setting}={weights}: no usable weights{part}: not a {kind} in the layout of diffusers or transformers. "
            f"Pass {setting}=<folder>, or download the id first on a machine with network. Reason: {first}"
        ) from error


def is_path(weights: str) -> bool:
    """A hub id is `name` or `owner/name`."""
    return weights.startswith(("/", ".", "~")) or weights.count("/") > 1


def digest(place: str) -> str:
    """What identifies "<folder, file or hub id>[::<subfolder>]" in a cache key: names and contents, or the hub id."""
    from lpo_platform.runs.files import file_digest

    weights, subfolder = split(place)
    path = Path(locate(weights), subfolder or "").expanduser()
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        return place
    files = sorted(p for p in path.rglob("*") if p.suffix in {".safetensors", ".json", ".bin", ".pt", ".txt"})
    return json.dumps([(str(p.relative_to(path)), file_digest(p)) for p in files])


Dtype = Literal["float32", "bfloat16", "float16", "auto"]  # auto: as the weights are stored


T = TypeVar("T", bound=nn.Module)


def whole(from_pretrained: Callable[..., tuple[T, dict]], weights: str, *, setting: str, **options: object) -> T:
    """A frozen model all of whose weights were found.

    from_pretrained fills gaps with random numbers and a warning; a reward with random parts is an error here.
    """
    ask = partial(from_pretrained, output_loading_info=True, ignore_mismatched_sizes=True)
    model, found = load(ask, weights, setting=setting, **options)
    lacking = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if lacking:
        raise UserError(
            f"{setting}={weights}: not the weights of a {type(model).__name__}: {len(lacking)} tensors are missing "
            f"or of another shape, first {lacking[0]}"
        )
    return model.requires_grad_(False).eval()
