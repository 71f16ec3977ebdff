"""Writes what was trained in the formats of diffusers, so that stock pipelines load it without our code."""

import json
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lpo_platform.config.errors import UserError
from lpo_platform.hardware.distributed import lead, wait
from lpo_platform.hardware.sharding import kept, like
from lpo_platform.models import lora
from lpo_platform.models.latent_reward import LatentReward
from lpo_platform.models.policy import Policy
from lpo_platform.models.reward_folder import load_reward, save_reward
from lpo_platform.models.weights import whole
from lpo_platform.runs.files import follow_umask, write_text

ORIGINS = {"_name_or_path", "name_or_path"}
FOLDERS = {"control": "controlnet", "reward": "reward"}  # of the denoiser's parts the adapter knows


def export(policy: Policy, folder: Path, suffix: str = "") -> list[Path]:
    """Saves every module that learns to folder/<name><suffix>. Every process must call it; the first one writes.

    LoRA adapters go to folder/lora<suffix>, which load_lora_weights reads, and with `tune.merged` the UNet with the
    adapters inside to folder/unet<suffix>.
    """
    written, folders = [], FOLDERS | policy.adapter.folders
    for name, module in policy.learning.items():
        module = _unsharded(module)
        if not lead():
            continue
        module.to(memory_format=torch.contiguous_format)  # safetensors knows no other
        target = folder / f"{folders[name]}{suffix}"
        if isinstance(module, LatentReward):
            save_reward(module, target, policy.adapter.unet)
            written.append(target)
        elif not hasattr(module, "peft_config"):
            module.save_pretrained(target)
            written.append(target)
        else:
            adapter = folder / f"lora{suffix}"
            lora.write(lora.extract(module), adapter, folders[name])
            written.append(adapter)
            if policy.tune.merged:
                lora.merged(module).save_pretrained(target)
                written.append(target)
        module.to(memory_format=torch.channels_last)
    for target in written:
        forget_origin(target)
        follow_umask(target)
    wait()
    return written


def forget_origin(folder: Path) -> None:
    """Takes out of the JSON files where diffusers and transformers had the weights from: a folder of this machine."""
    for file in folder.rglob("*.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(config, dict) and config.keys() & ORIGINS:
            kept = {name: value for name, value in config.items() if name not in ORIGINS}
            write_text(file, json.dumps(kept, indent=2) + "\n")


def _unsharded(module: nn.Module) -> nn.Module:
    """The module, or of a sharded one a whole copy on the first process's CPU."""
    if not any(isinstance(weight, DTensor) for weight in module.parameters()):
        return module
    state = {name: kept(value) for name, value in module.state_dict().items()}
    with torch.device("meta"):
        plain = type(module).from_config(module.config)
    if lead():
        plain.load_state_dict(state, assign=True)
    return plain


def restore(policy: Policy, folder: Path, suffix: str = "") -> None:
    """Loads what export() wrote into the policy. UserError if a part is missing."""
    folders = FOLDERS | policy.adapter.folders
    for name, module in policy.learning.items():
        adapter = hasattr(module, "peft_config")
        source = folder / f"{'lora' if adapter else folders[name]}{suffix}"
        if not source.is_dir():
            raise UserError(f"{source}: no such export; the run has not finished training (lpo-train resume=<run>)")
        if adapter:
            factors = lora.read_factors(str(source), setting="run", part=folders[name])
            lora.insert(module, factors, setting=f"run={folder.parent}")
        elif isinstance(module, LatentReward):
            module.load_state_dict(load_reward(policy.adapter, str(source)).state_dict())
        else:
            loaded = whole(type(module).from_pretrained, str(source), setting="run").state_dict()
            weights = module.state_dict()
            module.load_state_dict({name: like(value, weights[name]) for name, value in loaded.items()})
