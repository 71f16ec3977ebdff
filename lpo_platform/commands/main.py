"""The commands lpo-train, -eval, -prepare, -score, -doctor, -plan: a check of the command line, Hydra, then the job.

Nothing heavy is imported before the check has passed: help, completion and a wrong command line take about a second.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lpo_platform.commands.command_line import check_again, checked_words, parse_line, say_problems
from lpo_platform.commands.failures import FolderInUse, failed, failed_early, interrupted, refused, unexpected
from lpo_platform.commands.table import uncollected, work_of
from lpo_platform.commands.terminal import Command, say, set_threads, shown
from lpo_platform.config import smoke
from lpo_platform.config.errors import UserError
from lpo_platform.config.schema import CONF
from lpo_platform.hardware import launch, slurm
from lpo_platform.runs import files, foreign, lock, record, resume, signals, sweep
from lpo_platform.tracking.report import sweep_table

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train() -> None:
    """Console command lpo-train."""
    run_command(Command("lpo-train", "train"))


def evaluate() -> None:
    """Console command lpo-eval."""
    run_command(Command("lpo-eval", "eval"))


def prepare() -> None:
    """Console command lpo-prepare."""
    run_command(Command("lpo-prepare", "prepare"))


def score() -> None:
    """Console command lpo-score."""
    run_command(Command("lpo-score", "score"))


def doctor() -> None:
    """Console command lpo-doctor."""
    _examine("lpo-doctor", _doctor)


def plan() -> None:
    """Console command lpo-plan."""
    _examine("lpo-plan", _plan)


def _doctor(words: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="lpo-doctor-") as name:
        folder, cfg = Path(name), _composed("lpo-doctor", words)
        if (count := launch.processes(cfg)) > 1:
            launch.run("doctor", cfg, folder, count)
        else:
            work_of("doctor")(cfg, folder)
        return int((folder / "failed").exists())


def _plan(words: list[str]) -> int:
    from lpo_platform.commands.plan.settings import settings_of

    settings, words = settings_of(words)
    cfg = _composed("lpo-plan", words, absent=True)
    with uncollected():
        from lpo_platform.commands.plan.plan import plan, text

    print(text(plan(cfg, settings, _run_folder(words))))
    return 0


def _run_folder(words: list[str]) -> Path:
    """Where lpo-train with these words would put its run."""
    return Path(next((word.partition("=")[2] for word in words if word.startswith("hydra.run.dir=")), "outputs"))


def _examine(name: str, work: Callable[[list[str]], int]) -> None:
    """A command that looks at what lpo-train would do, with its command line and without a run folder."""
    set_threads()
    command = Command(name, "train")
    try:
        with signals.handled():
            sys.exit(work(sys.argv[1:]))
    except (UserError, OSError) as error:
        sys.exit(failed_early(command, error))
    except KeyboardInterrupt as error:
        sys.exit(signals.code(error))
    except launch.ProcessFailed as error:
        say(command, f"{error}\n{error.traceback}".rstrip())
        sys.exit(1)


def _composed(name: str, words: list[str], *, absent: bool = False) -> DictConfig:
    """The configuration that lpo-train would run; prints the help if that is asked for. absent: see checked_words."""
    from lpo_platform.config.compose import help_text, hydra_settings

    line = parse_line(words)
    if line.helps:
        print(help_text("train", line.config_dirs, words=name.removeprefix("lpo-")))
        sys.exit()
    if line.shows or line.passes:
        raise UserError(f"{shlex.join(line.flags)}: a flag of lpo-train; {name} has --help and --config-dir")
    if {"-m", "--multirun"} & {*line.flags} or line.value("sweep") is not None:
        raise UserError("one configuration at a time; leave -m and sweep= out")
    line.multirun = False  # hardware=slurm is one job here
    checked_words(Command(name, "train"), words, line, absent=absent)
    conf = CONF if line.config_path is None else Path(line.config_path).resolve()
    cfg = hydra_settings(line.config_name or "train", line.overrides, line.config_dirs, conf)
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


def run_command(command: Command) -> None:
    with signals.handled():
        _answer(command)


def _answer(command: Command) -> None:
    """Checks the command line, prints what was asked for, or hands over to Hydra."""
    set_threads()
    try:
        line = parse_line(sys.argv[1:])
        if line.helps:
            from lpo_platform.config.compose import help_text

            print(help_text(command.primary, line.config_dirs))
            return
        sys.argv[1:] = checked_words(command, sys.argv[1:], line)
    except Exception as error:
        sys.exit(failed_early(command, error))
    except KeyboardInterrupt as error:
        sys.exit(signals.code(error))
    _hydra(command)
    if line.shows:
        say_problems(command, line)
    sys.exit(command.code)


def _hydra(command: Command) -> None:
    """Lets Hydra compose the configuration and run the job, or the jobs of a sweep."""
    import hydra

    words = list(sys.argv)

    def job(cfg: DictConfig) -> float | None:
        """Runs one job. Returns the number that a sweeper improves, if the sweeper asks for one."""
        sys.argv[:] = words  # a launcher's own process has others
        command.code = max(command.code, _run(command, cfg))
        if command.code > 128:
            # A signal ends a whole sweep.
            sys.exit(command.code)
        settings = HydraConfig.get()
        if command.sweep is None or "direction" not in settings.sweeper:
            return None
        return sweep.objective(Path(settings.runtime.output_dir), str(settings.sweeper.direction))

    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=command.primary)(job)
    if command.sweep is None:
        try:
            with _raising():
                main()
        except KeyboardInterrupt as error:
            command.code = signals.code(error)
        except Exception as error:  # Hydra makes the folder and its log before the job begins
            command.code = failed_early(command, error)
        return
    with claim(command.sweep):
        try:
            with _raising():
                main()
        except KeyboardInterrupt as error:
            command.code = signals.code(error)
        except Exception as error:
            # of the launcher: what jobs can catch, they have caught
            _launcher_failed(command, command.sweep, error)
        finally:
            _conclude(command, command.sweep)


@contextmanager
def _raising() -> Iterator[None]:
    """Hydra raises what goes wrong, where it would otherwise print it at length and end the process."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _launcher_failed(command: Command, folder: Path, error: Exception) -> None:
    """One job of a sweep could not be started or ended in order. The others continue, and are waited for."""
    code = unexpected(command, error, f"\n  what the jobs wrote: {shown(folder / '.submitit')}")
    command.code = max(command.code, code)
    sweep.wait(folder)


