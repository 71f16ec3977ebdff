"""Stable Diffusion 3 and 3.5 and their ControlNets at toy size, in the published files."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3ControlNetModel, SD3Transformer2DModel
from toys import flux, sd3
from toys.published import diffusion

from lpo_platform.models.reward_folder import save_reward
from lpo_platform.models.stable_diffusion_3 import StableDiffusion3
from lpo_platform.models.transformer_reward import TransformerReward

MEDIUM, MEDIUM_35, LARGE = 8, 13, 8  # a reward model has 12 blocks of SD3.5-medium
DUAL = {"dual_attention_layers": tuple(range(6)), "qk_norm": "rms_norm"}
SHAPE = {
    "sample_size": 128, "in_channels": 16, "out_channels": 16, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": sd3.JOINT, "caption_projection_dim": 32, "pooled_projection_dim": 56,
    "pos_embed_max_size": 16,
}  # fmt: skip
FIELDS_OF_2024 = (*SHAPE, "num_layers", "patch_size")


def medium(folder: Path) -> None:
    """As published in June 2024: one file of the transformer, whose configuration has few fields; fp16 text."""
    diffusion.save(_transformer(MEDIUM), folder / "transformer", fields=FIELDS_OF_2024)
    _others(folder)


def medium_35(folder: Path) -> None:
    diffusion.save(_transformer(MEDIUM_35, **DUAL), folder / "transformer")
    _others(folder)
    (folder / "sd3.5_medium.safetensors").write_bytes(b"all parts in one file, which is not read")


def large_35(folder: Path) -> None:
    """The transformer comes in several files with an index."""
    large = _transformer(LARGE, qk_norm="rms_norm")
    large.save_pretrained(folder / "transformer", max_shard_size="500KB")
    _others(folder)


def control_medium(folder: Path) -> None:
    """InstantX's."""
    _control(folder, num_layers=6)


def control_35_medium(folder: Path) -> None:
    """Tensor Art's."""
    _control(folder, num_layers=MEDIUM_35 - 1, **DUAL)


def control_35_large(folder: Path) -> None:
    """Stability AI's: blocks without text and without places of their own."""
    _control(folder, num_layers=LARGE // 2, joint_attention_dim=None, pos_embed_type=None, use_pos_embed=False,
             qk_norm="rms_norm", force_zeros_for_pooled_projection=False)  # fmt: skip


def reward(folder: Path, base: Callable[[], Path]) -> None:
    """A latent reward model of SD3-medium as a run exports it; nobody has published one."""
    adapter = StableDiffusion3(weights=str(base()), max_tokens=sd3.TOKENS, **diffusion.SETTINGS)
    save_reward(TransformerReward.start(adapter), folder)


def _transformer(layers: int, **changes: object) -> SD3Transformer2DModel:
    torch.manual_seed(2)
    return sd3.transformer(**{"dual_attention_layers": (), "qk_norm": None} | SHAPE | {"num_layers": layers} | changes)


def _control(folder: Path, **changes: object) -> None:
    """A ControlNet whose zero layers have learned something."""
    torch.manual_seed(5)
    made = SD3ControlNetModel(**SHAPE | changes)
    for block in made.controlnet_blocks:
        torch.nn.init.normal_(block.weight, std=0.05)
    diffusion.save(made, folder)


def _others(folder: Path) -> None:
    """What all three share: the autoencoder, both CLIP encoders, T5 in several files, the schedule."""
    diffusion.save(diffusion.vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
                                 use_post_quant_conv=False, sample_size=1024), folder / "vae")  # fmt: skip
    diffusion.text(folder / "text_encoder", 24, act="quick_gelu", projected=True, variants=("fp16",))
    diffusion.text(folder / "text_encoder_2", 32, act="gelu", projected=True, variants=("fp16",))
    diffusion.tokenizer_of_words(folder / "tokenizer")
    diffusion.tokenizer_of_words(folder / "tokenizer_2", pad="!")
    torch.manual_seed(3)
    t5 = sd3.encoder()
    for variant in (None, "fp16"):
        t5.save_pretrained(folder / "text_encoder_3", max_shard_size="20KB", variant=variant)
    flux.letters().save_pretrained(folder / "tokenizer_3")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    diffusion.index(folder, "StableDiffusion3Pipeline", "transformer", "vae", "text_encoder", "text_encoder_2",
                    "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")  # fmt: skip
