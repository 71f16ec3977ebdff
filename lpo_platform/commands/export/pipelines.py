"""Stock pipelines around an adapter's parts, stock modules from what was written, and pictures from either."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion import noise
from lpo_platform.evaluation.evaluation import Evaluation
from lpo_platform.models.adapter import Condition
from lpo_platform.models.controlnet_dino import KINDS
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.runs.files import read_json
from lpo_platform.tracking.report.page.run import Run

STREAM = "export"


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
    given |= {"prompt": scene.prompts, "num_inference_steps": scene.steps} | adapter.stock_call(start)
    if scene.control is not None:
        given |= adapter.stock_control(pipeline, scene.control)
    return pipeline(**given).images.float().cpu()


def pipeline_of(adapter: StableDiffusion, trained: dict[str, nn.Module]) -> DiffusionPipeline:
    """The stock pipeline of an adapter's parts, trained ones in their place, as it samples here: DDIM, or Euler."""
    if not hasattr(adapter, "pipelines"):
        raise UserError(f"model={adapter.name}: no stock pipeline is known for it")
    names = adapter.scheduler, adapter.pipelines["controlnet" in trained]
    scheduler, kind = (getattr(diffusers, name) for name in names)
    found = adapter._load(scheduler.from_pretrained, "scheduler")
    parts = {"vae": adapter.vae, "tokenizer": adapter.tokenizer, adapter.folders["unet"]: adapter.unet}
    parts |= adapter.stock_parts() | {"scheduler": adapter.stock_scheduler(found)}
    return kind(**parts | trained)


def stock(folder: Path) -> nn.Module:
    """The module of a folder, by the class that its config.json names; those with DINO are ours."""
    config = read_json(folder / "config.json")
    ours = {kind.__name__: kind for kind in KINDS.values()}
    if config.get("_class_name") in ours:
        kind: type[Any] = ours[config["_class_name"]]
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