def _conclude(command: Command, folder: Path) -> None:
    """The end of a sweep: a table over its seeds, and one line for each job that is not finished."""
    if command.code > 128:
        again = shlex.join([command.name, *sys.argv[1:]])
        say(command, f"the sweep was interrupted; to go on with what is missing:  {again}")
        if (folder / ".submitit").exists():
            say(command, "jobs that a launcher has started go on; scancel ends those in Slurm")
        return
    jobs, table = sweep_table.conclude(folder)
    if table:
        print(f"\n{table}", file=sys.stderr, flush=True)
    own = sweep.distinct([job.overrides for job in jobs])
    left = [(job, " ".join(words)) for job, words in zip(jobs, own, strict=True) if job.status != "finished"]
    command.code = max(command.code, int(bool(left)))
    total = f"{len(jobs)} job{'' if len(jobs) == 1 else 's'}"
    counted = f"{len(left)} of {total} did not finish" if left else f"{total} finished"
    lines = [f"  {job.folder.name}{f' ({words})' if words else ''} {job.status}: {job.reason}" for job, words in left]
    say(command, "\n".join([f"{counted}; {shown(folder / 'sweep.md')}", *lines]))


def _run(command: Command, cfg: DictConfig) -> int:
    """One job; returns its exit code. Every kind of end leaves the folder in a state that can be resumed."""
    settings = HydraConfig.get()
    folder = Path(shown(Path(settings.runtime.output_dir)))
    task = slurm.task()
    if task is not None and task.rank:
        slurm.follow(task, command.primary, folder)
        return 0
    try:
        with claim(folder):
            return _work(command, cfg, folder, settings, task)
    except (FolderInUse, foreign.Foreign) as error:
        return refused(command, error)
    finally:
        if task is not None:
            slurm.say(task, slurm.STOP)  # unless they were let go


def _work(command: Command, cfg: DictConfig, folder: Path, settings: DictConfig, task: slurm.SlurmTask | None) -> int:
    """Calls the function of the command (table.py), in this process or in as many as the hardware names."""
    single = settings.mode is None or settings.mode.name == "RUN"
    try:
        if smoke.shrink(cfg, settings.runtime.choices, settings.overrides.task) and not launch.rank():
            files.write_text(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(cfg))  # what resume=auto looks for
        if not single:
            check_again(cfg, settings)
        advice = "another hydra.run.dir" if command.sweep is None else "a new hydra.sweep.dir"
        foreign.refuse(folder, OmegaConf.to_container(cfg, resolve=True), advice=advice, longer=command.sweep is None)
        if command.sweep is not None and resume.finished(folder):
            say(command, f"{folder.name} is finished already")
            return 0
        if single and command.primary != "eval" and not launch.rank():
            record.link_latest(folder)
        if task is not None:
            slurm.lead(task, command.primary, cfg, folder)
        elif (count := launch.processes(cfg)) > 1:
            launch.run(command.primary, cfg, folder, count)
        else:
            (command.work or work_of(command.primary))(cfg, folder)
        return 0
    except foreign.Foreign:
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        code = signals.code(error)
        if code is None:
            raise
        return interrupted(command, folder, code)
    except Exception as error:
        return failed(command, folder, settings.job.name, error)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Holds a run folder for this process; FolderInUse where another process works in it.

    Of several processes of a run, started by torchrun or Slurm, the first holds it for all.
    """
    if launch.rank():
        folder.mkdir(parents=True, exist_ok=True)
        yield
        return
    try:
        with lock.hold(folder):
            yield
    except lock.InUse:
        raise FolderInUse(f"{shown(folder)} is in use by another process; wait for it or end it") from None
