"""Sweeps as a whole: failures, starting again, the table over seeds, launchers, Optuna, and W&B's sweep file."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from omegaconf import DictConfig, OmegaConf

from lpo_platform.commands.main import claim, run_command
from lpo_platform.commands.terminal import Command
from lpo_platform.commands.train import about
from lpo_platform.config.compose import compose
from lpo_platform.config.diagnose import diagnose, installed
from lpo_platform.config.errors import UserError
from lpo_platform.config.schema import CONF
from lpo_platform.hardware import slurm
from lpo_platform.runs import files, record, seeds, sweep
from lpo_platform.tracking.report import sweep_table

REPO = Path(__file__).resolve().parents[2]
FOLDER = Path("outputs/sweeps/mine")
HERE = f"hydra.sweep.dir={FOLDER}"
JOBS = ["0-cpo-tiny-canny", "1-cpo-tiny-canny"]


def metric(before: float, after: float, low: float, high: float, higher: bool | None = True) -> dict:
    return {
        "before": before,
        "after": after,
        "difference": after - before,
        "ci95": [low, high],
        "higher_is_better": higher,
    }


def train(cfg: DictConfig, folder: Path, after: float = 0.5) -> None:
    """What a run leaves, without the training."""
    record.start(folder, OmegaConf.to_container(cfg, resolve=True), sys.argv)
    record.finish(folder, {"canny/f1": metric(0.4, after, 0.0, 0.2)}, 8, 1.0, {}, cfg.seed)


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs lpo-train in this process with a given piece of work in place of training; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    root, handlers, level = logging.getLogger(), list(logging.getLogger().handlers), logging.getLogger().level
    path = list(sys.path)

    def run(*arguments: str, work: Callable[[DictConfig, Path], object]) -> int:
        monkeypatch.setattr(sys, "argv", ["lpo-train", *arguments])
        with pytest.raises(SystemExit) as end:
            run_command(Command("lpo-train", "train", work))
        return int(end.value.code or 0)

    yield run
    root.handlers[:], root.level = handlers, level
    sys.path[:] = path


def statuses() -> list[str]:
    return [job["status"] for job in json.loads((FOLDER / "sweep.json").read_text())["jobs"]]


def test_a_failed_job_stops_no_other_and_the_sweep_can_be_started_again(main, capsys):
    seen, unlucky = [], [0]

    def work(cfg: DictConfig, folder: Path) -> None:
        seen.append(cfg.seed)
        if cfg.seed in unlucky:
            raise RuntimeError("the sky fell")
        train(cfg, folder)

    assert main("-m", "task=canny", "seed=0,1", HERE, work=work) == 1
    shown = capsys.readouterr().err
    assert shown.endswith(
        "lpo-train: 1 of 2 jobs did not finish; outputs/sweeps/mine/sweep.md\n"
        "  0-cpo-tiny-canny (seed=0) failed: RuntimeError: the sky fell\n"
    )
    assert statuses() == ["failed", "finished"]
    assert json.loads((FOLDER / "sweep.json").read_text())["status"] == "failed"

    unlucky.clear()
    assert main("-m", "task=canny", "seed=0,1", HERE, "hardware=cpu", work=work) == 0
    assert seen == [0, 1, 0]
    shown = capsys.readouterr().err
    assert f"lpo-train: {JOBS[1]} is finished already\n" in shown
    assert statuses() == ["finished"] * 2 and shown.endswith(
        "lpo-train: 2 jobs finished; outputs/sweeps/mine/sweep.md\n"
    )


@pytest.mark.slow
def test_a_job_goes_on_alone_with_what_the_sweeps_file_chose(main):
    seen, broken = [], True

    def work(cfg: DictConfig, folder: Path) -> None:
        seen.append(OmegaConf.to_container(cfg, resolve=True) | {"resume": None})
        if broken:
            raise RuntimeError("the sky fell")

    assert main("sweep=lpo_beta", HERE, work=work) == 1
    broken = False
    assert main(f"resume={FOLDER}/1-lpo-tiny-none", work=work) == 0
    assert len(seen) == 4 and seen[3] == seen[1]
    assert seen[1]["method"]["beta"] == 500 and seen[1]["method"]["_target_"].endswith("LPO")


def test_a_folder_takes_no_second_sweep_and_no_job_another_configuration(main, capsys, tmp_path: Path):
    # the same command line means something else when a file has changed below it
    for beta, code in (("500.0", 0), ("7.0", 2)):
        own = tmp_path / "conf" / "optim"
        own.mkdir(parents=True, exist_ok=True)
        (own / "mine.yaml").write_text(f"_target_: lpo_platform.methods.optim.AdamW\nlr: {beta}\n")
        line = ["--config-dir", "conf", "-m", "task=canny", "optim=mine", HERE]
        assert main(*line, "seed=0", work=train) == code
    shown = capsys.readouterr().err
    assert "holds a run with another configuration:\n  optim.lr: 500.0 there, 7.0 now\n" in shown
    assert "  what works: a new hydra.sweep.dir\n" in shown
    assert f"  {JOBS[0]} foreign: its folder holds a run with another configuration (optim.lr)\n" in shown
    assert files.read_json(FOLDER / JOBS[0] / "result.json")["status"] == "finished"
    assert main(*line, "seed=5", work=train) == 2
    assert "hydra.sweep.dir=outputs/sweeps/mine holds another sweep (task=canny optim=mine" in capsys.readouterr().err


def job(number: int, overrides: list[str], result: dict | None) -> Path:
    """The folder of a job, as Hydra and record.py write it."""
    folder = FOLDER / f"{number}-job"
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save({"hydra": {"job": {"num": number}}}, folder / ".hydra" / "hydra.yaml")
    OmegaConf.save(overrides, folder / ".hydra" / "overrides.yaml")
    OmegaConf.save({"seed": 0}, folder / ".hydra" / "config.yaml")
    if result is not None:
        record.write_json(folder / "result.json", result)
    return folder


def test_a_job_without_an_end_and_one_at_work_are_told_from_finished_ones(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job(10, ["seed=1"], {"status": "running"})
    job(2, ["seed=0"], None)
    with claim(job(3, ["seed=2"], {"status": "running"})):
        jobs, table = sweep_table.conclude(FOLDER)
    assert [(job.number, job.status) for job in jobs] == [(2, "interrupted"), (3, "running"), (10, "interrupted")]
    assert table == "" and json.loads((FOLDER / "sweep.json").read_text())["status"] == "failed"


def test_the_table_over_seeds_by_hand(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    after = {(500, 0): 0.47, (500, 1): 0.52, (500, 2): 0.45, (9, 0): 0.41, (9, 1): 0.38, (9, 2): 0.44}
    for number, ((beta, seed), value) in enumerate(after.items()):
        metrics = {"canny/f1": metric(0.4, value, value - 0.41, value - 0.39)}
        overrides = ["task=canny", f"method.beta={beta}", f"seed={seed}"]
        job(number, overrides, {"status": "finished", "seed": seed, "seconds": 1.0, "metrics": metrics})
    _, table = sweep_table.conclude(FOLDER)
    rows = json.loads((FOLDER / "sweep.json").read_text())["rows"]
    assert [row["setting"] for row in rows] == ["method.beta=500", "method.beta=9"]
    for row, beta in zip(rows, (500, 9), strict=True):
        differences = np.array([after[beta, seed] - 0.4 for seed in range(3)])
        variance = differences.var(ddof=1) / 3
        total = variance + (0.01 / 1.959964) ** 2
        half = scipy.stats.t.ppf(0.975, 2 * (total / variance) ** 2) * np.sqrt(total)
        assert row["seeds"] == [0, 1, 2] and row["interval"].startswith("Student t over 3 seeds, widened")
        assert row["difference"] == pytest.approx(differences.mean(), abs=1e-12)
        assert row["ci95"] == pytest.approx([differences.mean() - half, differences.mean() + half], abs=1e-8)
    assert "method.beta=9, 3 seeds" in table and "95 % interval: Student t over 3 seeds, widened" in table
    page = (FOLDER / "sweep.md").read_text()
    assert "| canny/f1 | method.beta=9 | 0, 1, 2 |" in page and "[5-job](5-job/report.html)" in page


def test_one_seed_keeps_the_interval_of_its_run_and_says_so():
    (row,) = seeds.rows([("", 3, {"canny/f1": metric(0.4, 0.5, 0.06, 0.13)})])
    assert row.ci95 == (0.06, 0.13) and row.interval == "paired bootstrap over the held-out items of the one run"
    missing = metric(0.4, 0.5, 0.06, 0.13) | {"after": None}
    assert seeds.rows([("", 0, {"fid": missing})]) == []


def test_without_an_error_of_the_items_the_interval_is_students():
    values = [0.1, 0.4, 0.3]
    half = 4.302652730 * np.std(values, ddof=1) / np.sqrt(3)  # t of a printed table: 2 degrees of freedom, 95 %
    expected = pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=1e-8)
    assert seeds.seed_interval(values, [np.nan] * 3) == expected


def test_seeds_that_agree_leave_the_error_of_the_items():
    assert seeds.seed_interval([0.2, 0.2], [0.05, 0.05]) == pytest.approx(
        (0.2 - 1.96 * 0.05, 0.2 + 1.96 * 0.05), abs=1e-5
    )


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5])
def test_the_interval_covers_the_truth_whether_seeds_or_items_vary_more(spread: float):
    generator, covered = np.random.default_rng(0), 0
    for _ in range(400):
        shared = generator.normal(size=50)  # how much each of 50 items gains, the same items under every seed
        runs = shared + spread * generator.normal(size=(3, 1)) + 0.3 * generator.normal(size=(3, 50))
        low, high = seeds.seed_interval(runs.mean(1), runs.std(1, ddof=1) / np.sqrt(50))
        covered += low <= 0 <= high
    assert covered >= 0.93 * 400  # 95 % less two standard errors


def test_what_a_sweeper_improves(tmp_path: Path):
    def result(*metrics: dict) -> float | None:
        record.write_json(tmp_path / "result.json", {"status": "finished", "metrics": dict(enumerate(metrics))})
        return sweep.gain(tmp_path)

    assert result(metric(1, 3, 0, 0, None), metric(1.0, 1.25, 0, 0)) == 0.25
    assert result(metric(7.0, 6.5, 0, 0, False)) == 0.5
    assert result() is None and sweep.gain(tmp_path / "none") is None
    result(metric(7.0, 6.5, 0, 0, False))
    assert sweep.objective(tmp_path, "maximize") == 0.5 and sweep.objective(tmp_path, "Direction.minimize") == -0.5


@pytest.mark.slow
def test_jobs_of_a_launcher_run_in_processes_of_their_own(main, capsys):
    """submitit's local executor, the fallback where there is no Slurm: same path, other queue."""

    def work(cfg: DictConfig, folder: Path) -> None:
        import os
        import sys

        from omegaconf import OmegaConf

        from lpo_platform.config.errors import UserError
        from lpo_platform.runs import record

        record.start(folder, OmegaConf.to_container(cfg, resolve=True), sys.argv)
        (folder / "process").write_text(str(os.getpid()))
        if cfg.seed == 1:
            raise UserError("seed 1 is unlucky")
        record.finish(folder, {}, 0, 1.0, {}, cfg.seed)

    words = ("-m", "task=canny", "hardware=cpu", "seed=0,1", HERE, "hydra/launcher=local")
    assert main(*words, work=work) == 1
    assert f"  {JOBS[1]} (seed=1) failed: seed 1 is unlucky\n" in capsys.readouterr().err
    processes = {(FOLDER / name / "process").read_text() for name in JOBS}
    assert len(processes) == 2 and statuses() == ["finished", "failed"]
    assert files.read_json(FOLDER / JOBS[0] / "result.json")["command"][:2] == ["lpo-train", "-m"]


