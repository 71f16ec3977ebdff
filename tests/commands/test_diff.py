"""lpo-diff: what differs and nothing else, paired where both runs drew the same items, one line for each mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lpo_platform.commands import diff
from lpo_platform.evaluation import item_table
from lpo_platform.evaluation.statistics import compare
from lpo_platform.runs import record

CONFIG = {"seed": 0, "optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "control": {}, "logger": {"api_key": "secret"}}
BEFORE = np.random.default_rng(0).normal(size=40)


def run(folder: Path, config: dict, after: np.ndarray, *, captions: str = "a circle") -> Path:
    """A finished run of 40 items."""
    record.start(folder, config, ["lpo-train"])
    metrics = compare({"canny/f1": BEFORE}, {"canny/f1": after}, {"canny/f1": True})
    (folder / "evaluation").mkdir()
    sides = {"before": {"canny/f1": BEFORE}, "after": {"canny/f1": after}}
    ids = [str(i) for i in range(40)]
    item_table.write(folder / "evaluation" / "items.parquet", ids, [f"{captions} {i}" for i in ids], sides)
    record.finish(folder, metrics, 40, 1.0, {}, 0)
    return folder


def said(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    monkeypatch.setattr("sys.argv", ["lpo-diff", *map(str, words)])
    diff.main()
    return capsys.readouterr().out


def test_equal_runs_say_so(tmp_path: Path, capsys, monkeypatch) -> None:
    a, b = (run(tmp_path / name, CONFIG, BEFORE + 0.1) for name in "ab")
    expected = "no difference: configuration, versions and results are the same\n"
    assert said(capsys, monkeypatch, a, b / "resolved.yaml") == expected


def test_only_what_differs_is_printed(tmp_path: Path, capsys, monkeypatch) -> None:
    """A key, a version and a metric; the paired difference is the one of compare()."""
    after = BEFORE + np.random.default_rng(1).normal(0.1, 0.1, size=40)
    a = run(tmp_path / "a", CONFIG, BEFORE + 0.1)
    b = run(tmp_path / "b", CONFIG | {"optim": {"lr": 0.2, "betas": [0.9, 0.99]}}, after)
    known = json.loads((b / "env.json").read_text())
    record.write_json(b / "env.json", known | {"versions": known["versions"] | {"torch": "9.9"}})
    found = json.loads(said(capsys, monkeypatch, a, b, "--json"))
    assert found["configuration"] == [["optim.lr", 0.1, 0.2]] and found["outcome"] == []
    assert found["recorded"] == [["versions.torch", known["versions"]["torch"], "9.9"]]
    expected = compare({"x": BEFORE + 0.1}, {"x": after}, {"x": True})["x"]
    assert found["results"]["canny/f1"]["paired"] == json.loads(json.dumps({**expected, "count": 40}))
    text = said(capsys, monkeypatch, a, b)
    assert "betas" not in text and "seed" not in text and "secret" not in text
    assert [line.split() for line in text.splitlines() if "optim.lr" in line] == [["optim.lr", "0.1", "0.2"]]
    assert "paired over 40 items, B better in" in text


def test_other_items_are_not_paired(tmp_path: Path) -> None:
    a = diff.side(str(run(tmp_path / "a", CONFIG, BEFORE + 0.1)))
    b = diff.side(str(run(tmp_path / "b", CONFIG, BEFORE + 0.2, captions="a square")))
    assert diff.differences(a, b)["results"]["canny/f1"]["paired"] is None


def test_an_unfinished_run_has_a_status(tmp_path: Path, capsys, monkeypatch) -> None:
    a, b = (run(tmp_path / name, CONFIG, BEFORE + 0.1) for name in "ab")
    record.fail(b, "a power cut")
    text = said(capsys, monkeypatch, a, b)
    assert "a power cut" in text and "finished" in text and "canny/f1" not in text


def test_two_recipes(capsys, monkeypatch) -> None:
    text = said(capsys, monkeypatch, "experiment=cpo_canny_sd15", "experiment=cpo_hed_sd15")
    keys = {line.split()[0] for line in text.splitlines()[2:]}
    assert {"task._target_", "method.margin"} <= keys and all(key.startswith(("task.", "method.")) for key in keys)
    assert said(capsys, monkeypatch, "method=cpo task=canny seed=1", "method=cpo task=canny").split() == [
        "configuration", "A", "B", "seed", "1", "0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("nowhere", "nowhere: no such file or folder; what works: a run folder"),
        ("{folder}", "not a run (no resolved.yaml"),
        ("{folder}/broken.yaml", "no readable configuration"),
        ("experiment=cpo_cany_sd15", "did you mean 'cpo_canny_sd15'?"),
        ("seeed=1", "did you mean 'seed'?"),
        ("seed='1", "no closing quotation"),
    ],
)
def test_mistakes_are_one_line(word: str, expected: str, tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(SystemExit) as ended:
        said(capsys, monkeypatch, word.format(folder=tmp_path), "method=cpo")
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and expected in lines[0]


def test_neither_command_loads_torch_before_its_line_is_checked() -> None:
    modules = "lpo_platform.commands.diff, lpo_platform.commands.export.export"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
