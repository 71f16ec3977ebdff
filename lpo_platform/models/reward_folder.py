"""Latent reward models: where they start, and on disk.

Of a UNet they lie in the layout of the original: unet/, text_encoder/ (text_encoder_2/), state_dict.pt.

The original stores its projections in a pickle; it is read with weights_only=True, and ours writes reward.safetensors
beside it, which is read first. Up blocks are skipped on loading; on saving they are the base model's, so that the
original's code and diffusers can open the folder. Of a transformer there is the trunk alone, transformer/, and the same
head; the text encoders are the base model's.
"""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from lpo_platform.config.errors import UserError
from lpo_platform.models.adapter import Adapter
from lpo_platform.models.fields import CLIP_TEXT, UNET, check
from lpo_platform.models.hub import OutOfReach, hub_folder
from lpo_platform.models.latent_reward import UP, LatentReward, empty_half
from lpo_platform.models.transformer_reward import TransformerReward, empty_trunk
from lpo_platform.models.weights import check_finite, load_model, locate, whole

UNET_FILE = "diffusion_pytorch_model.safetensors"
ENCODERS = ("text_encoder", "text_encoder_2")
SETTINGS = ("guidance", "multi_scale", "multi_scale_guidance")


def start_reward(adapter: Adapter, *, blocks: int | None = None, **settings: Any) -> LatentReward:
    """An untrained model from the denoiser of an adapter. blocks: of a transformer that it reads; None is the usual."""
    if adapter.denoiser == "transformer":
        return TransformerReward.start(adapter, blocks=blocks, **settings)
    if blocks is not None:
        raise UserError(f"tune.blocks={blocks}: model={adapter.name} has no transformer, whose blocks these would be")
    return LatentReward.start(adapter, **settings)


def save_reward(model: LatentReward, folder: Path, base: nn.Module | None = None) -> None:
    """Writes the folder; with `base`, its up blocks complete a UNet."""
    if isinstance(model, TransformerReward):
        return _save_transformer(model, folder)
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.unet.state_dict().items()}
    if base is not None:
        up = {name: value for name, value in base.state_dict().items() if name.startswith(UP)}
        state |= {name: value.detach().float().cpu().contiguous() for name, value in up.items()}
    save_file(state, folder / "unet" / UNET_FILE, metadata={"format": "pt"})
    model.unet.save_config(folder / "unet")
    for encoder, name in zip(model.text_encoders, ENCODERS, strict=False):
        encoder.save_pretrained(folder / name)
    head = _save_head(model, folder)
    nested: dict[str, Any] = {name.removesuffix(".weight"): {"weight": head[name]} for name in head if "." in name}
    torch.save(nested | {"logit_scale": head["logit_scale"].item()}, folder / "state_dict.pt")


def _save_transformer(model: TransformerReward, folder: Path) -> None:
    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.unet.state_dict().items()}
    save_file(state, folder / "transformer" / UNET_FILE, metadata={"format": "pt"})
    model.unet.save_config(folder / "transformer")
    _save_head(model, folder, taps=model.taps, latent_space=model.text.adapter.latent_space)


def _save_head(model: LatentReward, folder: Path, **more: Any) -> dict[str, Tensor]:
    head = {name: value.detach().float().cpu().contiguous() for name, value in _head(model).items()}
    save_file(head, folder / "reward.safetensors")
    settings = {name: getattr(model, name) for name in SETTINGS} | more
    (folder / "reward.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
    return head


def load_reward(adapter: Adapter, weights: str, **settings: Any) -> LatentReward:
    """A reward model for this adapter's latents from a folder or hub id, `::<subfolder>` allowed; in evaluation mode.

    auto is the model's own. Settings override what the folder says (the original's says nothing: guidance 7.5,
    multi-scale). UserError where the folder is none, or belongs to another kind of model.
    """
    folder = folder_of(adapter, weights)
    try:
        model = _read(adapter, folder, settings, weights)
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"weights={weights}: no readable latent reward model in {folder}. Reason: {reason}") from error
    model.to(adapter.device).requires_grad_(False)
    model.unet.to(memory_format=torch.channels_last)
    return model.eval()


def _read(adapter: Adapter, folder: Path, settings: dict[str, Any], weights: str) -> LatentReward:
    known = folder / "reward.json"
    settings = (json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}) | settings
    head, transformer = _read_head(folder), (folder / "transformer").is_dir()
    if transformer != (adapter.denoiser == "transformer"):
        raise UserError(f"weights={weights}: made for another kind of model than model={adapter.name}")
    model = (_read_transformer if transformer else _read_unet)(adapter, folder, settings, head, weights)
    if model.visual_projection.weight.shape != head["visual_projection.weight"].shape:
        raise UserError(
            f"weights={weights}: visual_projection is {tuple(head['visual_projection.weight'].shape)}, "
            f"multi_scale={model.multi_scale} makes it {tuple(model.visual_projection.weight.shape)}"
        )
    missing = model.load_state_dict(head, strict=False).missing_keys
    assert not set(missing) & set(_head(model)), missing
    return model


