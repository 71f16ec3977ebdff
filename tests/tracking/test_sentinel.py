"""The sentinel: what pictures look like against closed forms, when it raises alarms, and whole runs."""

import json
import math
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from lpo_platform.commands import train
from lpo_platform.config import compose
from lpo_platform.config.schema import CONF
from lpo_platform.data.source import first
from lpo_platform.data.toy import Toy
from lpo_platform.evaluation.appearance import appearance
from lpo_platform.evaluation.evaluation import Evaluation
from lpo_platform.evaluation.evaluator import Drawing
from lpo_platform.runs.files import read_json, read_lines
from lpo_platform.runs.record import write_json
from lpo_platform.tracking.callbacks.alarms import Change, change, drifting, hacked
from lpo_platform.tracking.callbacks.checkpoint import checkpoints
from lpo_platform.tracking.callbacks.sentinel import Sentinel, last_look
from lpo_platform.tracking.loggers.files import Files

WORDS = ("brightness", "dark_share", "edge_density", "saturation", "sharpness", "diversity")


def flat(*rgb: float) -> torch.Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 10, 10)


def said(images: torch.Tensor) -> list[list[float]]:
    found = appearance(images)
    assert tuple(found) == WORDS
    return torch.stack(list(found.values()), 1).tolist()


def test_flat_pictures() -> None:
    pictures = torch.cat([flat(0, 0, 0), flat(1, 1, 1), flat(1, 0, 0), flat(0.5, 0.5, 0.25)])
    apart = torch.cdist(pictures.flatten(1).double(), pictures.flatten(1).double()) / math.sqrt(300)
    diverse = (apart.sum(1) / 3).tolist()
    assert said(pictures) == [
        pytest.approx(row, abs=1e-6)
        for row in (
            [0, 1, 0, 0, 0, diverse[0]],
            [1, 0, 0, 0, 0, diverse[1]],
            [0.299, 0, 0, 1, 0, diverse[2]],
            [0.5 - 0.25 * 0.114, 0, 0, 0.5, 0, diverse[3]],
        )
    ]


def test_an_edge_and_a_point() -> None:
    edge = torch.zeros(1, 3, 10, 10)
    edge[..., 5:] = 1  # Sobel sees the step in 2 of 8 inner columns, as 4 / 8 luma per pixel; Laplace as +1 and -1
    faint = 0.5 + 0.05 * edge  # 0.025 luma per pixel is no edge
    point = torch.zeros(1, 3, 10, 10)
    point[..., 5, 5] = 1  # Laplace: -4 once and 1 four times
    assert said(edge)[0][:5] == pytest.approx([0.5, 0.5, 2 / 8, 0, 2 / 8])
    assert said(faint)[0][2] == 0 and math.isnan(said(faint)[0][5])
    assert said(point)[0][4] == pytest.approx(20 / 64 - 0)


def test_dark_share_counts_pixels() -> None:
    picture = torch.full((1, 3, 10, 10), 0.21)
    picture[..., :3] = 0.19
    assert said(picture)[0][1] == pytest.approx(0.3)


def test_the_last_look_asks_about_all_that_a_run_measures(tmp_path: Path) -> None:
    generator, file = torch.Generator().manual_seed(0), tmp_path / "sentinel.json"
    names = ("reward/brightness", "text/alignment", "depth/rmse")
    start = {name: torch.randn(200, generator=generator) for name in names}
    start |= {"image/diversity": start["depth/rmse"].clone(), "guard/area": start["depth/rmse"].clone()}
    better = {"reward/brightness": True, "text/alignment": True, "depth/rmse": False, "image/diversity": True,
              "guard/area": None}  # fmt: skip

    def look(**moved: float) -> list[str]:
        after = {name: start[name] + moved.get(name.partition("/")[0], 0.0) for name in start}
        sides = Evaluation(start), Evaluation(after)
        return [text.split()[0] for text in last_look(file, *sides, better, None, Brightness(), 0.1)]

    write_json(file, [{"step": 3, "metric": "image/brightness", "kind": "drift", "message": "before"}])
    assert look(reward=0.5, text=-0.5, depth=0.5, image=-1.0, guard=-1.0) == ["text/alignment", "depth/rmse"]
    assert look(reward=0.5, text=-0.5) == ["text/alignment"]
    assert [(entry["step"], entry["metric"]) for entry in read_json(file)] == [
        (3, "image/brightness"), (None, "text/alignment"),
    ]  # fmt: skip
    assert look(reward=0.5, text=0.5, depth=-0.5) == look(reward=-0.5, text=-0.5) == look(reward=0.5, text=-0.05) == []


def shifted(by: float) -> Change:
    start = np.array([-1.0, 1.0] * 16)
    return change(start, start + by)


