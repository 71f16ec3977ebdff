"""What is asked of a GPU in its first hour, each as a function that returns what it found and raises what is wrong."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from omegaconf import OmegaConf
from toys.grid import Cell, refused
from toys.shapes import TOY
from toys.whole_runs import configured, train, whole

from lpo_platform.commands.build import create, evaluator_of
from lpo_platform.commands.fit import fit
from lpo_platform.commands.job import Job, assemble, method_of
from lpo_platform.commands.plan import work
from lpo_platform.commands.plan.bytes import memory
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.hardware.sharding import Sharded
from lpo_platform.models.random_weights import SD15, SDXL, RandomStableDiffusion, RandomStableDiffusionXL, Shape

REPO = Path(__file__).resolve().parents[3]
Found = dict[str, Any]
RATES = {"32-true": 495e12, "bf16-mixed": 989e12, "16-mixed": 989e12}  # FLOP/s of an H100 SXM, dense; TF32 for float32
MARGIN = 1.25  # how far the peak may lie above the plan: the allocator rounds, and libraries have workspaces


def job(words: tuple[str, ...], precision: str, name: str = "tiny") -> Found:
    """A whole smoke run; a method that does not train such a model gets a transformer."""
    folder, cell = Path.cwd(), Cell(name, words, precision)
    cell = replace(cell, model="tiny_sd3") if refused(cell) else cell
    metrics = train(configured("hardware=gpu", *cell.line(folder)), folder / _name(words))
    return {"metrics": len(metrics), "loss": rows(folder / _name(words), "train/loss")[0]}


def resumed(words: tuple[str, ...], precision: str) -> Found:
    """A killed run that goes on ends with the weights of a straight one; with kernels that repeat themselves."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole(configured("hardware=gpu", *words, f"hardware.precision={precision}"), Path.cwd() / _name(words))
    finally:
        torch.use_deterministic_algorithms(False)
    return {}


def ratio(precision: str) -> Found:
    """Before the first update of a round the policy is the one that sampled: every ratio is 1, every divergence 0."""
    words = ("method=ddpo", "method.rounds=1", "method.batch=12", "callbacks.ema_decay=null", "callbacks.evaluate=raw")
    folder = Path.cwd() / "ratio"
    train(configured("hardware=gpu", *words, f"hardware.precision={precision}"), folder)
    found = {name: rows(folder, f"ddpo/{name}")[0] for name in ("ratio", "ratio_max", "change", "kl_k2", "kl_k3")}
    assert found == {"ratio": 1, "ratio_max": 1, "change": 0, "kl_k2": 0, "kl_k3": 0}, found
    return {"drift": rows(folder, "ddpo/drift")[0]}


def first_preference(method: str, tune: str, precision: str) -> Found:
    """Policy and reference agree at the start: the first loss of a preference is -log sigmoid(0) for every pair that
    counts; a micro-batch of one has a whole number of them."""
    folder = Path.cwd() / "preference"
    train(configured("hardware=gpu", f"method={method}", f"tune={tune}", f"hardware.precision={precision}"), folder)
    loss = rows(folder, "train/loss")[0]
    pairs = loss / math.log(2)
    assert pairs > 0.5 and abs(pairs - round(pairs)) < 1e-5, loss
    return {"loss": loss}


class WorldOfOne(Hardware):
    """A single process with FSDP2, which elsewhere means several."""

    def trainer(self, **options: Any) -> dict[str, Any]:
        return super().trainer(**options) | {"strategy": Sharded(), "plugins": [TorchElasticEnvironment()]}


def sharded(words: tuple[str, ...], precision: str, hardware: str = "gpu") -> Found:
    """Two steps with FSDP2 in a world of one, on nccl where there is a GPU; then the weights are exported."""
    cfg = configured(f"hardware={hardware}", *words, f"hardware.precision={precision}")
    with world("cpu:gloo,cuda:nccl" if hardware == "gpu" else "gloo"):
        made = assemble(cfg)
        given = {field.name: getattr(made.hardware, field.name) for field in fields(Hardware)}
        made.hardware = WorldOfOne(**given)
        fitted(made, Path.cwd() / "sharded")
    losses = rows(Path.cwd() / "sharded", "train/loss")
    assert all(map(math.isfinite, losses)) and list((Path.cwd() / "sharded" / "export").rglob("*.safetensors"))
    return {"loss": losses[-1]}


