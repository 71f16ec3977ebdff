"""Whole runs of LRM and LPO at toy size: what they leave, and that a killed one ends where a straight one does."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from lpo_platform.commands import train
from lpo_platform.config import compose
from lpo_platform.config.schema import CONF
from lpo_platform.models.reward_folder import load_reward
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.tracking.callbacks.checkpoint import checkpoints

SHARED = ["logger=none", "hardware=cpu", "hardware.micro_batch=2", "method.batch=4", "model.num_inference_steps=3"]
LRM = [
    "method=lrm", "method.steps=4", "callbacks.every=2", "data.prompts.num_train=8", "data.prompts.num_test=3",
    "data.num_validation=2", "data.num_images=2", "metrics.timesteps=[1,501]", "optim.warmup=log",
    "callbacks.log_every=1",
]  # fmt: skip
LPO = [
    "method=lpo", "method.rounds=3", "method.prompts=3", "method.candidates=2", "method.num_steps=3",
    "method.threshold=[0,0]", "callbacks.every=1", "optim.schedule=linear", "method.refresh_reward=1",
    "method.refresh.steps=2", "method.refresh.num_images=2", "data.num_train=5", "data.num_test=3",
    "metrics.num_samples=3", "metrics.images_per_item=1", "callbacks.samples=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the runs are, and their cache: the current directory."""
    path = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


def configured(*overrides: str) -> DictConfig:
    return OmegaConf.create(compose.compose("train", [*overrides, *SHARED], [], CONF).values)


@pytest.fixture(scope="module")
def lrm(folder: Path) -> Path:
    train.train(configured(*LRM), folder / "lrm")
    return folder / "lrm"


def lpo_config(lrm: Path) -> DictConfig:
    return configured(*LPO, f"reward.weights={lrm}/export/reward")


@pytest.fixture(scope="module")
def lpo(folder: Path, lrm: Path) -> Path:
    train.train(lpo_config(lrm), folder / "lpo")
    return folder / "lpo"


def killed(run: Path, place: Path, *, rounds_left: int) -> Path:
    """What such a run has on disk: no export of its last step, no result, lines of steps that it will do again."""
    shutil.copytree(run, place)
    found = checkpoints(place / "checkpoints")
    assert len(found) == 2
    for checkpoint in found[len(found) - rounds_left :]:
        checkpoint.unlink()
    for path in (place / "result.json", place / "report.html", place / "evaluation" / "after.safetensors"):
        path.unlink()
    for name in ("reward", "unet"):
        shutil.rmtree(place / "export" / name, ignore_errors=True)
    lines = (place / "metrics.jsonl").read_text().splitlines(keepends=True)
    (place / "metrics.jsonl").write_text("".join(line for line in lines if "perf/" not in line))
    return place


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "export").rglob("*.safetensors"))
    return {f"{f.relative_to(run)}:{name}": w for f in files for name, w in load_file(f).items()}


def logged(run: Path) -> list[dict]:
    """All lines but those of speed; that of seconds is the last one."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [line for line in lines if any(name.startswith("perf/") for name in line)]
    assert seconds == lines[-1:] and seconds[0]["step"] == max(line["step"] for line in lines)
    kept = [line for line in lines[:-1] if "throughput/images_per_second" not in line]
    return [{name: value for name, value in line.items() if name != "time"} for line in kept]


def assert_equal(resumed: Path, straight: Path) -> None:
    ours, theirs = weights(resumed), weights(straight)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert logged(resumed) == logged(straight)
    results = [json.loads((run / "result.json").read_text()) for run in (resumed, straight)]
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["status"] == "finished"


def test_an_lrm_run_leaves_its_last_and_its_best_model(lrm: Path) -> None:
    result = json.loads((lrm / "result.json").read_text())
    assert set(result["metrics"]) == {"lrm/pair_accuracy", "lrm/pair_accuracy/t=1", "lrm/pair_accuracy/t=501"}
    assert (lrm / "report.html").stat().st_size > 10_000
    adapter = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=3)
    last, best = (load_reward(adapter, str(lrm / "export" / name)).state_dict() for name in ("reward", "reward_best"))
    assert last.keys() == best.keys()
    final = torch.load(checkpoints(lrm / "checkpoints")[-1], weights_only=True)
    stored = {name.removeprefix("policy.learning.reward."): w for name, w in final["state_dict"].items()}
    assert stored.keys() == last.keys() and all(torch.equal(stored[name], last[name]) for name in stored)
    accuracies = [line["val/pair_accuracy"] for line in logged(lrm) if "val/pair_accuracy" in line]
    assert len(accuracies) == 2 and final["callbacks"]["Best"]["accuracy"] == max(accuracies)
    same = all(torch.equal(last[name], best[name]) for name in last)
    assert same is (accuracies[1] > accuracies[0])


@pytest.mark.slow
def test_a_killed_lrm_run_ends_bit_for_bit_where_the_straight_one_does(folder: Path, lrm: Path) -> None:
    resumed = killed(lrm, folder / "lrm-resumed", rounds_left=1)
    train.train(configured(*LRM), resumed)
    assert_equal(resumed, lrm)


def test_an_lpo_run_leaves_its_result(lpo: Path) -> None:
    result = json.loads((lpo / "result.json").read_text())
    assert {"text/alignment", "lrm/score"} & set(result["metrics"]) and result["samples"] == 3
    assert (lpo / "report.html").stat().st_size > 10_000 and (lpo / "samples" / "grid.png").exists()
    assert (lpo / "export" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    lines = logged(lpo)
    assert {"rollout/valid", "rollout/samples", "reward/mean", "lpo/margin", "train/lr"} <= set().union(*lines)
    assert [line["rollout/samples"] for line in lines if "rollout/samples" in line] == [9, 9, 9]
    assert len([line for line in lines if "train/loss" in line]) == 9, "9 pairs in steps of 4: three steps a round"
    assert len([line for line in lines if "refresh/accuracy" in line]) == 2


def test_a_killed_lpo_run_ends_bit_for_bit_where_the_straight_one_does(folder: Path, lrm: Path, lpo: Path) -> None:
    """Its reward model, too, is what it was: it is taught again between rounds."""
    resumed = killed(lpo, folder / "lpo-resumed", rounds_left=1)
    train.train(lpo_config(lrm), resumed)
    assert_equal(resumed, lpo)


def test_a_run_killed_between_training_and_export_is_exported(folder: Path, lrm: Path, lpo: Path) -> None:
    """No round is played again for that."""
    resumed = killed(lpo, folder / "lpo-unexported", rounds_left=0)
    train.train(lpo_config(lrm), resumed)
    assert_equal(resumed, lpo)
