"""Which unfinished run a command continues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lpo_platform.config import stored
from lpo_platform.config.compose import Values, compose
from lpo_platform.config.schema import CONF
from lpo_platform.runs import files, foreign
from lpo_platform.runs.lock import in_use

OUTPUTS = Path("outputs")


def newest(primary: str, overrides: Sequence[str], config_dirs: Sequence[str]) -> Path | None:
    """The newest unfinished run of this configuration, or None; foreign.py says what may differ."""
    wanted = compose(primary, overrides, config_dirs, CONF)
    choice = wanted.choices
    parent = OUTPUTS / f"{choice.get('method')}-{choice.get('model')}-{choice.get('task')}"
    folders = sorted((path.parent.parent for path in parent.glob("*/.hydra/config.yaml")), reverse=True)
    for folder in folders:
        known = config_of(folder)
        same = known is not None and not foreign.between(known, wanted.values)
        if not folder.is_symlink() and same and not finished(folder) and not in_use(folder):
            return folder.resolve()
    return None


def problem(folder: Path, changes: Sequence[str]) -> str | None:
    """Why a run cannot be continued, or None."""
    if not (folder / ".hydra" / "overrides.yaml").is_file():
        return "not a run folder (it holds no .hydra/overrides.yaml)"
    if in_use(folder):
        return "this run is still going on in another process"
    if finished(folder) and not changes:
        return "this run is finished; leave resume= out for a new one"
    return None


def overrides_of(folder: Path) -> list[str]:
    """The overrides of a run's own command line, without where it was to write, what it resumed, and the sweep.

    A job that Slurm ran goes on here. What a sweep's file had chosen (its method, say) is named in the file's place.
    """
    saved = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
    saved = ["hardware=ddp" if item == "hardware=slurm" else item for item in saved]
    kept = [item for item in saved if not item.lstrip("+~").startswith(("resume=", "sweep=", "hydra.", "hydra/"))]
    if not any(item.startswith("sweep=") for item in saved):
        return kept
    named = {item.partition("=")[0] for item in kept} | {"sweep", "local"}
    chosen = choices_of(folder).items()
    return [f"{group}={option}" for group, option in chosen if group not in named and "@" not in group] + kept


def config_dirs_of(folder: Path) -> list[str]:
    """The --config-dir of a run's command line."""
    path = folder / ".hydra" / "hydra.yaml"
    sources = OmegaConf.load(path).hydra.runtime.config_sources if path.is_file() else []
    return [str(item.path) for item in sources if item.provider == "command-line"]


def command_of(folder: Path) -> str | None:
    """The command whose folder it is: train, eval, prepare or score; None where it is nobody's."""
    path = folder / ".hydra" / "hydra.yaml"
    try:
        return OmegaConf.load(path).hydra.job.name if path.is_file() else None
    except (OSError, ValueError, OmegaConfBaseException):
        return None


def choices_of(folder: Path) -> dict[str, str]:
    """The options that a run was composed of, from its folder or from `.hydra` in it."""
    for path in (folder / ".hydra" / "hydra.yaml", folder / "hydra.yaml"):
        if path.is_file():
            choices = OmegaConf.load(path).hydra.runtime.choices
            return {group: name for group, name in choices.items() if name and not group.startswith("hydra/")}
    return {}


def config_of(folder: Path) -> Values | None:
    """A run's job configuration as it was composed; None where it cannot be read."""
    try:
        return OmegaConf.to_container(stored.load(folder / ".hydra" / "config.yaml"))
    except (OSError, ValueError, OmegaConfBaseException):
        return None


def finished(folder: Path) -> bool:
    result = files.read_json(folder / "result.json")
    return isinstance(result, dict) and result.get("status") == "finished"