@contextmanager
def world(backend: str) -> Iterator[None]:
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"):
                del os.environ[name]


def step(name: str, words: tuple[str, ...], precision: str = "bf16-mixed", steps: int = 8) -> Found:
    """Training itself, at full size with random weights: seconds of a step, model FLOP utilisation, and the peak of
    memory, which must not lie above what lpo-plan counts by more than a margin."""
    line = (*words, f"method.steps={steps}", f"method.rounds={steps}", f"callbacks.every={steps}")
    line = tuple(word for word in line if word.split("=")[0] in of_method(words) or not word.startswith("method."))
    cfg = configured("hardware=gpu", f"hardware.precision={precision}", *model_words(name), *line)
    counted = work.assemble(cfg)
    planned = sum(memory(counted, work.activations(counted), half=precision != "32-true").values())
    if name in SHAPES:
        cfg.model._target_ = f"{__name__}.drawn"
        cfg.model.name = name
    made = assemble(cfg)
    if (prepared := made.rows()) is not None:
        prepared.fill(made.read_of(prepared))
        prepared.close()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    fitted(made, folder := Path.cwd() / f"{name} {_name(words)}")
    peak, times = torch.cuda.max_memory_allocated(), rows(folder, "time", having="train/loss")
    seconds = (times[-1] - times[1]) / (len(times) - 2)
    found = {
        "seconds": seconds, "samples_per_second": made.cfg.method.batch / seconds,
        "utilisation": work.update(counted) / seconds / RATES[precision],
        "peak_bytes": peak, "planned_bytes": planned,
    }  # fmt: skip
    assert peak < MARGIN * planned, found
    return found


def of_method(words: tuple[str, ...]) -> set[str]:
    """The settings that the method has."""
    return {f"method.{name}" for name in configured(*words).method}


SHAPES: dict[str, Shape] = {"sd15": SD15, "sdxl": SDXL, "toy": TOY}


def model_words(name: str) -> tuple[str, ...]:
    return ("model=tiny", "model.resolution=32") if name == "toy" else (f"model={name}",)


class Unread:
    """A model that lies in no file."""

    fingerprint = "drawn"


class Drawn(Unread, RandomStableDiffusion): ...


class DrawnXL(Unread, RandomStableDiffusionXL): ...


def drawn(*, name: str, resolution: int, guidance: float, num_inference_steps: int, **_: Any) -> RandomStableDiffusion:
    """A model of published size with random weights, drawn on the device."""
    kind = Drawn if SHAPES[name].text_encoder_2 is None else DrawnXL
    made = kind(SHAPES[name], resolution=resolution, device="cuda")
    made.guidance, made.num_inference_steps = guidance, num_inference_steps
    return made


def marked() -> Found:
    """The tests with the mark gpu."""
    program = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", str(REPO / "tests")]
    done = subprocess.run(program, cwd=REPO, capture_output=True, text=True, timeout=80)
    assert done.returncode == 0, done.stdout.strip().splitlines()[-1]
    return {}


def fitted(made: Job, folder: Path) -> None:
    """The training of a job, without its evaluations."""
    method, settings = method_of(made), create(made.cfg.callbacks)
    evaluator = evaluator_of(made.cfg, made.policy.adapter, made.task)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(made.cfg, folder / "resolved.yaml")
    fit(made, method, made.rows(), evaluator, settings, folder)


def rows(folder: Path, name: str, *, having: str | None = None) -> list[float]:
    """What was logged under a name, in its order."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line and (having or name) in line]


def _name(words: tuple[str, ...]) -> str:
    return " ".join(words).replace("/", "-")