def test_a_change_is_paired_and_knows_its_spread() -> None:
    found = shifted(0.3)
    assert (found.before, found.value, found.spread) == (0, pytest.approx(0.3), 1)
    assert found.ci95 == pytest.approx((0.3, 0.3))
    assert [shifted(by).beyond(0.1) for by in (0.3, 0.05, -0.05, -0.3)] == [1, 0, 0, -1]
    odd = change([1.0, math.nan, 3.0], [2.0, 5.0, math.nan])
    assert (odd.before, odd.value) == (1, 2) and odd.beyond(0.0) == 0
    assert change([math.nan], [1.0]).beyond(0.0) == 0


@pytest.mark.parametrize(
    ("reward", "heldout", "raised"),
    [(0.5, -0.5, True), (0.5, 0.5, False), (0.5, -0.05, False), (-0.5, -0.5, False), (0.0, -0.5, False)],
)
def test_it_is_an_exploit_where_the_reward_rises_and_a_held_out_one_falls(
    reward: float, heldout: float, raised: bool
) -> None:
    found = hacked({"reward/brightness": shifted(reward)}, {"text/alignment": shifted(heldout)}, 0.1)
    assert [(alarm.metric, alarm.kind) for alarm in found] == ([("text/alignment", "hacked")] if raised else [])


@pytest.mark.parametrize(
    ("history", "by", "raised"),
    [
        ([0, 0.5, 1, 1.5], 1.5, True),
        ([0, -0.5, -1, -1.5], -1.5, True),
        ([0, 1, 0.9, 1.5], 1.5, False),  # not steadily
        ([0, 0.2, 0.4, 0.6], 0.6, False),  # not far
        ([0, 1, 1.5], 1.5, False),  # not often enough
        ([2, 0, 0.5, 1, 1.5], -0.5, False),
    ],
)
def test_a_drift_is_steady_and_far(history: list[float], by: float, raised: bool) -> None:
    found = drifting({"image/brightness": shifted(by)}, {"image/brightness": history}, 3, 1.0)
    assert [alarm.kind for alarm in found] == (["drift"] if raised else [])


def test_diversity_may_rise_but_not_fall() -> None:
    rising, falling = [0, 0.5, 1, 1.5], [0, -0.5, -1, -1.5]
    assert not drifting({"image/diversity": shifted(1.5)}, {"image/diversity": rising}, 3, 1.0)
    assert drifting({"image/diversity": shifted(-1.5)}, {"image/diversity": falling}, 3, 1.0)


class Brightness:
    """A reward that is easy to exploit."""

    def __call__(self, images: torch.Tensor, prompts: list[str], condition: object = None) -> torch.Tensor:
        return images.mean((1, 2, 3))


def watch(folder: Path, **options: object) -> tuple[Sentinel, Toy]:
    data = Toy(num_train=1, num_test=24)
    folder.mkdir(exist_ok=True)
    options = {"patience": 3, "keep_best": False, **options}
    return Sentinel(folder=folder, data=data, task=None, reward=Brightness(), items=24, **options), data


def test_scenes_that_fade_to_white_raise_one_alarm_and_end_the_run(tmp_path: Path) -> None:
    sentinel, data = watch(tmp_path / "run", stop=True)
    trainer = L.Trainer(logger=Files(tmp_path / "run"), accelerator="cpu", enable_checkpointing=False)
    samples = first(data.test, 24)
    scenes = torch.stack([sample.image for sample in samples])
    for fade in (0, 0.05, 0.6, 0.8, 0.9, 0.95):
        images = torch.lerp(scenes, torch.ones_like(scenes), fade)
        sentinel.evaluate(trainer, L.LightningModule(), samples, Drawing(images, images, None, None, None, None))
        assert trainer.should_stop == (fade >= 0.6)
    alarms = read_json(tmp_path / "run" / "sentinel.json")
    assert [(alarm["metric"], alarm["kind"]) for alarm in alarms if alarm["kind"] == "hacked"] == [
        ("text/alignment", "hacked")
    ]
    assert {alarm["metric"] for alarm in alarms if alarm["kind"] == "drift"} >= {"image/brightness", "image/diversity"}
    assert all(set(alarm) == {"step", "metric", "kind", "message", "value", "before", "ci95"} for alarm in alarms)
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["sentinel/evaluation"] for row in rows] == list(range(6))
    assert rows[-1]["sentinel/alarms"] == len(alarms) and rows[-1]["sentinel/image/brightness"] > 0.95

    again, _ = watch(tmp_path / "again", stop=True)
    again.load_state_dict(json.loads(json.dumps(sentinel.state_dict(), default=torch.Tensor.tolist)))
    fresh = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    again.on_train_start(fresh, L.LightningModule())
    assert fresh.should_stop and again.alarms == alarms


