"""Writes a form of what a run has trained, reads it back with stock diffusers and compares weights and pictures."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lpo_platform.commands.build import create, policy_of
from lpo_platform.commands.export.forms import FILE, FORMS, Form, SafeTensors
from lpo_platform.commands.export.pipelines import STREAM, Scene, draw, draw_stock
from lpo_platform.commands.export.trained import SUFFIXES, Trained
from lpo_platform.commands.job_log import quiet
from lpo_platform.config import own_modules, stored
from lpo_platform.config.errors import UserError
from lpo_platform.data.picture_files import save_png
from lpo_platform.diffusion import noise
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.models.adapter import Adapter
from lpo_platform.models.controlnet_dino import WithDino
from lpo_platform.models.export import restore
from lpo_platform.models.policy import Policy
from lpo_platform.models.reward_folder import load_reward
from lpo_platform.runs import resume

TOLERANCE = 1 / 255  # of pictures in [0, 1]: one grey level; float32 rounds otherwise in another order of sums
EXAMPLE = "example.png"


@dataclass(frozen=True)
class Check:
    """How far pictures, or a reward model's scores, of what was written are from the policy's, and the policy's from
    those of the model that it was trained from (None: not compared)."""

    reader: str
    difference: float
    trained: float | None = None

    def __str__(self) -> str:
        what = "scores" if self.trained is None else "pictures"
        line = (
            f"{self.reader}: its {what} differ from the run's by {self.difference:.1g} ({TOLERANCE:.1g} at most passes)"
        )
        return line if self.trained is None else f"{line}; training had changed them by {self.trained:.1g}"


def publish(trained: Trained, to: str, folder: Path, metadata: dict[str, str]) -> Check:
    """Fills an empty folder. UserError where what was read back is not what the run had."""
    quiet()
    own_modules.look_in(resume.config_dirs_of(trained.run.folder))
    cfg, hardware = stored.load(trained.run.folder / "resolved.yaml"), Hardware(precision="32-true")
    if trained.kind == "reward":
        return _publish_reward(trained, to, create(cfg.model).to(hardware.device), folder, metadata)
    scene, (policy, _) = Scene.of_run(trained.run), policy_of(cfg, hardware)
    before = draw(policy, scene)
    restore(policy, trained.run.folder / "export", SUFFIXES[trained.weights])
    ours = draw(policy, scene)
    form: Form = FORMS[to](trained, create(cfg.model))
    form.write(folder, metadata)
    if isinstance(form.modules.get("controlnet"), WithDino):
        reader, theirs = "the platform", _draw_own(policy, form, folder, scene)
    else:
        del policy
        pipeline = form.read(folder)
        compare_weights(form, pipeline.components)
        reader = f"{type(pipeline).__name__} of diffusers {diffusers.__version__}"
        theirs = draw_stock(pipeline, form.adapter.to(hardware.device), scene)
    save_png(torch.cat([*([*scene.control] if scene.control is not None else []), *theirs], -1), folder / EXAMPLE)
    return passed(Check(reader, _largest(ours, theirs), _largest(ours, before)))


def _draw_own(policy: Policy, form: SafeTensors, folder: Path, scene: Scene) -> Tensor:
    """By the policy with its ControlNet's weights from the file."""
    with torch.no_grad():
        for weight in policy.control.parameters():
            weight.zero_()
    policy.control.load_state_dict(form.again(folder)["controlnet"].state_dict())
    return draw(policy, scene)


@torch.no_grad()
def _publish_reward(trained: Trained, to: str, adapter: Adapter, folder: Path, metadata: dict[str, str]) -> Check:
    place = str(trained.parts["reward"])
    model = load_reward(adapter, place)
    if to == "diffusers":
        shutil.copytree(place, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pt"))  # a pickle
        again = load_reward(adapter, str(folder))
    else:
        state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(state, folder / FILE, metadata={"format": "pt", **metadata})
        again = load_reward(adapter, place)
        for weight in again.parameters():
            weight.zero_()
        again.load_state_dict(load_file(folder / FILE))
    prompts = [item["caption"] for item in trained.run.items[:8]] or [""]
    latents = noise.normal(range(len(prompts)), adapter.latent_shape, seed=0, stream=STREAM).to(adapter.device)
    times = torch.linspace(1, 951, len(prompts), device=adapter.device).long()
    scores = [m(latents, times, m.encode(adapter.tokenize(prompts))) for m in (model, again)]
    return passed(Check("the platform", _largest(*scores)))


def compare_weights(form: Form, parts: dict[str, nn.Module]) -> None:
    """Every trained weight must come back as it was; of a LoRA up to the rounding of W + up @ down."""
    limits = {"atol": 1e-5, "rtol": 1e-5} if form.lora else {"atol": 0, "rtol": 0}
    for name, module in form.modules.items():
        wanted, found = module.state_dict(), parts[name].state_dict()
        wrong = [key for key in wanted if key not in found or not torch.allclose(wanted[key], found[key], **limits)]
        if wrong or wanted.keys() != found.keys():
            first = (wrong or sorted(found.keys() - wanted.keys()))[0]
            raise UserError(
                f"read back by stock diffusers, {name} is another one: {first} differs; nothing was written"
            )


def _largest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def passed(check: Check) -> Check:
    if not check.difference <= TOLERANCE:
        raise UserError(f"{check}: too far apart; nothing was written")
    return check
