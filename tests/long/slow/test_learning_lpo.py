"""The embedded model learns from latent preferences: LPO raises what an independent judge sees, chance does not."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = Path(__file__).parents[3] / "launchers" / "train.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
REAL_AREA = 0.169  # of the held-out scenes: sum of (scene.parts > 0) over Toy().test


def metrics(folder: Path, *options: str) -> dict[str, dict]:
    """The metrics of a run; `folder` is where its caches lie, too."""
    run = folder / re.sub(r"\W+", "-", " ".join(options))
    command = [sys.executable, str(TRAIN), "logger=none", f"hydra.run.dir={run}", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((run / "result.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learning")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lpo_raises_the_alignment_that_it_does_not_see(folder: Path, seed: int) -> None:
    result = metrics(folder, "method=lpo", f"seed={seed}")
    control = metrics(folder, "method=lpo", "reward=random", f"seed={seed}")
    gain, chance = result["text/alignment"], control["text/alignment"]
    assert gain["ci95"][0] > max(0, chance["ci95"][1])
    # at nobody's expense: sizes stay those of real scenes, pictures of a prompt stay different
    assert 0.75 * REAL_AREA < result["guard/area"]["after"] < 1.25 * REAL_AREA
    assert result["image/diversity"]["after"] > 0.9 * result["image/diversity"]["before"]
    for name, guard in result.items():
        if name.startswith("attributes/"):
            assert guard["difference"] > -0.05, name


def test_a_reward_model_learns_at_every_level_of_noise(folder: Path) -> None:
    small = ("method.steps=250", "data.prompts.num_train=900", "data.prompts.num_test=200", "callbacks.every=125")
    result = metrics(folder, "method=lrm", *small)
    accuracy = {int(name.rpartition("=")[2]): m for name, m in result.items() if "t=" in name}
    for t, measured in accuracy.items():
        if t <= 751:
            assert measured["ci95"][0] > 0 and measured["after"] > 0.53, t
    assert accuracy[1]["after"] > accuracy[951]["after"]
