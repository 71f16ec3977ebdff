"""Weights & Biases: online with a key, offline without."""

import hashlib
import json
import logging
import netrc
import os
import re
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlparse

import numpy as np
from lightning.pytorch.loggers import WandbLogger

from lpo_platform.methods.histograms import Histogram
from lpo_platform.runs.files import write_text
from lpo_platform.runs.record import redact_config
from lpo_platform.tracking.loggers.metrics import AXES, Metric, find, logged_by
from lpo_platform.tracking.loggers.service import About, Artifact, RunLogger, reason

log = logging.getLogger(__name__)

INIT_SECONDS = 20
NAME = 128  # letters of a name that W&B takes
DATA = "WANDB_DATA_DIR"


class WandbRun(RunLogger, WandbLogger):
    """A name is defined with its axis when it is first logged. All of it works offline, too.

    weights: whether artifacts hold the files of models, or what identifies them only. metrics: what the run logs.
    """

    service: ClassVar[str] = "W&B"

    def __init__(
        self, run: Any, folder: Path, metrics: Sequence[Metric], *, weights: bool = False, own_data: bool = False
    ) -> None:
        super().__init__(experiment=run, save_dir=str(folder), log_model=False, id=run.id, project=run.project)
        self.run, self.metrics, self.defined = run, metrics, set(AXES.values())
        self.weights, self.own_data = weights, own_data

    def write(self, metrics: Mapping[str, Any], step: int | None) -> None:
        for name in metrics.keys() - self.defined:
            metric = find(name, self.metrics)
            axis = AXES[metric.axis if metric else "step"]
            self.run.define_metric(name, step_metric=axis, summary=metric and metric.summary)
            self.defined.add(name)
        WandbLogger.log_metrics(self, metrics, step)

    def pictures(self, key: str, pictures: Sequence[Any], captions: Sequence[str], step: int | None = None) -> None:
        import wandb

        shown = [wandb.Image(picture, caption=text) for picture, text in zip(pictures, captions, strict=True)]
        self.log_metrics({key: shown}, step)

    def log_histograms(self, found: Mapping[str, Histogram], step: int) -> None:
        import wandb

        bars = {name: wandb.Histogram(np_histogram=(np.nan_to_num(h.values), h.edges)) for name, h in found.items()}
        self.log_metrics(bars, step)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int | None = None) -> None:
        import wandb
        from PIL.Image import Image

        data = [[wandb.Image(cell) if isinstance(cell, Image) else cell for cell in row] for row in rows]
        self.log_metrics({key: wandb.Table(columns=list(columns), data=data)}, step)

    def used(self, artifact: Artifact) -> None:
        """As run.use_artifact() does it with what is not logged yet, whose identity the service knows by its content.

        That method refuses to work offline, but the record that it makes is valid there and draws the lineage when the
        run is synchronised.
        """
        self.attempt(
            lambda: self.run._log_artifact(self._packed(artifact), is_user_created=True, use_after_commit=True)
        )

    def made(self, artifact: Artifact) -> None:
        self.attempt(lambda: self.run.log_artifact(self._packed(artifact), aliases=list(artifact.aliases) or None))

    def end(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))
        _forget(self.own_data)

    def _packed(self, artifact: Artifact) -> Any:
        import wandb

        packed = wandb.Artifact(artifact_name(artifact.name), artifact.kind, metadata=dict(artifact.metadata))
        with packed.new_file("identity.json") as file:
            json.dump({"digest": artifact.digest}, file)
        for path in artifact.files if self.weights or artifact.kind == "evaluation" else ():
            add = packed.add_dir if path.is_dir() else packed.add_file
            add(str(path.resolve()), name=path.name, policy="immutable", skip_cache=True)
        return packed


@dataclass(frozen=True)
class Wandb:
    """Where W&B files the run; weights: whether the files of models are uploaded, too."""

    name: ClassVar[str] = "W&B"
    project: str
    entity: str | None = None
    weights: bool = False

    def open(self, folder: Path, about: About) -> WandbRun | None:
        """Starts or, by the id in the run folder, continues a run; None if W&B is switched off."""
        mode = choose_mode(os.environ)
        if mode == "disabled":
            return None
        if own := DATA not in os.environ:
            os.environ[DATA] = str(folder / "wandb")  # else what is not uploaded yet lies at home
        try:
            run = _online_or_not(
                folder, mode, project=self.project, entity=self.entity, name=shown(about.name),
                group=shown(about.group), job_type=shown(about.job_type), tags=[shown(tag, 64) for tag in about.tags],
                config=shareable(about.config), id=run_id(folder),
            )  # fmt: skip
        except BaseException:
            _forget(own)
            raise
        for axis in AXES.values():
            run.define_metric(axis)
        method = (about.config.get("method") or {}).get("_target_", "")
        return WandbRun(run, folder, logged_by(method), weights=self.weights, own_data=own)


def _forget(own: bool) -> None:
    """The next job of a sweep has a folder of its own."""
    if own:
        os.environ.pop(DATA, None)


def shareable(config: Any) -> Any:
    """A configuration without secrets and without the name of the home directory."""
    if isinstance(config, Mapping):
        return redact_config({key: shareable(value) for key, value in config.items()})
    if isinstance(config, list | tuple):
        return [shareable(value) for value in config]
    return config.replace(str(Path.home()), "~") if isinstance(config, str) else config


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
    if file.is_file() and (known := file.read_text(encoding="utf-8").strip()):
        return known
    Path(folder).mkdir(parents=True, exist_ok=True)
    made = uuid.uuid4().hex[:8]
    write_text(file, made + "\n")
    return made


def shown(text: str | None, most: int = NAME) -> str | None:
    """A name, a group or, of 64 letters, a tag as W&B takes it: one line, not longer than `most`."""
    return text and (" ".join(text.split())[:most].strip() or None)


def artifact_name(text: str) -> str:
    """A name of letters, digits, `_`, `-` and `.` alone, which is all that W&B takes; letters lose their accents."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-") or "run"
    if len(name) <= NAME:
        return name
    return f"{name[: NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"  # two long ones stay two


def _online_or_not(folder: Path, mode: str, **arguments: Any) -> Any:
    """A run at W&B, or where it is out of reach one on this disk, which `wandb sync` uploads later."""
    try:
        return _init(folder, mode=mode, **arguments)
    except Exception as error:
        if mode != "online":
            raise
        place = folder / "wandb" / "offline-run-*"
        log.warning("W&B cannot be used online (%s); the run is kept here: wandb sync %s", reason(error), place)
        import wandb

        wandb.teardown()  # its service holds the id of the run that it could not start
        return _init(folder, mode="offline", **arguments)


def _init(folder: Path, **arguments: Any) -> Any:
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
    return wandb.init(dir=str(folder), resume="allow", settings=settings, **arguments)


def _netrc_has(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
