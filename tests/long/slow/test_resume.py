"""A run that is killed or interrupted ends with the same weights, bit for bit, as one that went straight through."""

import json
import os
import signal
import subprocess
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
    for name, stop, again, code in [
        ("killed", signal.SIGKILL, [*JOB, "resume=auto"], -9),
        ("interrupted", signal.SIGINT, [f"resume={outputs}/interrupted"], 130),
    ]:
        run = outputs / name
        process = subprocess.Popen([*LAUNCH, *JOB, f"hydra.run.dir={run}"], **settings)
        while not list(run.glob("checkpoints/*")) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(stop)
        assert process.wait(timeout=60) == code
        assert json.loads((run / "result.json").read_text())["status"] == "running"
        subprocess.run([*LAUNCH, *again], check=True, **settings)
        assert json.loads((run / "result.json").read_text())["status"] == "finished"
        assert weights(run) == weights(outputs / "straight") != {}
