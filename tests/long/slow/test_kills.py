"""Every method, killed at random moments and started again, ends with the weights and figures of a straight run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys.runs import LAUNCH, weights

from lpo_platform.data.picture_files import to_pil
from lpo_platform.data.toy import Toy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KILLS = 3  # of each method
SMALL = ["hardware=cpu", "logger=none", "model.num_inference_steps=3", "callbacks.every=1", "callbacks.samples=2"]
PICTURES = ["data.num_train=12", "data.num_test=4", "metrics.num_samples=4"]
OFFLINE = ["method.steps=30", "method.batch=4"]
ONLINE = ["method.rounds=6", "method.prompts=3", "method.num_steps=3", "method.batch=4", "hardware.micro_batch=2"]
PAIRS = ["data.prompts.num_train=8", "data.prompts.num_test=3", "data.num_validation=2", "data.num_images=2"]
JOBS: dict[str, list[str]] = {
    "control": [*PICTURES, *OFFLINE, "task=canny"],
    "cpo": [*PICTURES, *OFFLINE],
    "control_reward": [*PICTURES, *OFFLINE],
    "dpo_control": [*PICTURES, *OFFLINE, "method.group=2"],
    "lrm": [*PAIRS, *OFFLINE, "metrics.timesteps=[1,501]"],
    "diffusion_dpo": [*PAIRS, *OFFLINE, "metrics.num_samples=3"],
    "lpo": [*PICTURES, *ONLINE, "method.candidates=2", "method.threshold=[0,0]", "method.refresh_reward=1",
            "method.refresh.steps=2", "method.refresh.num_images=2"],
    "spo": [*PICTURES, *ONLINE, "method.candidates=2", "method.threshold=0"],
    "ddpo": [*PICTURES, *ONLINE, "method.group=2", "method.baseline=history", "method.history_minimum=2"],
    "step_grpo": [*PICTURES, *ONLINE, "method.candidates=2"],
    "nft": [*PICTURES, *ONLINE, "method.group=2", "model=tiny_sd3"],
}  # fmt: skip
FLOW = ("control", "cpo", "control_reward", "lrm", "lpo", "spo", "ddpo", "step_grpo")


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """A run in a folder of its own, so that its caches are killed with it; the leader of a process group."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "terminal").open("ab") as terminal:
        return subprocess.Popen(
            [*LAUNCH, *options], cwd=folder, env=environment, stderr=terminal, stdout=terminal, start_new_session=True
        )


def finish(folder: Path, *options: str) -> Path:
    """Its run folder, once the run has succeeded."""
    assert start(folder, *options).wait() == 0, (folder / "terminal").read_text()[-2000:]
    (run,) = (path.parent for path in folder.glob("outputs/*/2*/result.json"))
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
    return run


def figures(run: Path) -> dict[str, dict]:
    return json.loads((run / "result.json").read_text())["metrics"]


def test_a_run_on_rows_that_are_made_ahead_of_it_killed_at_ten_moments(tmp_path: Path) -> None:
    """More rows than are looked at ahead, some read again and kept, two workers."""
    words = ["data.num_train=90", "data.num_test=4", "metrics.num_samples=4", "method.steps=32", "method.batch=4"]
    killed_and_straight("cpo", [*words, "hardware.num_workers=2"], tmp_path, kills=10)


@pytest.mark.parametrize("method", JOBS)
def test_killed_at_random_moments_equals_straight(method: str, tmp_path: Path) -> None:
    killed_and_straight(method, JOBS[method], tmp_path, kills=KILLS)


@pytest.mark.parametrize("method", FLOW)
def test_on_a_flow_transformer_killed_at_a_random_moment_equals_straight(method: str, tmp_path: Path) -> None:
    killed_and_straight(method, [*JOBS[method], "model=tiny_sd3"], tmp_path, kills=1)


def test_a_run_on_streamed_rows_killed_at_random_moments_equals_straight(tmp_path: Path) -> None:
    """An ImageFolder that `datasets` streams in windows of 8 rows, through two workers."""
    pytest.importorskip("datasets")
    folder = tmp_path / "pictures"
    folder.mkdir()
    scenes, rows = Toy(0, 40).test, ["file_name,text"]
    for number in range(40):
        to_pil(scenes[number].image).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{scenes.caption(number)}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    words = ["task=canny", "data=hf", f"data.path={folder}", "data.num_train=36", "data.num_test=4", "data.buffer=8"]
    words += ["metrics.num_samples=4", *OFFLINE, "hardware.num_workers=2"]
    killed_and_straight("control", words, tmp_path, kills=KILLS)


def killed_and_straight(method: str, words: list[str], tmp_path: Path, *, kills: int) -> None:
    job = [f"method={method}", *SMALL, *words]
    began = time.monotonic()
    straight = finish(tmp_path / "straight", *job)
    seconds = time.monotonic() - began
    for number in range(kills):
        folder, moment = tmp_path / f"killed{number}", random.uniform(0.3, 0.98) * seconds
        process = start(folder, *job)
        time.sleep(moment)
        done = len(list(folder.glob("outputs/*/2*/checkpoints/*")))
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        print(f"{method}: killed after {moment:.1f} of {seconds:.1f} s with {done} checkpoints", file=sys.stderr)
        results = [json.loads(file.read_text()) for file in folder.glob("outputs/*/2*/result.json")]
        if code == 0 or any(result["status"] == "finished" for result in results):
            continue  # it was faster than the straight one
        resumed = finish(folder, *job, "resume=auto")
        assert weights(resumed) == weights(straight) != {}
        assert figures(resumed) == figures(straight)
