"""Builds the embedded tiny Stable Diffusion: real diffusers classes at toy size, in StableDiffusionPipeline layout.

`build` writes every part with random weights, `train_vae` teaches the autoencoder. The UNet, its text encoder and the
ControlNets are trained by the platform's own `method=control` (launchers/tiny.py says how).
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, ModelMixin, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from tqdm import trange
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lpo_platform.models.latent_reward import UP
from lpo_platform.models.tiny.scenes import ToySplit, all_contents

FOLDER = Path(__file__).parents[2] / "assets" / "tiny"
RESOLUTION = 64
LATENT_CHANNELS = 4
TEXT_CHANNELS = 64
MAX_TOKENS = 24
GROUPS = 8


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learned from the toy captions; every other text falls apart into bytes.

    Vocabulary: 256 bytes, 256 bytes that end a word, the merges, start and end. The end token has the last id, because
    CLIPTextModel pools at the largest id (and at another place when `eos_token_id` is 2).
    """
    end_of_word, alphabet = "</w>", sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix=end_of_word))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix=end_of_word, show_progress=False)
    learner.train_from_iterator((content.caption() for content in all_contents()), trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    words = alphabet + [byte + end_of_word for byte in alphabet] + ["".join(merge) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of 64 channels with random weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_CHANNELS,
        intermediate_size=4 * TEXT_CHANNELS,
        projection_dim=TEXT_CHANNELS,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet() -> UNet2DConditionModel:
    """16 x 16 -> 8 x 8 -> 4 x 4 with random weights; no attention at 16 x 16, where it would double the time."""
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 48, 48),
        layers_per_block=1,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        cross_attention_dim=TEXT_CHANNELS,
        attention_head_dim=4,
        norm_num_groups=GROUPS,
    )


def build_vae() -> AutoencoderKL:
    """An f = 4 autoencoder with 4 latent channels; convolutional throughout, so that crops can teach it."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.5."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def build(folder: Path = FOLDER, *, seed: int = 0) -> None:
    """Writes every part with random weights, as a StableDiffusionPipeline folder."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=build_vae(),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=build_unet(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    for part in ("vae", "text_encoder", "unet"):
        tidy(folder / part)


def save_half(model: ModelMixin | CLIPTextModel, folder: Path) -> None:
    """Writes the weights in half precision; they are read back as float32."""
    copy.deepcopy(model).half().save_pretrained(folder)
    tidy(folder)


def save_half_reward(trained: Path, folder: Path) -> None:
    """Copies a trained reward model's folder: half precision, no up path, no pickle."""
    shutil.copytree(trained, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("state_dict.pt"))
    for file in sorted(folder.rglob("*.safetensors")):
        kept = {name: value.half() for name, value in load_file(file).items() if not name.startswith(UP)}
        save_file(kept, file, metadata={"format": "pt"})
    for config in sorted(folder.glob("*/config.json")):
        tidy(config.parent)


def tidy(folder: Path) -> None:
    """Drops the path that the weights came from, and has transformers read half precision as float32 for everybody."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    if "dtype" in config:
        config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class Crops:
    """Batches of square crops of toy scenes in [-1, 1], most of them on an object, one in eight recoloured."""

    def __init__(self, split: ToySplit, *, seed: int) -> None:
        scenes = [split.scene(i) for i in range(len(split))]
        self.images = torch.stack([scene.image for scene in scenes])
        self.objects = [scene.parts.nonzero() for scene in scenes]
        self.generator = torch.Generator().manual_seed(seed)

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator))

    def _crop(self, size: int) -> Tensor:
        index = self._below(len(self.images))
        image, limit = self.images[index], self.images.shape[-1] - size + 1
        row, column = self._below(limit), self._below(limit)
        if self._below(4):
            pixel = self.objects[index][self._below(len(self.objects[index]))]
            jitter = torch.randint(-size // 4, size // 4 + 1, (2,), generator=self.generator)
            row, column = (pixel - size // 2 + jitter).clamp(0, limit - 1).tolist()
        return image[:, row : row + size, column : column + size].float() / 127.5 - 1

    def batch(self, num: int, size: int) -> Tensor:
        """(num, 3, size, size)."""
        crops = torch.stack([self._crop(size) for _ in range(num)])
        for i in range(num):
            if self._below(8) == 0:  # colours and gradients beyond the toy palette, for other people's pictures
                weight = torch.rand(3, 1, 1, generator=self.generator)
                other = crops[self._below(num)].flip(self._below(2) + 1)
                crops[i] = torch.lerp(crops[i], other, weight)[torch.randperm(3, generator=self.generator)]
        return crops


def vae_loss(vae: AutoencoderKL, pixels: Tensor, noise: Tensor, *, kl_weight: float) -> Tensor:
    """L1 + MSE + L1 of the picture's gradients + a small KL; `pixels` (B, 3, H, W) in [-1, 1]."""
    mean, logvar = vae.quant_conv(vae.encoder(pixels)).chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    latents = mean + noise * torch.exp(0.5 * logvar)
    error = vae.decoder(vae.post_quant_conv(latents)) - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + 2 * error.square().mean() + edges + kl_weight * kl


def train_vae(
    vae: AutoencoderKL,
    *,
    steps: int = 5500,
    batch: int = 8,
    lr: float = 2e-3,
    kl_weight: float = 1e-4,
    num_scenes: int = 4096,
    seed: int = 1,
) -> None:
    """Teaches `vae` in place: 60 % of the steps on 32 px crops, the rest on half as many whole pictures.

    The crops are cheap; the whole pictures settle what depends on the picture's size, the group norms.
    """
    torch.manual_seed(seed)
    crops = Crops(ToySplit("train", num_scenes, seed, resolution=RESOLUTION), seed=seed)
    vae.to(memory_format=torch.channels_last)  # a tenth faster on two cores
    weights = list(vae.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    vae.train()
    for step in (bar := trange(steps, desc="vae", mininterval=5)):
        whole = step >= 0.6 * steps
        pixels = crops.batch(batch // 2, RESOLUTION) if whole else crops.batch(batch, RESOLUTION // 2)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        side = pixels.shape[-1] // 4
        noise = torch.randn(len(pixels), LATENT_CHANNELS, side, side, generator=crops.generator)
        loss = vae_loss(vae, pixels, noise, kl_weight=kl_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], 0.005 if step > 100 else 1.0)
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
    with torch.no_grad():
        torch._foreach_copy_(weights, average)
    vae.eval()
    vae.register_to_config(scaling_factor=latent_scale(vae, crops))


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, crops: Crops, *, num: int = 256) -> float:
    """1 / standard deviation of the latents of whole pictures, as arXiv:2112.10752 (appendix G) scales them."""
    pixels = crops.images[:num].float() / 127.5 - 1
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(32)])
    return round(1 / latents.std().item(), 5)
