"""Weights & Biases as a guest: online with a key, offline without, and never the reason that a run stops."""

import logging
import netrc
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lpo_platform.record import redact_config, write_text

log = logging.getLogger(__name__)

INIT_SECONDS = 20
STEP = "trainer/global_step"


class Guest(WandbLogger):
    """Lightning's logger that gives up with one warning when the service fails in the middle of a run."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.attempt(lambda: WandbLogger.log_metrics(self, metrics, step))

    def attempt(self, action: Callable[[], None]) -> None:
        if getattr(self, "lost", False):
            return
        try:
            action()
        except Exception as error:  # any failure of a guest is survivable
            self.lost = True
            log.warning("W&B stopped logging (%s); metrics.csv and metrics.jsonl go on.", _first_line(error))

    def log_hyperparams(self, params: Any) -> None:
        """Nothing: the configuration was given once, when the run started."""


def connect(
    folder: str | Path,
    *,
    project: str,
    name: str,
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> Guest | None:
    """Starts (or, by the id in the run folder, continues) a W&B run that writes below `folder`.

    None, with one line of warning at most, if W&B is switched off, missing or does not answer; None on other
    ranks.
    """
    mode = choose_mode(os.environ)
    if mode == "disabled" or rank_zero_only.rank != 0:
        return None
    folder = Path(folder)
    identifier = run_id(folder)
    arguments = {
        "project": project,
        "name": name,
        "group": group,
        "job_type": job_type,
        "id": identifier,
        "entity": entity,
    }
    try:
        run = _init(folder, mode=mode, config=redact_config(config or {}), tags=list(tags), **arguments)
        _define_axes(run)
        return Guest(experiment=run, save_dir=str(folder), log_model=False, **arguments)
    except (Exception, SystemExit) as error:
        log.warning("W&B is not used (%s); metrics.csv and metrics.jsonl hold everything.", _first_line(error))
        return None


def choose_mode(environ: Mapping[str, str]) -> str:
    """ "online", "offline" or "disabled": what WANDB_MODE asks for, but online only with a key."""
    asked = environ.get("WANDB_MODE", "").lower()
    if asked == "disabled" or environ.get("WANDB_DISABLED", "").lower() in {"1", "true", "yes"}:
        return "disabled"
    return "online" if asked in {"", "online", "run", "shared"} and has_key(environ) else "offline"


def has_key(environ: Mapping[str, str]) -> bool:
    """Whether W&B finds credentials without asking: an environment variable or an entry in the netrc file."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    home = Path(environ.get("HOME") or Path.home())
    files = [environ["NETRC"]] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]
    return any(_netrc_has(Path(file).expanduser(), host) for file in files)


def run_id(folder: Path) -> str:
    """The id of this run at W&B: read from the folder, made and written there at the first start."""
    file = Path(folder) / "wandb-id"
    if file.is_file() and (known := file.read_text().strip()):
        return known
    Path(folder).mkdir(parents=True, exist_ok=True)
    made = uuid.uuid4().hex[:8]
    write_text(file, made + "\n")
    return made


def log_images(
    logger: Guest | None, key: str, images: Sequence[Any], captions: Sequence[str], step: int | None = None
) -> None:
    """Logs pictures (PIL, array or path) with captions; without a run it does nothing."""
    if logger is not None and rank_zero_only.rank == 0:
        logger.attempt(lambda: logger.log_image(key, list(images), step=step, caption=list(captions)))


def log_table(
    logger: Guest | None,
    key: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    step: int | None = None,
) -> None:
    """Logs a table; without a run it does nothing."""
    if logger is not None and rank_zero_only.rank == 0:
        data = [list(row) for row in rows]
        logger.attempt(lambda: logger.log_table(key, columns=list(columns), data=data, step=step))


def finish(logger: Guest | None, *, failed: bool = False) -> None:
    """Ends the run at the end of a job, so that the next job of a sweep starts its own."""
    if logger is not None and rank_zero_only.rank == 0:
        logger.lost = False
        logger.attempt(lambda: logger.experiment.finish(exit_code=int(failed)))


def _init(folder: Path, *, mode: str, **arguments: Any) -> Any:
    import wandb

    if wandb.run is not None:  # left over from an interrupted job of the same process
        wandb.run.finish()
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_SECONDS,
        x_disable_machine_info=True,
        host="",
        save_code=False,
    )
    wandb.setup(settings=settings)  # before init, or the login speaks up
    return wandb.init(dir=str(folder), mode=mode, resume="allow", settings=settings, **arguments)


def _define_axes(run: Any) -> None:
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    run.define_metric("reward/mean", step_metric=STEP, summary="max")


def _netrc_has(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
