"""A run that is killed or interrupted ends with the same weights, bit for bit, as one that went straight through."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys.runs import LAUNCH, weights

JOB = ["method=cpo", "task=canny", "debug=smoke", "hardware=cpu", "control.weights=unet"]
JOB += ["method.steps=8", "callbacks.every=1"]


@pytest.mark.slow
def test_killed_or_interrupted_and_resumed_equals_straight(tmp_path: Path):
    settings = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    outputs = tmp_path / "outputs" / "cpo-tiny-canny"
    subprocess.run([*LAUNCH, *JOB, f"hydra.run.dir={outputs}/straight"], check=True, **settings)
    for name, stop, again, code, status in [
        ("killed", signal.SIGKILL, [*JOB, "resume=auto"], -9, "running"),
        ("interrupted", signal.SIGINT, [f"resume={outputs}/interrupted"], 130, "interrupted"),
        ("ended", signal.SIGTERM, [*JOB, f"hydra.run.dir={outputs}/ended"], 143, "interrupted"),
    ]:
        run = outputs / name
        process = subprocess.Popen([*LAUNCH, *JOB, f"hydra.run.dir={run}"], **settings)
        while not list(run.glob("checkpoints/*")) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(stop)
        assert process.wait(timeout=60) == code
        assert json.loads((run / "result.json").read_text())["status"] == status
        subprocess.run([*LAUNCH, *again], check=True, **settings)
        assert json.loads((run / "result.json").read_text())["status"] == "finished"
        assert weights(run) == weights(outputs / "straight") != {}


@pytest.mark.slow
def test_a_run_that_gets_more_steps_equals_a_straight_one(tmp_path: Path):
    """With a rate that does not depend on the number of steps."""
    settings = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "check": True}
    subprocess.run([*LAUNCH, *JOB, "hydra.run.dir=straight"], **settings)
    few = ["method.steps=4" if word == "method.steps=8" else word for word in JOB]
    subprocess.run([*LAUNCH, *few, "hydra.run.dir=longer"], **settings)
    subprocess.run([*LAUNCH, "resume=longer", "method.steps=8"], **settings)
    assert weights(tmp_path / "longer") == weights(tmp_path / "straight") != {}


@pytest.mark.slow
def test_an_evaluation_that_is_ended_goes_on_to_the_same_numbers(tmp_path: Path):
    settings = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    command = [sys.executable, "-c", "from lpo_platform.commands.main import evaluate; evaluate()"]
    command += ["model=tiny", "control=controlnet", "task=canny", "hardware=cpu", "metrics.num_samples=24",
                "metrics.batch=4"]  # fmt: skip
    subprocess.run([*command, "hydra.run.dir=straight"], check=True, **settings)
    shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
    process = subprocess.Popen([*command, "hydra.run.dir=ended"], **settings)
    while not list(tmp_path.glob("outputs/cache/evaluations/*/*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert json.loads((tmp_path / "ended" / "result.json").read_text())["status"] == "interrupted"
    subprocess.run([*command, "hydra.run.dir=ended"], check=True, **settings)
    figures = [json.loads((tmp_path / name / "result.json").read_text())["metrics"] for name in ("straight", "ended")]
    assert figures[0] == figures[1] != {}


@pytest.mark.slow
def test_several_processes_end_with_the_signal_and_go_on(tmp_path: Path):
    settings = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    job = [*(word for word in JOB if word != "hardware=cpu"), "hardware=ddp", "hardware.devices=2",
           "hardware.accelerator=cpu"]  # fmt: skip
    subprocess.run([*LAUNCH, *job, "hydra.run.dir=straight"], check=True, **settings)
    for name, stop, code in (("ended", signal.SIGTERM, 143), ("interrupted", signal.SIGINT, 130)):
        process = subprocess.Popen([*LAUNCH, *job, f"hydra.run.dir={name}"], **settings)
        while not list((tmp_path / name).glob("checkpoints/*.ckpt")) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(stop)
        assert process.wait(timeout=60) == code
        assert json.loads((tmp_path / name / "result.json").read_text())["status"] == "interrupted"
        subprocess.run([*LAUNCH, f"resume={name}"], check=True, **settings)
        assert weights(tmp_path / name) == weights(tmp_path / "straight") != {}
