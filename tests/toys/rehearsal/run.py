"""Runs a recipe: training, evaluation under the protocol of its paper, export, a picture by stock diffusers."""

import importlib.util
import inspect
import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from toys.rehearsal import read
from toys.rehearsal.recipes import Recipe, composed, protocol

import lpo_platform as lpo
from lpo_platform.commands.export.export import export
from lpo_platform.config.errors import UserError

SIDE = 64
SIZES = [
    "debug=smoke", f"model.resolution={SIDE}", "hardware=cpu", "hardware.precision=32-true",
    "callbacks.sentinel=null",
]  # fmt: skip
OF_EVALUATION = ["metrics.num_samples=2", "metrics.num_steps=2"]


@dataclass
class Row:
    """A row of the table."""

    title: str
    words: list[str] = field(default_factory=list)
    read: dict[str, list[str]] = field(default_factory=dict)
    trained: int = 0
    protocol: str = ""
    departures: list[str] = field(default_factory=list)
    picture: str = ""
    seconds: float = 0.0
    fault: str = ""

    def configurations(self) -> Iterator[tuple[str, str]]:
        """The files of models that say what a model is, by the names of the models."""
        for name, files in self.read.items():
            if name.startswith("models/"):
                yield from ((name, file) for file in files if file.endswith((".json", ".txt")))


def rehearse(recipe: Recipe, line: Callable[[], list[str]], folder: Path, cache: Path) -> Row:
    """Leaves the run in `folder`; whatever goes wrong stands in the row."""
    row, started = Row(recipe.title), time.monotonic()
    read.forget(cache)
    try:
        _fill(row, line(), folder)
    except Exception as error:  # one recipe's fault is a row of the table
        row.fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if not isinstance(error, UserError):
            traceback.print_exc()
    row.read, row.seconds = read.read(cache), time.monotonic() - started
    return row


def _fill(row: Row, line: list[str], folder: Path) -> None:
    values, choices = composed(line)
    row.words = [*line, *SIZES, *_missing(choices)]
    run = lpo.train(*row.words, folder=folder)
    if (steps := run.config.method.get("steps") or run.config.method.get("rounds")) > 2:
        raise ValueError(f"debug=smoke left {steps} steps")
    row.trained = parameters(run.export)
    if not row.trained:
        raise ValueError("nothing was trained")
    row.protocol = protocol(values, choices["task"] if values.get("control") else None) or "its own"
    judged = lpo.evaluate(f"run={folder}", *metrics_of(row.protocol), folder=folder / "protocol")
    row.departures = judged.result.get("deviations") or run.result.get("departures") or []
    row.picture = picture(folder)


def _missing(choices: dict[str, str | None]) -> list[str]:
    """What stands in for packages of extras that are not installed."""
    eight_bit = choices.get("optim") == "adamw8bit" and not importlib.util.find_spec("bitsandbytes")
    return ["optim=adamw"] if eight_bit else []


def metrics_of(protocol: str) -> list[str]:
    """The words that evaluate by a protocol on few pictures; debug=smoke has made a recipe's own small."""
    if protocol == "its own":
        return []
    options = composed([f"metrics={protocol}"])[0]["metrics"]
    return [f"metrics={protocol}", *(word for word in OF_EVALUATION if word.split("=")[0].split(".")[1] in options)]


def parameters(folder: Path) -> int:
    """Numbers in the weights that a run exported, without averages and copies."""
    count = 0
    for file in folder.rglob("*.safetensors"):
        if not any(part.endswith(("_ema", "_best")) for part in file.relative_to(folder).parts):
            with safe_open(file, framework="pt") as stored:
                count += sum(torch.Size(stored.get_slice(key).get_shape()).numel() for key in stored.keys())  # noqa: SIM118
    return count


def picture(folder: Path) -> str:
    """Exports the run and draws with what stock diffusers loads; says what it was."""
    kinds = {"reward": "safetensors", "dino": "safetensors"}
    part = next(path for path in sorted((folder / "export").iterdir()) if path.is_dir())
    config = json.loads((part / "config.json").read_text()) if (part / "config.json").is_file() else {}
    kind = "reward" if part.name.startswith("reward") else "dino" if "adapter_size" in config else "stock"
    place = export({"run": str(folder), "to": kinds.get(kind, "merged"), "save": str(folder / "exported")})
    if kind in kinds:
        return f"by the platform: {kind}"
    pipeline = DiffusionPipeline.from_pretrained(place)
    pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": "a red circle", "num_inference_steps": 2, "height": SIDE, "width": SIDE, "output_type": "pt"}
    if getattr(pipeline, "controlnet", None) is not None:
        flow = "control_image" in inspect.signature(pipeline.__call__).parameters
        given["control_image" if flow else "image"] = torch.zeros(1, 3, SIDE, SIDE)
    drawn = pipeline(**given).images
    if drawn.shape != (1, 3, SIDE, SIDE) or not torch.isfinite(drawn).all():
        raise ValueError(f"{type(pipeline).__name__} of diffusers {diffusers.__version__} drew no picture")
    return type(pipeline).__name__
