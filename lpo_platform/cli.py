"""The commands lpo-train, -eval, -prepare, -score, -doctor, -plan: a check of the command line, Hydra, then the job.

Nothing heavy is imported before the check has passed: help, completion and a wrong command line take about a second.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lpo_platform import launch, record, slurm, sweep
from lpo_platform.config import CONF, ConfigError, UserError, check, diagnose, run_folder, several, users

if TYPE_CHECKING:
    from omegaconf import DictConfig

Work = Callable[["DictConfig", Path], object]
log = logging.getLogger(__name__)


@dataclass
class Command:
    """One console command; `code` is the exit status, the worst of its jobs; `sweep` the folder of several jobs."""

    name: str
    primary: str
    work: Work
    code: int = 0
    sweep: Path | None = None


def train() -> None:
    """Console command lpo-train."""
    _main(Command("lpo-train", "train", _train))


def evaluate() -> None:
    """Console command lpo-eval."""
    _main(Command("lpo-eval", "eval", _evaluate))


def prepare() -> None:
    """Console command lpo-prepare."""
    _main(Command("lpo-prepare", "prepare", _prepare))


def score() -> None:
    """Console command lpo-score."""
    _main(Command("lpo-score", "score", _score))


def doctor() -> None:
    """Console command lpo-doctor."""
    _examine("lpo-doctor", _doctor)


def plan() -> None:
    """Console command lpo-plan."""
    _examine("lpo-plan", _plan)


def _train(cfg: DictConfig, folder: Path) -> object:
    from lpo_platform import build

    return build.train(cfg, folder)


def _evaluate(cfg: DictConfig, folder: Path) -> object:
    from lpo_platform.evaluation import command

    return command.evaluate(cfg, folder)


def _prepare(cfg: DictConfig, folder: Path) -> object:
    from lpo_platform import build

    return build.prepare(cfg, folder)


def _score(cfg: DictConfig, folder: Path) -> object:
    from lpo_platform.score import score

    return score(cfg, folder)


def _doctor(words: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="lpo-doctor-") as name:
        folder, cfg = Path(name), _composed("lpo-doctor", words)
        if (count := launch.processes(cfg)) > 1:
            launch.run("doctor", cfg, folder, count)
        else:
            from lpo_platform.doctor.examine import doctor

            doctor(cfg, folder)
        return int((folder / "failed").exists())


def _plan(words: list[str]) -> int:
    from lpo_platform.plan.settings import settings_of

    settings, words = settings_of(words)
    cfg = _composed("lpo-plan", words, absent=True)
    from lpo_platform.plan.plan import plan, text

    print(text(plan(cfg, settings)))
    return 0


def _examine(name: str, work: Callable[[list[str]], int]) -> None:
    """A command that looks at what lpo-train would do, with its command line and without a run folder."""
    set_threads()
    command = Command(name, "train", lambda *_: None)
    try:
        sys.exit(work(sys.argv[1:]))
    except (UserError, OSError) as error:
        sys.exit(_failed_early(command, error))
    except KeyboardInterrupt:
        sys.exit(130)
    except launch.ProcessFailed as error:
        say(command, f"{error}\n{error.story}".rstrip())
        sys.exit(1)


def _composed(name: str, words: list[str], *, absent: bool = False) -> DictConfig:
    """The configuration that lpo-train would run; prints the help where that is asked for. absent: as in _ready."""
    from lpo_platform.compose import help_text, hydra_settings

    line = _parse(words)
    if line.helps:
        print(help_text("train", line.config_dirs, words=name.removeprefix("lpo-")))
        sys.exit()
    if line.shows or line.passes:
        raise UserError(f"{shlex.join(line.flags)}: a flag of lpo-train; {name} has --help and --config-dir")
    if {"-m", "--multirun"} & {*line.flags} or line.value("sweep") is not None:
        raise UserError("one configuration at a time; leave -m and sweep= out")
    line.multirun = False  # hardware=slurm is one job here
    _ready(Command(name, "train", lambda *_: None), words, line, absent=absent)
    conf = CONF if line.config_path is None else Path(line.config_path).resolve()
    cfg = hydra_settings(line.config_name or "train", line.overrides, line.config_dirs, conf)
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


def _main(command: Command) -> None:
    set_threads()
    try:
        line = _parse(sys.argv[1:])
        if line.helps:
            from lpo_platform.compose import help_text

            print(help_text(command.primary, line.config_dirs))
            return
        sys.argv[1:] = _ready(command, sys.argv[1:], line)
    except (UserError, OSError) as error:
        sys.exit(_failed_early(command, error))
    except KeyboardInterrupt:
        sys.exit(130)
    _hydra(command)
    sys.exit(command.code)


def set_threads() -> None:
    """Lets idle OpenMP threads sleep: on a shared machine spinning ones make torch tens of times slower.

    Must run before torch is imported; what the user has set stays.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _hydra(command: Command) -> None:
    import hydra

    words = list(sys.argv)

    def job(cfg: DictConfig) -> float | None:
        """The number that a sweeper improves, if it is of that kind."""
        sys.argv[:] = words  # a launcher's own process has others
        command.code = max(command.code, _run(command, cfg))
        if command.code == 130:
            # An interrupt ends a whole sweep.
            sys.exit(130)
        settings = HydraConfig.get()
        if command.sweep is None or "direction" not in settings.sweeper:
            return None
        return sweep.objective(Path(settings.runtime.output_dir), str(settings.sweeper.direction))

    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=command.primary)(job)
    if command.sweep is None:
        try:
            with _raising():
                main()
        except KeyboardInterrupt:
            command.code = 130
        except Exception as error:  # Hydra makes the folder and its log before the job begins
            command.code = _failed_early(command, error)
        return
    with claim(command.sweep):
        try:
            with _raising():
                main()
        except KeyboardInterrupt:
            command.code = 130
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
    """One job that could not even end in order; the others go on and are waited for."""
    code = _unexpected(command, error, f"\n  what the jobs wrote: {shown(folder / '.submitit')}")
    command.code = max(command.code, code)
    sweep.wait(folder)