def test_a_checkpoint_with_older_names_is_read(tmp_path: Path) -> None:
    sentinel, _ = watch(tmp_path / "run")
    state = sentinel.state_dict() | {"start": {"gold": {"text/alignment": torch.ones(2)}}}
    sentinel.load_state_dict({**state, "ringing": [["text/alignment", "hacked"]]})
    assert list(sentinel.start) == ["heldout"] and sentinel.active == [["text/alignment", "hacked"]]


def test_scenes_that_stay_as_good_are_silent(tmp_path: Path) -> None:
    sentinel, data = watch(tmp_path / "run")
    trainer = L.Trainer(logger=Files(tmp_path / "run"), accelerator="cpu", enable_checkpointing=False)
    samples = first(data.test, 24)
    scenes = torch.stack([sample.image for sample in samples])
    for fade in (0, 0.01, 0.02, 0.03, 0.04):  # the reward rises all the time
        images = torch.lerp(scenes, torch.ones_like(scenes), fade)
        sentinel.evaluate(trainer, L.LightningModule(), samples, Drawing(images, images, None, None, None, None))
    assert read_json(tmp_path / "run" / "sentinel.json") == []


SMALL = [
    "logger=none", "hardware=cpu", "metrics.num_samples=8", "callbacks.samples_every=1", "callbacks.every=1",
    "callbacks.log_every=50",
]  # fmt: skip
DDPO = ["method.rounds=8", "method.prompts=8", "method.batch=320", "hardware.micro_batch=80"]


def trained(folder: Path, *overrides: str) -> list[dict]:
    """The alarms of a run."""
    train.train(OmegaConf.create(compose.compose("train", [*SMALL, *overrides], [], CONF).values), folder)
    return read_json(folder / "sentinel.json")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_an_exploited_reward_raises_an_alarm_in_training(seed: int, runs: Path) -> None:
    alarms = trained(runs / "run", "experiment=ddpo_toy", "reward=incompressibility", *DDPO, f"seed={seed}")
    assert any(alarm["kind"] == "drift" for alarm in alarms)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_healthy_training_is_silent(seed: int, runs: Path) -> None:
    assert trained(runs / "lpo", "method=lpo", f"seed={seed}") == []
    assert trained(runs / "ddpo", "experiment=ddpo_toy", *DDPO, f"seed={seed}") == []


TINY = [
    "experiment=ddpo_toy", "method.rounds=3", "method.prompts=2", "method.group=2", "method.num_steps=2",
    "method.batch=4", "hardware.micro_batch=4", "data.num_train=6", "data.num_test=3", "metrics.num_samples=2",
    "metrics.images_per_item=1", "model.num_inference_steps=2", "callbacks.samples=1",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_it_and_in_pieces(runs: Path) -> None:
    trained(runs / "with", *TINY, "callbacks.sentinel.items=3")
    trained(runs / "without", *TINY, "callbacks.sentinel=null")
    states = [load_file(next((runs / name / "export" / "unet").glob("*.safetensors"))) for name in ("with", "without")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (runs / "with" / "sentinel.json").exists() and not (runs / "without" / "sentinel.json").exists()

    last = checkpoints(runs / "with" / "checkpoints")[-1]
    whole, rows = (torch.load(last, weights_only=True)["callbacks"], sentinel_rows(runs / "with"))
    last.unlink()
    trained(runs / "with", *TINY, "callbacks.sentinel.items=3")
    pieces = torch.load(last, weights_only=True)["callbacks"]
    [name] = [name for name in whole if name.startswith("Sentinel")]
    assert str(pieces[name]) == str(whole[name]) and sentinel_rows(runs / "with") == rows


@pytest.mark.slow
def test_stop_ends_in_order(runs: Path) -> None:
    """Every move is a drift here, so that it raises an alarm at the first evaluation after the start."""
    options = ["callbacks.sentinel.items=3", "callbacks.sentinel.stop=true", "callbacks.sentinel.patience=1",
               "callbacks.sentinel.drift=0.0"]  # fmt: skip
    alarms = trained(runs / "run", *TINY, *options, "optim.lr=0.01")
    assert alarms and read_json(runs / "run" / "result.json")["status"] == "finished"
    assert len(checkpoints(runs / "run" / "checkpoints")) == 1
    assert [row["sentinel/evaluation"] for row in sentinel_rows(runs / "run")] == [0, 1]
    trained(runs / "run", *TINY, *options, "optim.lr=0.01")  # as one that was killed during its last evaluation
    assert [row["sentinel/evaluation"] for row in sentinel_rows(runs / "run")] == [0, 1]


def sentinel_rows(run: Path) -> list[dict]:
    rows = [row for row in read_lines(run / "metrics.jsonl") if "sentinel/evaluation" in row]
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]