@pytest.mark.slow
def test_real_runs_in_a_sweep_one_of_which_fails(tmp_path: Path, capsys, monkeypatch):
    from lpo_platform.commands.main import train as command

    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    line = [
        "lpo-train",
        "-m",
        "task=canny",
        "debug=smoke",
        "hardware=cpu",
        f"control.weights={tmp_path}/empty,auto",
        HERE,
    ]
    seconds = []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", list(line))
        with pytest.raises(SystemExit) as end:
            command()
        assert end.value.code == 2 and statuses() == ["failed", "finished"]
        seconds.append(files.read_json(FOLDER / JOBS[1] / "result.json")["seconds"])
        assert "no file named config.json" in capsys.readouterr().err
    assert seconds[0] == seconds[1]  # it was not run again
    (row,) = [row for row in json.loads((FOLDER / "sweep.json").read_text())["rows"] if row["metric"] == "canny/f1"]
    assert row["setting"] == "control.weights=auto" and row["seeds"] == [0]


@pytest.mark.dist
def test_the_tasks_of_a_job_are_one_run_whose_mistake_is_told_once(main, capsys):
    """Two tasks of submitit's local executor start two real processes."""
    words = ["-m", "task=canny", "debug=smoke", "seed=0", HERE, "hydra/launcher=local", "hardware=ddp"]
    words += ["hardware.accelerator=cpu", "hardware.devices=2"]
    empty = Path("empty")
    empty.mkdir()
    assert main(*words, f"control.weights={empty.resolve()}", work=lambda cfg, folder: None) == 1
    (left,) = json.loads((FOLDER / "sweep.json").read_text())["jobs"]
    assert left["status"] == "failed" and str(empty) in left["reason"]
    assert capsys.readouterr().err.count("no file named config.json") == 1


