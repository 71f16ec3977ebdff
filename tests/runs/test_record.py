"""What a run writes about itself, and what it must never write."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from lpo_platform.evaluation.statistics import compare
from lpo_platform.runs import files, record

CONFIG = {
    "seed": 3,
    "name": None,
    "optim": {"lr": 1e-05, "betas": (0.9, 0.999), "fused": True},
    "data": {"path": Path("/pictures"), "caption": "a literal ${brace} and: 'quotes' \u00e9", "caption_key": "text"},
    "steps": np.int64(5),
    "empty": [],
    "on": "1e-5",
}


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def metrics() -> dict:
    before = np.linspace(0, 1, 20)
    return compare({"canny/f1": before}, {"canny/f1": before + 0.1}, {"canny/f1": True}, resamples=100)


def test_resolved_config_composes_to_the_same_values(tmp_path: Path) -> None:
    record.start(tmp_path, CONFIG, ["lpo-train"])
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        loaded = OmegaConf.to_container(compose("resolved"), resolve=True)
    expected = {**CONFIG, "optim": {**CONFIG["optim"], "betas": [0.9, 0.999]}, "steps": 5}
    expected["data"] = {**CONFIG["data"], "path": "/pictures"}
    assert loaded == expected and type(loaded["on"]) is str and type(loaded["optim"]["lr"]) is float


def test_references_to_hydra_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hydra node"):
        record.start(tmp_path, {"folder": "${hydra:run.dir}"}, ["lpo-train"])


def test_start_finish_and_fail_follow_the_schema(tmp_path: Path) -> None:
    keys = ["status", "command", "seed", "seconds", "versions", "samples", "metrics", "paths"]
    record.start(tmp_path, CONFIG, ["lpo-train", "method=cpo"])
    assert list(result(tmp_path)) == keys and result(tmp_path)["status"] == "running"
    assert result(tmp_path)["seed"] == 3
    record.finish(tmp_path, metrics(), 20, 12.34567, {"export": tmp_path / "export"}, seed=3)
    done = result(tmp_path)
    assert list(done) == keys and done["status"] == "finished" and done["command"] == ["lpo-train", "method=cpo"]
    assert done["samples"] == 20 and done["seconds"] == 12.346 and done["paths"] == {"export": str(tmp_path / "export")}
    assert set(done["metrics"]["canny/f1"]) == record.METRIC_KEYS | {"p", "items", "wins"}
    assert done["metrics"]["canny/f1"]["difference"] == pytest.approx(0.1)
    record.fail(tmp_path, "out of memory\n", seconds=13)
    assert result(tmp_path)["status"] == "failed" and result(tmp_path)["reason"] == "out of memory"
    assert result(tmp_path)["metrics"] == done["metrics"] and result(tmp_path)["seed"] == 3


def test_a_resumed_run_keeps_its_command_and_another_config_does_not(tmp_path: Path) -> None:
    record.start(tmp_path, {**CONFIG, "resume": None}, ["lpo-train", "method=cpo"])
    record.start(tmp_path, {**CONFIG, "resume": "here"}, ["lpo-train", "resume=here"])
    assert OmegaConf.load(tmp_path / "resolved.yaml").resume is None
    assert result(tmp_path)["command"] == ["lpo-train", "method=cpo"]
    assert json.loads((tmp_path / "env.json").read_text())["resumed"] == 1
    record.start(tmp_path, {**CONFIG, "seed": 4}, ["lpo-train", "seed=4"])
    assert result(tmp_path)["command"] == ["lpo-train", "seed=4"]


def test_a_failure_is_recorded_even_before_the_start(tmp_path: Path) -> None:
    record.fail(tmp_path, "no disk")
    assert result(tmp_path)["status"] == "failed" and result(tmp_path)["command"] == []


def test_a_metric_of_another_form_is_refused(tmp_path: Path) -> None:
    record.start(tmp_path, {}, [])
    with pytest.raises(ValueError, match="metric x"):
        record.finish(tmp_path, {"x": {"before": 1.0, "after": 2.0}}, 1, 1.0, {}, seed=0)
    assert result(tmp_path)["status"] == "running"


def test_json_is_strict_and_takes_numpy(tmp_path: Path) -> None:
    value = {
        "a": math.nan,
        "b": np.float32(0.5),
        "c": np.array([1, 2]),
        "d": Path("/x"),
        "e": (True, math.inf),
        3: "\u00e9",
    }
    record.write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == {"a": None, "b": 0.5, "c": [1, 2], "d": "/x", "e": [True, None], "3": "\u00e9"}


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.txt"
    files.write_text(file, "old")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        files.write_text(file, "new")
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_environment_names_versions_machine_and_commit_but_no_host(tmp_path: Path) -> None:
    record.start(tmp_path, {}, ["lpo-train"])
    env = json.loads((tmp_path / "env.json").read_text())
    assert {"python", "torch", "lightning", "diffusers", "transformers", "hydra-core"} <= set(env["versions"])
    assert set(env["machine"]) == {"system", "cpu", "cores", "memory_gib", "gpus"} and env["machine"]["cores"] >= 1
    host = os.uname().nodename
    assert len(host) < 4 or host not in (tmp_path / "env.json").read_text()


def test_git_state_is_that_of_the_repository_that_tracks_the_file(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "code.py").write_text("1")
    subprocess.run([*git, "init", "-q"], check=True)
    assert record.git_state(tmp_path / "code.py") is None
    subprocess.run([*git, "add", "code.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    state = record.git_state(tmp_path / "code.py")
    assert state is not None and len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "code.py").write_text("2")
    assert record.git_state(tmp_path / "code.py") == {**state, "dirty": True}


def test_secrets_reach_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ["abcSECRETdef", "hf_" + "a" * 34, "hunter2pass"]
    monkeypatch.setenv("WANDB_API_KEY", "environment-value")
    config = {
        "logger": {"api_key": secrets[0], "project": "p", "password": None},
        "model": {"tokenizer": "clip", "weights": f"x/{secrets[1]}", "max_tokens": 77},
        "data": {"url": f"https://me:{secrets[2]}@example.org/x"},
    }
    command = ["lpo-train", f"+logger.api_key={secrets[0]}", "--token", secrets[0], f"model.weights={secrets[1]}",
               f"data.url=https://me:{secrets[2]}@example.org/x", "model.tokenizer=clip"]  # fmt: skip
    record.start(tmp_path, config, command)
    record.fail(tmp_path, f"cannot read https://me:{secrets[2]}@example.org/x")
    text = "".join(p.read_text() for p in tmp_path.iterdir())
    assert not any(secret in text for secret in [*secrets, "environment-value"])
    assert result(tmp_path)["command"][-1] == "model.tokenizer=clip"
    loaded = OmegaConf.load(tmp_path / "resolved.yaml")
    assert loaded.model.max_tokens == 77 and loaded.logger.password is None
    with pytest.raises(MissingMandatoryValue):
        _ = loaded.logger.api_key
    assert record.redact_config(config)["logger"]["api_key"] == record.HIDDEN


def test_latest_points_to_the_newest_and_spares_a_real_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        record.link_latest(tmp_path / name)
        assert (tmp_path / "latest").resolve() == tmp_path / name
    (tmp_path / "other" / "latest").mkdir(parents=True)
    record.link_latest(tmp_path / "other" / "run")
    assert not (tmp_path / "other" / "latest").is_symlink()


def test_difference_of_configs() -> None:
    defaults = {"a": 1, "b": {"c": [1, 2], "d": None}, "gone": {"x": 1}}
    config = {"a": 1, "b": {"c": [1, 3], "d": {"e": 2}}, "new": 5}
    assert record.difference(config, defaults) == [
        ("b.c", [1, 2], [1, 3]),
        ("b.d", None, {"e": 2}),
        ("new", record.MISSING, 5),
        ("gone", {"x": 1}, record.MISSING),
    ]
    assert record.difference(defaults, defaults) == []


def test_cut_off_lines_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n[1]\n\n{"a": 2}\n{"a": ')
    assert files.read_lines(tmp_path / "x.jsonl") == [{"a": 1}, {"a": 2}] and files.read_lines(tmp_path / "no") == []


def test_no_heavy_import() -> None:
    code = (
        "import sys, lpo_platform.runs.record; "
        "print([m for m in ('torch', 'lightning', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
