"""The files and the guests as a run drives them: killed, resumed, without a key, a network or a package."""

import csv
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from PIL import Image
from toys import forked

from lpo_platform.commands import train
from lpo_platform.config import compose
from lpo_platform.config.options import shipped
from lpo_platform.config.schema import CONF
from lpo_platform.methods.histograms import Histogram, by_timestep, histogram, histograms, note
from lpo_platform.runs.files import read_lines
from lpo_platform.tracking.loggers import wandb as service
from lpo_platform.tracking.loggers.files import Files, Resume
from lpo_platform.tracking.loggers.metrics import AXES, PANELS, every_metric, find, logged_by
from lpo_platform.tracking.loggers.service import About, Artifact, RunLogger, log, open_logger
from lpo_platform.tracking.loggers.tensorboard import TensorBoard
from lpo_platform.tracking.loggers.trackio import Trackio
from lpo_platform.tracking.loggers.wandb import Wandb


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


def logs_and_is_killed(folder: Path) -> None:
    files = Files(folder)
    for step in range(50):
        files.log_metrics({"a": step, f"late{step // 20}": 1.0}, step)
    os.kill(os.getpid(), signal.SIGKILL)


def test_sigkill_loses_no_logged_line(tmp_path: Path) -> None:
    process = forked.context().Process(target=logs_and_is_killed, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
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
    assert service.choose_mode({"HOME": str(tmp_path), **environ}) == mode


def test_a_netrc_entry_counts_as_a_key_for_its_own_host(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert service.has_key({"HOME": str(tmp_path)})
    assert not service.has_key({"HOME": str(tmp_path), "WANDB_BASE_URL": "https://wandb.example.org"})
    (tmp_path / ".netrc").write_text("machine [broken")
    assert not service.has_key({"HOME": str(tmp_path)})


PLACE = Wandb("lpo-platform")
ABOUT = About("cpo-tiny", "g", "cpo", ["tiny", "canny"])
PICTURE = Image.new("RGB", (8, 8), "red")
BARS = {
    "distribution/reward": Histogram([1, 3], [0.0, 0.5, 1.0]),
    "by_timestep/loss": Histogram([math.nan, 2.0], [0, 1, 2]),
}


def read_back(run: Path) -> list[dict]:
    """The records of an offline run, as W&B's own tool reads them."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(run)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in text.splitlines()]


def all_of(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


def test_offline_run_is_read_back_and_continued(
    tmp_path: Path, no_key: None, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = {"seed": 0, "logger": {"api_key": "abcSECRETdef"}, "data": {"path": f"{Path.home()}/pictures"}}
    secret["method"] = {"_target_": "lpo_platform.methods.lpo.LPO"}
    about = About("cpo-tiny", "g", "cpo", ["tiny", "canny"], config=secret)
    logger = open_logger(PLACE, tmp_path, about)
    assert logger is not None
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0 / (step + 1), "reward/mean": 1.0 - step, "epoch": step}, step)
    logger.log_histograms(BARS, 2)
    logger.pictures("samples", [PICTURE], ["a circle"], 2)
    logger.table("eval/items", ["id", "picture", "f1"], [["0", PICTURE, 0.5], ["1", None, 0.2]], 2)
    logger.used(Artifact("reward_model", "a" * 64))
    logger.made(Artifact("model", "b" * 64, {"seed": 0}, aliases=("latest", "best"), series="cpo-tiny-unet"))
    logger.finish()
    again = open_logger(PLACE, tmp_path, about)
    assert again is not None and again.version == logger.version == (tmp_path / "wandb-id").read_text().strip()
    again.made(Artifact("reward_model", "a" * 64))  # as the run that trained it would
    again.finish()
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""

    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert folders and all(logger.version in folder.name for folder in folders)  # "-1" within the same second
    assert list(folders[0].glob("files/media/images/*.png")) and list(folders[0].glob("files/media/table/**/*.json"))
    records = read_back(folders[0])
    run = all_of(records, "run")[0]
    assert (run["display_name"], run["run_group"], run["job_type"], run["tags"]) == (
        "cpo-tiny",
        "g",
        "cpo",
        ["tiny", "canny"],
    )
    assert run["config"]["update"]["logger"]["api_key"] == "***" and "abcSECRETdef" not in json.dumps(records)
    assert run["config"]["update"]["data"]["path"] == "~/pictures"
    defined = {metric["name"]: metric for metric in all_of(records, "metric")}
    assert defined["train/loss"]["step_metric"] == AXES["step"] and "summary" not in defined["train/loss"]
    assert defined["reward/mean"]["step_metric"] == AXES["round"] and defined["reward/mean"]["summary"] == {"max": True}
    logged = {name: value for row in all_of(records, "history") for name, value in row["item"].items()}
    assert logged["distribution/reward.values"] == [1, 3] and logged["by_timestep/loss.values"] == [0, 2]
    artifacts = {artifact["name"]: artifact for artifact in all_of(records, "artifact")}
    used, made = artifacts["reward_model-aaaaaaaaaaaa"], artifacts["cpo-tiny-unet"]
    assert used["use_after_commit"] and used["type"] == "reward_model" and "use_after_commit" not in made
    [same] = all_of(read_back(folders[1]), "artifact")
    assert same["name"] == used["name"] and same["digest"] == used["digest"]
    assert set(made["aliases"]) == {"latest", "best"} and made["type"] == "model"
    # as tracking/README.md says that it is read on this machine
    shown = [inspected(option, folders[0]) for option in ("--summary", "--json")]
    assert "finished (exit code 0)" in shown[0] and "train/loss           0.333" in shown[0]
    rows = [json.loads(line) for line in shown[1].splitlines() if '"type":"history"' in line]
    assert next(row["history"]["item"]["train/loss"] for row in rows if "train/loss" in row["history"]["item"]) == 1


def inspected(option: str, folder: Path) -> str:
    words = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", option, str(folder)]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def test_switched_off_is_silent(
    tmp_path: Path, no_key: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert open_logger(PLACE, tmp_path, ABOUT) is None and not caplog.records
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_bad_key_and_a_silent_network_leave_an_offline_run(
    tmp_path: Path, no_key: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(service, "INIT_SECONDS", 2)
    for name, key in (("bad", "short"), ("silent", "0123456789" * 4)):
        monkeypatch.setenv("WANDB_API_KEY", key)
        logger = open_logger(PLACE, tmp_path / name, ABOUT)
        assert logger is not None
        logger.log_metrics({"train/loss": 1.0}, 0)
        logger.finish()
        (run,) = (tmp_path / name / "wandb").glob("offline-run-*")
        logged = {name for row in all_of(read_back(run), "history") for name in row["item"]}
        assert "train/loss" in logged
    ours = [entry.getMessage() for entry in caplog.records if entry.name == service.log.name]
    assert len(ours) == 2 and all(message.startswith("W&B cannot be used online (") for message in ours)
    assert all("wandb sync " in message and "\n" not in message for message in ours)


def test_without_the_package_there_is_one_warning(
    tmp_path: Path, no_key: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert open_logger(PLACE, tmp_path, ABOUT) is None
    [entry] = [entry for entry in caplog.records if entry.name == log.name]
    assert entry.getMessage().startswith("W&B is not used (")


def test_names_that_wandb_would_refuse_are_made_valid(tmp_path: Path, no_key: None) -> None:
    name = "  ein Lauf mit Umläuten\nund " + "x" * 150
    logger = open_logger(PLACE, tmp_path, About(name, name, name, ["t" * 100, "canny"]))
    assert logger is not None
    logger.made(Artifact("model", "b" * 64, series=f"{name}-unet"))
    logger.made(Artifact("model", "c" * 64, series=f"{name}-lora"))
    logger.finish()
    records = read_back(next((tmp_path / "wandb").glob("offline-run-*")))
    (run,) = all_of(records, "run")[:1]
    assert run["display_name"].startswith("ein Lauf mit Umläuten und xxx") and len(run["display_name"]) == 128
    assert [len(tag) for tag in run["tags"]] == [64, 5]
    names = {artifact["name"] for artifact in all_of(records, "artifact")}
    assert len(names) == 2 and all(re.fullmatch(r"ein-Lauf-mit-Umlauten-und-x+-[0-9a-f]{8}", name) for name in names)
    assert all(len(name) == 128 for name in names)
    assert service.artifact_name("cpo-tiny-unet") == "cpo-tiny-unet" and service.artifact_name("日本") == "run"


@pytest.mark.parametrize(("missing", "option"), [("trackio", Trackio("p")), ("tensorboardX", TensorBoard())])
def test_a_missing_package_is_one_warning(
    missing: str,
    option: Trackio | TensorBoard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in (missing, "tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_logger(option, tmp_path, ABOUT) is None
    [entry] = [entry for entry in caplog.records if entry.name == log.name]
    assert entry.getMessage().startswith(f"{option.name} is not used (")


def test_a_service_that_dies_during_the_run_is_one_warning(
    tmp_path: Path, no_key: None, caplog: pytest.LogCaptureFixture
) -> None:
    logger = open_logger(PLACE, tmp_path, ABOUT)
    assert logger is not None
    logger.finish()
    for step in range(3):
        logger.log_metrics({"a": 1.0}, step)
        logger.pictures("samples", [PICTURE], [""], step)
    assert len([entry for entry in caplog.records if "W&B stopped logging" in entry.getMessage()]) == 1


def shown(logger: RunLogger | None) -> None:
    """Everything that a run tells a logger."""
    assert logger is not None
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    logger.log_histograms(BARS, 2)
    logger.pictures("samples", [PICTURE], ["a circle"], 2)
    logger.table("eval/items", ["id", "picture"], [["0", PICTURE], ["1", None]], 2)
    logger.used(Artifact("dataset", "a" * 64))
    logger.finish()
    assert not logger.lost


def test_tensorboard_files_hold_curves_pictures_and_histograms(tmp_path: Path) -> None:
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    shown(open_logger(TensorBoard(), tmp_path, ABOUT))
    values = {}
    for file in tmp_path.glob("tensorboard/events*"):
        data, place = file.read_bytes(), 0
        while place < len(data):  # a record: its length (8 bytes), a checksum (4), itself, a checksum (4)
            length = int.from_bytes(data[place : place + 8], "little")
            event = proto.Event.FromString(data[place + 12 : place + 12 + length])
            values |= {(value.tag, event.step): value for value in event.summary.value}
            place += 16 + length
    assert values["train/loss", 1].simple_value == 0.5
    histo = values["distribution/reward", 2].histo
    assert list(histo.bucket) == [1, 3] and histo.num == 4 and histo.sum == 0.25 + 3 * 0.75
    assert values["samples", 2].image.width == 8


def test_trackio_stays_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    code = f"""
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from pathlib import Path
from test_tracking import ABOUT, open_logger, shown, Trackio
shown(open_logger(Trackio("p"), Path({str(tmp_path)!r}), ABOUT))
"""
    environ = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and list((tmp_path / "trackio").glob("p*.db"))


def test_histograms_against_their_definition(tmp_path: Path) -> None:
    values = np.array([0.0, 1.0, 1.0, 2.0, 4.0, np.nan])
    found = histogram(values, bins=4)
    assert found == Histogram([1, 2, 1, 1], [0, 1, 2, 3, 4])
    means = by_timestep([0, 10, 60, 100, 70], [1.0, 3.0, 5.0, 7.0, np.nan], last=100, bins=4)
    np.testing.assert_equal(means.values, [2.0, np.nan, 5.0, 7.0])

    noted = {}
    for part in torch.arange(12.0).view(3, 4):
        note(noted, "loss", part.requires_grad_(), part * 80)
        note(noted, "reward", part)
    packed = histograms(noted)
    assert set(packed) == {"distribution/loss", "by_timestep/loss", "distribution/reward"}
    assert sum(packed["distribution/loss"].values) == 12
    assert packed["by_timestep/loss"].values[:3] == pytest.approx([0.0, 1.0, math.nan], nan_ok=True)

    files = Files(tmp_path)
    for step in range(3):
        files.log_histograms(BARS, step)
    Files(tmp_path).resume(2)
    rows = read_lines(tmp_path / "histograms.jsonl")
    assert [(row["step"], row["name"]) for row in rows] == [(step, name) for step in range(2) for name in BARS]
    assert rows[1]["values"] == [None, 2.0]


def test_every_name_has_one_place() -> None:
    every = every_metric()
    assert len({metric.name for metric in every}) == len(every) > 40 and {metric.panel for metric in every} == set(
        PANELS
    )
    assert find("reward/mean", every).summary == "max" and find("reward/oks", every).name == "reward/*"
    assert find("eval/table", every).kind == "table" and find("nobody/logs_this", every) is None


TINY = [
    "hardware=cpu", "callbacks.every=1", "callbacks.samples_every=1", "callbacks.samples=2",
    "callbacks.sentinel.items=3", "metrics.num_samples=3", "model.num_inference_steps=2", "callbacks.log_every=1",
]  # fmt: skip
PICTURES = ["data.num_train=6", "data.num_test=3", "metrics.images_per_item=1"]
PAIRS = ["data.prompts.num_train=8", "data.prompts.num_test=3", "data.num_validation=2", "data.num_images=2"]
OFFLINE = ["method.steps=2", "method.batch=2"]
ONLINE = [*PICTURES, "method.rounds=2", "method.prompts=2", "method.num_steps=2", "method.batch=4"]
GROUPS = ["method.group=2", "hardware.micro_batch=4", *ONLINE]
RUNS = {
    "control": ["task=canny", *PICTURES, *OFFLINE],
    "control_reward": ["task=canny", *PICTURES, *OFFLINE],
    "cpo": ["task=canny", *PICTURES, *OFFLINE],
    "ddpo": ["experiment=ddpo_toy", *GROUPS],
    "diffusion_dpo": [*PAIRS, *OFFLINE],
    "dpo_control": ["task=canny", *PICTURES, *OFFLINE, "method.group=2"],
    "lpo": ["method.candidates=2", "method.threshold=[0,0]", *ONLINE, "method.refresh_reward=1",
            "method.refresh.steps=1", "method.refresh.num_images=2"],
    "lrm": [*PAIRS, *OFFLINE, "metrics.timesteps=[1,501]"],
    "nft": ["model=tiny_sd3", *GROUPS],
    "spo": ["method.candidates=2", "method.threshold=0", "method.skip_steps=0", *ONLINE],
    "step_grpo": ["method.candidates=2", *ONLINE],
}  # fmt: skip


OF_PICTURES = ["samples", "eval/grid", "sentinel/alarms", "sentinel/*"]  # which a reward model does not draw


def test_a_run_of_every_method_is_looked_at() -> None:
    assert tuple(sorted(RUNS)) == shipped("method")


@pytest.mark.parametrize(
    "method", ["ddpo", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "ddpo")]
)
def test_a_real_run_logs_every_metric_that_is_declared_and_no_other(
    method: str, tmp_path: Path, no_key: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [] if method == "ddpo" else [f"method={method}"]
    composed = compose.compose("train", [*words, *RUNS[method], *TINY], [], CONF)
    train.train(OmegaConf.create(composed.values), tmp_path / "run")

    records = read_back(next((tmp_path / "run" / "wandb").glob("offline-run-*")))
    axes = {metric["name"]: metric.get("step_metric") for metric in all_of(records, "metric")}
    names, items = axes.keys() - AXES.values(), {name for row in all_of(records, "history") for name in row["item"]}
    declared = logged_by(composed.values["method"]["_target_"])
    for name in names:
        metric = find(name, declared)
        assert metric is not None and axes[name] == AXES[metric.axis], name
        assert name + {"histogram": ".values", "image": ".filenames", "table": ".nrows"}.get(metric.kind, "") in items
    missing = [metric.name for metric in declared if not any(find(name, [metric]) for name in names)]
    assert missing == (OF_PICTURES if method == "lrm" else [])
    artifacts = all_of(records, "artifact")
    assert {artifact["type"] for artifact in artifacts if artifact.get("use_after_commit")} == {
        "dataset", *(["reward_model"] if method in ("lpo", "step_grpo") else [])
    }  # fmt: skip
    made = "reward_model" if method == "lrm" else "model"
    assert {made, "evaluation"} <= {artifact["type"] for artifact in artifacts}
    manifests = [content.get("path", "") for artifact in artifacts for content in artifact["manifest"]["contents"]]
    assert not [path for path in manifests if path.startswith("/")]
    bars = {row["name"] for row in read_lines(tmp_path / "run" / "histograms.jsonl")}
    assert {metric.name for metric in declared if metric.kind == "histogram" and "*" not in metric.name} <= bars
