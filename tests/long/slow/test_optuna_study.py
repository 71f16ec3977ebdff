"""A search by Optuna that is killed goes on: the same values, the same folders, no trial twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

REPO = Path(__file__).resolve().parents[3]
WORDS = [
    "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "optim.lr=tag(log,interval(1e-6,1e-3))", "seed=3",
    "method.form=choice(soft,hard)", "method=cpo", "task=canny", "debug=smoke", "hardware=cpu", "hydra.sweep.dir=sweep",
]  # fmt: skip
COMMAND = [sys.executable, "-m", "lpo_platform", "train", *WORDS]


@pytest.mark.slow
def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(COMMAND, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    second, deadline = tmp_path / "sweep" / "1-cpo-tiny-canny" / "train.log", time.monotonic() + 400
    while not second.is_file():
        assert first.poll() is None and time.monotonic() < deadline, "the second trial did not begin"
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()

    def trials() -> list:
        study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
        return study.trials

    before = trials()
    assert [trial.state.name for trial in before] == ["COMPLETE", "RUNNING"]
    again = subprocess.run(COMMAND, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr[-3000:]
    after = trials()
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 3
    assert [trial.params for trial in after[:2]] == [trial.params for trial in before]
    assert len({trial.params["optim.lr"] for trial in after}) == 3
    for trial in after:
        (folder,) = (tmp_path / "sweep").glob(f"{trial.number}-*")
        cfg = OmegaConf.load(folder / "resolved.yaml")
        assert (cfg.optim.lr, cfg.method.form, cfg.seed) == (trial.params["optim.lr"], trial.params["method.form"], 3)
    best = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml").best
    assert best.value == max(trial.value for trial in after) and best.params == after[best.job].params
