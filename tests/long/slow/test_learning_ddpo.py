"""The embedded model learns from a reward of its pictures: DDPO raises what an independent judge sees.

For poses that is a second detector, of another size, seed and scenes than the one that rewards.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = Path(__file__).parents[3] / "launchers" / "train.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def trained(folder: Path, *options: str) -> dict[str, dict]:
    """The metrics of a run."""
    command = [sys.executable, str(TRAIN), *options, "logger=none", f"hydra.run.dir={folder}/run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "run" / "result.json").read_text())["metrics"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ddpo_teaches_poses_and_keeps_the_text(seed: int, tmp_path: Path) -> None:
    metrics = trained(tmp_path, "method=ddpo", "task=pose", f"seed={seed}")
    assert metrics["pose/oks"]["ci95"][0] > 0 and metrics["pose/oks_judge"]["ci95"][0] > 0
    assert metrics["text/alignment"]["difference"] > -0.05


@pytest.mark.parametrize("reward", ["compressibility", "lrm"])
def test_ddpo_raises_other_rewards(reward: str, tmp_path: Path) -> None:
    assert trained(tmp_path, "method=ddpo", f"reward={reward}")[f"reward/{reward}"]["ci95"][0] > 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ddpo_raises_the_alignment_that_it_does_not_see(seed: int, tmp_path: Path) -> None:
    metrics = trained(tmp_path, "experiment=ddpo_toy", f"seed={seed}")
    assert metrics["text/alignment"]["ci95"][0] > 0 and metrics["reward/toy"]["ci95"][0] > 0
    assert metrics["image/diversity"]["after"] > 0.9 * metrics["image/diversity"]["before"]