@pytest.mark.dist
def test_a_job_that_dies_is_one_line_and_the_others_are_waited_for(main, capsys):
    def work(cfg: DictConfig, folder: Path) -> None:
        import os
        import time

        if cfg.seed == 0:
            os._exit(9)
        time.sleep(2)
        (folder / "end").touch()

    assert main("-m", "task=canny", "hardware=cpu", "seed=0,1", HERE, "hydra/launcher=local", work=work) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and f"what the jobs wrote: {FOLDER / '.submitit'}" in shown
    assert (FOLDER / JOBS[1] / "end").exists() and f"  {JOBS[0]} (seed=0) interrupted: it ended without" in shown


def test_a_task_hears_what_the_first_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = (slurm.SlurmTask(rank, 2, {}, tmp_path / "tasks-0") for rank in range(2))
    monkeypatch.setattr(slurm, "PATIENCE", 0.5)
    with pytest.raises(UserError, match=r"task 1 waited .* s for task 0"):
        slurm.follow(second, "train", tmp_path)
    slurm.say(first, slurm.STOP)
    slurm.say(first, slurm.GO)  # the first word counts
    assert slurm.follow(second, "train", tmp_path) is None


def test_launchers_say_what_they_lack(main, capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    lacking = "lpo-train: Slurm: no sbatch here; submit where Slurm is, or take hydra/launcher=local\n"
    for words in (["-m", "hydra/launcher=slurm"], ["hardware=slurm"]):
        assert main(*words, "task=canny", HERE, work=train) == 2
        assert capsys.readouterr().err == lacking and not FOLDER.exists()
    assert diagnose("train", ["hydra/launcher=slurm", "sweep=seeds"]) == []
    assert diagnose("train", ["hardware=slurm", "hardware.devices=2"]) == []
    assert diagnose("train", ["hydra/launcher=slurm"]) == [
        "hydra/launcher=slurm: works with -m only, also for a single job; add -m"
    ]
    (line,) = diagnose("train", ["hydra/launcher=slurm", "hydra.launcher.partitionn=gpu"], multirun=True)
    assert "partitionn" in line


@pytest.mark.skipif(installed("optuna"), reason="Optuna is installed here")
def test_optuna_is_an_extra():
    assert diagnose("train", ["hydra/sweeper=optuna", "method.beta=interval(1,9)"], multirun=True) == [
        "hydra/sweeper=optuna: needs packages that are not installed; pip install 'lpo-platform[optuna]'"
    ]


def test_a_job_asks_slurm_for_the_processes_that_its_hardware_says():
    from lpo_platform.config.compose import hydra_settings

    words = ["hydra/launcher=slurm", "hardware=ddp", "hardware.devices=4", "hardware.num_nodes=2", "sweep=seeds"]
    launcher = hydra_settings("train", words, [], CONF).hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.max_num_timeout) == (2, 4, 20)
    one = hydra_settings("train", ["hardware=slurm", "hardware.devices=2"], [], CONF).hydra
    assert (one.launcher.nodes, one.launcher.tasks_per_node, one.launcher._target_) == (1, 2, launcher._target_)
    assert one.mode.name == "MULTIRUN"