def _read_transformer(
    adapter: Adapter, folder: Path, settings: dict[str, Any], head: dict[str, Tensor], weights: str
) -> TransformerReward:
    """UserError where it scores latents of another autoencoder, or was trained from another transformer."""
    taps, space = settings.pop("taps"), settings.pop("latent_space")
    if list(space) != list(adapter.latent_space):
        raise UserError(
            f"weights={weights}: it scores other latents than those of model={adapter.name}"
        )
    kind = type(adapter.unet)
    config = kind.load_config(folder / "transformer")
    if config.get("_class_name") != kind.__name__:
        made = config.get("_class_name")
        raise UserError(f"weights={weights}: made from a {made}, and model={adapter.name} has a {kind.__name__}")
    trunk, state = empty_trunk(kind, config, taps[-1]), _read_half(folder / "transformer")
    trunk.load_state_dict(state, assign=True)
    check_finite(state | head, f"weights={weights}")
    for name in ("joint_attention_dim", "pooled_projection_dim"):
        if trunk.config[name] != adapter.unet.config[name]:
            raise UserError(f"weights={weights}: {name}={trunk.config[name]}: it reads the text of another model")
    if hasattr(adapter.unet, "distilled_guidance"):
        trunk.distilled_guidance = adapter.unet.distilled_guidance
    return TransformerReward(trunk, adapter, taps, head.get("text_projection.weight"), **settings)


def _read_unet(
    adapter: Adapter, folder: Path, settings: dict[str, Any], head: dict[str, Tensor], weights: str
) -> LatentReward:
    config = UNet2DConditionModel.load_config(folder / "unet")
    check(UNET, config, f"weights={weights}: unet/config.json")
    half = empty_half(config)
    half.load_state_dict(_read_half(folder / "unet"), assign=True)
    check_finite(half.state_dict() | head, f"weights={weights}")
    encoders = _read_encoders(folder)
    if len(encoders) != len(adapter.text_encoders):
        raise UserError(f"weights={weights}: made for another kind of model than model={adapter.name}")
    return LatentReward(half, encoders, adapter.tokenize([""]), head.get("text_projection.weight"), **settings)


def read_text_projection(weights: str) -> Tensor:
    """text_projection.weight of a CLIP model: a folder or hub id; only that tensor is kept."""
    kind = CLIPTextModelWithProjection
    model = whole(kind.from_pretrained, weights, setting="tune.text_projection")
    return model.text_projection.weight.detach().float()


def _head(model: LatentReward) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if not k.startswith(("unet.", "text_encoders."))}


def folder_of(adapter: Adapter, weights: str) -> Path:
    if weights == "auto":
        if adapter.reward is None:
            raise UserError(
                f"weights=auto: model={adapter.name} names no latent reward model; train one with "
                f"lpo-train method=lrm model={adapter.name}, then pass reward.weights=<run>/export/reward"
            )
        weights = adapter.reward
    place, _, subfolder = weights.partition("::")
    folder = Path(locate(place)) / subfolder
    if (folder / "unet").is_dir() or (folder / "transformer").is_dir():
        return folder
    if folder.is_dir() or place.startswith(("/", ".", "~")) or place.count("/") != 1:
        raise UserError(
            f"weights={weights}: no latent reward model there (a folder with unet/ and text_encoder/, or transformer/)"
        )
    try:
        found = hub_folder(place, patterns=f"{subfolder}/*" if subfolder else None)
    except OutOfReach as error:
        raise UserError(
            f"weights={weights}: no such folder, and the hub does not give it; download it first on a machine "
            f"with network and pass the folder. Reason: {error}"
        ) from error
    return found / subfolder


def _read_half(folder: Path) -> dict[str, Tensor]:
    """Every weight but those of the up path, which are not read from the disk either."""
    state = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            state |= {name: stored.get_tensor(name).float() for name in stored.keys() if not name.startswith(UP)}  # noqa: SIM118
    if not state:
        raise UserError(f"{folder}: no *.safetensors in it")
    return state


def _read_encoders(folder: Path) -> list[torch.nn.Module]:
    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    there = [(kind, folder / name) for kind, name in zip(kinds, ENCODERS, strict=True) if (folder / name).is_dir()]
    return [load_model(kind, str(path), CLIP_TEXT, setting="weights") for kind, path in there]


def _read_head(folder: Path) -> dict[str, Tensor]:
    if (folder / "reward.safetensors").is_file():
        head = load_file(folder / "reward.safetensors")
    elif (folder / "state_dict.pt").is_file():
        stored = torch.load(folder / "state_dict.pt", map_location="cpu", weights_only=True)
        head = {f"{name}.weight": part["weight"] for name, part in stored.items() if isinstance(part, dict)}
        head |= {name: torch.as_tensor(part) for name, part in stored.items() if name == "logit_scale"}
    else:
        raise UserError(f"{folder}: neither reward.safetensors nor state_dict.pt in it")
    for name in ("visual_projection.weight", "logit_scale"):
        if name not in head:
            raise UserError(f"{folder}: its head has no {name.partition('.')[0]}")
    return {name: value.float() for name, value in head.items()}
