"""Rows that are streamed, cached or half cached, read by 1, 2 and 4 processes: the same weights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys.rows import scene
from toys.runs import LAUNCH, weights

from lpo_platform.models.weights import ASSETS

pytestmark = [pytest.mark.dist, pytest.mark.timeout(1800)]

PREPARE = [sys.executable, "-c", "from lpo_platform.commands.main import prepare; prepare()"]
JOB = [
    "method=control", "control=none", "tune=full", "task=none", "data=folder", "data.path=../pictures",
    "metrics=attributes", "metrics.num_samples=2", "metrics.num_steps=2", "method.steps=9", "method.batch=8",
    "hardware=ddp", "hardware.accelerator=cpu", "hardware.micro_batch=1", "optim.lr=1e-4", "logger=none",
    "callbacks.samples=0", "callbacks.every=3",
]  # fmt: skip
SIZES = (1, 2, 4)
STARTS = {  # steps that lpo-prepare makes the rows of, and what the training keeps
    "streamed": (0, "none"),
    "cached as it is read": (0, "auto"),
    "half cached": (3, "auto"),
    "cached": (9, "all"),
}
WITHIN = 3e-3  # as in test_ddp.py: how float32 adds gradients depends on the number of processes


def command(folder: Path, *words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """The run folder of a start and a number of processes; 60 pictures, of which two are broken."""
    root = tmp_path_factory.mktemp("streamed")
    (root / "pictures").mkdir()
    for i in range(60):
        scene(i, 64, 64).save(root / "pictures" / f"scene number {i}.png")
    for i in (11, 40):
        (root / "pictures" / f"scene number {i}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    found: dict[tuple[str, int], Path] = {}

    def run(start: str, size: int) -> Path:
        if (start, size) not in found:
            folder = root / f"{start} {size}".replace(" ", "-")
            folder.mkdir()
            steps, kept = STARTS[start]
            job = [*JOB, f"hardware.devices={size}"]
            if steps:
                command(folder, *PREPARE, *job, f"method.steps={steps}")
            command(folder, *LAUNCH, *job, f"data.cache={kept}", "hydra.run.dir=run")
            found[start, size] = folder / "run"
        return found[start, size]

    return run


@pytest.mark.parametrize("size", SIZES)
def test_what_is_cached_changes_nothing(trained: Callable[[str, int], Path], size: int) -> None:
    """Bit for bit, with the losses of every step."""
    streamed = trained("streamed", size)
    assert weights(streamed) != {}
    for start in STARTS:
        other = trained(start, size)
        assert weights(other) == weights(streamed), start
        assert losses(other) == losses(streamed) and len(losses(other)) >= 3


@pytest.mark.parametrize("size", SIZES[1:])
def test_the_number_of_processes_changes_nothing_but_rounding(trained: Callable[[str, int], Path], size: int) -> None:
    one, many = (vector(trained("streamed", number) / "export" / "unet") for number in (1, size))
    origin = vector(ASSETS / "tiny" / "unet")
    assert (many - one).norm() < WITHIN * (one - origin).norm()


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def vector(folder: Path) -> torch.Tensor:
    """All weights of a denoiser."""
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    return torch.cat([state[name].flatten().float() for name in sorted(state)])
