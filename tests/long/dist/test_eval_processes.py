"""An evaluation on any number of processes and in any batches, killed and gone on with: the same numbers."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EVAL = Path(__file__).parents[3] / "launchers" / "evaluate.py"
WORDS = [
    "model=tiny", "control=controlnet", "task=canny", "model.num_inference_steps=4", "metrics.num_samples=22",
    "metrics.images_per_item=2", "metrics.save=true", "metrics.rows=4",
]  # fmt: skip
TWO = ["hardware=ddp", "hardware.devices=2", "hardware.accelerator=cpu"]


def start(folder: Path, *more: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EVAL), *WORDS, *more, "hydra.run.dir=out"]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def finish(folder: Path, *more: str) -> dict[str, torch.Tensor]:
    process = start(folder, *more)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert json.loads((folder / "out" / "result.json").read_text())["status"] == "finished"
    return load_file(folder / "out" / "evaluation" / "after.safetensors")


def parts(folder: Path) -> dict[Path, int]:
    """The parts that are there, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("outputs/cache/evaluations/*/*.safetensors")}


def killed(folder: Path, *more: str) -> dict[Path, int]:
    """SIGKILL of the command as soon as two parts are there."""
    process = start(folder, *more)
    for _ in itertools.repeat(None, 30_000):
        if len(parts(folder)) >= 2:
            break
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.read()  # until its processes have ended, too
    left = parts(folder)
    assert 2 <= len(left) < 22 and not (folder / "out" / "evaluation" / "after.safetensors").exists()
    assert json.loads((folder / "out" / "result.json").read_text())["status"] == "running"
    return left


@pytest.mark.dist
def test_processes_batches_and_kills_change_nothing(tmp_path: Path) -> None:
    """One process that is killed in batches of 1, then two in batches of 6, against one in batches of 16."""
    straight, folder = finish(tmp_path / "straight", "metrics.batch=16"), tmp_path / "killed"
    killed(folder, "metrics.batch=1")
    pictures = {path: path.stat().st_mtime_ns for path in folder.glob("out/pictures/after/group_1/*.png")}
    found = finish(folder, *TWO, "metrics.batch=6")
    assert sum(path.stat().st_mtime_ns == written for path, written in pictures.items()) >= 2  # not drawn again
    assert found.keys() == straight.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, straight[name], atol=1e-6, rtol=1e-5, msg=name)