def _conclude(command: Command, folder: Path) -> None:
    """The end of a sweep: a table over its seeds, and one line for each job that is not finished."""
    if command.code == 130:
        again = shlex.join([command.name, *sys.argv[1:]])
        say(command, f"the sweep was interrupted; to go on with what is missing:  {again}")
        if (folder / ".submitit").exists():
            say(command, "jobs that a launcher has started go on; scancel ends those in Slurm")
        return
    jobs, table = sweep.conclude(folder)
    if table:
        print(f"\n{table}", file=sys.stderr, flush=True)
    own = sweep.distinct([job.overrides for job in jobs])
    left = [(job, " ".join(words)) for job, words in zip(jobs, own, strict=True) if job.status != "finished"]
    command.code = max(command.code, int(bool(left)))
    total = f"{len(jobs)} job{'' if len(jobs) == 1 else 's'}"
    counted = f"{len(left)} of {total} did not finish" if left else f"{total} finished"
    lines = [f"  {job.folder.name}{f' ({words})' if words else ''} {job.status}: {job.reason}" for job, words in left]
    say(command, "\n".join([f"{counted}; {shown(folder / 'sweep.md')}", *lines]))


@dataclass
class Line:
    """What a command line asks of Hydra: flags as they are, and overrides."""

    flags: list[str]
    overrides: list[str]
    config_dirs: list[str]
    config_path: str | None
    config_name: str | None
    multirun: bool
    shows: bool
    passes: bool
    helps: bool

    def value(self, key: str) -> str | None:
        """The last `key=value` among the overrides; None where there is none or it is null."""
        found = [value for name, value in map(_split, self.overrides) if name == key]
        return None if not found or found[-1] == "null" else found[-1].strip("'\"")


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _parse(arguments: Sequence[str]) -> Line:
    from hydra._internal.utils import get_args_parser

    args = get_args_parser().parse_intermixed_args(list(arguments))
    left = list(args.overrides)
    flags = [word for word in arguments if word not in left]
    return Line(
        flags=flags,
        overrides=left,
        config_dirs=[args.config_dir] if args.config_dir else [],
        config_path=args.config_path,
        config_name=args.config_name,
        multirun=args.multirun or any(several(*_split(item)) for item in left),
        shows=bool(args.cfg or args.info),
        helps=bool(args.help),
        passes=bool(args.hydra_help or args.shell_completion or args.experimental_rerun),
    )


ABSENT = re.compile(r": (no such (file|folder)|required by (control|data|reward)=)")


def _ready(command: Command, arguments: list[str], line: Line, *, absent: bool = False) -> list[str]:
    """The arguments for Hydra; raises ConfigError with every problem of the command line.

    absent: whether data and weights may be missing or not named yet.
    """
    sys.path.append(str(Path.cwd()))
    _look_in(line.config_dirs)
    if line.passes:
        return arguments
    if command.primary == "eval" and line.value("run") is not None and line.value("what") is None:
        line.overrides.append("what=run")
    problems = [] if line.shows else _continue(line)
    conf, primary = CONF, line.config_name or command.primary
    if line.config_path is not None:
        conf = Path(line.config_path).resolve()
        _again(command, line, conf)
    problems += diagnose(
        primary, line.overrides, line.config_dirs, conf=conf, multirun=line.multirun, values=not line.shows
    )
    problems = [problem for problem in problems if not (absent and ABSENT.search(problem))]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    if not line.shows and conf == CONF:
        _settle(command, line, primary)
    if line.multirun and not line.shows and command.primary in ("train", "eval"):
        _settle_sweep(command, line, primary, conf)
    return [*line.flags, *line.overrides]


