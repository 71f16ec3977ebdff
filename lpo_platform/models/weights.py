"""Finds weights in a folder, by a name in assets/, or by a hub id, with one clear message where there are none."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lpo_platform.config.errors import UserError, first_line
from lpo_platform.hardware import sharding
from lpo_platform.models.fields import Fields, check
from lpo_platform.models.hub import OutOfReach, Repository, look

ASSETS = Path(__file__).parents[1] / "assets"
T = TypeVar("T")
Dtype = Literal["float32", "bfloat16", "float16", "auto"]  # auto: as the weights are stored
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[A-Za-z]\w*))?(?:-\d+-of-\d+)?"
    r"\.(?:safetensors|bin)"
)
"""The names under which diffusers and transformers save weights."""
SHARD = re.compile(r"(?P<stem>\w+)-\d+-of-\d+\.(?P<form>safetensors|bin)")
TOKENIZERS = ("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",), ("tokenizer.model",)
"""The files of which a tokenizer has one set, or several."""


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


def load(from_pretrained: Callable[..., T], weights: str, *, setting: str, **options: Any) -> T:
    """Calls from_pretrained(weights). A failure is one UserError that names the configuration key `setting`.

    options: those of from_pretrained. Where no `variant` is asked for and a folder has one variant only, that is read.
    """
    part = options.get("subfolder")
    place, names = _files(weights, part, options.get("revision"), setting)
    if Path(place).is_dir():
        options.pop("revision", None)
    options["variant"] = options.get("variant") or only_variant(names, f"{setting}={weights}")
    options = {name: value for name, value in options.items() if name not in ("variant", "revision") or value}
    try:
        return from_pretrained(place, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        where = f" (part {part!r})" if part else ""
        kind = "folder" if Path(place).is_dir() else "hub id"
        raise UserError(
            f"{setting}={weights}: no usable weights{where}: not a {kind} in the layout of diffusers or transformers. "
            f"Reason: {_lacking(error, names) or first_line(error)}"
        ) from error


def _lacking(error: Exception, names: list[str]) -> str:
    """Which file a library asks for at the end of a long message."""
    asked = re.findall(r"[\w.]+\.json", str(error))
    return next((f"{name} is missing" for name in asked if name not in names), "")


def load_tokenizer(from_pretrained: Callable[..., T], weights: str, *, setting: str, **options: Any) -> T:
    """A tokenizer, or a processor that has one. UserError where a file is missing without which transformers makes one
    that knows no words, or no end of a text, and says nothing."""
    part = options.get("subfolder")
    place, names = _files(weights, part, options.get("revision"), setting)
    there, said = set(names), Path(place, part or "", "tokenizer_config.json")
    unusable = f"{setting}={weights}: no usable tokenizer" + (f" (part {part!r})" if part else "")
    wanted = min(TOKENIZERS, key=lambda files: (not there & set(files), len(set(files) - there)))
    if missing := [name for name in (*wanted, "tokenizer_config.json") if name not in there]:
        sets = ", or ".join(" and ".join(files) for files in TOKENIZERS)
        raise UserError(f"{unusable}: {missing[0]} is missing. A tokenizer has {sets}, and tokenizer_config.json")
    try:
        return load(from_pretrained, weights, setting=setting, **options)
    except UserError as error:
        if "config.json" in there or not said.is_file() or "tokenizer_class" in said.read_text(encoding="utf-8"):
            raise
        lacks = "config.json is missing, and tokenizer_config.json does not say of which class it is"
        raise UserError(f"{unusable}: {lacks}") from error


def _check_files(weights: str, setting: str, options: Mapping[str, Any]) -> None:
    """UserError for weights without their configuration, in whose place transformers takes one of another model, and
    for weights in several files without the list of their tensors."""
    part = options.get("subfolder")
    names = _files(weights, part, options.get("revision"), setting)[1]
    needed = ["config.json"]
    if not options.get("variant") and (shard := next(filter(None, map(SHARD.fullmatch, names)), None)):
        whole_file = f"{shard['stem']}.{shard['form']}"
        needed += [] if whole_file in names else [f"{whole_file}.index.json"]
    if missing := [name for name in needed if name not in names]:
        where = f" (part {part!r})" if part else ""
        raise UserError(
            f"{setting}={weights}: no usable weights{where}: not a folder or hub id in the layout of diffusers or "
            f"transformers. Reason: {missing[0]} is missing"
        )


def _files(weights: str, part: str | None, revision: str | None, setting: str) -> tuple[str, list[str]]:
    """Where weights are, a folder or else a hub id, and the names of the files in a part of it."""
    place = locate(weights)
    if Path(place).is_dir():
        return place, [file.name for file in Path(place, part or "").glob("*")]
    if is_path(weights):  # a hub would be asked for it, and asked again
        raise UserError(f"{setting}={weights}: no such folder")
    found = _look(weights, revision, setting)
    names = [path.name for path in map(Path, found.files) if path.parent == Path(part or "")]
    return place if found.folder is None else str(found.folder), names


def _look(weights: str, revision: str | None, setting: str) -> Repository:
    try:
        return look(weights, revision=revision)
    except OutOfReach as error:
        raise UserError(
            f"{setting}={weights}: no usable weights: neither a folder nor a bundled asset, and no hub id in reach: "
            f"{error}. Pass {setting}=<folder>, or download the id first on a machine with network"
        ) from error


def only_variant(names: Iterable[str], where: str) -> str | None:
    """The variant, `fp16` for one, that the weights among these files exist in; None where they exist without one.

    UserError, which begins with `where`, where there are several variants and nothing else.
    """
    variants = {match["variant"] for name in names if (match := WEIGHTS.fullmatch(name))}
    if not variants or None in variants:
        return None
    if len(variants) > 1:
        raise UserError(f"{where}: holds only the variants {', '.join(sorted(variants))}; choose one by model.variant")
    return variants.pop()


def whole(
    from_pretrained: Callable[..., tuple[T, dict]], weights: str, *, setting: str, exact: bool = False, **options: Any
) -> T:
    """A frozen model all of whose weights were found, in its shapes, and finite.

    from_pretrained fills gaps with random numbers and a warning; here a gap is one UserError that names the tensors.
    exact: whether the file may not hold tensors either that the model does not have.
    """
    _check_files(weights, setting, options)
    ask = partial(from_pretrained, output_loading_info=True, ignore_mismatched_sizes=True)
    with _silent():
        model, found = load(ask, weights, setting=setting, **options)
    shapes = [
        f"{name} ({_shape(stored)} instead of {_shape(asked)})"
        for name, stored, asked in sorted(found["mismatched_keys"])
    ]
    faults = {
        "missing": sorted(found["missing_keys"]),
        "of another shape": shapes,
        "unknown to the model": sorted(found["unexpected_keys"]) if exact else [],
        "not finite": [] if found["missing_keys"] or shapes else not_finite(model.state_dict()),
    }
    if any(faults.values()):
        where = f"{setting}={weights}: {_file(weights, options.get('subfolder'))}"
        raise UserError(f"{where}: not the weights of this {type(model).__name__}: {listed(faults)}")
    return model.requires_grad_(False).eval()


def load_model(kind: type[Any], weights: str, known: Fields, *, setting: str, **options: Any) -> Any:
    """A model of diffusers or transformers, whole and in float32.

    UserError where its configuration holds a field that is refused (models/fields.py).
    """
    stock = not issubclass(kind, PreTrainedModel)
    load_config(kind, weights, known, setting=setting, **{k: v for k, v in options.items() if k != "variant"})
    precision = "torch_dtype" if stock else "dtype"
    return whole(kind.from_pretrained, weights, setting=setting, exact=stock, **options | {precision: torch.float32})


def load_config(kind: type[Any], weights: str, known: Fields, *, setting: str, **options: Any) -> dict[str, Any]:
    """The configuration of such a model; UserError for a field that is refused."""
    _check_files(weights, setting, options)
    read = _config_of_transformers if issubclass(kind, PreTrainedModel) else kind.load_config
    config = load(read, weights, setting=setting, **options)
    check(known, config, f"{setting}={weights}: {Path(options.get('subfolder') or '', 'config.json')}")
    return config


def _config_of_transformers(place: str, **options: Any) -> dict[str, Any]:
    return PreTrainedConfig.get_config_dict(place, **options)[0]


def listed(faults: Mapping[str, Sequence[str]], most: int = 4) -> str:
    """Which tensors have which fault; of a fault that many tensors have, the first ones and their number."""
    parts = []
    for fault, names in faults.items():
        if names:
            more = f" and {len(names) - most} more" if len(names) > most else ""
            parts.append(f"{len(names)} {'is' if len(names) == 1 else 'are'} {fault}: {', '.join(names[:most])}{more}")
    return "of its tensors " + "; ".join(parts)


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The tensors that hold NaN or infinity; of sharded ones every process has to ask."""
    real = {name: value.detach() for name, value in state.items() if value.is_floating_point() and value.numel()}
    if not real:
        return []
    extremes = [torch.stack(torch.aminmax(sharding.whole(value))).isfinite().all() for value in real.values()]
    finite = torch.stack(extremes).tolist()  # the host waits once
    return sorted(name for name, fine in zip(real, finite, strict=True) if not fine)


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """UserError, which begins with `where`, for weights that hold NaN or infinity."""
    if names := not_finite(state):
        raise UserError(f"{where}: {listed({'not finite': names})}")


def _file(weights: str, subfolder: str | None) -> str:
    """What a message calls the file that the weights came from."""
    folder = Path(locate(weights), subfolder or "")
    names = sorted(file.name for file in folder.glob("*") if WEIGHTS.fullmatch(file.name))
    return str(Path(subfolder or "", names[0] if len(names) == 1 else "")) if names or subfolder else "its file"


def _shape(size: Sequence[int]) -> str:
    return f"({', '.join(str(side) for side in size)})"


@contextmanager
def _silent() -> Iterator[None]:
    """Without what diffusers and transformers log about gaps and files, of which one error tells."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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
