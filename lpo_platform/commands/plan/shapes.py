"""The model of a configuration on the meta device: every weight has its shape and none its values, so nothing is read.

A folder in diffusers' layout says its own shape; of hub ids the published shapes are known here.
"""

import copy
import json
from dataclasses import fields, replace
from pathlib import Path

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lpo_platform.commands.build import create
from lpo_platform.config.errors import UserError
from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.models.controlnet_dino import KINDS, SIZES
from lpo_platform.models.flux import Flux
from lpo_platform.models.policy import Policy
from lpo_platform.models.random_flux import FLUX, RandomFlux
from lpo_platform.models.random_sd3 import SD3, SD35L, SD35M, RandomStableDiffusion3
from lpo_platform.models.random_weights import SD15, SD21, SDXL, Config, Shape, random_model
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_3 import StableDiffusion3
from lpo_platform.models.weights import locate, split

PUBLISHED = {shape.name: shape for shape in (SD15, SD21, SDXL)}
# What a transformer's class is drawn by, the settings that are of its shape, and the published shapes, the usual first.
TRANSFORMERS: dict[type, tuple[type, tuple[str, ...], tuple[Shape, ...]]] = {
    Flux: (RandomFlux, ("max_tokens", "control_layers"), (FLUX,)),
    StableDiffusion3: (RandomStableDiffusion3, ("t5", "max_tokens", "control_layers"), (SD3, SD35M, SD35L)),
}


def adapter_of(model: DictConfig) -> StableDiffusion:
    """The model, its process still on the CPU: methods look at its timesteps. UserError where the shape is unknown."""
    kind = get_class(model._target_)
    if (known := next((of for family, of in TRANSFORMERS.items() if issubclass(kind, family)), None)) is not None:
        adapter = _transformer(model, *known)
        process = adapter.process.to("cpu")
        process.noise = model.get("noise", "sde")
    else:
        adapter, process = random_model(_shape(model), resolution=model.resolution, device="meta"), DDIM()
    adapter.process = process
    adapter.guidance, adapter.num_inference_steps = model.guidance, model.num_inference_steps
    adapter.toy = model.get("toy", False)
    return adapter


def _transformer(
    model: DictConfig, drawn: type, settings: tuple[str, ...], published: tuple[Shape, ...]
) -> StableDiffusion:
    """As the model's own files say, and else as its published shape does."""
    usual = next((shape for shape in published if shape.name == model.name), published[0])
    parts = [part.name for part in fields(usual) if part.name.startswith(("vae", "text_encoder"))]
    found = {part: _config(model, part) or getattr(usual, part) for part in parts}
    found["unet"] = _config(model, "transformer") or usual.unet
    given = {name: model[name] for name in settings}
    given |= {name: tuple(value) for name, value in given.items() if OmegaConf.is_list(value)}
    return drawn(replace(usual, resolution=model.resolution, **found, **given), device="meta")


def _shape(model: DictConfig) -> Shape:
    if (unet := _config(model, "unet")) is not None:
        others = {part: _config(model, part) for part in ("vae", "text_encoder", "text_encoder_2")}
        return Shape(model.name, model.resolution, unet, **others)
    if model.name in PUBLISHED:
        return PUBLISHED[model.name]
    known = ", ".join([*PUBLISHED, *(shape.name for *_, shapes in TRANSFORMERS.values() for shape in shapes)])
    raise UserError(
        f"model.weights={model.weights}: its shape is not known without its files; pass a folder in diffusers' layout "
        f"(its config.json files are enough), or a model that is known: {known}"
    )


def _config(model: DictConfig, part: str) -> Config | None:
    """config.json of a part, of the pipeline's folder or what `vae=` and the like put in its place."""
    place = model.get(part)
    whole = model.config if Path(model.weights).expanduser().is_file() else model.weights
    weights, subfolder = split(place) if place else (whole, part)
    file = Path(locate(weights), subfolder or "") / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def policy_of(cfg: DictConfig) -> Policy:
    """The policy as build.policy_of makes it, with shapes but without values."""
    adapter, control = adapter_of(cfg.model), None
    process, adapter.process = adapter.process, copy.copy(adapter.process).to("meta")
    if cfg.get("control"):
        control = _control(cfg, adapter)
    tune = OmegaConf.masked_copy(cfg.tune, [key for key in cfg.tune if key not in ("weights", "text_projection")])
    policy = Policy(adapter, create(tune), control)
    adapter.process = process
    return policy


def _control(cfg: DictConfig, adapter: StableDiffusion) -> nn.Module:
    with torch.device("meta"):
        control = adapter.load_control("", "unet")
        if "dino" not in cfg.control:
            return control
        auto = "tiny" if adapter.toy else "small"
        size = next((name for name in SIZES if cfg.control.dino.endswith(name)), auto)
        return KINDS[type(control)].from_controlnet(control, None, adapter_size=size).requires_grad_(True)
