"""The files and W&B as a Lightning trainer drives them: killed, resumed, without a key, without a network."""

import csv
import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lpo_platform.record import read_lines
from lpo_platform.tracking import wandb as guest
from lpo_platform.tracking.files import Files, Resume


class Line(L.LightningModule):
    """One weight that learns to be the slope of a line; logs per step and per epoch."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight, self.stop_at = torch.nn.Parameter(torch.zeros(1)), stop_at

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if self.global_step == self.stop_at:
            raise KeyboardInterrupt
        loss = ((self.weight - 2) * (1 + self.global_step % 7)).square().mean()  # the batch says nothing
        self.log("train/loss", loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/epoch_weight", self.weight.item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.005)


def fit(folder: Path, *, stop_at: int | None = None, resume: bool = False) -> Path:
    checkpoint = ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_train_steps=5, save_top_k=0)
    trainer = L.Trainer(
        max_epochs=4, logger=Files(folder), callbacks=[Resume(), checkpoint], accelerator="cpu", devices=1,
        log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.zeros(6, 1), batch_size=1)
    last = folder / "checkpoints" / "last.ckpt"
    try:
        trainer.fit(Line(stop_at), loader, ckpt_path=last if resume else None)
    except (KeyboardInterrupt, SystemExit):
        assert stop_at is not None
    return folder


def lines(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "time"} for row in read_lines(folder / "metrics.jsonl")]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_a_run_in_two_pieces_leaves_the_lines_of_a_straight_one(tmp_path: Path) -> None:
    straight = fit(tmp_path / "straight")
    pieces = fit(tmp_path / "pieces", stop_at=14)
    assert max(row["step"] for row in lines(pieces)) == 13
    fit(pieces, resume=True)
    assert lines(pieces) == lines(straight)
    assert [row["step"] for row in lines(pieces) if "train/loss" in row] == list(range(24))
    times = [row["time"] for row in read_lines(pieces / "metrics.jsonl")]
    assert times == sorted(times)


def test_the_table_says_what_the_lines_say(tmp_path: Path) -> None:
    folder = fit(tmp_path)
    rows, cells = read_lines(folder / "metrics.jsonl"), table(folder)
    assert len(rows) == len(cells) > 24
    for row, cell in zip(rows, cells, strict=True):
        assert {name: float(value) for name, value in cell.items() if value != ""} == pytest.approx(row)


def test_late_columns_odd_values_and_names(tmp_path: Path) -> None:
    files = Files(tmp_path / "new")
    files.log_metrics({"a": 1.0}, 0)
    files.log_metrics({"a": torch.tensor(2.0), 'odd, "name"': np.float32(0.5), "text": "no number"}, 1)
    files.log_metrics({"a": math.nan, "b": math.inf}, 2)
    assert lines(tmp_path / "new") == [
        {"step": 0, "a": 1.0}, {"step": 1, "a": 2.0, 'odd, "name"': 0.5}, {"step": 2, "a": None, "b": None}
    ]  # fmt: skip
    cells = table(tmp_path / "new")
    assert list(cells[0]) == ["step", "time", "a", 'odd, "name"', "b"]
    assert [c["a"] for c in cells] == ["1.0", "2.0", "nan"] and cells[0]["b"] == ""


def test_resume_drops_what_the_other_process_wrote_and_keeps_its_own(tmp_path: Path) -> None:
    first = Files(tmp_path)
    for step in range(6):
        first.log_metrics({"a": step, "only_before": 1.0}, step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "ti')
    second = Files(tmp_path)
    second.log_metrics({"eval/base": 0.5}, 9)
    second.resume(4)
    second.log_metrics({"a": 4.5}, 4)
    assert [row["step"] for row in lines(tmp_path)] == [0, 1, 2, 3, 9, 4]
    assert [row["step"] for row in table(tmp_path)] == ["0", "1", "2", "3", "9", "4"]


def test_sigkill_loses_no_logged_line(tmp_path: Path) -> None:
    code = f"""
import os, signal
from lpo_platform.tracking.files import Files
files = Files({str(tmp_path)!r})
for step in range(50):
    files.log_metrics({{"a": step, f"late{{step // 20}}": 1.0}}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [row["step"] for row in lines(tmp_path)] == list(range(50))
    assert [int(row["step"]) for row in table(tmp_path)] == list(range(50))


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path_factory.mktemp("home") / "netrc"))


