"""The rehearsal of the recipes: its parts, and one recipe each of ControlNets and UNets; `make rehearsal` runs all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toys.published.cache import publish
from toys.rehearsal import read
from toys.rehearsal.recipes import protocol, recipes

from lpo_platform.config.compose import compose
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.options import shipped
from lpo_platform.config.schema import CONF

TESTS = Path(__file__).parents[1]


def test_every_recipe_has_a_command_and_what_it_starts_from_comes_before() -> None:
    found = recipes()
    assert {recipe.name for recipe in found} == set(shipped("experiment"))
    for place, recipe in enumerate(found):
        assert recipe.words[0] == f"experiment={recipe.name}"
        assert set(recipe.needs) <= {before.name for before in found[:place]}


@pytest.mark.slow
def test_a_command_asks_for_all_that_its_recipe_lacks(tmp_path: Path) -> None:
    """Nothing is left to be required once the places in angle brackets are given."""
    (tmp_path / "file.json").touch()
    for recipe in recipes():
        words = [word for word in recipe.words if "<" not in word]
        given = [word.partition("=")[0] for word in recipe.words if "<" in word]
        words += [f"{key}={tmp_path}" if key != "data.scores" else f"{key}={tmp_path}/file.json" for key in given]
        files = [word.replace(str(tmp_path), f"{tmp_path}/file.json") for word in words]
        assert [] in (diagnose("train", words), diagnose("train", files)), recipe.title


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("cpo_canny_sd15", "canny", "cpo"),
        ("cpo_seg_coco_sd15", "seg_coco", "cpo_seg_coco"),
        ("lpo_sdxl", "none", "lpo_sdxl"),
        ("pose_ddpo", "pose", "pose"),
        ("lrm_sd15", "none", None),
        ("cpo_flux_lineart", "lineart", None),
    ],
)
def test_a_recipe_is_measured_as_its_paper_did(name: str, task: str, expected: str | None) -> None:
    assert protocol(compose("train", [f"experiment={name}"], [], CONF).values, task) == expected


def test_what_was_read_is_seen(tmp_path: Path) -> None:
    (tmp_path / "made" / "part").mkdir(parents=True)
    for name in ("one.json", "part/two.json"):
        (tmp_path / "made" / name).write_text(f"[{len(name)}]")
    snapshot = publish(tmp_path, "owner/model", tmp_path / "made")
    read.forget(tmp_path)
    assert read.read(tmp_path) == {}
    assert (snapshot / "part" / "two.json").read_text() == "[13]"
    assert read.read(tmp_path) == {"models/owner/model": ["part/two.json"]}


def rehearsed(name: str, folder: Path) -> dict[str, Any]:
    """Training, evaluation under the protocol of the paper, export and a picture by stock diffusers."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "toys.rehearsal", name, "--json", str(folder / "rows.json")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "1 of 1 recipes passed" in done.stdout
    (row,) = json.loads((folder / "rows.json").read_text())
    assert row["title"] == name and row["trained"] > 0 and row["departures"]
    return row


def test_a_controlnet_is_trained_by_its_published_names(tmp_path: Path) -> None:
    row = rehearsed("cpo_canny_sd15", tmp_path)
    controls = row["read"]["models/limingcv/reward_controlnet"]
    assert controls == ["checkpoints/canny/controlnet/config.json",
                        "checkpoints/canny/controlnet/diffusion_pytorch_model.safetensors"]  # fmt: skip
    assert row["read"]["datasets/limingcv/MultiGen-20M_canny_eval"]
    assert row["picture"] == "StableDiffusionControlNetPipeline"


@pytest.mark.slow
def test_a_unet_is_trained_by_its_published_names(tmp_path: Path) -> None:
    row = rehearsed("lpo_sd15", tmp_path)
    assert "lrm_sd15/state_dict.pt" in row["read"]["models/casiatao/LRM"]
    for name in ("xswu/HPSv2", "THUDM/ImageReward", "yuvalkirstain/PickScore_v1"):
        assert row["read"][f"models/{name}"]
    files = row["read"]["models/stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert "unet/diffusion_pytorch_model.safetensors" in files and not any("fp16" in file for file in files)
