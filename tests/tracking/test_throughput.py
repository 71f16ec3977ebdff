"""Throughput and utilisation: once in a round, from counted work and measured time, without pauses between rounds."""

import json
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from toys.instances import first

from lpo_platform.commands.plan.plan import plan
from lpo_platform.commands.plan.settings import Settings
from lpo_platform.commands.plan.throughput import work_of
from lpo_platform.config.compose import compose
from lpo_platform.config.schema import CONF
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.tracking.callbacks import throughput
from lpo_platform.tracking.callbacks.throughput import Throughput, Work
from lpo_platform.tracking.loggers.files import Files

PAUSE = 0.3


class Line(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return (self.slope * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Slow(L.Callback):
    def on_train_epoch_end(self, *_: object) -> None:
        time.sleep(PAUSE)


def logged(folder: Path, watch: Throughput) -> list[dict]:
    """The lines of two rounds of three steps."""
    trainer = L.Trainer(
        max_epochs=2, logger=Files(folder), callbacks=[watch, Slow(), watch.end], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(torch.ones(12, 1), batch_size=4))
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "throughput/images_per_second" in line]


def test_a_rounds_work_over_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "PATIENCE", 0.0)
    lines = logged(tmp_path, Throughput(4, 0, lambda: Work(step=10.0, round=5.0, peak=100.0)))
    assert [line["step"] for line in lines] == [2, 5]
    for line in lines:
        seconds = 12 / line["throughput/images_per_second"]
        assert 0 < seconds < PAUSE  # the slow callback does not count
        assert line["throughput/model_flop_utilisation"] == pytest.approx(35 / seconds / 100, rel=1e-4)


def test_nothing_is_counted_in_a_short_training(tmp_path: Path) -> None:
    def count() -> Work:
        raise AssertionError("counted")

    lines = logged(tmp_path, Throughput(0, 8, count))
    assert len(lines) == 2 and not any("throughput/model_flop_utilisation" in line for line in lines)


def test_what_cannot_be_counted_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def count() -> Work:
        raise NotImplementedError("no meta device")

    monkeypatch.setattr(throughput, "PATIENCE", 0.0)
    assert len(logged(tmp_path, Throughput(4, 0, count))) == 2
    assert [r.message for r in caplog.records if "cannot be counted (no meta device)" in r.message] != []


@pytest.mark.parametrize("words", first([["method=cpo", "task=canny"], ["method=ddpo", "task=pose"]], keep=1))
def test_the_counts_are_those_of_the_plan(words: list[str]) -> None:
    cfg = OmegaConf.create(compose("train", [*words, "hardware=cpu"], [], CONF).values)
    found = {piece.name: piece.flops for piece in plan(cfg, Settings()).pieces}
    work = work_of(cfg, Hardware("cpu"))
    assert work.step == found["optimiser step"] and work.round == found.get("rollouts of a round", 0.0)
    assert work.peak > 1e9
