"""Every field of every configuration in a model folder: what is honoured computes as the stock class does, and what is
refused is refused by its name. A field that diffusers adds fails here until somebody says what it means."""

import inspect
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor
from toys import flux as toy_flux
from toys import stable_diffusion as toy
from toys.instances import first

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion.flow import Flow
from lpo_platform.models import fields
from lpo_platform.models.fields import Fields, check
from lpo_platform.models.flux import Flux
from lpo_platform.models.shared_encoder import Encoded, decode, encode, residuals_of
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_xl import StableDiffusionXL
from lpo_platform.models.weights import ASSETS

SETTINGS = {"name": "tiny", "resolution": 64, "guidance": 1.0, "num_inference_steps": 10}
CLASSES = {
    UNet2DConditionModel: fields.UNET,
    ControlNetModel: fields.CONTROLNET,
    AutoencoderKL: fields.VAE,
    FluxTransformer2DModel: fields.FLUX,
    FluxControlNetModel: fields.FLUX_CONTROLNET,
    SD3Transformer2DModel: fields.SD3,
    SD3ControlNetModel: fields.SD3_CONTROLNET,
    FlowMatchEulerDiscreteScheduler: fields.FLOW_MATCH,
    DDIMScheduler: fields.DDIM,
}
SAMPLERS = [getattr(diffusers, scheduler.name) for scheduler in KarrasDiffusionSchedulers]


def parameters(kind: type) -> set[str]:
    return {
        name
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def known(table: Fields) -> set[str]:
    return {*table.honoured, *table.irrelevant, *table.only}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_field_of_a_class_has_one_meaning(kind: type) -> None:
    table = CLASSES[kind]
    assert parameters(kind) <= known(table)
    assert len(known(table)) == len(table.honoured) + len(table.irrelevant) + len(table.only)
    assert all(table.irrelevant.values()) and all(only.why for only in table.only.values())


@pytest.mark.parametrize("kind", SAMPLERS, ids=lambda kind: kind.__name__)
def test_every_field_of_every_sampler_that_a_folder_may_name_has_a_meaning(kind: type) -> None:
    if kind.__name__ not in fields.DDIM.names:
        with pytest.raises(UserError, match=f"it is a {kind.__name__}"):
            check(fields.DDIM, {"_class_name": kind.__name__}, "here")
    else:
        assert parameters(kind) <= known(fields.DDIM)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_defaults_of_a_class_are_accepted(kind: type) -> None:
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.default is not parameter.empty
    }
    check(CLASSES[kind], given, "here")


def test_a_field_that_nobody_knows_is_refused_unless_it_is_empty() -> None:
    check(fields.UNET, {"new_trick": None, "_private": 1}, "here")
    with pytest.raises(UserError, match=r"^here: new_trick=3: a field that"):
        check(fields.UNET, {"new_trick": 3}, "here")


def test_all_faults_of_a_file_are_told_at_once() -> None:
    with pytest.raises(UserError, match=r"time_cond_proj_dim=8.*class_embed_type=timestep"):
        check(fields.UNET, {"time_cond_proj_dim": 8, "class_embed_type": "timestep"}, "here")


