"""The dashboard: every metric of the list on it once, written without a network, and what its mistakes say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lpo_platform.tracking.loggers.dashboard import built, workspace
from lpo_platform.tracking.loggers.metrics import AXES, every_metric

SCRIPT = Path(__file__).parents[2] / "launchers" / "dashboard.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)


def test_every_metric_stands_once_under_its_panel() -> None:
    sections = workspace()["sections"]
    shown = {panel["title"]: (section["name"], panel) for section in sections for panel in section["panels"]}
    assert len(shown) == len(every_metric()) == sum(len(section["panels"]) for section in sections)
    for metric in every_metric():
        place, panel = shown[metric.name]
        assert (place, panel["kind"], panel["x"]) == (metric.panel, metric.kind, AXES[metric.axis])
        assert "regex" in panel or panel["names"] == [metric.name]
    pattern = shown["sentinel/*"][1]["regex"]
    assert re.search(pattern, "sentinel/image/brightness") and not re.search(pattern, "eval/sentinel/x")


def test_it_is_written_without_a_network_and_its_mistakes_are_one_line(tmp_path: Path) -> None:
    assert run("--out", str(tmp_path / "workspace.json")).returncode == 0
    assert json.loads((tmp_path / "workspace.json").read_text()) == workspace()
    nobody = run()
    assert nobody.returncode == 2 and nobody.stderr.startswith("dashboard: --entity: required")
    nowhere = run("--out", str(tmp_path / "no" / "file.json"))
    assert nowhere.returncode == 2 and len(nowhere.stderr.splitlines()) == 1


def test_wandb_workspaces_takes_it() -> None:
    pytest.importorskip("wandb_workspaces")
    spec = built(workspace(), "me", "lpo-platform")._to_model().model_dump_json(by_alias=True)
    assert all(json.dumps(section["name"]) in spec for section in workspace()["sections"])
