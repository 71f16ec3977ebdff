"""LoRA files. Every layout that LPO and diffusers have written is read; the one that LPO publishes is written.

Written: pytorch_lora_weights.safetensors with `unet.<module>.lora.down.weight` (r, in) and `.lora.up.weight` (out, r),
W + up @ down. No alpha is stored, every reader takes it as r; alpha / r is multiplied into `up`.

Read as well: `unet.<module>.lora_A.weight` with the settings in the header (what diffusers writes today), the same
without `unet.`, the older `.to_q_lora.down.weight`, any of them with `.alpha`, LPO's checkpoint `unet_lora.pt`,
and the files of the Kohya trainers (Civitai, ComfyUI), which adapt text encoders, too.
"""

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, SD3Transformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lpo_platform.config.errors import UserError
from lpo_platform.models.hub import OutOfReach, hub_file
from lpo_platform.models.weights import is_path, locate, split

KOHYA = r"lora_(unet|te\d?|transformer)_"  # how layers' names begin in the files of the Kohya trainers
OTHER = ("dora_scale", "lora_mid.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a")
FILES = ("pytorch_lora_weights.safetensors", "unet_lora.pt")
SETTINGS = "lora_adapter_metadata"  # diffusers' key in the header of a safetensors file

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers of a UNet that LPO, SPO and DDPO adapt."""
Factors = dict[str, tuple[Tensor, Tensor]]  # by module of the UNet: down (r, in), up (out, r) with alpha / r inside


def extract(unet: nn.Module) -> Factors:
    """The adapters that the UNet carries, float32 on the CPU."""
    return {
        name: (
            layer.lora_A["default"].weight.detach().float().cpu(),
            (_scale(layer) * layer.lora_B["default"].weight.detach()).float().cpu(),
        )
        for name, layer in _layers(unet)
    }


@torch.no_grad()
def insert(unet: nn.Module, factors: Factors, *, setting: str) -> None:
    """Loads the factors into the adapters of the UNet. Raises UserError where modules or ranks differ."""
    layers = dict(_layers(unet))
    if layers.keys() != factors.keys():
        raise UserError(f"{setting}: the adapter is on other modules, {_difference(layers, factors)}")
    for name, (down, up) in factors.items():
        a, b = layers[name].lora_A["default"].weight, layers[name].lora_B["default"].weight
        if a.shape != down.shape or b.shape != up.shape:
            raise UserError(f"{setting}: rank {len(down)} at {name}, where tune.rank={len(a)}")
        a.copy_(down)
        b.copy_(up / _scale(layers[name]))


@torch.no_grad()
def merge(unet: nn.Module, factors: Factors, *, setting: str) -> None:
    """Sets W + up @ down in every named module. The weights are new; a copy that shared the old ones keeps them."""
    modules = dict(unet.named_modules())
    for name, (down, up) in factors.items():
        module = modules.get(name)
        weight = getattr(module, "weight", None)
        if weight is None or (len(up), down[0].numel()) != (len(weight), weight[0].numel()):
            raise UserError(f"{setting}: the adapter was made for another UNet, this one has no such {name}")
        delta = (up.flatten(1).float() @ down.flatten(1).float()).view_as(weight)
        module.weight = nn.Parameter(weight + delta.to(weight), requires_grad=weight.requires_grad)


def merged(unet: ModelMixin, factors: Factors | None = None) -> ModelMixin:
    """A plain model with these adapters merged, or with those that it carries.

    It shares every other weight with the given one, which is not changed.
    """
    with torch.device("meta"):
        plain = type(unet).from_config(unet.config)
    state = {name.replace(".base_layer.", "."): w for name, w in unet.state_dict().items() if ".lora_" not in name}
    plain.load_state_dict(state, assign=True)
    device, factors = unet.device, extract(unet) if factors is None else factors
    merge(plain, {name: (down.to(device), up.to(device)) for name, (down, up) in factors.items()}, setting="lora")
    return plain


def write(factors: Factors, folder: Path, part: str = "unet") -> None:
    """The published layout, at folder/pytorch_lora_weights.safetensors; of a `transformer` the one of FluxPipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    state, (first, second) = {}, ("lora.down", "lora.up") if part == "unet" else ("lora_A", "lora_B")
    for name, (down, up) in factors.items():
        state[f"{part}.{name}.{first}.weight"], state[f"{part}.{name}.{second}.weight"] = down, up.contiguous()
    save_file(state, folder / FILES[0], metadata={"format": "pt"})


def read_factors(place: str, *, setting: str, part: str = "unet") -> Factors:
    """Reads "<file, folder or hub id>[::<file or subfolder>]". Raises UserError, which names `setting`."""
    state, settings = _read_file(place, setting)
    return parse(state, settings, setting=f"{setting}={place}", part=part)


