"""What every field in the configuration files of a model folder means here: honoured, without effect, or refused.

A field is honoured where the class that owns it computes with it, and where a line of the table says who else does. A
field is refused where our halves of a denoiser (models/shared_encoder.py, models/*_transformer.py) or our processes
do without it, unless it has a value that changes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lpo_platform.config.errors import UserError

NOTHING = (None, False, [], {}, ())


@dataclass(frozen=True)
class Only:
    """A field of which only these values work; a list works where each of its elements does."""

    values: tuple[object, ...]
    why: str

    def accepts(self, value: object) -> bool:
        parts = value if isinstance(value, list | tuple) else (value,)
        return all(any(part == own and type(part) is type(own) for own in self.values) for part in parts)


@dataclass(frozen=True)
class Fields:
    """The fields of one class.

    Args:
        honoured: fields that change what is computed, and do.
        irrelevant: fields that change nothing here, with the reason.
        only: fields of which some values are refused.
        names: what a file may call its class.
        complete: whether a field that stands nowhere here is refused.
    """

    honoured: frozenset[str] = frozenset()
    irrelevant: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, Only] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    complete: bool = True


def check(fields: Fields, config: Mapping[str, Any], where: str) -> None:
    """UserError, which begins with `where`, for what a configuration says and we cannot do; all of it at once."""
    wrong = []
    name = config.get("_class_name") or config.get("model_type")
    if fields.names and name is not None and name not in fields.names:
        wrong.append(f"it is a {name}; what works: {' or '.join(fields.names)}")
    for key, value in config.items():
        if key in fields.only and not fields.only[key].accepts(value):
            allowed = " or ".join(_shown(own) for own in fields.only[key].values)
            wrong.append(f"{key}={_shown(value)}: {fields.only[key].why}; what works: {allowed}")
        elif fields.complete and not _known(fields, key) and value not in NOTHING:
            wrong.append(f"{key}={_shown(value)}: a field that neither the installed libraries nor we know")
    if wrong:
        raise UserError(f"{where}: " + "; ".join(wrong))


def _known(fields: Fields, key: str) -> bool:
    return key.startswith("_") or key in fields.honoured or key in fields.irrelevant or key in fields.only


def _shown(value: object) -> str:
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


SIZE = {"sample_size": "model.resolution says how large pictures are"}
AVERAGED = dict.fromkeys(
    ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"),
    "EMAModel of diffusers writes it beside averaged weights",
)
ATTENTION = "the halves of the UNet know plain cross attention on one text"
TIME = "the halves of the UNet know t, and for SDXL the pooled text and the picture's size, as conditions"
_OF_BOTH = frozenset(
    {
        "in_channels", "flip_sin_to_cos", "freq_shift", "block_out_channels", "layers_per_block", "downsample_padding",
        "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim",
        "transformer_layers_per_block", "attention_head_dim", "use_linear_projection",
        "addition_time_embed_dim", "upcast_attention", "resnet_time_scale_shift",
        "projection_class_embeddings_input_dim",
    }
)  # fmt: skip
_ONLY_OF_BOTH = {
    "down_block_types": Only(("CrossAttnDownBlock2D", "DownBlock2D"), "another kind of block"),
    "mid_block_type": Only(("UNetMidBlock2DCrossAttn",), "another kind of block"),
    "only_cross_attention": Only((False,), ATTENTION),
    "encoder_hid_dim": Only((None,), ATTENTION),
    "encoder_hid_dim_type": Only((None,), ATTENTION),
    "num_attention_heads": Only((None,), "diffusers itself takes no such number, for attention_head_dim is it"),
    "class_embed_type": Only((None,), TIME),
    "num_class_embeds": Only((None,), TIME),
    "addition_embed_type": Only((None, "text_time"), TIME),
}
_HEADS = {"addition_embed_type_num_heads": "it belongs to an addition_embed_type that is refused"}

UNET = Fields(
    honoured=_OF_BOTH
    | {
        "out_channels", "reverse_transformer_layers_per_block", "resnet_skip_time_act", "resnet_out_scale_factor",
        "time_embedding_dim", "timestep_post_act", "conv_in_kernel", "conv_out_kernel",
        "mid_block_only_cross_attention",
    },
    irrelevant=SIZE | _HEADS | AVERAGED,
    only=_ONLY_OF_BOTH
    | {
        "up_block_types": Only(("UpBlock2D", "CrossAttnUpBlock2D"), "another kind of block"),
        "center_input_sample": Only((False,), "latents are not centred"),
        "dropout": Only((0.0, 0), "a policy and its reference would differ by chance"),
        "dual_cross_attention": Only((False,), ATTENTION),
        "attention_type": Only(("default",), ATTENTION),
        "cross_attention_norm": Only((None,), ATTENTION),
        "time_embedding_type": Only(("positional",), TIME),
        "time_embedding_act_fn": Only((None,), TIME),
        "time_cond_proj_dim": Only((None,), "a model that is told its guidance, as latent consistency models are"),
        "class_embeddings_concat": Only((False,), TIME),
    },
    names=("UNet2DConditionModel",),
)  # fmt: skip

CONTROLNET = Fields(
    honoured=_OF_BOTH | {"conditioning_embedding_out_channels"},
    irrelevant=_HEADS | AVERAGED,
    only=_ONLY_OF_BOTH
    | {
        "conditioning_channels": Only((3,), "a condition is a picture of three channels"),
        "controlnet_conditioning_channel_order": Only(("rgb",), "no task has a condition in another order"),
        "global_pool_conditions": Only((False,), "a condition belongs to its place"),
    },
    names=("ControlNetModel",),
)


def with_dino(plain: Fields) -> Fields:
    """The fields of a ControlNet with a DINO branch."""
    return replace(plain, honoured=plain.honoured | {"adapter_size", "resize", "dino_config"}, names=())



VAE = Fields(
    honoured=frozenset(
        {
            "down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "act_fn",
            "latent_channels", "norm_num_groups", "scaling_factor", "shift_factor", "use_quant_conv",
            "use_post_quant_conv", "mid_block_add_attention", "force_upcast",
        }
    ),
    irrelevant={"sample_size": "it is the size of tiles, and pictures are not cut into tiles"},
    only={
        "in_channels": Only((3,), "a picture has three channels"),
        "out_channels": Only((3,), "a picture has three channels"),
        "latents_mean": Only((None,), "latents are scaled by scaling_factor alone"),
        "latents_std": Only((None,), "latents are scaled by scaling_factor alone"),
    },
    names=("AutoencoderKL",),
)  # fmt: skip

_FLUX = frozenset(
    {
        "in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads",
        "joint_attention_dim", "pooled_projection_dim", "guidance_embeds", "axes_dims_rope",
    }
)  # fmt: skip
_PATCH = {"patch_size": Only((1,), "latents are packed in twos before the transformer")}
FLUX = Fields(honoured=_FLUX | {"out_channels"}, irrelevant=AVERAGED, only=_PATCH, names=("FluxTransformer2DModel",))
FLUX_CONTROLNET = Fields(
    honoured=_FLUX,
    irrelevant=AVERAGED,
    only=_PATCH
    | {
        "num_mode": Only((None,), "a union ControlNet is told which kind of condition it sees"),
        "conditioning_embedding_channels": Only((None,), "an X-Labs ControlNet reads pictures in place of latents"),
    },
    names=("FluxControlNetModel",),
)

_SD3 = frozenset(
    {
        "patch_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
        "caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size", "dual_attention_layers", "qk_norm",
    }
)  # fmt: skip
SD3 = Fields(honoured=_SD3 | {"out_channels", "sample_size"}, irrelevant=AVERAGED, names=("SD3Transformer2DModel",))
SD3_CONTROLNET = Fields(
    honoured=_SD3 | {"sample_size", "pos_embed_type", "use_pos_embed", "force_zeros_for_pooled_projection"},
    irrelevant=AVERAGED | {"out_channels": "its residuals are as wide as its blocks"},
    only={"extra_conditioning_channels": Only((0,), "an inpainting ControlNet reads a mask, too")},
    names=("SD3ControlNetModel",),
)

_TEXT = {
    "use_attention_mask": Only((False, None), "the encoder reads the padding, too"),
    "return_dict": Only((True,), "outputs are read by name"),
}
CLIP_TEXT = Fields(
    only=_TEXT | {"attention_dropout": Only((0.0, 0), "a policy and its reference would differ by chance")},
    names=("clip_text_model", "clip"),
    complete=False,  # its own class computes with every field
)
T5 = Fields(only=_TEXT, names=("t5",), complete=False)
TOKENIZER = Fields(only={"padding_side": Only(("right",), "a text is padded behind its end")}, complete=False)

STEPS = "it belongs to the file's own sampler; steps are those of DDIM"
FLOW = "the noise of a flow model; model=flux and model=sd3 have it"
DDIM = Fields(
    honoured=frozenset(
        {
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "clip_sample",
            "clip_sample_range", "set_alpha_to_one", "steps_offset", "prediction_type", "thresholding",
            "timestep_spacing", "rescale_betas_zero_snr",
        }
    ),
    irrelevant={"dynamic_thresholding_ratio": "thresholding is refused", "sample_max_value": "thresholding is refused"}
    | dict.fromkeys(
        (
            "algorithm_type", "disable_corrector", "euler_at_final", "final_sigmas_type", "interpolation_type",
            "lambda_min_clipped", "lower_order_final", "predict_x0", "sigma_min", "sigma_max", "skip_prk_steps",
            "solver_order", "solver_p", "solver_type", "use_beta_sigmas", "use_exponential_sigmas",
            "use_karras_sigmas", "use_lu_lambdas", "noise_sampler_seed",
        ),
        STEPS,
    )
    | dict.fromkeys(("flow_shift", "time_shift_type", "shift_terminal"), "use_flow_sigmas is refused"),
    only={
        "use_flow_sigmas": Only((False,), FLOW),
        "use_dynamic_shifting": Only((False,), FLOW),
        "timestep_type": Only(("discrete",), "timesteps are whole numbers"),
        "variance_type": Only((None, "fixed_small", "fixed_large"), "a model that predicts a variance, too"),
    },
    names=(
        "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
        "DEISMultistepScheduler", "UniPCMultistepScheduler", "DPMSolverSDEScheduler",
    ),
)  # fmt: skip
"""A scheduler file of Stable Diffusion, whatever sampler it names: its noise is that of DDIM."""

_SHIFTED = "only shifted sigmas are implemented"
FLOW_MATCH = Fields(
    honoured=frozenset(
        {
            "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
            "time_shift_type",
        }
    ),
    only={
        "num_train_timesteps": Only((1000,), "times are thousandths"),
        "shift_terminal": Only((None,), _SHIFTED),
        "invert_sigmas": Only((False,), _SHIFTED),
        "use_karras_sigmas": Only((False,), _SHIFTED),
        "use_exponential_sigmas": Only((False,), _SHIFTED),
        "use_beta_sigmas": Only((False,), _SHIFTED),
        "stochastic_sampling": Only((False,), "noise of a step is chosen by eta"),
    },
    names=("FlowMatchEulerDiscreteScheduler",),
)  # fmt: skip

_PARTS = "the part is loaded by its own folder"
_UNUSED = "pictures are not filtered, marked or taken as prompts"
_INDEX = dict.fromkeys(
    ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2", "text_encoder_3", "vae",
     "unet", "transformer"),
    _PARTS,
) | dict.fromkeys(
    ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker", "add_watermarker",
     "controlnet", "watermark"),
    _UNUSED,
)  # fmt: skip
_AESTHETICS = {
    "requires_aesthetics_score": Only((False,), "a refiner, which is told an aesthetic score"),
}


def _pipelines(*kinds: str) -> tuple[str, ...]:
    return tuple(f"{kind}{form}Pipeline" for kind in kinds for form in ("", "ControlNet", "Img2Img"))


INDEX = Fields(irrelevant=_INDEX, only=_AESTHETICS, names=_pipelines("StableDiffusion"))
INDEX_XL = Fields(
    honoured=frozenset({"force_zeros_for_empty_prompt"}),
    irrelevant=_INDEX, only=_AESTHETICS, names=_pipelines("StableDiffusionXL"),
)  # fmt: skip
INDEX_FLUX = Fields(irrelevant=_INDEX, names=_pipelines("Flux"))
INDEX_SD3 = Fields(irrelevant=_INDEX, names=_pipelines("StableDiffusion3"))
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "T5EncoderModel"),
    "text_encoder_3": ("T5EncoderModel",),
    "transformer": ("FluxTransformer2DModel", "SD3Transformer2DModel"),
}
"""What a part may be called in model_index.json."""


def check_index(fields: Fields, index: Mapping[str, Any], where: str, *, replaced: tuple[str, ...] = ()) -> None:
    """As check, for model_index.json; parts that are `replaced` by others need not be readable."""
    check(fields, index, where)
    for part, names in CLASSES.items():
        found = (index.get(part) or [None, None])[1]
        if found is not None and found not in names and part not in replaced:
            raise UserError(f"{where}: {part} is a {found}; what works: {' or '.join(names)}")
