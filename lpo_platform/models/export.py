"""Writes what was trained in diffusers' own formats, so that from_pretrained needs none of our code."""

from pathlib import Path

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from lpo_platform.config import UserError
from lpo_platform.models.policy import Policy

FOLDERS = {"control": "controlnet", "unet": "unet", "text_encoder": "text_encoder"}


def export(policy: Policy, folder: Path, suffix: str = "") -> list[Path]:
    """Saves every module that learns to folder/<name><suffix>; LoRA adapters as pytorch_lora_weights.safetensors."""
    written = []
    for name, module in policy.learning.items():
        module.to(memory_format=torch.contiguous_format)  # safetensors knows no other
        target = folder / f"{FOLDERS[name]}{suffix}"
        if hasattr(module, "peft_config"):
            target = folder / f"lora{suffix}"
            module.save_lora_adapter(target)
        else:
            module.save_pretrained(target)
        module.to(memory_format=torch.channels_last)
        written.append(target)
    return written


def restore(policy: Policy, folder: Path, suffix: str = "") -> None:
    """Loads what export() wrote into the policy. UserError if a part is missing."""
    for name, module in policy.learning.items():
        lora = hasattr(module, "peft_config")
        source = folder / f"{'lora' if lora else FOLDERS[name]}{suffix}"
        if not source.is_dir():
            raise UserError(f"{source}: no such export; the run has not finished training (lpo-train resume=<run>)")
        if lora:
            set_peft_model_state_dict(module, load_file(source / "pytorch_lora_weights.safetensors"))
        else:
            module.load_state_dict(type(module).from_pretrained(source).state_dict())