@pytest.mark.parametrize(
    ("environ", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": ""}, "offline"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "online"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_DISABLED": "true", "WANDB_API_KEY": "k"}, "disabled"),
    ],
)
def test_online_only_with_a_key_and_where_nothing_forbids_it(
    environ: dict[str, str], mode: str, tmp_path: Path
) -> None:
    assert guest.choose_mode({"HOME": str(tmp_path), **environ}) == mode


def test_a_netrc_entry_counts_as_a_key_for_its_own_host(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert guest.has_key({"HOME": str(tmp_path)})
    assert not guest.has_key({"HOME": str(tmp_path), "WANDB_BASE_URL": "https://wandb.example.org"})
    (tmp_path / ".netrc").write_text("machine [broken")
    assert not guest.has_key({"HOME": str(tmp_path)})


def test_offline_run_is_read_back_and_continued(
    tmp_path: Path, no_key: None, capfd: pytest.CaptureFixture[str]
) -> None:
    config = {"seed": 0, "logger": {"api_key": "abcSECRETdef"}}
    arguments = {
        "project": "lpo-platform",
        "name": "cpo-tiny",
        "group": "g",
        "job_type": "cpo",
        "tags": ["tiny", "canny"],
    }
    logger = guest.connect(tmp_path, config=config, **arguments)
    assert logger is not None
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    guest.log_images(logger, "samples", [np.zeros((8, 8, 3), np.uint8)], ["a circle"], 2)
    guest.log_table(logger, "eval/items", ["id", "f1"], [["0", 0.5]], 2)
    guest.finish(logger)
    again = guest.connect(tmp_path, config=config, **arguments)
    assert again is not None and again.version == logger.version == (tmp_path / "wandb-id").read_text().strip()
    guest.finish(again)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""

    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert folders and all(logger.version in folder.name for folder in folders)  # "-1" within the same second
    assert list(folders[0].glob("files/media/images/*.png")) and list(folders[0].glob("files/media/table/**/*.json"))
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folders[0])]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in text.splitlines()]
    run = next(entry["run"] for entry in records if entry["type"] == "run")
    assert (run["display_name"], run["run_group"], run["job_type"], run["tags"]) == (
        "cpo-tiny",
        "g",
        "cpo",
        ["tiny", "canny"],
    )
    assert run["config"]["update"]["logger"]["api_key"] == "***" and "abcSECRETdef" not in text
    history = [entry["history"] for entry in records if entry["type"] == "history"]
    assert "train/loss" in json.dumps(history) and "trainer/global_step" in json.dumps(history)


def test_switched_off_is_silent_and_helpers_do_nothing_without_a_run(
    tmp_path: Path, no_key: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert guest.connect(tmp_path, project="p", name="n") is None and not caplog.records
    guest.log_images(None, "a", [], [])
    guest.log_table(None, "a", [], [])
    guest.finish(None)
    assert not list(tmp_path.iterdir())


def test_a_bad_key_a_missing_package_and_a_silent_network_are_one_warning(
    tmp_path: Path, no_key: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with caplog.at_level(logging.WARNING):
        assert guest.connect(tmp_path, project="p", name="n") is None
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(guest, "INIT_SECONDS", 2)
    with caplog.at_level(logging.WARNING):
        assert guest.connect(tmp_path, project="p", name="n") is None
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING):
        assert guest.connect(tmp_path, project="p", name="n") is None
    ours = [entry.getMessage() for entry in caplog.records if entry.name == guest.log.name]
    assert len(ours) == 3 and all(message.startswith("W&B is not used") and "\n" not in message for message in ours)


def test_a_service_that_dies_during_the_run_is_one_warning(
    tmp_path: Path, no_key: None, caplog: pytest.LogCaptureFixture
) -> None:
    logger = guest.connect(tmp_path, project="p", name="n")
    assert logger is not None
    guest.finish(logger)
    for step in range(3):
        logger.log_metrics({"a": 1.0}, step)
    assert len([entry for entry in caplog.records if "W&B stopped logging" in entry.getMessage()]) == 1
