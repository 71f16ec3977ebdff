"""Puts the weights that `lpo-eval weights=` and `against=` name into the configuration of a model."""

import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lpo_platform.config.errors import UserError
from lpo_platform.models.hub import OutOfReach, hub_file
from lpo_platform.models.single_file import is_checkpoint
from lpo_platform.models.weights import locate, split

SETTINGS = {
    "ControlNetModel": "control.weights",
    "ControlNetDinoModel": "control.weights",
    "FluxControlNetDinoModel": "control.weights",
    "SD3ControlNetDinoModel": "control.weights",
    "FluxControlNetModel": "control.weights",
    "SD3ControlNetModel": "control.weights",
    "UNet2DConditionModel": "model.unet",
    "FluxTransformer2DModel": "model.transformer",
    "SD3Transformer2DModel": "model.transformer",
}
EXPORTED = ("controlnet", "lora", "unet", "transformer")  # folders in one export; with a LoRA the denoiser is merged


def with_weights(cfg: DictConfig, place: str, setting: str) -> DictConfig:
    """The configuration with the model, the part of it or the adapter that lies at "<place>[::<subfolder>]".

    A pipeline, a denoiser, a ControlNet, a LoRA, or an export folder with some of them. UserError where it is none of
    those, or where the configuration has nowhere to put it.
    """
    changes = {key: part for part in _parts(place) for key in [setting_of(part)] if key}
    if not changes:
        raise UserError(
            f"{setting}={place}: no weights found; what works: a run, or a folder or reachable hub id of a ControlNet, "
            "a denoiser, a LoRA or a pipeline in the layout of diffusers"
        )
    result = OmegaConf.create(OmegaConf.to_container(cfg))
    for key, part in changes.items():
        group, name = key.split(".")
        if not result.get(group) or name not in result[group]:
            advice = f"add {group}=controlnet" if group == "control" else f"model={cfg.model.name} has no {name}"
            raise UserError(f"{setting}={place}: for {key}; {advice}")
        result[group][name] = part
        if group == "control":
            result.control.weights, result.control.subfolder = split(part)
    return result


def _parts(place: str) -> list[str]:
    """The place itself, or of a folder that is an export the parts in it."""
    weights, subfolder = split(place)
    root = Path(locate(weights), subfolder or "").expanduser()
    found = [str(root / name) for name in EXPORTED if (root / name).is_dir()]
    if not found or (root / "model_index.json").is_file():
        return [place]
    return found[:1] if found[0].endswith("lora") else found


def setting_of(place: str) -> str | None:
    """The key of the configuration that a place is for."""
    if _file(place, "model_index.json"):
        return "model.weights"
    if (file := Path(place).expanduser()).is_file() and is_checkpoint(file):
        return "model.weights"
    if file.is_file() or any(_file(place, name) for name in ("pytorch_lora_weights.safetensors", "unet_lora.pt")):
        return "model.lora"
    config = _file(place, "config.json")
    try:
        return SETTINGS.get(json.loads(config.read_text(encoding="utf-8"))["_class_name"]) if config else None
    except (ValueError, KeyError, TypeError):
        return None


def _file(place: str, name: str) -> Path | None:
    """A file of a folder or of a repository of the hub, None where it has none or the hub cannot be reached."""
    weights, subfolder = split(place)
    root = Path(locate(weights)).expanduser()
    if root.exists():
        file = root / (subfolder or "") / name
        return file if file.is_file() else None
    try:
        return hub_file(weights, name, subfolder=subfolder)
    except OutOfReach:
        return None