def _read_file(place: str, setting: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and the settings in its header."""
    path = _find(place, setting)
    settings: dict[str, Any] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                settings = json.loads((file.metadata() or {}).get(SETTINGS, "{}"))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise UserError(f"{setting}={place}: {path.name} is not a readable file of weights: {_first(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(weight, Tensor) for weight in state.values()):
        raise UserError(f"{setting}={place}: {path.name} is not a state dict")
    return state, settings


def read_all(place: str, model: nn.Module, *, setting: str, part: str = "unet") -> dict[str, Factors]:
    """As read, for each part of a pipeline that the file adapts: the denoiser `part`, and text encoders in files of the
    Kohya trainers, which name all layers by underscores. `model` is the denoiser, on which those names depend."""
    state, settings = _read_file(place, setting)
    if not any(re.match(KOHYA, name) for name in state):
        return {part: parse(state, settings, setting=f"{setting}={place}", part=part)}
    found = from_kohya(state, model, setting=f"{setting}={place}", part=part)
    return {name: _factors(own, {}, setting=f"{setting}={place}") for name, own in found.items()}


def from_kohya(
    state: Mapping[str, Tensor], model: nn.Module, *, setting: str, part: str
) -> dict[str, dict[str, Tensor]]:
    """PEFT's names for a Kohya or Civitai file, by part, with alpha / r multiplied into `up`.

    diffusers' converters do the work. UserError for what is not W + up @ down.
    """
    if other := next((name for name in state if name.endswith(OTHER)), None):
        raise UserError(
            f"{setting}: {other} belongs to DoRA, LoHa, LoKr or a LoRA of three factors; merge it elsewhere"
        )
    if isinstance(model, SD3Transformer2DModel):
        raise UserError(f"{setting}: diffusers cannot read this layout for Stable Diffusion 3; convert it elsewhere")
    options = {"unet_config": model.config} if part == "unet" else {"return_alphas": True}
    loader = StableDiffusionXLLoraLoaderMixin if part == "unet" else FluxLoraLoaderMixin
    try:
        converted, alphas = loader.lora_state_dict(dict(state), **options)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"{setting}: not a LoRA that diffusers can convert: {_first(error)}") from error
    for name, alpha in (alphas or {}).items():
        down = name.removesuffix(".alpha")
        up = down.replace("down.weight", "up.weight")
        converted[up] = converted[up] * (float(alpha) / len(converted[down]))
    parts: dict[str, dict[str, Tensor]] = {}
    for name, weight in converted.items():
        own, _, rest = name.partition(".")
        parts.setdefault(own, {})[rest] = weight
    return {
        own: (convert_unet_state_dict_to_peft if own in ("unet", "transformer") else convert_state_dict_to_peft)(names)
        for own, names in parts.items()
    }


def parse(state: Mapping[str, Tensor], settings: Mapping[str, Any], *, setting: str, part: str = "unet") -> Factors:
    """Factors of a state dict in any of the layouts above; settings: a LoraConfig as a dict, its keys may have `unet.`.

    part: what the denoiser is called, unet or transformer. UserError for adapters of another part, for DoRA and for
    whatever else is not W + up @ down.
    """
    parts_found = {name.split(".")[0] for name in state if re.match(r"text_encoder|(unet|transformer)\b|lora_", name)}
    foreign = sorted(parts_found - {part})
    if foreign:
        raise UserError(f"{setting}: holds adapters of {', '.join(foreign)}; only those of the {part} can be merged")
    plain = {name.removeprefix("base_model.model.").removeprefix(f"{part}."): w for name, w in state.items()}
    return _factors(convert_unet_state_dict_to_peft(plain), settings, setting=setting, part=part)


def _factors(state: Mapping[str, Tensor], settings: Mapping[str, Any], *, setting: str, part: str = "unet") -> Factors:
    """Of a state dict in PEFT's names."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, weight in state.items():
        found = re.fullmatch(r"(.+)\.(lora_A|lora_B|alpha)(?:\.default)?(?:\.weight)?", name)
        if found is None:
            raise UserError(f"{setting}: {name} is no part of a LoRA in diffusers' or PEFT's layout")
        parts.setdefault(found[1], {})[found[2]] = weight
    settings = {name.removeprefix(f"{part}."): value for name, value in settings.items()}
    if settings.get("use_dora"):
        raise UserError(
            f"{setting}: holds a DoRA, which is more than W + up @ down; merge it elsewhere, see model.unet"
        )
    if not parts or any({"lora_A", "lora_B"} - part.keys() for part in parts.values()):
        raise UserError(f"{setting}: no whole LoRA in diffusers' or PEFT's layout")
    return {
        name: (part["lora_A"].float(), part["lora_B"].float() * _stored_scale(name, part, settings))
        for name, part in parts.items()
    }


def _stored_scale(name: str, part: Mapping[str, Tensor], settings: Mapping[str, Any]) -> float:
    """alpha / r of one module, 1 where no alpha is stored."""
    rank = len(part["lora_A"])
    patterns = settings.get("alpha_pattern") or {}
    matching = (alpha for key, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name))
    alpha = next(matching, settings.get("lora_alpha", rank))
    alpha = float(part["alpha"]) if "alpha" in part else alpha
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _find(place: str, setting: str) -> Path:
    weights, inner = split(place)
    here = Path(locate(weights), inner or "").expanduser()
    if here.is_file():
        return here
    if here.is_dir():
        found = [here / name for name in FILES if (here / name).is_file()] or sorted(here.glob("*.safetensors"))
        if len(found) == 0:
            raise UserError(f"{setting}={place}: no {' or '.join(FILES)} in this folder")
        return found[0]
    if is_path(weights) or Path(weights).exists() or here.suffix in (".safetensors", ".pt"):
        raise UserError(f"{setting}={place}: no such file or folder")
    return _download(weights, inner, f"{setting}={place}")


def _download(repository: str, inner: str | None, setting: str) -> Path:
    """The file of a hub repository that was asked for by its id."""
    name = inner if inner and Path(inner).suffix else "/".join(filter(None, (inner, FILES[0])))
    try:
        return hub_file(repository, name)
    except OutOfReach as error:
        raise UserError(f"{setting}: no such folder, and {name} cannot be fetched from a hub: {error}") from error


def _layers(unet: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    return ((name, module) for name, module in unet.named_modules() if isinstance(module, LoraLayer))


def _scale(layer: LoraLayer) -> float:
    return layer.scaling["default"]


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The first module that only one of them has."""
    name = min(ours.keys() ^ theirs.keys())
    return f"{name} is {'missing' if name in ours else 'unknown here'}; tune.targets must be those of its training"


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
