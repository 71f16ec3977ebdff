"""The embedded model learns: CPO raises canny F1 on three seeds, and more than supervised training of more compute;
with DINO it does, too, and DINO has a part in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lpo_platform.models.controlnet_dino import ControlNetDinoModel

TRAIN = Path(__file__).parents[3] / "launchers" / "train.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def metrics(folder: Path, *options: str, task: str = "canny") -> dict[str, dict]:
    """The metrics of a run with the demo's settings."""
    run = folder / "run"
    command = [sys.executable, str(TRAIN), f"task={task}", "logger=none", f"hydra.run.dir={run}", *options]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((run / "result.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder, so that the runs share the cache."""
    return tmp_path_factory.mktemp("learning")


@pytest.fixture(scope="module")
def supervised(folder: Path) -> dict[str, dict]:
    """CPO's control experiment: four supervised steps cost at least as much as one of CPO (lpo-benchmark)."""
    (folder / "control").mkdir()
    return metrics(folder / "control", "method=control", "method.steps=400")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cpo_follows_edges_better_and_keeps_the_text(folder: Path, supervised: dict[str, dict], seed: int) -> None:
    here = folder / f"cpo{seed}"
    here.mkdir()
    result = metrics(here, "method=cpo", f"seed={seed}")
    for name in ("canny/f1", "canny/f1_above_chance"):
        assert result[name]["ci95"][0] > 0
        assert result[name]["after"] > supervised[name]["after"]
    assert result["text/alignment"]["difference"] > -0.05


def test_cpo_learns_with_dino(folder: Path) -> None:
    """From the export of a first stage, which has given DINOv2 a say."""
    for stage in ("first", "dino"):
        (folder / stage).mkdir()
    metrics(folder / "first", "method=control", "control=controlnet_dino", "method.steps=200")
    start = folder / "first" / "run" / "export" / "controlnet"
    result = metrics(folder / "dino", "method=cpo", "control=controlnet_dino", f"control.weights={start}")
    for name in ("canny/f1", "canny/f1_above_chance"):
        assert result[name]["ci95"][0] > 0
    trained = ControlNetDinoModel.from_pretrained(folder / "dino" / "run" / "export" / "controlnet")
    before = ControlNetDinoModel.from_pretrained(start)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).round()
    with torch.no_grad():
        none = torch.zeros(2, 32, 16, 16)
        says, said = (control.dino(image, none, "nearest") for control in (trained, before))
    assert said.std() > 0.01 and (says - said).std() > 0.1 * said.std()


OWN = {
    "hed": "hed/ms_ssim",
    "lineart": "lineart/ms_ssim",
    "depth": "depth/rmse",
    "seg_ade20k": "seg_ade20k/miou",
    "seg_coco": "seg_coco/miou",
    "pose": "pose/oks_judge",
}


@pytest.mark.parametrize(("task", "name"), OWN.items())
def test_cpo_improves_every_task(folder: Path, task: str, name: str) -> None:
    (folder / task).mkdir()
    result = metrics(folder / task, "method=cpo", task=task)
    better = [bound if result[name]["higher_is_better"] else -bound for bound in result[name]["ci95"]]
    assert min(better) > 0
    assert result["text/alignment"]["difference"] > -0.05
