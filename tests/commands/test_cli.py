"""The commands as a person uses them: exit codes, messages, speed, resuming, completion, a user's own options."""

import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from lpo_platform.commands.main import run_command
from lpo_platform.commands.terminal import Command
from lpo_platform.config.errors import ConfigError, UserError
from lpo_platform.config.options import shipped
from lpo_platform.config.schema import CONF
from lpo_platform.runs import record

REPO = Path(__file__).resolve().parents[2]
HEAVY = "torch, lightning, diffusers, transformers, numpy, wandb"
MODULES = 600  # torch has 1,200, a command 420
COMMANDS = {"lpo-train": "train", "lpo-eval": "evaluate", "lpo-prepare": "prepare"}


def call(name: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command in a process of its own, which says at exit what it imported and whether that was little."""
    code = (
        "import atexit, sys\n"
        f"heavy = {HEAVY!r}.split(', ')\n"
        f"little = lambda: 'little' if len(sys.modules) < {MODULES} else f'{{len(sys.modules)}} modules'\n"
        "atexit.register(lambda: print('HEAVY', [m for m in heavy if m in sys.modules], little(), file=sys.stderr))\n"
        f"sys.argv[0] = {name!r}\n"
        f"from lpo_platform.commands.main import {COMMANDS[name]} as main\n"
        "main()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(REPO), **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs a command in this process with a given piece of work in place of training; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    root, handlers, level = logging.getLogger(), list(logging.getLogger().handlers), logging.getLogger().level
    path = list(sys.path)

    def run(*arguments: str, work: Callable[[DictConfig, Path], object], primary: str = "train") -> int:
        name = {"train": "lpo-train", "eval": "lpo-eval", "prepare": "lpo-prepare"}[primary]
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as end:
            run_command(Command(name, primary, work))
        return int(end.value.code or 0)

    yield run
    root.handlers[:], root.level = handlers, level
    sys.path[:] = path


def started(cfg: DictConfig, folder: Path) -> None:
    record.start(folder, OmegaConf.to_container(cfg, resolve=True), sys.argv)


def finished(cfg: DictConfig, folder: Path) -> None:
    started(cfg, folder)
    record.finish(folder, {}, 0, 1.0, {}, cfg.seed)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_lists_groups_options_and_examples(name: str, tmp_path: Path):
    done = call(name, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "HEAVY [] little" in done.stderr
    assert f"  hardware: {', '.join(shipped('hardware'))}\n" in done.stdout
    assert (f"  method: {', '.join(shipped('method'))}\n" in done.stdout) == (name != "lpo-eval")
    examples = [line for line in done.stdout.splitlines() if line.startswith(f"  {name} ")]
    assert len(examples) >= 4
    assert "${" not in done.stdout and "$APP" not in done.stdout


def test_a_reader_that_has_enough_ends_the_answer_in_silence(tmp_path: Path):
    code = "import sys; sys.argv = ['lpo-train', '--help']; from lpo_platform.commands.main import train; train()"
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        done = subprocess.run([sys.executable, "-c", code], stdout=gone, stderr=subprocess.PIPE, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_wrong_command_line_is_answered_at_once(tmp_path: Path):
    done = call("lpo-train", "task=cany", "method.betta=1", cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "lpo-train: 2 problems"
    assert lines[1] == (
        "  task=cany: no such option; did you mean 'canny'? "
        "Options: canny, depth, hed, lineart, none, pose, seg_ade20k, seg_coco"
    )
    assert lines[2].startswith("  method.betta: CPO has no such option; did you mean 'beta'?")
    assert lines[3:] == ["HEAVY [] little"]
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_the_examples_of_the_help_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lpo_platform.config.compose import help_text
    from lpo_platform.config.diagnose import diagnose

    monkeypatch.chdir(tmp_path)
    for folder in ("pics", "photos", "a", "b"):
        Path(folder).mkdir()
    for file in ("rows.csv", "evaluation_metadata.jsonl"):
        Path(file).touch()
    run = Path("outputs/cpo-tiny-canny/latest")
    (run / ".hydra").mkdir(parents=True)
    (run / "resolved.yaml").touch()
    for name, primary in [("lpo-train", "train"), ("lpo-eval", "eval"), ("lpo-prepare", "prepare")]:
        for line in help_text(primary, []).splitlines():
            if not line.startswith(f"  {name} "):
                continue
            line = re.sub(r"<[^<>]*>", str(run), line)
            words = line.split("   ")[0].split()[1:] if "   " in line.strip() else line.split()[1:]
            overrides = [word for word in words if "=" in word]
            assert diagnose(primary, overrides, multirun="-m" in words) == [], line


def test_cfg_shows_the_configuration_even_where_values_are_missing(tmp_path: Path):
    done = call("lpo-train", "data=folder", "--cfg", "job", "-p", "data", cwd=tmp_path)
    assert done.returncode == 0 and "path: ???" in done.stdout and "HEAVY [] little" in done.stderr
    assert "what is shown would not run:\n  data.path: required by data=folder" in done.stderr
    wrong = call("lpo-train", "data=foldr", "--cfg", "job", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean 'folder'?" in wrong.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("method=", [f"method={name}" for name in shipped("method")]),
        ("hardware=c", ["hardware=cpu"]),
        ("method.be", ["method.beta="]),
    ],
)
def test_tab_completion(typed: str, offered: list[str], tmp_path: Path):
    line = f"lpo-train {typed}"
    done = call(
        "lpo-train", "-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)), _HYDRA_COMP_="1"
    )
    assert done.returncode == 0 and sorted(done.stdout.split()) == offered
    assert "HEAVY [] little" in done.stderr
    install = call("lpo-train", "-sc", "install=bash", cwd=tmp_path)
    assert "complete -o nospace" in install.stdout


def test_threads_sleep_unless_the_user_says_otherwise(tmp_path: Path):
    code = (
        "import os; from lpo_platform.commands.main import set_threads; set_threads(); "
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['OMP_NUM_THREADS'])"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")} | {"PYTHONPATH": str(REPO)}
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout.split()
    assert shown == ["PASSIVE", str(len(os.sched_getaffinity(0)))]
    env |= {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "1"}
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout.split()
    assert shown == ["ACTIVE", "1"]


def test_a_run_gets_a_folder_a_log_and_latest(main, tmp_path: Path):
    seen = []

    def work(cfg: DictConfig, folder: Path) -> None:
        seen.append((cfg.seed, folder))
        finished(cfg, folder)

    assert main("task=canny", "seed=7", work=work) == 0
    ((seed, folder),) = seen
    assert seed == 7 and folder.parent == Path("outputs/cpo-tiny-canny") and not folder.is_absolute()
    assert {".hydra", "resolved.yaml", "result.json", "train.log"} <= {path.name for path in folder.iterdir()}
    assert (folder.parent / "latest").resolve() == folder.resolve()


def test_user_errors_have_no_traceback_and_end_with_2(main, capsys):
    def wrong(cfg: DictConfig, folder: Path) -> None:
        started(cfg, folder)
        raise UserError("hardware=gpu: no CUDA device here")

    assert main("task=canny", work=wrong) == 2
    assert capsys.readouterr().err == "lpo-train: hardware=gpu: no CUDA device here\n"
    result = json.loads(Path("outputs/cpo-tiny-canny/latest/result.json").read_text())
    assert (result["status"], result["reason"]) == ("failed", "hardware=gpu: no CUDA device here")

    def several(cfg: DictConfig, folder: Path) -> None:
        raise ConfigError(["one", "two"])

    assert main("task=canny", "seed=1", work=several) == 2
    assert capsys.readouterr().err == "lpo-train: 2 problems\n  one\n  two\n"


def test_a_run_folder_that_cannot_be_made_is_one_line(main, capsys, tmp_path: Path):
    (tmp_path / "file").touch()
    assert main("method=cpo", f"hydra.run.dir={tmp_path}/file/run", work=finished) == 2
    way = "is a file where a folder is needed; move it away, or take another folder\n"
    assert capsys.readouterr().err == f"lpo-train: {tmp_path}/file {way}"
    (tmp_path / "outputs").touch()
    for line in (["method=cpo"], ["-m", "method=cpo", "seed=0"]):
        assert main(*line, work=finished) == 2
        assert capsys.readouterr().err == f"lpo-train: outputs {way}"
    for line in (["hydra.run.dir=/dev/null/a"], ["-m", "seed=0", "hydra.sweep.dir=/dev/null"]):  # no regular file
        assert main("method=cpo", *line, work=finished) == 2
        assert capsys.readouterr().err == f"lpo-train: /dev/null {way}"
    assert main("method=cpo", "hydra.run.dir=/proc/none", work=finished) == 2  # where nobody makes a folder
    assert capsys.readouterr().err.startswith("lpo-train: /proc/none: No such file or directory; what works: a folder")
    assert main("method=cpo", f"hydra.run.dir={'a' * 300}", work=finished) == 2
    assert "aaa: File name too long; what works: names of at most 255 bytes\n" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_of_the_same_second_have_folders_of_their_own(main, monkeypatch: pytest.MonkeyPatch):
    folders = []

    def work(cfg: DictConfig, folder: Path) -> None:
        folders.append(folder.name)
        finished(cfg, folder)

    here = "hydra.run.dir=${unused_folder:out/a}"
    assert main("task=canny", here, work=work) == main("task=canny", here, work=work) == 0
    assert folders == ["a", "a-2"]
    sweeps = ["-m", "seed=0", "hydra.sweep.dir=${unused_folder:sweeps/a}"]
    assert main(*sweeps, work=work) == main(*sweeps, work=work) == 0
    assert sorted(path.name for path in Path("sweeps").iterdir() if not path.is_symlink()) == folders[:2]
    timed = [line.strip() for file in CONF.rglob("*.yaml") for line in file.read_text().splitlines() if "{now:" in line]
    assert len(timed) >= 10 and all(line.startswith("dir: ${unused_folder:") for line in timed)


def test_missing_memory_says_what_helps_and_the_log_where_it_was(main, capsys):
    def greedy(cfg: DictConfig, folder: Path) -> None:
        bytearray(2**62)

    assert main("task=canny", "logger=none", work=greedy) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("lpo-train: out of memory (") and "hardware.micro_batch" in shown
    log = Path("outputs/cpo-tiny-canny/latest/train.log").read_text()
    assert "in greedy" in log and "MemoryError" in log


def test_a_crash_keeps_its_traceback_in_the_log_and_ends_with_1(main, capsys, monkeypatch):
    def crash(cfg: DictConfig, folder: Path) -> None:
        raise RuntimeError("the sky fell")

    assert main("task=canny", work=crash) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("lpo-train: RuntimeError: the sky fell\n  the full log: outputs/cpo-tiny-canny/")
    assert "Traceback" not in shown
    assert "Traceback" in Path("outputs/cpo-tiny-canny/latest/train.log").read_text()
    monkeypatch.setenv("LPO_DEBUG", "1")
    assert main("task=canny", "seed=1", work=crash) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_reason_under_instantiate_is_what_is_shown(main, capsys, tmp_path: Path):
    (tmp_path / "my_picky_class.py").write_text(
        "from lpo_platform.config.errors import UserError\n"
        "class Picky:\n    def __init__(self, low: float = 0.1):\n        raise UserError('low is too low')\n"
    )
    (tmp_path / "mine" / "task").mkdir(parents=True)
    (tmp_path / "mine" / "task" / "picky.yaml").write_text("_target_: my_picky_class.Picky\nlow: 0.0\n")

    def build(cfg: DictConfig, folder: Path) -> None:
        from hydra.utils import instantiate

        instantiate(cfg.task)

    assert main("--config-dir", "mine", "task=picky", work=build) == 2
    assert capsys.readouterr().err == "lpo-train: low is too low\n"


def test_an_interrupt_says_how_to_go_on_and_that_works(main, capsys):
    def interrupt(cfg: DictConfig, folder: Path) -> None:
        started(cfg, folder)
        raise KeyboardInterrupt

    def by_lightning(cfg: DictConfig, folder: Path) -> None:
        try:
            interrupt(cfg, folder)
        except KeyboardInterrupt:
            sys.exit(1)

    assert main("task=canny", "method.steps=5", "callbacks.every=5", work=by_lightning) == 130
    (folder,) = (path for path in Path("outputs/cpo-tiny-canny").iterdir() if not path.is_symlink())
    assert capsys.readouterr().err == f"\nlpo-train: interrupted; to go on:  lpo-train resume={folder}\n"

    seen = []

    def goes_on(cfg: DictConfig, folder: Path) -> None:
        seen.append((cfg.method.steps, folder))
        finished(cfg, folder)

    assert main(f"resume={folder}", work=goes_on) == 0
    assert seen == [(5, folder)]
    assert main(f"resume={folder}", work=finished) == 2
    assert "this run is finished" in capsys.readouterr().err
    assert main(f"resume={folder}", "method.steps=9", work=goes_on) == 0
    assert seen[-1] == (9, folder)


@pytest.mark.slow
def test_resume_auto_finds_the_unfinished_run_of_the_same_configuration(main, capsys):
    folders: list[Path] = []

    def killed(cfg: DictConfig, folder: Path) -> None:
        folders.append(folder)
        started(cfg, folder)

    def ends(cfg: DictConfig, folder: Path) -> None:
        folders.append(folder)
        finished(cfg, folder)

    assert main("task=canny", "resume=auto", work=killed) == 0
    assert "nothing to resume: a new run" in capsys.readouterr().err
    assert main("task=canny", "resume=auto", work=killed) == 0
    assert f"resuming {folders[0]}" in capsys.readouterr().err and folders[1] == folders[0]

    other = "hydra.run.dir=outputs/cpo-tiny-canny/other"
    assert main("task=canny", "resume=auto", "method.beta=3", other, work=killed) == 0
    assert folders[2] != folders[0]
    with (folders[0] / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main("task=canny", f"hydra.run.dir={folders[0]}", work=killed) == 2
        assert "in use by another process" in capsys.readouterr().err
        assert main(f"resume={folders[0]}", work=killed) == 2
        assert "still going on in another process" in capsys.readouterr().err

    assert main("task=canny", "resume=auto", work=ends) == 0
    assert folders[-1] == folders[0]
    assert main("task=canny", "resume=auto", "hydra.run.dir=outputs/cpo-tiny-canny/new", work=ends) == 0
    assert folders[-1] == Path("outputs/cpo-tiny-canny/new")


def test_a_sweep_runs_every_job_and_ends_with_the_worst_code(main, capsys):
    seen = []

    def work(cfg: DictConfig, folder: Path) -> None:
        seen.append((cfg.seed, folder.name))
        if cfg.seed == 1:
            raise UserError("seed 1 is unlucky")
        finished(cfg, folder)

    assert main("-m", "task=canny", "seed=0,1,2", work=work) == 2
    assert seen == [(0, "0-cpo-tiny-canny"), (1, "1-cpo-tiny-canny"), (2, "2-cpo-tiny-canny")]
    assert "lpo-train: seed 1 is unlucky\n" in capsys.readouterr().err
    seen.clear()
    assert main("task=canny", "sweep=seeds", work=work) == 2
    assert [seed for seed, _ in seen] == [0, 1, 2]


@pytest.mark.slow
def test_an_interrupt_ends_the_sweep_and_its_job_can_be_resumed(main, capsys):
    seen = []

    def work(cfg: DictConfig, folder: Path) -> None:
        seen.append((cfg.seed, cfg.method.steps, folder))
        started(cfg, folder)
        if len(seen) == 2:
            raise KeyboardInterrupt

    assert main("task=canny", "sweep=seeds", "method.steps=5", work=work) == 130
    assert [seed for seed, _, _ in seen] == [0, 1]
    command = capsys.readouterr().err.partition("lpo-train resume=")[2].partition("\n")[0]
    assert main(f"resume={command}", work=work) == 0
    assert seen[2] == seen[1]
    assert main("-m", "seed=0,1", "resume=auto", work=work) == 2
    assert "resume=auto: one run at a time; leave -m and sweep= out" in capsys.readouterr().err


@pytest.mark.slow
def test_resuming_finds_the_options_of_the_user_again(main, tmp_path: Path):
    (tmp_path / "here" / "conf" / "task").mkdir(parents=True)
    (tmp_path / "here" / "my_other_task.py").write_text("class Edges:\n    def __init__(self, low: float = 0.1): ...\n")
    (tmp_path / "here" / "conf" / "task" / "edges.yaml").write_text("_target_: my_other_task.Edges\nlow: 0.2\n")
    seen = []

    def work(cfg: DictConfig, folder: Path) -> None:
        from hydra.utils import instantiate

        seen.append((type(instantiate(cfg.task)).__name__, folder))
        started(cfg, folder)

    assert main("--config-dir", "here/conf", "task=edges", work=work) == 0
    assert main(f"resume={seen[0][1]}", work=work) == 0
    assert seen[0] == seen[1] and seen[0][0] == "Edges"


@pytest.mark.slow
def test_overrides_may_stand_on_both_sides_of_flags(main):
    seen = []

    def work(cfg: DictConfig, folder: Path) -> None:
        seen.append(cfg.seed)
        finished(cfg, folder)

    assert main("seed=0,1", "-m", "task=canny", work=work) == 0
    assert seen == [0, 1]


@pytest.mark.slow
def test_a_run_is_repeated_from_its_resolved_yaml(main, tmp_path: Path):
    configs = []

    def work(cfg: DictConfig, folder: Path) -> None:
        configs.append((OmegaConf.to_container(cfg), folder))
        finished(cfg, folder)

    assert main("task=canny", "method.beta=3", "hydra.run.dir=outputs/cpo-tiny-canny/first one", work=work) == 0
    first = configs[0][1]
    assert main("--config-path", str(first), "--config-name", "resolved", work=work) == 0
    assert configs[1][0] == configs[0][0]
    assert configs[1][1].parent == Path("outputs/cpo-tiny-canny") and configs[1][1] != first
    assert (configs[1][1] / "train.log").exists()
    assert main(f"--config-path={configs[1][1]}", "--config-name=resolved", "seed=4", work=work) == 0
    assert configs[2][0] == {**configs[0][0], "seed": 4}
    assert main("--config-path", str(first), "--config-name", "resolved", "method.betta=4", work=work) == 2
    stored = first / "resolved.yaml"
    stored.write_text(stored.read_text().replace("tracking.callbacks.settings", "callbacks.settings"))
    assert "lpo_platform.callbacks.settings.Callbacks" in stored.read_text()  # where it once stood
    assert main("--config-path", str(first), "--config-name", "resolved", work=work) == 0
    assert configs[-1][0] == configs[0][0]


def test_eval_takes_the_folder_above_and_writes_into_the_run(main):
    assert main("task=canny", work=finished) == 0
    seen = []
    work = lambda cfg, folder: seen.append((Path(cfg.run), folder))  # noqa: E731
    assert main("run=outputs/cpo-tiny-canny", work=work, primary="eval") == 0
    run = Path("outputs/cpo-tiny-canny/latest").resolve()
    assert seen[0][0] == run
    assert seen[0][1].resolve().parent == run / "eval"
    assert main("run=outputs/none", work=work, primary="eval") == 2


def test_prepare_is_a_command_of_its_own(main):
    seen = []
    work = lambda cfg, folder: seen.append((cfg.force, folder))  # noqa: E731
    assert main("task=canny", "force=true", work=work, primary="prepare") == 0
    assert seen[0][0] is True and seen[0][1].parent == Path("outputs/prepare-tiny-canny")
