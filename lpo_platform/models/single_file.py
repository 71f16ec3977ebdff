"""Checkpoints of one file with the original names of Stable Diffusion, as Civitai and ComfyUI have them.

Such a file holds the weights of a denoiser, an autoencoder and often text encoders and says nothing about them: their
configurations, the tokenizers and the scheduler come from a folder or hub id in the layout of diffusers, and so do text
encoders that the file does not hold. The names are translated by diffusers' converters.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as original
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5EncoderModel

from lpo_platform.config.errors import UserError, first_line
from lpo_platform.models.weights import check_finite, listed

DENOISER = "model.diffusion_model."
TEXT = {
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
    "text_encoder_3": ("text_encoders.t5xxl.",),
}
"""How the names of a text encoder begin: in Stable Diffusion 1 and 2, in SDXL, in Stable Diffusion 3."""


def is_checkpoint(path: Path) -> bool:
    """Whether a file holds a denoiser under its original names."""
    try:
        with safe_open(path, framework="pt") as file:
            return any(name.startswith(DENOISER) for name in file.keys())  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError):
        return False


class SingleFile:
    """The parts of one file.

    Args:
        path: a safetensors file.
        setting: what named it, for messages.
    """

    def __init__(self, path: Path, setting: str) -> None:
        self.path, self.where = path, f"{setting}={path}"

    @cached_property
    def state(self) -> dict[str, Tensor]:
        try:
            return load_file(self.path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.where}: not a readable safetensors file: {first_line(error)}") from error

    def holds(self, name: str) -> bool:
        """Whether a part is to be read from this file. Some files of Stable Diffusion 3 have no text encoders."""
        return name not in TEXT or any(key.startswith(TEXT[name]) for key in self.state)

    def part(self, kind: type[Any], name: str, config: dict[str, Any]) -> nn.Module:
        """A frozen part in float32 with all of its weights; UserError where the file does not hold them."""
        if issubclass(kind, ConfigMixin):
            with torch.device("meta"):
                module = kind.from_config(config)
        else:
            module = kind(kind.config_class.from_dict(config))  # its buffers are in no file
        try:
            found = self._converted(module, name)
        except (KeyError, IndexError, AttributeError, RuntimeError) as error:
            raise UserError(f"{self.where}: holds no {name} of this kind: {first_line(error)}") from error
        wanted = module.state_dict()
        found = {key: value.float() for key, value in found.items() if not key.endswith("position_ids")}
        same = wanted.keys() & found.keys()
        faults = {
            "missing": sorted(wanted.keys() - found.keys()),
            "of another shape": sorted(key for key in same if wanted[key].shape != found[key].shape),
            "unknown to the model": sorted(found.keys() - wanted.keys()),
        }
        if any(faults.values()):
            raise UserError(f"{self.where}: not the weights of this {kind.__name__}: {listed(faults)}")
        check_finite(found, f"{self.where}: {name}")
        module.load_state_dict(found, assign=True)
        if isinstance(module, T5EncoderModel):
            module.set_input_embeddings(module.shared)  # one table under two names, which assigning has split
        return module.requires_grad_(False).eval()

    def _converted(self, module: nn.Module, name: str) -> dict[str, Tensor]:
        if isinstance(module, UNet2DConditionModel):
            return original.convert_ldm_unet_checkpoint(dict(self.state), module.config)
        if isinstance(module, AutoencoderKL):
            return original.convert_ldm_vae_checkpoint(dict(self.state), module.config)
        if isinstance(module, SD3Transformer2DModel):
            own = {key: value for key, value in self.state.items() if key.startswith(DENOISER)}
            return original.convert_sd3_transformer_checkpoint_to_diffusers(own)
        if any(key.startswith("text_encoders.") for key in self.state):
            return sd3_text(self.state, module, name)
        return text(self.state, module, name)


def sd3_text(state: dict[str, Tensor], encoder: nn.Module, name: str) -> dict[str, Tensor]:
    """As text, of Stable Diffusion 3, whose file has transformers' own names behind a prefix.

    T5's table of words is in it once and serves under two names. A first CLIP without a projection has the identity.
    """
    if name == "text_encoder_3":
        found = original.convert_sd3_t5_checkpoint_to_diffusers(state)
        return found | {"encoder.embed_tokens.weight": found["shared.weight"]}
    found = original.convert_ldm_clip_checkpoint(state, f"{TEXT[name][-1]}transformer.")
    return {"text_projection.weight": torch.eye(encoder.config.hidden_size)} | found


def text(state: dict[str, Tensor], encoder: nn.Module, name: str) -> dict[str, Tensor]:
    """A text encoder's weights from a checkpoint's, in the names of this transformers."""
    prefix = "cond_stage_model.model." if "cond_stage_model.model.ln_final.weight" in state else ""
    prefix = "conditioner.embedders.1.model." if name == "text_encoder_2" else prefix
    found = original.convert_open_clip_checkpoint(encoder, state, prefix) if prefix else None
    found = original.convert_ldm_clip_checkpoint(state) if found is None else found
    wrapped = hasattr(encoder, "text_model")
    return {key if wrapped else key.removeprefix("text_model."): value for key, value in found.items()}