def _look_in(config_dirs: Sequence[str]) -> None:
    """A user's own classes may lie beside the --config-dir (or where the command is called)."""
    sys.path += [str(Path(folder).resolve().parent) for folder in config_dirs]


def _settle(command: Command, line: Line, primary: str) -> None:
    """What stands for a folder becomes that folder: `resume=auto`, and `run=` of an experiment's latest run."""
    from lpo_platform import resume

    run = line.value("run")
    if command.primary == "eval" and run is not None and not line.multirun and (folder := run_folder(run)):
        line.overrides = [item for item in line.overrides if _split(item)[0] != "run"]
        line.overrides.append(f"run={quote(folder)}")
    if command.primary == "train" and line.value("resume") == "auto" and line.value("hydra.run.dir") is None:
        found = resume.newest(primary, line.overrides, line.config_dirs)
        say(command, "nothing to resume: a new run" if found is None else f"resuming {shown(found)}")
        if found is not None:
            line.overrides.append(f"hydra.run.dir={quote(found)}")


def _settle_sweep(command: Command, line: Line, primary: str, conf: Path) -> None:
    """The sweep's folder becomes a literal one, which this process, its jobs and their children agree on."""
    from lpo_platform.compose import hydra_settings

    if "LOCAL_RANK" in os.environ:
        raise UserError(
            "a sweep under torchrun would run once in each process; leave torchrun out, hardware=ddp starts it"
        )
    cfg = hydra_settings(primary, line.overrides, line.config_dirs, conf)
    if cfg.hydra.launcher._target_.endswith(".SlurmLauncher") and shutil.which("sbatch") is None:
        raise UserError("Slurm: no sbatch here; submit where Slurm is, or take hydra/launcher=local")
    folder = sweep.folder_of(cfg)
    sweep.begin(folder, line.overrides)
    kept = [item for item in line.overrides if _split(item)[0] != "hydra.sweep.dir"]
    line.overrides = [*kept, f"hydra.sweep.dir={quote(folder)}"]
    command.sweep = folder
    if line.value("hydra/launcher") is not None:
        # the jobs' processes find what this one finds: a clone that is not installed, classes of the user
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    say(command, f"sweep in {shown(folder)}")


def _continue(line: Line) -> list[str]:
    """`resume=<folder>` takes over the command line of that run; what is given now wins."""
    from lpo_platform import resume

    value = line.value("resume")
    if value is None:
        return []
    if line.multirun or value.startswith("["):
        return [f"resume={value}: one run at a time; leave -m and sweep= out"]
    folder = Path(value).expanduser()
    if value == "auto" or not folder.is_dir() or line.value("hydra.run.dir") is not None:
        return []
    folder = folder.resolve()
    problem = resume.problem(folder, [item for item in line.overrides if _split(item)[0] != "resume"])
    if problem is not None:
        return [f"resume={value}: {problem}"]
    given = {_split(item)[0] for item in line.overrides}
    before = [item for item in resume.overrides_of(folder) if _split(item)[0] not in given]
    line.overrides = [*before, *line.overrides, f"hydra.run.dir={quote(folder)}"]
    if not line.config_dirs:
        line.config_dirs = resume.config_dirs_of(folder)
        line.flags += [word for path in line.config_dirs for word in ("--config-dir", path)]
        _look_in(line.config_dirs)
    return []


def _again(command: Command, line: Line, conf: Path) -> None:
    """A run from the resolved.yaml of another: its own folder, our log format, the options that it was made of."""
    from lpo_platform import resume

    choices = resume.choices_of(conf)
    line.flags = [word if word != line.config_path else str(conf) for word in line.flags]
    for flag in ("--config-path=", "-cp="):
        line.flags = [f"{flag}{conf}" if word.startswith(flag) else word for word in line.flags]
    folder = "-".join([choices.get(group) or "again" for group in ("method", "model", "task")])
    if line.value("hydra.run.dir") is None:
        line.overrides.append(f"hydra.run.dir=outputs/{folder}/${{now:%Y-%m-%d_%H-%M-%S}}")
    line.overrides += [
        f"hydra.searchpath=[{quote(f'file://{CONF}')}]",
        "hydra/job_logging=run",
        "hydra/hydra_logging=none",
        f"hydra.job.name={command.primary}",
        *(f"++hydra.runtime.choices.{group}={option}" for group, option in choices.items()),
    ]


