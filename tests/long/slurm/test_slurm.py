"""Jobs on a real Slurm: a sweep as an array, a run of two processes, a job that is put back, and the batch script.

`make test-slurm` makes this machine a cluster of one node where it can (tests/long/slurm/start.sh).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lpo_platform.runs import files

REPO = Path(__file__).resolve().parents[3]
SMOKE = ["method=cpo", "task=canny", "debug=smoke"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
TWO = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2"]


def answers() -> bool:
    found = shutil.which("sbatch") and shutil.which("sinfo")
    return bool(found) and subprocess.run(["sinfo"], capture_output=True, timeout=20).returncode == 0


pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not answers(), reason="no Slurm answers here: sbatch or sinfo is missing, or its daemons are"),
]


def start(*words: str, cwd: Path, flags: Sequence[str] = ("-m",)) -> subprocess.Popen:
    """lpo-train -m in a process of its own, from the clone."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    command = [sys.executable, str(REPO / "launchers" / "train.py"), *flags, *words]
    return subprocess.Popen(command, cwd=cwd, env=env, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    _, shown = process.communicate(timeout=800)
    assert process.returncode == 0, shown[-3000:]
    return shown


def wait_for(what, seconds: float = 400):
    """The first true value of `what()`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.5)
    raise TimeoutError(f"nothing after {seconds} s")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two jobs on Slurm, each a run of one process: the folder of their sweep."""
    cwd = tmp_path_factory.mktemp("sweep")
    finish(start(*SMOKE, "hardware=cpu", "seed=0,1", "hydra.sweep.dir=out", *SLURM, cwd=cwd))
    return cwd / "out"


def test_one_option_sends_a_single_run_to_slurm(tmp_path: Path):
    process = start(
        *SMOKE, "hardware=slurm", "hydra.sweep.dir=out", SLURM[1], "data.num_train=8", cwd=tmp_path, flags=[]
    )
    finish(process)
    (folder,) = (tmp_path / "out").glob("0-*")
    assert files.read_json(folder / "result.json")["status"] == "finished"
    assert len(list((tmp_path / "out").glob(".submitit/*/*_submission.sh"))) == 1


def test_a_sweep_is_an_array_and_ends_with_its_table(sweep: Path):
    tasks = {path.name for path in sweep.glob(".submitit/*_[01]")}
    assert len(tasks) == 2 and len({name.partition("_")[0] for name in tasks}) == 1
    summary = files.read_json(sweep / "sweep.json")
    assert [job["status"] for job in summary["jobs"]] == ["finished", "finished"]
    assert {row["metric"] for row in summary["rows"]} >= {"canny/f1"}
    assert all(row["seeds"] == [0, 1] for row in summary["rows"])
    results = [files.read_json(sweep / job["folder"] / "result.json") for job in summary["jobs"]]
    row = next(row for row in summary["rows"] if row["metric"] == "canny/f1")
    assert row["differences"] == pytest.approx([r["metrics"]["canny/f1"]["difference"] for r in results], abs=1e-12)


def test_two_processes_on_slurm_train_what_one_does(sweep: Path, tmp_path: Path):
    finish(start(*SMOKE, "seed=0", "hydra.sweep.dir=out", *TWO, *SLURM, cwd=tmp_path))
    (folder,) = (tmp_path / "out").glob("0-*")
    outputs = list((tmp_path / "out").glob(".submitit/*/*_log.out"))
    assert len(outputs) == 2  # one for each task
    assert "4 samples a step = 2 processes x 1 micro-batch of 2" in (folder / "train.log").read_text()
    (alone,) = sweep.glob("0-*")
    one, two = (load_file(f / "export/controlnet/diffusion_pytorch_model.safetensors") for f in (alone, folder))
    assert set(one) == set(two)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    start_weights = load_file(REPO / "lpo_platform/assets/tiny/controlnet_canny/diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(one[name], start_weights[name]) for name in one)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_is_put_back_into_the_queue_goes_on_from_its_checkpoint(processes: int, tmp_path: Path):
    words = [
        *(TWO if processes == 2 else ["hardware=cpu"]),
        "method.steps=30",
        "callbacks.every=2",
        "seed=0",
        "hydra.sweep.dir=out",
    ]
    process = start(*SMOKE, *words, *SLURM, cwd=tmp_path)
    out = tmp_path / "out"
    wait_for(lambda: list(out.glob("0-*/checkpoints/*.ckpt")))
    (script,) = out.glob(".submitit/*/*_submission.sh")
    number = script.name.partition("_")[0]
    subprocess.run(["scancel", number, "--signal=USR2"], check=True)  # as Slurm does before the time is up
    (log,) = out.glob(".submitit/*/*_0_log.out")
    wait_for(lambda: "Requeued job" in log.read_text())

    def running() -> bool:  # Slurm holds a job back for two minutes after that, unless told otherwise
        state = subprocess.run(
            ["squeue", "-h", "-j", number, "-o", "%T"], capture_output=True, text=True
        ).stdout.strip()
        if state == "PENDING":
            subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], capture_output=True)
        return state == "RUNNING"

    wait_for(lambda: not running())
    wait_for(running)
    finish(process)
    (folder,) = out.glob("0-*")
    assert files.read_json(folder / "env.json")["resumed"] == 1
    assert files.read_json(folder / "result.json")["status"] == "finished"
    losses = [row["step"] for row in files.read_lines(folder / "metrics.jsonl") if "train/loss" in row]
    assert losses == list(range(30))


def test_the_batch_script_runs_two_processes(tmp_path: Path):
    run = tmp_path / "run"
    export = f"--export=ALL,NPROC=2,RUN={run},PYTHON={sys.executable},WANDB_MODE=offline"
    options = ["--parsable", "--wait", f"--output={tmp_path}/log", "--cpus-per-task=2", export]
    command = ["sbatch", *options, "launchers/slurm.sh", *SMOKE, *TWO[:2], "seed=0"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    assert "4 samples a step = 2 processes" in (run / "train.log").read_text()
