"""All steps in one call: a limit, a file that a later call goes on from, what failed; and how time grows."""

import json
from pathlib import Path

import pytest
from toys.shapes import TOY

from lpo_platform.commands.benchmark import cell, everything
from lpo_platform.commands.benchmark.cell import Cell
from lpo_platform.commands.benchmark.report import utilisation
from lpo_platform.commands.benchmark.scaling import fit
from lpo_platform.commands.plan.devices import peak_of
from lpo_platform.hardware.hardware import Hardware

CELLS = (Cell("lrm", "sd15", 1), Cell("lrm", "sd15", 2))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cell.MODELS, "tiny", lambda: TOY)
    monkeypatch.setitem(cell.MODELS, "sd15", lambda: TOY)
    monkeypatch.setattr(everything, "CELLS", CELLS)
    monkeypatch.setattr(everything, "REPEATS", 1)
    monkeypatch.setattr(everything, "WARMUP", 0)


def test_a_call_goes_on_where_the_last_one_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, cpu = tmp_path / "out.json", Hardware("cpu")
    nothing = everything.everything(cpu, 0, file)
    assert not file.exists() and all(found["about"] is None for found in nothing["cells"].values())
    assert "(not measured)" in capsys.readouterr().out

    first = everything.everything(cpu, 300, file)
    assert json.loads(file.read_text()) == json.loads(json.dumps(first))
    for found in first["cells"].values():
        assert all(len(result["seconds"]) >= 1 and result["flops"] > 0 for result in found["variants"].values())
    assert "not measured" not in capsys.readouterr().out
    assert everything.everything(cpu, 300, file)["cells"] == first["cells"], "nothing is measured twice"


def test_counts_are_made_without_the_device_that_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything.everything(Hardware("cpu"), 300, tmp_path / "out.json", count_only=True)
    printed = capsys.readouterr().out
    assert printed.count("| lrm, sd15 | exact | 1.7 | not measured | ") == 2


def test_a_step_that_fails_is_named_and_the_next_ones_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(everything, "CELLS", (Cell("cpo", "sd15", resolution=31, chosen=("exact",)), CELLS[0]))
        found = list(everything.everything(Hardware("cpu"), 300, None)["cells"].values())
    assert found[0]["failed"] and "seconds" in found[1]["variants"]["exact"]


def test_the_use_of_a_gpu() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of(None) is None and peak_of("some GPU") is None
    assert utilisation({"flops": 10e12, "seconds": [0.1, 0.2, 0.4]}, 8, 800e12) == pytest.approx(0.5)


def test_the_fit_finds_start_and_rate() -> None:
    points = [{"flops": x * 1e9, "seconds": [0.25 + x * 0.01]} for x in (1, 5, 25, 125)]
    assert fit(points) == pytest.approx((0.25, 0.01e-9))
    assert fit([{"flops": 1e9, "seconds": [0.5]}] * 2) == pytest.approx((0.0, 0.5e-9))
