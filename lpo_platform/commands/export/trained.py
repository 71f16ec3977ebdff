"""What a finished run has exported, and which of the forms of lpo-export it can take; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpo_platform.config.errors import UserError, hint
from lpo_platform.config.paths import run_folder
from lpo_platform.config.signature import attribute
from lpo_platform.runs import files
from lpo_platform.tracking.report.page.run import Run, mapping

FORMS = {
    "diffusers": "what was trained, as from_pretrained and load_lora_weights read it; a reward model as a folder",
    "merged": "the whole pipeline with what was trained inside: DiffusionPipeline.from_pretrained reads it",
    "comfyui": "one file with the original key names: a checkpoint, a ControlNet or a LoRA for ComfyUI",
    "safetensors": "one file of the trained weights in their own names",
}
SUFFIXES = {"raw": "", "ema": "_ema", "best": "_best"}


@dataclass(frozen=True)
class Trained:
    """parts: folders of the exported parts by name, of a LoRA that alone. weights: a key of SUFFIXES; evaluated: the
    ones that the metrics are of."""

    run: Run
    parts: dict[str, Path]
    weights: str
    evaluated: str

    @property
    def kind(self) -> str:
        """control, lora, reward or full."""
        named = {"controlnet": "control", "lora": "lora", "reward": "reward"}
        return next((kind for name, kind in named.items() if name in self.parts), "full")

    @property
    def transformer(self) -> bool:
        return attribute(self.run.config["model"]["_target_"], "denoiser") == "transformer"

    def config(self, part: str) -> dict[str, Any]:
        return mapping(files.read_json(self.parts[part] / "config.json"))


def find(place: str, weights: str | None = None) -> Trained:
    """weights: a key of SUFFIXES, None for those that the run's evaluation judged. UserError where they are not."""
    folder = run_folder(place)
    if folder is None:
        what = "not a run folder (neither it nor its 'latest' holds resolved.yaml)" if Path(place).exists() else ""
        raise UserError(f"run={place}: {what or 'no such folder'}")
    run = Run.read(folder)
    if (status := run.result.get("status")) != "finished":
        raise UserError(f"run={place}: its status is {status or 'unknown'}; lpo-train resume={place} finishes a run")
    if not (there := _exported(folder / "export")):
        raise UserError(f"run={place}: has no export, only a training has")
    callbacks = run.config["callbacks"]
    averaged = callbacks["evaluate"] == "ema" and callbacks["ema_decay"] is not None
    evaluated = "ema" if averaged else "raw"
    chosen = weights or evaluated
    if chosen not in SUFFIXES:
        raise UserError(f"weights={chosen}: no such weights{hint(chosen, SUFFIXES)}")
    if chosen not in there:
        raise UserError(f"weights={chosen}: this run exported none{hint(chosen, there)}")
    return Trained(run, there[chosen], chosen, evaluated)


def _exported(folder: Path) -> dict[str, dict[str, Path]]:
    """The exported parts by weights; beside a LoRA the UNet with it merged is left out."""
    found: dict[str, dict[str, Path]] = {}
    for part in sorted(path for path in folder.glob("*") if path.is_dir()):
        weights = next((name for name, end in SUFFIXES.items() if end and part.name.endswith(end)), "raw")
        found.setdefault(weights, {})[part.name.removesuffix(SUFFIXES[weights])] = part
    return {name: {"lora": parts["lora"]} if "lora" in parts else parts for name, parts in found.items()}


def check_form(trained: Trained, to: str, key: str = "to") -> None:
    """UserError where a form cannot hold what was trained, with the reason; key: of the setting that asks for it."""
    if to not in FORMS:
        more = ("hub",) if key == "to" else ()
        raise UserError(f"{key}={to}: no such form{hint(to, (*FORMS, *more))}")
    if reason := _reason(trained, to):
        raise UserError(f"{key}={to}: {reason}; what works: {key}={first_form(trained)}")


def first_form(trained: Trained) -> str:
    """The first form that can hold what was trained."""
    return next(form for form in FORMS if _reason(trained, form) is None)


def _reason(trained: Trained, to: str) -> str | None:
    if to == "safetensors" or (trained.kind == "reward" and to == "diffusers"):
        return None
    if trained.kind == "reward":
        return "a latent reward model draws nothing, and no stock pipeline or node loads it"
    control = trained.config("controlnet") if trained.kind == "control" else {}
    if "adapter_size" in control:
        return "a ControlNet with DINO is a class of this platform, not a stock one"
    if to != "comfyui":
        return None
    if trained.transformer:
        return "ComfyUI reads transformers in diffusers' own key names"
    if (levels := len(control.get("conditioning_embedding_out_channels", range(4)))) != 4:
        return f"this ControlNet scales its condition down {levels - 1} times, the original layout knows 3 only"
    return None
