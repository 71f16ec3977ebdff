"""Checks a command line and turns it into the arguments of Hydra. Every problem is found before anything starts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lpo_platform.commands.listing import listing
from lpo_platform.commands.terminal import VERSION, Command, say, shown
from lpo_platform.config import own_modules, stored
from lpo_platform.config.check import check
from lpo_platform.config.compose import several
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import ConfigError, UserError
from lpo_platform.config.paths import expanded, run_folder, runs_named
from lpo_platform.config.schema import CONF
from lpo_platform.config.synonyms import KEYS
from lpo_platform.runs import sweep

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from omegaconf import DictConfig


@dataclass
class Line:
    """A parsed command line: flags of Hydra, and overrides."""

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


def parse_line(arguments: Sequence[str]) -> Line:
    from hydra._internal.utils import get_args_parser

    if "--version" in arguments:
        print(VERSION)
        sys.exit()
    parser = get_args_parser()
    parser.add_argument("--list")
    parser.error = _refuse_flag
    _known_flags(parser, arguments)
    args = parser.parse_intermixed_args(list(arguments))
    if args.list is not None:
        print(listing(args.list, [Path(args.config_dir)] if args.config_dir else []))
        sys.exit()
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


def _refuse_flag(message: str) -> NoReturn:
    raise UserError(f"{message}; --help shows what works")


def _known_flags(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """UserError for an option that is written as a flag."""
    known = [flag for action in parser._actions for flag in action.option_strings]
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        if re.fullmatch(r"--\w[\w.-]*", flag) and not any(name.startswith(flag) for name in known):
            value = value or ("<value>" if not following or "=" in following or following[0] == "-" else following)
            key = flag.removeprefix("--").replace("-", "_")
            key = KEYS.get(key, (key,))[0]
            raise UserError(f"unknown flag {flag}; options are written {key}={value}")


ABSENT = re.compile(r": (no such (file|folder)|required by (control|data|reward)=)")


def checked_words(command: Command, arguments: list[str], line: Line, *, absent: bool = False) -> list[str]:
    """The arguments for Hydra; raises ConfigError with every problem of the command line.

    absent: whether data and weights may be missing or not named yet.
    """
    own_modules.look_in(line.config_dirs)
    if line.passes:
        return arguments
    if command.primary == "eval":
        named = zip(line.overrides, runs_named(line.overrides), strict=True)
        line.overrides = [word if word == run else f"run={quote(word)}" for word, run in named]
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
    if not line.multirun and not line.shows:
        _look_into_folder(command, line, primary, conf)
    if line.multirun and not line.shows and command.primary in ("train", "eval"):
        _settle_sweep(command, line, primary, conf)
    return [*line.flags, *line.overrides]


def say_problems(command: Command, line: Line) -> None:
    """Prints the problems of a configuration that was shown (--cfg) and not run."""
    conf = CONF if line.config_path is None else Path(line.config_path).resolve()
    primary = line.config_name or command.primary
    problems = diagnose(primary, line.overrides, line.config_dirs, conf=conf, multirun=line.multirun)
    if problems:
        say(command, "\n  ".join(["what is shown would not run:", *problems]))


def _settle(command: Command, line: Line, primary: str) -> None:
    """Replaces what stands for a folder by that folder: `resume=auto`, and `run=` of an experiment's latest run."""
    from lpo_platform.runs import resume

    run = line.value("run")
    if command.primary == "eval" and run is not None and not line.multirun and (folder := run_folder(run)):
        line.overrides = [item for item in line.overrides if _split(item)[0] != "run"]
        line.overrides.append(f"run={quote(folder)}")
    if command.primary == "train" and line.value("resume") == "auto" and line.value("hydra.run.dir") is None:
        found = resume.newest(primary, line.overrides, line.config_dirs)
        say(command, "nothing to resume: a new run" if found is None else f"resuming {shown(found)}")
        if found is not None:
            line.overrides.append(f"hydra.run.dir={quote(found)}")


def _look_into_folder(command: Command, line: Line, primary: str, conf: Path) -> None:
    """Refuses a run folder, named on the command line, of another command or configuration, before Hydra writes there.

    What other files say about the folder, the job itself asks again.
    """
    from lpo_platform.config.compose import compose
    from lpo_platform.runs import foreign, resume

    named = line.value("hydra.run.dir")
    if named is None or "${" in named or not Path(named).is_dir():
        return
    folder = Path(shown(Path(named)))
    held = resume.command_of(folder)
    if held not in (None, command.primary):
        raise UserError(f"{folder} is the folder of an lpo-{held}; what works: another hydra.run.dir")
    values = compose(primary, line.overrides, line.config_dirs, conf).values
    with contextlib.suppress(OmegaConfBaseException):  # it refers to what only Hydra knows
        config = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
        foreign.refuse(folder, config, advice="another hydra.run.dir, or the settings that it has", longer=True)


def _settle_sweep(command: Command, line: Line, primary: str, conf: Path) -> None:
    """The sweep's folder becomes a literal one, which this process, its jobs and their children agree on."""
    from lpo_platform.config.compose import hydra_settings

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
    """`resume=<folder>` repeats the command line of that run. Arguments that are given now replace its own."""
    from lpo_platform.runs import resume

    value = line.value("resume")
    if value is None:
        return []
    if line.multirun or value.startswith("["):
        return [f"resume={value}: one run at a time; leave -m and sweep= out"]
    folder = expanded(value)
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
        own_modules.look_in(line.config_dirs)
    return []


def _again(command: Command, line: Line, conf: Path) -> None:
    """A run from the resolved.yaml of another: its own folder, our log format, the options that it was made of."""
    from lpo_platform.runs import resume

    choices = resume.choices_of(conf)
    own_modules.look_in(resume.config_dirs_of(conf))
    line.flags = [word if word != line.config_path else str(conf) for word in line.flags]
    for flag in ("--config-path=", "-cp="):
        line.flags = [f"{flag}{conf}" if word.startswith(flag) else word for word in line.flags]
    folder = "-".join([choices.get(group) or "again" for group in ("method", "model", "task")])
    if line.value("hydra.run.dir") is None:
        line.overrides.append(f"hydra.run.dir='${{unused_folder:outputs/{folder}/${{now:%Y-%m-%d_%H-%M-%S}}}}'")
    given = {_split(item)[0].partition(".")[0] for item in line.overrides}
    moved = stored.changes_of(conf / f"{line.config_name or command.primary}.yaml")
    line.overrides += [
        f"++{path}={str(value).lower() if value is True else value}"
        for path, value in moved
        if path.partition(".")[0] not in given
    ]
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


def check_again(cfg: DictConfig, settings: DictConfig) -> None:
    choices = {group: option for group, option in settings.runtime.choices.items() if not group.startswith("hydra/")}
    problems = check(cfg, choices, list(settings.overrides.task))
    if problems:
        raise ConfigError(problems)