# What a UNet and its ControlNet compute with each field at another value than SMALL's.
SMALL: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 12, "attention_head_dim": 4,
}  # fmt: skip
UP = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
TEXT_TIME = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 10 + 24,
}  # fmt: skip
OF_BOTH: dict[str, dict[str, Any]] = {
    "in_channels": {"in_channels": 6},
    "flip_sin_to_cos": {"flip_sin_to_cos": False},
    "freq_shift": {"freq_shift": 1},
    "block_out_channels": {"block_out_channels": (16, 24)},
    "layers_per_block": {"layers_per_block": 2},
    "downsample_padding": {"downsample_padding": 0},
    "mid_block_scale_factor": {"mid_block_scale_factor": 2.0},
    "act_fn": {"act_fn": "gelu"},
    "norm_num_groups": {"norm_num_groups": 8},
    "norm_eps": {"norm_eps": 1e-2},
    "cross_attention_dim": {"cross_attention_dim": 20},
    "transformer_layers_per_block": {"transformer_layers_per_block": (2, 1)},
    "attention_head_dim": {"attention_head_dim": (2, 4)},
    "use_linear_projection": {"use_linear_projection": True},
    "upcast_attention": {"upcast_attention": True},
    "resnet_time_scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "addition_time_embed_dim": TEXT_TIME,
    "projection_class_embeddings_input_dim": TEXT_TIME | {"projection_class_embeddings_input_dim": 8 + 24},
}
OF_UNET = OF_BOTH | {
    "out_channels": {"out_channels": 6},
    "reverse_transformer_layers_per_block": {"reverse_transformer_layers_per_block": ((1, 1), (2, 1))},
    "resnet_skip_time_act": {"resnet_skip_time_act": True},
    "resnet_out_scale_factor": {"resnet_out_scale_factor": 2.0},
    "time_embedding_dim": {"time_embedding_dim": 20},
    "timestep_post_act": {"timestep_post_act": "silu"},
    "conv_in_kernel": {"conv_in_kernel": 5},
    "conv_out_kernel": {"conv_out_kernel": 5},
    "mid_block_only_cross_attention": {"mid_block_only_cross_attention": True},
}
OF_CONTROL = OF_BOTH | {"conditioning_embedding_out_channels": {"conditioning_embedding_out_channels": (8, 16)}}


def unet(**changes: object) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**SMALL | UP | changes).eval()


