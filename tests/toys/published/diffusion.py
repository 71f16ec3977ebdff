"""The published diffusion models at toy size: their classes, file names, configuration fields and names of tensors."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import flux
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lpo_platform.models.controlnet_dino import ControlNetDinoModel
from lpo_platform.models.latent_reward import LatentReward
from lpo_platform.models.reward_folder import save_reward
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_xl import StableDiffusionXL
from lpo_platform.models.weights import ASSETS

WORDS = json.loads((ASSETS / "tiny" / "tokenizer" / "tokenizer.json").read_text())["model"]
START, END = len(WORDS["vocab"]) - 2, len(WORDS["vocab"]) - 1
WEIGHTS = "diffusion_pytorch_model.safetensors"
BLOCKS = {"layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 32}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OLD_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
UNET_OF_2022 = (
    "act_fn", "attention_head_dim", "block_out_channels", "center_input_sample", "cross_attention_dim",
    "down_block_types", "downsample_padding", "flip_sin_to_cos", "freq_shift", "in_channels", "layers_per_block",
    "mid_block_scale_factor", "norm_eps", "norm_num_groups", "out_channels", "sample_size", "up_block_types",
)  # fmt: skip
VAE_OF_2022 = (
    "act_fn", "block_out_channels", "down_block_types", "in_channels", "latent_channels", "layers_per_block",
    "norm_num_groups", "out_channels", "sample_size", "up_block_types",
)  # fmt: skip


def unet(**changes: object) -> UNet2DConditionModel:
    torch.manual_seed(0)
    shape = {"block_out_channels": (8, 16, 16, 16), "attention_head_dim": 2, "sample_size": 64}
    return UNet2DConditionModel(**shape | BLOCKS | changes)


def unet_xl() -> UNet2DConditionModel:
    return unet(
        block_out_channels=(8, 16, 16), sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), attention_head_dim=(1, 2, 2), cross_attention_dim=56,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )  # fmt: skip


def vae(**changes: object) -> AutoencoderKL:
    torch.manual_seed(1)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    sizes = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 512}
    return AutoencoderKL(**kinds | sizes | changes)


def sd15(folder: Path) -> None:
    """As converted in 2022: few fields, old names of attention, plain, fp16 and non_ema files, a safety checker."""
    save(unet(), folder / "unet", fields=UNET_OF_2022, variants=("fp16", "non_ema"))
    save(vae(), folder / "vae", fields=VAE_OF_2022, variants=("fp16",))
    _rename(folder / "vae", OLD_NAMES)
    text(folder / "text_encoder", 32, act="quick_gelu")
    tokenizer_of_words(folder / "tokenizer")
    schedule = PNDMScheduler(skip_prk_steps=True, steps_offset=1, **NOISE)
    schedule.register_to_config(clip_sample=False)
    schedule.save_pretrained(folder / "scheduler")
    index(folder, "StableDiffusionPipeline", "unet", "vae", "text_encoder", "tokenizer", "scheduler",
           safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
           feature_extractor=["transformers", "CLIPFeatureExtractor"])  # fmt: skip


def sd21(folder: Path) -> None:
    save(unet(attention_head_dim=(1, 2, 2, 2), use_linear_projection=True), folder / "unet", variants=("fp16",))
    save(vae(), folder / "vae", variants=("fp16",))
    text(folder / "text_encoder", 32, act="gelu")
    tokenizer_of_words(folder / "tokenizer", pad="!")
    schedule = PNDMScheduler(skip_prk_steps=True, steps_offset=1, **NOISE)
    schedule.register_to_config(clip_sample=False)
    schedule.save_pretrained(folder / "scheduler")
    index(folder, "StableDiffusionPipeline", "unet", "vae", "text_encoder", "tokenizer", "scheduler",
           safety_checker=[None, None], requires_safety_checker=False,
           feature_extractor=["transformers", "CLIPImageProcessor"])  # fmt: skip


def sdxl(folder: Path) -> None:
    save(unet_xl(), folder / "unet", variants=("fp16",))
    save(vae(scaling_factor=0.13025), folder / "vae", variants=("fp16",))
    text(folder / "text_encoder", 24, act="quick_gelu", variants=("fp16",))
    text(folder / "text_encoder_2", 32, act="gelu", projected=True, variants=("fp16",))
    tokenizer_of_words(folder / "tokenizer")
    tokenizer_of_words(folder / "tokenizer_2", pad="!")
    schedule = EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **NOISE)
    schedule.register_to_config(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True, sample_max_value=1.0)
    schedule.save_pretrained(folder / "scheduler")
    index(folder, "StableDiffusionXLPipeline", "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer",
           "tokenizer_2", "scheduler", force_zeros_for_empty_prompt=True, add_watermarker=None)  # fmt: skip


def sdxl_vae(folder: Path) -> None:
    save(vae(scaling_factor=0.13025, force_upcast=False), folder)


def flux_dev(folder: Path) -> None:
    """Its transformer and T5 come in several files with an index."""
    torch.manual_seed(2)
    flux.transformer(in_channels=64).save_pretrained(folder / "transformer", max_shard_size="100KB")
    torch.manual_seed(3)
    flux.t5().save_pretrained(folder / "text_encoder_2", max_shard_size="10KB")
    flux.letters().save_pretrained(folder / "tokenizer_2")
    save(vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
              use_post_quant_conv=False, sample_size=1024), folder / "vae")  # fmt: skip
    text(folder / "text_encoder", 20, act="quick_gelu")
    tokenizer_of_words(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    index(folder, "FluxPipeline", "transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2",
           "scheduler")  # fmt: skip


def control(source: Callable[[], UNet2DConditionModel] = unet, *, pickle: bool = False) -> Callable[[Path], None]:
    """A ControlNet whose zero layers have learned something; pickle: as a .bin, with safetensors of fp16 alone."""

    def make(folder: Path) -> None:
        save(_control(source), folder, variants=("fp16",) if pickle else ())
        if pickle:
            torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
            (folder / WEIGHTS).unlink()

    return make


def controls_plus_plus(folder: Path) -> None:
    for name in ("canny", "depth", "hed", "lineart"):
        control()(folder / "checkpoints" / name / "controlnet")
    control()(folder / "checkpoints/ade20k_reward-model-UperNet-R50/checkpoint-5000/controlnet")
    control()(folder / "checkpoints/cocostuff/reward_5k")


def control_dino(folder: Path) -> None:
    torch.manual_seed(4)
    ControlNetDinoModel.from_controlnet(_control(unet), adapter_size="tiny").save_pretrained(folder)


def lrm(cache: Callable[[str], Path]) -> Callable[[Path], None]:
    """As the authors' trainer leaves it: bfloat16, and the projections in a pickle alone."""

    def make(folder: Path) -> None:
        one = StableDiffusion(weights=str(cache("stable-diffusion-v1-5/stable-diffusion-v1-5")), **SETTINGS)
        two = StableDiffusionXL(weights=str(cache("stabilityai/stable-diffusion-xl-base-1.0")), **SETTINGS)
        for name, adapter in (("lrm_sd15", one), ("lrm_sdxl", two)):
            save_reward(LatentReward.start(adapter), folder / name, adapter.unet)
            for file in ("reward.json", "reward.safetensors"):
                (folder / name / file).unlink()
            for file in (folder / name).rglob("*.safetensors"):
                save_file({key: value.bfloat16() for key, value in load_file(file).items()}, file, {"format": "pt"})

    return make


