"""The embedded model learns from a reward of its pictures: DDPO raises what an independent judge sees."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = Path(__file__).parents[1] / "launchers" / "train.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ddpo_raises_the_alignment_that_it_does_not_see(seed: int, tmp_path: Path) -> None:
    options = ["experiment=ddpo_toy", f"seed={seed}", "logger=none", f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run([sys.executable, str(TRAIN), *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["text/alignment"]["ci95"][0] > 0 and metrics["reward/score"]["ci95"][0] > 0
    assert metrics["image/diversity"]["after"] > 0.9 * metrics["image/diversity"]["before"]
