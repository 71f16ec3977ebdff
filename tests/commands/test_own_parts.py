"""A method, a reward and a task that lie outside the repository work as ours do, in every command."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import own_parts

from lpo_platform.commands import main
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.sources import find_module

SMALL = [
    "hardware=cpu", "logger=none", "data.num_train=6", "data.num_test=6", "metrics.num_samples=6", "method.batch=4",
    "model.num_inference_steps=2", "callbacks.samples=0", "callbacks.sentinel=null",
]  # fmt: skip


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a command with `--config-dir` in an empty folder; the module lies beside the options."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    conf = own_parts.write(tmp_path / "elsewhere", "parts_of_mine")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    find_module.cache_clear()

    def run(command: Callable[[], None], *words: str) -> int:
        monkeypatch.setattr(sys, "argv", [f"lpo-{command.__name__}", "--config-dir", str(conf), *words])
        with pytest.raises(SystemExit) as ended:
            command()
        return ended.value.code

    return run


def test_they_are_planned_examined_trained_and_reported(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["method=red_weighted", *SMALL]
    assert call(main.plan, *own, "plan.device=cpu") == 0
    assert "optimiser step" in capsys.readouterr().out
    assert call(main.doctor, *own) == 0, capsys.readouterr()
    found = {line.split()[1]: line.split()[0] for line in capsys.readouterr().out.splitlines() if "  " in line}
    assert {found[name] for name in ("gradient", "loss", "step", "reward", "condition", "save", "memory")} == {"ok"}
    assert call(main.train, *own, "hardware.micro_batch=auto", "hydra.run.dir=run") == 0, capsys.readouterr()
    metrics = json.loads(Path("run/result.json").read_text())["metrics"]
    assert {"dark/agreement", "reward/redness"} <= set(metrics) and "reward/score" not in metrics
    page = Path("run/report.html").read_text()
    assert "reward/redness" in page and "red_weighted/weight" in page
    assert call(main.evaluate, "run=run", "hardware=cpu") == 0, capsys.readouterr()


def test_they_are_checked_by_what_their_classes_say(call: Callable[..., int], tmp_path: Path) -> None:
    conf, lines = [str(tmp_path / "elsewhere" / "conf")], {}
    assert call(main.train, "method=red_weighted", "seed=x") == 2  # which finds the module
    for words in ("method=red_weighted tune=full", "method=red_weighted reward=none", "method=lpo reward=redness"):
        lines[words] = diagnose("train", words.split(), conf)
    pictures = ("aesthetic", "blend", "clip", "compressibility", "hps", "image_reward", "pickscore", "toy")
    assert lines["method=red_weighted tune=full"] == ["method=red_weighted needs tune=control, not tune=full"]
    (line,) = lines["method=red_weighted reward=none"]
    assert all(f"reward={name}" in line for name in (*pictures, "redness")) and "reward=lrm" not in line
    (line,) = lines["method=lpo reward=redness"]
    assert line.startswith("method=lpo needs reward=") and line.endswith(", not reward=redness")
    assert "reward=lrm or" in line and "reward=toy" not in line
    (line,) = diagnose("train", ["method=control_reward", "task=dark", "control.weights=unet"], conf)
    assert "task=canny or" in line and "task=pose" not in line and line.endswith(", not task=dark")
