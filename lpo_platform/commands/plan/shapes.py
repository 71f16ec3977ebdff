"""The model of a configuration on the meta device: every weight has its shape and none its values, so nothing is read.

A folder in diffusers' layout says its own shape; of hub ids the published shapes are known here.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lpo_platform.commands.build import create
from lpo_platform.config.errors import UserError
from lpo_platform.config.signature import attribute
from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.diffusion.flow import Flow
from lpo_platform.models.controlnet_dino import SIZES, ControlNetDinoModel
from lpo_platform.models.policy import Policy
from lpo_platform.models.random_flux import FLUX, RandomFlux
from lpo_platform.models.random_weights import SD15, SD21, SDXL, Config, Shape, random_model
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.weights import locate, split

PUBLISHED = {shape.name: shape for shape in (SD15, SD21, SDXL)}
FOLDERS = {"unet": "transformer", "vae": "vae", "text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2"}


def adapter_of(model: DictConfig) -> StableDiffusion:
    """The model, its process still on the CPU: methods look at its timesteps. UserError where the shape is unknown."""
    if attribute(model._target_, "denoiser") == "transformer":
        parts = {name: _config(model, part) or getattr(FLUX, name) for name, part in FOLDERS.items()}
        parts |= {"max_tokens": model.max_tokens, "control_layers": tuple(model.control_layers)}
        shape = replace(FLUX, resolution=model.resolution, **parts)
        adapter, process = RandomFlux(shape, device="meta"), Flow(shift=3.0)
    else:
        adapter, process = random_model(_shape(model), resolution=model.resolution, device="meta"), DDIM()
    adapter.process = process
    adapter.guidance, adapter.num_inference_steps = model.guidance, model.num_inference_steps
    adapter.toy = model.get("toy", False)
    return adapter


def _shape(model: DictConfig) -> Shape:
    if (unet := _config(model, "unet")) is not None:
        others = {part: _config(model, part) for part in ("vae", "text_encoder", "text_encoder_2")}
        return Shape(model.name, model.resolution, unet, **others)
    if model.name in PUBLISHED:
        return PUBLISHED[model.name]
    known = ", ".join([*PUBLISHED, "flux"])
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
    """What learns and what does not, as build.policy_of has it, but for values."""
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
        return ControlNetDinoModel.from_controlnet(control, None, adapter_size=size).requires_grad_(True)