def inputs(model: UNet2DConditionModel | ControlNetModel, rows: int) -> tuple[Tensor, Tensor, Tensor, dict]:
    """x and t of 2 rows, text of `rows` as our halves want it, and what the stock forward wants beside it."""
    torch.manual_seed(1)
    config = model.config
    x, t = torch.randn(2, config.in_channels, 8, 8), torch.tensor([3, 700])
    sequence = torch.randn(rows, 5, config.cross_attention_dim)
    if config.addition_embed_type is None:
        return x, t, sequence, {"encoder_hidden_states": sequence}
    width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    pooled = torch.randn(rows, width)
    row = torch.nn.functional.pad(pooled, (0, config.cross_attention_dim - width)).unsqueeze(1)
    sizes = torch.tensor([64.0, 64, 0, 0, 64, 64]).expand(rows, 6)
    stock = {"encoder_hidden_states": sequence, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    return x, t, torch.cat([sequence, row], 1), stock


@pytest.mark.parametrize("rows", [2, 4], ids=["plain", "guided"])
@pytest.mark.parametrize("field", sorted(fields.UNET.honoured))
@torch.no_grad()
def test_a_honoured_field_of_the_unet_computes_as_its_own_forward(field: str, rows: int) -> None:
    model, base = unet(**OF_UNET[field]), unet()
    assert model.config[field] != base.config[field]
    x, t, text, stock = inputs(model, rows)
    ours = decode(model, encode(model, x, t, text))
    expected = model(x.repeat(rows // 2, 1, 1, 1), t.repeat(rows // 2), **stock).sample
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("field", sorted(fields.CONTROLNET.honoured))
@torch.no_grad()
def test_a_honoured_field_of_a_controlnet_computes_as_its_own_forward(field: str) -> None:
    torch.manual_seed(0)
    plain = SMALL | {"conditioning_embedding_out_channels": (8, 16, 16, 16)}
    plain.pop("sample_size")
    control = ControlNetModel(**plain | OF_CONTROL[field]).eval()
    for weight in control.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    x, t, text, stock = inputs(control, 2)
    picture = torch.rand(2, 3, 16, 16) if field == "conditioning_embedding_out_channels" else torch.rand(2, 3, 64, 64)
    encoded = Encoded(x, t, text, torch.empty(2, 1), (), torch.empty(2, 1))
    down, middle = residuals_of(control, encoded, control.controlnet_cond_embedding(picture))
    expected_down, expected_middle = control(x, t, controlnet_cond=picture, return_dict=False, **stock)
    for ours, expected in zip([*down, middle], [*expected_down, expected_middle], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("field", sorted(fields.VAE.honoured - {"scaling_factor", "shift_factor", "force_upcast"}))
@torch.no_grad()
def test_a_honoured_field_of_the_autoencoder_is_its_own_classes(field: str, tmp_path: Path) -> None:
    """The stock class encodes and decodes; ours may not assume how much smaller its latents are, or how many."""
    changes = {
        "down_block_types": {"down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]},
        "up_block_types": {"up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3},
        "block_out_channels": {"block_out_channels": (4, 8, 8, 8)},
        "layers_per_block": {"layers_per_block": 2},
        "act_fn": {"act_fn": "gelu"},
        "norm_num_groups": {"norm_num_groups": 2},
        "use_quant_conv": {"use_quant_conv": False},
        "use_post_quant_conv": {"use_post_quant_conv": False},
        "mid_block_add_attention": {"mid_block_add_attention": False},
        "latent_channels": {"latent_channels": 4},
    }[field]
    torch.manual_seed(0)
    base = dict(toy.vae().config)
    vae = AutoencoderKL(**{key: base[key] for key in parameters(AutoencoderKL)} | changes)
    vae.save_pretrained(tmp_path)
    adapter = StableDiffusion(**SETTINGS | {"resolution": 128}, weights="tiny", vae=str(tmp_path))
    pixels = torch.rand(1, 3, 128, 128)
    posterior = vae.encode(2 * pixels - 1).latent_dist
    torch.testing.assert_close(adapter.encode_moments(pixels), torch.cat([posterior.mean, posterior.logvar], 1))
    assert adapter.latent_shape == posterior.mean.shape[1:]


@pytest.mark.parametrize("upcast", [True, False])
@torch.no_grad()
def test_an_autoencoder_of_sdxl_that_overflows_in_float16_stays_in_float32(upcast: bool, tmp_path: Path) -> None:
    folder = toy.stable_diffusion_xl(tmp_path)
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"force_upcast": upcast}))
    whole, half = (StableDiffusionXL(weights=str(folder), **toy.SETTINGS) for _ in range(2))
    for model in (whole, half):
        model.vae.decoder.conv_in.weight.mul_(1e6)
    half.to("cpu", torch.float16)
    assert half.text_encoder.dtype == half.text_encoder_2.dtype == torch.float16
    assert half.fingerprint != whole.fingerprint
    latents = torch.randn(1, *whole.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.float16):
        decoded, moments = half.decode(latents), half.encode_moments(torch.full((1, 3, 64, 64), 0.3))
    assert torch.equal(decoded, whole.decode(latents)) is upcast and decoded.isfinite().all().item() is upcast
    assert torch.equal(moments, whole.encode_moments(torch.full((1, 3, 64, 64), 0.3))) is upcast


REFUSED = {
    "num_attention_heads": 2,
    "down_block_types": ["AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "only_cross_attention": [True, False],
    "encoder_hid_dim": 64,
    "encoder_hid_dim_type": "text_proj",
    "class_embed_type": "timestep",
    "num_class_embeds": 10,
    "addition_embed_type": "image",
    "center_input_sample": True,
    "dropout": 0.1,
    "dual_cross_attention": True,
    "attention_type": "gated",
    "cross_attention_norm": "group_norm",
    "time_embedding_type": "fourier",
    "time_embedding_act_fn": "silu",
    "time_cond_proj_dim": 256,
    "class_embeddings_concat": True,
    "conditioning_channels": 1,
    "controlnet_conditioning_channel_order": "bgr",
    "global_pool_conditions": True,
    "in_channels": 1,
    "out_channels": 1,
    "latents_mean": [0.0, 0.0, 0.0, 0.1],
    "latents_std": [1.0, 1.0, 1.0, 1.1],
    "patch_size": 2,
    "num_mode": 10,
    "extra_conditioning_channels": 1,
    "conditioning_embedding_channels": 16,
    "num_train_timesteps": 500,
    "shift_terminal": 0.1,
    "invert_sigmas": True,
    "use_karras_sigmas": True,
    "use_exponential_sigmas": True,
    "use_beta_sigmas": True,
    "stochastic_sampling": True,
    "use_flow_sigmas": True,
    "use_dynamic_shifting": True,
    "timestep_type": "continuous",
    "variance_type": "learned_range",
}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_what_is_refused_is_refused_by_its_name(kind: type) -> None:
    table = CLASSES[kind]
    for field in table.only:
        with pytest.raises(UserError, match=f"^here: {field}=.*what works: "):
            check(table, {field: REFUSED[field]}, "here")


SHIFTED = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
OF_FLOW = {
    "shift": {"use_dynamic_shifting": False, "shift": 2.0},
    "use_dynamic_shifting": {"use_dynamic_shifting": False},
    "base_shift": {"base_shift": 0.7},
    "max_shift": {"max_shift": 1.5},
    "base_image_seq_len": {"base_image_seq_len": 128},
    "max_image_seq_len": {"max_image_seq_len": 2048},
    "time_shift_type": {"time_shift_type": "linear"},
}


@pytest.mark.parametrize("field", sorted(fields.FLOW_MATCH.honoured))
def test_a_honoured_field_of_a_flow_scheduler_gives_its_times(field: str) -> None:
    scheduler, tokens, num_steps = FlowMatchEulerDiscreteScheduler(**SHIFTED | OF_FLOW[field]), 1024, 5
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (tokens - config.base_image_seq_len)  # FluxPipeline's calculate_shift
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / num_steps, num_steps).tolist(), mu=mu)
    found = Flow.from_config(config, tokens).times(num_steps)
    torch.testing.assert_close(found, scheduler.timesteps, atol=1e-3, rtol=0)
    plain = Flow.from_config(SHIFTED | {"base_image_seq_len": 256, "max_image_seq_len": 4096}, tokens).times(num_steps)
    assert not torch.equal(found, plain)


# Whole folders, loaded as a user would.


def changed(folder: Path, source: Path, file: str, **changes: object) -> Path:
    """A copy of a pipeline's folder with fields of one configuration changed; None takes a field away."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    path = folder / file
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's pipeline, without what hangs beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(ASSETS / "tiny" / part, folder / part)
    shutil.copy(ASSETS / "tiny" / "model_index.json", folder)
    return folder


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.stable_diffusion_xl(tmp_path_factory.mktemp("xl"))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("scheduler/scheduler_config.json", {"steps_offset": None}, "scheduler: steps_offset=0"),
        ("scheduler/scheduler_config.json", {"clip_sample": True}, "scheduler: clip_sample=true"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "scheduler: thresholding"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "scheduler: beta_schedule='sigmoid'"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "scheduler: it is a"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, r"unet/config.json: time_cond_proj_dim=256"),
        ("unet/config.json", {"_class_name": "UNet2DModel"}, "it is a UNet2DModel"),
        ("vae/config.json", {"latents_mean": [0, 0, 0, 1]}, "vae/config.json: latents_mean"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "it is a AutoencoderTiny"),
        ("text_encoder/config.json", {"model_type": "roberta"}, "text_encoder/config.json: it is a roberta"),
        ("text_encoder/config.json", {"use_attention_mask": True}, "use_attention_mask=true"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 77}, "model_max_length=77.*24 places"),
        ("tokenizer/tokenizer_config.json", {"padding_side": "left"}, "padding_side=left"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "it is a StableDiffusionXLPipeline"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "it is a FluxPipeline"),
        ("model_index.json", {"_class_name": "LatentConsistencyModelPipeline"}, "LatentConsistencyModelPipeline"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "vae is a AutoencoderTiny"),
        ("model_index.json", {"requires_aesthetics_score": True}, "requires_aesthetics_score=true"),
    ],
)
def test_a_folder_is_refused_at_load(
    pipeline: Path, tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    folder = changed(tmp_path / "model", pipeline, file, **changes)
    with pytest.raises(UserError, match=f"model.weights={re.escape(str(folder))}: .*{message}"):
        StableDiffusion(**SETTINGS, weights=str(folder))


@pytest.mark.parametrize(
    "changes",
    first(
        [
            {"timestep_spacing": "trailing"},
            {"timestep_spacing": "linspace"},
            {"rescale_betas_zero_snr": True},
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            {"beta_schedule": "linear"},
            {"set_alpha_to_one": True},
        ],
        keep=2,
    ),
    ids=lambda changes: "-".join(changes),
)
@torch.no_grad()
def test_a_folder_draws_the_pictures_of_its_stock_pipeline(
    pipeline: Path, tmp_path: Path, changes: Mapping[str, object]
) -> None:
    folder = changed(tmp_path / "model", pipeline, "scheduler/scheduler_config.json", **changes)
    stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    assert_same_latents(StableDiffusion(**SETTINGS, weights=str(folder)), stock)


def assert_same_latents(adapter: StableDiffusion, stock: Any, num_steps: int = 7) -> None:
    """The chain of an adapter's own process and the stock pipeline's from one noise, without guidance."""
    from lpo_platform.diffusion.rollout import rollout

    stock.set_progress_bar_config(disable=True)
    start = torch.randn(1, *adapter.latent_shape, generator=torch.Generator().manual_seed(0))
    expected = stock(
        "a red circle", num_inference_steps=num_steps, guidance_scale=1.0, latents=start, output_type="latent"
    )
    text = adapter.embed(adapter.tokenize(["a red circle"]))
    predict = lambda x, t: decode(adapter.unet, encode(adapter.unet, x, t, text))  # noqa: E731
    *_, last = rollout(predict, adapter.process, start, num_steps=num_steps)
    torch.testing.assert_close(last.following, expected.images, atol=1e-3, rtol=1e-3)


def test_a_sampler_that_clips_nothing_does_not_clip_here(pipeline: Path, tmp_path: Path) -> None:
    """DDIM's class says clip_sample=true where a file says nothing; the file's own sampler has no such thing."""
    folder = changed(
        tmp_path / "model", pipeline, "scheduler/scheduler_config.json", _class_name="PNDMScheduler", clip_sample=None
    )
    assert StableDiffusion(**SETTINGS, weights=str(folder)).process.clip is None


@torch.no_grad()
def test_sdxl_honours_what_the_empty_prompt_is(xl: Path, tmp_path: Path) -> None:
    zeros = StableDiffusionXL(**toy.SETTINGS, weights=str(xl))
    folder = changed(tmp_path / "model", xl, "model_index.json", force_zeros_for_empty_prompt=False)
    encoded = StableDiffusionXL(**toy.SETTINGS, weights=str(folder))
    assert not zeros.empty_text().any()
    assert torch.equal(encoded.empty_text(), encoded.embed(encoded.tokenize([""])))


@pytest.mark.parametrize("clips", [True, False])
def test_sdxl_honours_steps_offset_and_clipping_as_its_pipelines_do(xl: Path, tmp_path: Path, clips: bool) -> None:
    file = "scheduler/scheduler_config.json"
    folder = changed(tmp_path / "model", xl, file, steps_offset=0, clip_sample=clips)
    process = StableDiffusionXL(**toy.SETTINGS, weights=str(folder)).process
    assert process.clip == (1.0 if clips else None) and process.times(4).tolist() == [750, 500, 250, 0]


class TestArchitectures:
    """A folder of another architecture is one error at load, which names the setting and what differs."""

    def test_sdxl_under_sd(self, xl: Path, tmp_path: Path) -> None:
        renamed = {"_class_name": "StableDiffusionPipeline", "force_zeros_for_empty_prompt": None}
        folder = changed(tmp_path / "model", xl, "model_index.json", **renamed)
        for weights in (xl, folder):
            with pytest.raises(UserError, match=r"StableDiffusionXLPipeline|cross_attention_dim=56.*24|SDXL's"):
                StableDiffusion(**toy.SETTINGS, weights=str(weights))

    def test_sd_under_sdxl(self, pipeline: Path) -> None:
        with pytest.raises(UserError, match="it is a StableDiffusionPipeline; what works: StableDiffusionXLPipeline"):
            StableDiffusionXL(**SETTINGS, weights=str(pipeline))

    def test_flux_under_sd(self, tmp_path: Path) -> None:
        folder = toy_flux.folder(tmp_path)
        with pytest.raises(UserError, match="FluxPipeline"):
            StableDiffusion(**SETTINGS, weights=str(folder))

    def test_a_unet_for_inpainting(self, pipeline: Path, tmp_path: Path) -> None:
        config = {key: value for key, value in json.loads((pipeline / "unet/config.json").read_text()).items()}
        UNet2DConditionModel.from_config(config | {"in_channels": 9}).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=rf"model\.unet={re.escape(str(tmp_path))}: unet: in_channels=9, and .* 4"):
            StableDiffusion(**SETTINGS, weights=str(pipeline), unet=str(tmp_path))

    def test_a_unet_for_other_text(self, pipeline: Path, tmp_path: Path) -> None:
        config = json.loads((pipeline / "unet/config.json").read_text())
        UNet2DConditionModel.from_config(config | {"cross_attention_dim": 48}).save_pretrained(tmp_path)
        with pytest.raises(UserError, match="cross_attention_dim=48, and its text has 64"):
            StableDiffusion(**SETTINGS, weights=str(pipeline), unet=str(tmp_path))

    def test_a_controlnet_of_sdxl(self, xl: Path, tmp_path: Path) -> None:
        control = ControlNetModel.from_unet(StableDiffusionXL(**toy.SETTINGS, weights=str(xl)).unet)
        control.save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"control\.weights=.*: block_out_channels=.*was made for another model"):
            StableDiffusion(**SETTINGS, weights="tiny").load_control("canny", str(tmp_path))

    def test_a_controlnet_that_makes_conditions_too_small(self, tmp_path: Path) -> None:
        tiny = StableDiffusion(**SETTINGS, weights="tiny")
        ControlNetModel.from_unet(tiny.unet).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"8 times smaller, and the autoencoder of model=tiny makes .* 4 times"):
            tiny.load_control("canny", str(tmp_path))

    def test_a_controlnet_of_another_class(self, tmp_path: Path) -> None:
        tiny = StableDiffusion(**SETTINGS, weights="tiny")
        folder = changed(
            tmp_path / "c", ASSETS / "tiny" / "controlnet_canny", "config.json", _class_name="ControlNetUnionModel"
        )
        with pytest.raises(UserError, match="it is a ControlNetUnionModel; what works: ControlNetModel"):
            tiny.load_control("canny", str(folder))

    def test_a_tokenizer_with_more_words_than_the_encoder(self, pipeline: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(pipeline, tmp_path / "model")
        words = toy.tokenizer()
        words.add_tokens(["<sks>"])
        words.save_pretrained(folder / "tokenizer")
        with pytest.raises(UserError, match=r"tokenizer: \d+ words, and its text encoder knows"):
            StableDiffusion(**SETTINGS, weights=str(folder))

    @pytest.mark.parametrize("part", ["joint_attention_dim", "pooled_projection_dim"])
    def test_a_transformer_for_other_text(self, part: str, tmp_path: Path) -> None:
        config = json.loads((ASSETS / "tiny_flux" / "transformer" / "config.json").read_text())
        FluxTransformer2DModel.from_config(config | {part: 40}).save_pretrained(tmp_path)
        elsewhere = {"vae": "tiny::vae", "text_encoder": "tiny::text_encoder", "tokenizer": "tiny::tokenizer"}
        with pytest.raises(UserError, match=rf"model\.transformer=.*: {part}=40, and (T5|CLIP) has"):
            Flux(**SETTINGS, weights="tiny_flux", max_tokens=16, transformer=str(tmp_path), **elsewhere)