def lpo(folder: Path) -> None:
    save(unet(), folder / "lpo_sd15_merge" / "unet")
    save(unet_xl(), folder / "lpo_sdxl_merge" / "unet")


SETTINGS = {"name": "toy", "resolution": 64, "guidance": 1.0, "num_inference_steps": 2}


def _control(source: Callable[[], UNet2DConditionModel]) -> ControlNetModel:
    torch.manual_seed(5)
    made = ControlNetModel.from_unet(source())
    for name, weight in made.named_parameters():
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(weight, std=0.05)
    return made


def text(folder: Path, width: int, *, act: str, projected: bool = False, variants: Iterable[str] = ()) -> None:
    """A text encoder as transformers saved them in 2022: a level `text_model`, position_ids, end token 2."""
    torch.manual_seed(6)
    config = CLIPTextConfig(
        vocab_size=len(WORDS["vocab"]), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=77, hidden_act=act, projection_dim=width,
        bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    made = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    made.save_pretrained(folder)
    state = {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": value
        for name, value in made.state_dict().items()
    }
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    write(state, folder / "model.safetensors", variants)


def tokenizer_of_words(folder: Path, pad: str = "<|endoftext|>") -> None:
    """The files of CLIP's own tokenizer, of which today's library writes others."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(WORDS["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in WORDS["merges"])]))
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(ends | {"pad_token": pad}))
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace"}
    (folder / "tokenizer_config.json").write_text(json.dumps(ends | {"pad_token": pad} | settings))


def save(
    model: torch.nn.Module, folder: Path, *, fields: Iterable[str] | None = None, variants: Iterable[str] = ()
) -> None:
    """fields: the only ones that its config.json has."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if fields is not None:
        config = {key: config[key] for key in ("_class_name", *fields)} | {"_diffusers_version": "0.6.0"}
        (folder / "config.json").write_text(json.dumps(config))
    write(load_file(folder / WEIGHTS), folder / WEIGHTS, variants)


def write(state: dict[str, Tensor], file: Path, variants: Iterable[str]) -> None:
    save_file(state, file, {"format": "pt"})
    for name in variants:
        half = {key: value.half() if name == "fp16" and value.is_floating_point() else value
                for key, value in state.items()}  # fmt: skip
        save_file(half, file.with_name(f"{file.stem}.{name}.safetensors"), {"format": "pt"})


def _rename(folder: Path, names: dict[str, str]) -> None:
    for file in folder.glob("*.safetensors"):
        state = {}
        for name, value in load_file(file).items():
            for new, old in names.items():
                name = name.replace(new, old)
            state[name] = value
        save_file(state, file, {"format": "pt"})


def index(folder: Path, kind: str, *parts: str, **more: object) -> None:
    """model_index.json, which names the class of each part."""
    found: dict[str, object] = {"_class_name": kind, "_diffusers_version": "0.6.0"}
    for part in parts:
        if part.startswith("tokenizer"):
            words = (folder / part / "vocab.json").exists()
            found[part] = ["transformers", "CLIPTokenizer" if words else "T5TokenizerFast"]
        else:
            file = "scheduler_config.json" if part == "scheduler" else "config.json"
            config = json.loads((folder / part / file).read_text())
            stock = "_class_name" in config
            found[part] = ["diffusers", config["_class_name"]] if stock else ["transformers", *config["architectures"]]
    (folder / "model_index.json").write_text(json.dumps(found | more))