def test_the_committed_sweeps_are_over_what_they_say():
    params = {path.stem: OmegaConf.load(path).hydra.sweeper.params for path in (CONF / "sweep").glob("*.yaml")}
    assert params["lpo_beta"] == {"method.beta": "100,500,1000"}
    assert params["seeds"] == {"seed": "0,1,2"}
    tasks = sorted(
        path.name.removeprefix("controlnet_") for path in (REPO / "lpo_platform/assets/tiny").glob("controlnet_*")
    )
    assert sorted(params["cpo_tasks"]["task"].split(",")) == tasks
    methods = {name: compose("train", [f"sweep={name}"], [], CONF).choices["method"] for name in params}
    assert (methods["lpo_beta"], methods["cpo_tasks"]) == ("lpo", "cpo")


@pytest.mark.slow
def test_the_jobs_of_a_sweep_are_one_group_at_wandb_and_end_with_numbers(tmp_path: Path, monkeypatch):
    from lpo_platform.tracking.loggers.final_tables import log_tables
    from lpo_platform.tracking.loggers.service import open_logger
    from lpo_platform.tracking.loggers.wandb import Wandb

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    sweep.begin(FOLDER, ["seed=0,1"])
    method, model = {"_target_": "a.CPO"}, {"name": "tiny"}
    cfg = OmegaConf.create({"name": "mine too", "method": method, "model": model})
    groups, identifiers = set(), set()
    for folder in (FOLDER / JOBS[0], FOLDER / JOBS[1]):
        folder.mkdir()
        logger = open_logger(Wandb("p"), folder, about(cfg, folder))
        log_tables(logger, {"canny/f1": metric(0.4, 0.5, 0.0, 0.2)}, folder, 3)
        groups.add(logger.run.group)
        identifiers.add(logger.run.id)
        assert logger.run.summary["eval/canny/f1"] == 0.5  # what launchers/wandb_sweep.yaml steers by
        assert Path(os.environ["WANDB_DATA_DIR"]) == folder / "wandb"
        logger.finish()
    assert groups == {"mine"} and len(identifiers) == 2


def test_wandbs_own_parser_makes_our_command_of_the_sweep_file():
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args, load_sweep_config, make_launch_sweep_entrypoint

    config = load_sweep_config(str(REPO / "launchers/wandb_sweep.yaml"))
    proposed = {"method.beta": 812.5, "method.margin": 0.03, "seed": 2}
    assert set(proposed) == set(config["parameters"])
    args = create_sweep_command_args({"args": {name: {"value": value} for name, value in proposed.items()}})
    args |= {"env": ["/usr/bin/env"], "program": [config["program"]]}  # as wandb_agent.Agent._command_run does
    words = [word for chunk in config["command"] for word in args.get(chunk[2:-1], [chunk])]
    assert words[:2] == ["/usr/bin/env", "lpo-train"]
    assert diagnose("train", words[2:]) == []
    values = compose("train", words[2:], [], CONF).values
    assert (values["method"]["beta"], values["method"]["margin"], values["seed"]) == (812.5, 0.03, 2)
    assert config["metric"] == {"name": "eval/canny/f1", "goal": "maximize"}
    assert make_launch_sweep_entrypoint(args, list(config["command"]))[0] is not None
