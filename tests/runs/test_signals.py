"""Whatever ends a command, it ends with the status of the signal, says how to go on and is on record as interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys.instances import first

from lpo_platform.runs import signals

REPO = Path(__file__).resolve().parents[2]

# A command whose work puts itself on record and then waits, first inside of its own signal handling as Lightning does.
WAITS = """
import sys, time
from pathlib import Path
from omegaconf import OmegaConf
from lpo_platform.commands import main
from lpo_platform.commands.terminal import Command
from lpo_platform.runs import record

def work(cfg, folder):
    record.start(folder, OmegaConf.to_container(cfg, resolve=True), sys.argv)
    Path("started").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        if LIKE_LIGHTNING:
            sys.exit(1)
        raise

main.work_of = lambda name: work
main.run_command(Command(NAME, NAME.removeprefix("lpo-")))
"""


def ended(folder: Path, number: int, *words: str, name: str = "lpo-train", like_lightning: bool = False):
    code = WAITS.replace("LIKE_LIGHTNING", str(like_lightning)).replace("NAME", repr(name))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=folder, env={**os.environ, "PYTHONPATH": str(REPO)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 100
    while not (folder / "started").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize(
    ("number", "code", "like_lightning"),
    first([(signal.SIGTERM, 143, False), (signal.SIGINT, 130, True), (signal.SIGHUP, 129, True)], keep=1),
)
def test_a_training_ends_with_the_signal(number: int, code: int, like_lightning: bool, tmp_path: Path) -> None:
    words = ["task=canny", "hydra.run.dir=out"]
    assert ended(tmp_path, number, *words, like_lightning=like_lightning) == (
        code, "\nlpo-train: interrupted; to go on:  lpo-train resume=out\n"
    )  # fmt: skip
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["status"], result["reason"]) == ("interrupted", f"it was ended by {signal.Signals(number).name}")


def test_an_evaluation_and_a_sweep_end_with_the_signal(tmp_path: Path) -> None:
    code, said = ended(tmp_path, signal.SIGTERM, "model=tiny", "hydra.run.dir=out", name="lpo-eval")
    assert (code, "lpo-eval: interrupted; to go on:  lpo-eval " in said) == (143, True)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "interrupted"
    (tmp_path / "started").unlink()
    code, said = ended(tmp_path, signal.SIGTERM, "-m", "task=canny", "seed=0,1", "hydra.sweep.dir=sweep")
    assert code == 143
    assert "the sweep was interrupted; to go on with what is missing:  lpo-train -m " in said
    statuses = [json.loads(file.read_text())["status"] for file in tmp_path.glob("sweep/*/result.json")]
    assert statuses == ["interrupted"]  # and the second job has not begun


def test_handlers_are_given_back_and_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        with signals.handled():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a library would
            signals.take_back()
            with pytest.raises(signals.Stopped) as stopped:
                signal.raise_signal(signal.SIGTERM)
            assert signals.code(stopped.value) == 143
        assert signal.getsignal(signal.SIGTERM) == before[1]
        signals.take_back()
        assert signal.getsignal(signal.SIGTERM) == before[1]
    finally:
        signal.signal(signal.SIGHUP, before[0])


def test_only_signals_have_a_status() -> None:
    assert signals.code(KeyboardInterrupt()) == 130
    assert signals.code(SystemExit(1)) is None is signals.code(ValueError())
