"""Jobs of several processes from the command line: who starts them, in which folder, and what their user reads."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from lpo_platform.config.errors import UserError
from lpo_platform.hardware import launch
from lpo_platform.models.weights import ASSETS

TRAIN = [sys.executable, str(Path(__file__).parents[2] / "launchers" / "train.py")]
JOB = [
    "method=cpo", "task=canny", "debug=smoke", "method.steps=4", "callbacks.every=1", "callbacks.samples=0",
    "metrics.num_samples=4", "hardware=ddp", "hardware.accelerator=cpu",
]  # fmt: skip
TWO = "hardware.devices=2"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def start(folder: Path, *overrides: str, command: list[str] = TRAIN) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, *overrides], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(folder: Path, *overrides: str) -> tuple[int, str]:
    """Exit code and what stands on the screen."""
    process = start(folder, *overrides)
    out, err = process.communicate(timeout=560)
    return process.returncode, out + err


def weights(folder: Path) -> torch.Tensor:
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def note(rank: int, *, user: bool = False, at: float = 0.0, reason: str = "") -> dict:
    words = {"reason": reason or f"reason {rank}", "traceback": f"traceback {rank}"}
    return {"rank": rank, "user": user, "time": at, **words}


def test_only_one_kind_of_job_starts_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted(**hardware: object) -> int:
        given = {"strategy": "ddp", "devices": 2, "num_nodes": 1, "accelerator": "cpu"} | hardware
        return launch.processes(OmegaConf.create({"hardware": given}))

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert wanted() == 2 and wanted(strategy="fsdp", devices=4) == 4
    assert wanted(strategy="single", devices=1) == wanted(devices=1) == 1
    with pytest.raises(UserError, match=r"hardware.num_nodes=2: one call starts the processes of one node"):
        wanted(num_nodes=2)
    with pytest.raises(UserError, match=r"hardware.devices=null: torch finds no GPU to count"):
        wanted(devices=None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert wanted() == 1, "torchrun or Slurm has started them"


def test_what_ended_a_run_is_told_from_what_followed() -> None:
    """A mistake of the user before a killed process before the first error."""
    lost = note(0, at=2.0, reason="Connection closed by peer")
    first = note(1, at=1.0)
    error = launch.cause([lost, first], {0: 1, 1: 1})
    assert isinstance(error, launch.ProcessFailed)
    assert str(error) == "reason 1 (in process 1)" and error.traceback == "traceback 1"
    error = launch.cause([lost], {0: 1, 1: -9})
    assert str(error) == "process 1 was ended by SIGKILL (out of memory?)"
    error = launch.cause([lost, note(1, user=True, at=3.0)], {0: 1, 1: 2})
    assert isinstance(error, UserError) and str(error) == "reason 1"
    assert isinstance(launch.cause([], {0: 130}), KeyboardInterrupt)
    assert "without a word" in str(launch.cause([], {0: 7}))


def test_the_environment_of_the_processes_ends_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    before = dict(os.environ)
    with launch._environment(2):
        cores = len(os.sched_getaffinity(0))
        assert int(os.environ["OMP_NUM_THREADS"]) == max(1, cores // 2)
        assert json.loads(os.environ[launch.COMMAND]) == sys.argv
    assert dict(os.environ) == before


@pytest.mark.dist
def test_a_sweep_starts_the_processes_of_each_job_in_its_folder(tmp_path: Path) -> None:
    """Two jobs of two processes, one folder each; the process numbers are in the log of each job once."""
    code, text = run(tmp_path, "-m", *JOB, TWO, "seed=0,1", "hydra.sweep.dir=sweep")
    assert code == 0, text
    folders = sorted(path.parent for path in (tmp_path / "sweep").glob("*/result.json"))
    assert [folder.name[0] for folder in folders] == ["0", "1"]
    assert list((tmp_path / "outputs").glob("*")) == [tmp_path / "outputs" / "cache"]
    for seed, folder in enumerate(folders):
        result = json.loads((folder / "result.json").read_text())
        assert result["status"] == "finished" and result["seed"] == seed and len(losses(folder)) == 4
        assert not (folder / launch.NOTES).exists()
        log = (folder / "train.log").read_text()
        assert log.count("tiny on 2 processes (ddp)") == 1
        assert log.count("4 samples a step = 2 processes x 1 micro-batch of 2") == 1
        assert json.loads((folder / "env.json").read_text())["command"][1:3] == ["-m", "method=cpo"]
    assert text.count("4 samples a step") == 2 and "Traceback" not in text
    first, second = (weights(folder / "export" / "controlnet") for folder in folders)
    assert not torch.equal(first, second)


@pytest.mark.dist
def test_killed_interrupted_and_resumed_with_other_numbers(tmp_path: Path) -> None:
    """SIGKILL of a process of two ends the run; it goes on with two and, of another folder, with one; all end alike."""
    assert run(tmp_path, *JOB, "hardware.devices=1", "hydra.run.dir=straight")[0] == 0
    origin, straight = weights(ASSETS / "tiny" / "controlnet_canny"), weights(tmp_path / "straight/export/controlnet")
    for name, count, victim, number, expected in [
        ("killed", 2, "worker", signal.SIGKILL, 1),
        ("killed whole", 2, "parent", signal.SIGKILL, -9),
        ("interrupted", 1, "parent", signal.SIGINT, 130),
    ]:
        folder = tmp_path / name.replace(" ", "-")
        process = start(tmp_path, *JOB, TWO, f"hydra.run.dir={folder}")
        deadline = time.monotonic() + 400
        while not list(folder.glob("checkpoints/step=00000001.ckpt")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        workers = children(process.pid)
        assert len(workers) == 2
        os.kill(workers[1] if victim == "worker" else process.pid, number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == expected, err
        assert "Traceback" not in err
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline, "a process is left over"
            time.sleep(0.1)
        if name == "killed":
            assert "process 1 was ended by SIGKILL (out of memory?)" in err
        if name == "interrupted":
            assert "lpo-train: interrupted; to go on:  lpo-train resume=" in err
        code, text = run(tmp_path, f"resume={folder}", f"hardware.devices={count}")
        assert code == 0, text
        assert len(losses(folder)) == 4
        ours = weights(folder / "export" / "controlnet")
        assert (ours - straight).norm() < 3e-3 * (straight - origin).norm()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.dist
def test_a_mistake_is_told_once_and_an_error_with_its_place(tmp_path: Path) -> None:
    """Both processes find it; 2 is the exit code of what the user can put right."""
    (tmp_path / "pictures").mkdir()
    code, text = run(
        tmp_path, *JOB, TWO, "data=folder", "data.path=pictures", "~data.num_train", "~data.num_test", "hydra.run.dir=a"
    )
    assert code == 2, text
    said = [line for line in text.splitlines() if line.startswith("lpo-train: ")]
    assert len(said) == 1 and "pictures" in said[0] and "Traceback" not in text
    assert json.loads((tmp_path / "a" / "result.json").read_text())["status"] == "failed"


@pytest.mark.dist
def test_evaluation_and_preparation_run_in_processes_too(tmp_path: Path) -> None:
    """An evaluation by two processes finds what one has found, to rounding."""
    code, text = run(tmp_path, *JOB, "hardware.devices=1", "hydra.run.dir=one")
    assert code == 0, text
    evaluate = [sys.executable, str(Path(TRAIN[1]).with_name("evaluate.py"))]
    process = start(
        tmp_path, "run=one", "hardware=ddp", "hardware.accelerator=cpu", TWO, "hydra.run.dir=two", command=evaluate
    )
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    ours, theirs = (json.loads((tmp_path / name / "result.json").read_text())["metrics"] for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name, metric in theirs.items():
        assert ours[name]["after"] == pytest.approx(metric["after"], rel=1e-3, abs=1e-3)