def quote(value: object) -> str:
    """A value as Hydra's grammar takes it, whatever characters a path has."""
    text = str(value)
    if re.fullmatch(r"[\w./-]+", text):
        return text
    return '"' + re.sub(r'(\\*)"', r'\1\1\\"', text) + '"'


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
    except (Taken, sweep.Foreign) as error:
        return _refuse(command, error)
    finally:
        if task is not None:
            slurm.say(task, slurm.STOP)  # unless they were let go


def _work(command: Command, cfg: DictConfig, folder: Path, settings: DictConfig, task: slurm.Task | None) -> int:
    single = settings.mode is None or settings.mode.name == "RUN"
    try:
        if not single:
            _check_again(cfg, settings)
        if command.sweep is not None and sweep.done(folder, OmegaConf.to_container(cfg, resolve=True)):
            say(command, f"{folder.name} is finished already")
            return 0
        if single and command.primary != "eval" and not launch.rank():
            record.link_latest(folder)
        if task is not None:
            slurm.lead(task, command.primary, cfg, folder)
        elif (count := launch.processes(cfg)) > 1:
            launch.run(command.primary, cfg, folder, count)
        else:
            command.work(cfg, folder)
        return 0
    except sweep.Foreign:
        raise
    except KeyboardInterrupt:
        return _interrupted(command, folder)
    except SystemExit as error:
        # Lightning turns an interrupt into SystemExit(1).
        if isinstance(error.__context__, KeyboardInterrupt):
            return _interrupted(command, folder)
        raise
    except Exception as error:
        return _failed(command, folder, settings.job.name, error)


def _check_again(cfg: DictConfig, settings: DictConfig) -> None:
    choices = {group: option for group, option in settings.runtime.choices.items() if not group.startswith("hydra/")}
    problems = check(cfg, choices, list(settings.overrides.task))
    if problems:
        raise ConfigError(problems)


class Taken(UserError):
    """Another process works in the folder; nothing in it may be touched."""


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Holds a run folder for this process; Taken where another process works in it.

    Of several processes of a run, started by torchrun or Slurm, the first holds it for all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if launch.rank():
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Taken(f"{shown(folder)} is in use by another process; wait for it or end it") from None
        yield


def _interrupted(command: Command, folder: Path) -> int:
    again = f"{command.name} resume={quote(shown(folder))}"
    if command.primary != "train":
        again = shlex.join([command.name, *sys.argv[1:]])
    print(f"\n{command.name}: interrupted; to go on:  {again}", file=sys.stderr, flush=True)
    return 130


def _failed(command: Command, folder: Path, name: str, error: Exception) -> int:
    """2 for what the user can put right, 1 for everything else, whose traceback goes to the log."""
    cause = users(error)
    debug = os.environ.get("LPO_DEBUG", "") not in ("", "0")
    whole = "".join(traceback.format_exception(error))
    if debug:
        print(whole, file=sys.stderr)
    if isinstance(cause, UserError):
        _note(folder, name, str(cause), str(cause))
        return _refuse(command, cause)
    last = traceback.format_exception_only(cause)[-1].strip()
    if isinstance(cause, launch.ProcessFailed):
        whole, last = cause.story or str(cause), str(cause)
    _note(folder, name, whole, last)
    more = "" if debug else " (LPO_DEBUG=1 shows it)"
    say(command, f"{last}\n  the whole story: {shown(folder / f'{name}.log')}{more}")
    return 1


def _note(folder: Path, name: str, text: str, reason: str) -> None:
    """Puts the end of a run on record, in its log and in result.json."""
    if launch.rank():
        return
    try:
        with (folder / f"{name}.log").open("a", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")
        if name in ("train", "eval") or (folder / "result.json").exists():
            record.fail(folder, reason)
    except OSError:
        log.warning("the end of the run could not be written to %s", folder)


def _failed_early(command: Command, error: Exception) -> int:
    """Before there is a folder that could hold the story."""
    cause = users(error)
    if isinstance(cause, UserError):
        return _refuse(command, cause)
    return _unexpected(command, error)


def _unexpected(command: Command, error: Exception, more: str = "") -> int:
    words = [line for line in str(error).splitlines() if line.strip()] or [""]
    say(command, f"{type(error).__name__}: {words[0]}{more}")
    if os.environ.get("LPO_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    return 1


def _refuse(command: Command, error: UserError) -> int:
    if isinstance(error, ConfigError):
        count = len(error.problems)
        lines = [f"{count} problem{'s' if count > 1 else ''}", *(f"  {line}" for line in error.problems)]
        say(command, "\n".join(lines))
    else:
        say(command, str(error))
    return 2


def say(command: Command, text: str) -> None:
    print(f"{command.name}: {text}", file=sys.stderr, flush=True)


def shown(folder: Path) -> str:
    """A path as a person would type it: relative where it lies below the current directory."""
    return os.path.relpath(folder) if Path(folder).resolve().is_relative_to(Path.cwd()) else str(folder)
