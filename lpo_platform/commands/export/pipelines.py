"""Stock pipelines around an adapter's parts, stock modules from what was written, and pictures from either."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetPipeline,
    FluxPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion import noise
from lpo_platform.evaluation.evaluation import Evaluation
from lpo_platform.models.adapter import Condition
from lpo_platform.models.controlnet_dino import ControlNetDinoModel
from lpo_platform.models.flux import Flux
from lpo_platform.models.flux_transformer import patches
from lpo_platform.models.policy import Policy, guides
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_xl import StableDiffusionXL
from lpo_platform.models.weights import load
from lpo_platform.runs.files import read_json
from lpo_platform.tracking.report.page.run import Run

STREAM = "export"
PIPELINES = {  # without and with a ControlNet
    StableDiffusion: (StableDiffusionPipeline, StableDiffusionControlNetPipeline),
    StableDiffusionXL: (StableDiffusionXLPipeline, StableDiffusionXLControlNetPipeline),
    Flux: (FluxPipeline, FluxControlNetPipeline),
}


@dataclass(frozen=True)
class Scene:
    """What is drawn to compare: prompts and, for a ControlNet, conditions (N, 3, R, R) in [0, 1]."""

    prompts: list[str]
    control: Tensor | None
    steps: int = 4
    seed: int = 0

    @classmethod
    def of_run(cls, run: Run, count: int = 2) -> "Scene":
        """The first held-out items of a run's evaluation, noise as the conditions of one that kept none."""
        prompts = [item["caption"] for item in run.items[:count]]
        if not run.config.get("control"):
            return cls(prompts, None)
        kept, side = Evaluation.load(run.folder / "evaluation" / "after.safetensors").control, run.config["model"]
        shape = (3, side["resolution"], side["resolution"])
        drawn = noise.normal(prompts, shape, seed=0, stream=STREAM).sigmoid()
        return cls(prompts, drawn if kept is None or len(kept) < count else kept[:count])


@torch.no_grad()
def draw(policy: Policy, scene: Scene) -> Tensor:
    """The policy's pictures (N, 3, R, R) in [0, 1], on the CPU."""
    adapter = policy.eval().adapter
    control = None if scene.control is None else scene.control.to(adapter.device)
    condition = Condition(adapter.embed(adapter.tokenize(scene.prompts)), control)
    sampling = Sampling(scene.steps, adapter.guidance)
    latents = sample_latents(policy, condition, scene.prompts, sampling, seed=scene.seed, stream=STREAM)
    return adapter.decode(latents).cpu()


def draw_stock(pipeline: DiffusionPipeline, adapter: StableDiffusion, scene: Scene) -> Tensor:
    """The same pictures by a stock pipeline; the adapter only says which settings those are."""
    pipeline.to(adapter.device)
    pipeline.set_progress_bar_config(disable=True)
    start = noise.normal(scene.prompts, adapter.latent_shape, seed=scene.seed, stream=STREAM)
    given: dict[str, Any] = {"height": adapter.resolution, "width": adapter.resolution, "output_type": "pt"}
    given |= {"prompt": scene.prompts, "num_inference_steps": scene.steps, "latents": start}
    if isinstance(adapter, Flux):
        given |= {"guidance_scale": adapter.distilled_guidance, "max_sequence_length": adapter.max_tokens}
        given |= {"latents": patches(start)}
        if guides(adapter.guidance):
            given |= {"true_cfg_scale": adapter.guidance, "negative_prompt": [""] * len(scene.prompts)}
    else:
        given |= {"guidance_scale": adapter.guidance}
    if scene.control is not None and isinstance(adapter, Flux):
        given |= {"control_image": 2 * scene.control - 1}  # this pipeline takes a tensor as it is
        _without_width(pipeline.vae)
    elif scene.control is not None:
        given |= {"image": scene.control}
    return pipeline(**given).images.float().cpu()


@torch.no_grad()
def _without_width(vae: nn.Module) -> None:
    """FLUX's pipeline encodes a condition with noise of its own; here both sides take the posterior's mean."""
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    half = len(last.weight) // 2
    last.weight[half:], last.bias[half:] = 0.0, -30.0


def pipeline_of(adapter: StableDiffusion, trained: dict[str, nn.Module]) -> DiffusionPipeline:
    """The stock pipeline of an adapter's parts, trained ones in their place, as it samples here: DDIM, or Euler."""
    control = trained.get("controlnet")
    kinds = next((PIPELINES[kind] for kind in type(adapter).__mro__ if kind in PIPELINES), None)
    if kinds is None:
        raise UserError(f"model={adapter.name}: no stock pipeline is known for it")
    scheduler = FlowMatchEulerDiscreteScheduler if isinstance(adapter, Flux) else DDIMScheduler
    found = load(scheduler.from_pretrained, adapter.weights, setting="model.weights", subfolder="scheduler")
    parts = {"vae": adapter.vae, "tokenizer": adapter.tokenizer, adapter.folders["unet"]: adapter.unet}
    if isinstance(adapter, Flux):
        parts |= {"text_encoder": adapter.clip, "text_encoder_2": adapter.text_encoder}
        parts |= {"tokenizer_2": adapter.t5_tokenizer}
    else:
        found = DDIMScheduler.from_config(found.config, clip_sample=adapter.process.clip is not None)
        parts |= {"text_encoder": adapter.text_encoder}
    if isinstance(adapter, StableDiffusionXL):
        parts |= {"text_encoder_2": adapter.text_encoder_2, "tokenizer_2": adapter.tokenizer_2}
        parts |= {"add_watermarker": False}
    elif not isinstance(adapter, Flux):
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return kinds[control is not None](scheduler=found, **parts | trained)


def stock(folder: Path) -> nn.Module:
    """The module of a folder, by the class that its config.json names; one class is ours."""
    config = read_json(folder / "config.json")
    if config.get("_class_name") == ControlNetDinoModel.__name__:
        kind: type[Any] = ControlNetDinoModel
    else:
        names = (
            (diffusers, config["_class_name"]) if "_class_name" in config else (transformers, *config["architectures"])
        )
        kind = getattr(*names)
    return kind.from_pretrained(folder)


def again(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A new module of the same class and configuration with these weights, every one of them."""
    made = type(module).from_config(module.config) if hasattr(module, "from_config") else type(module)(module.config)
    made.load_state_dict(state)
    return made.eval()
