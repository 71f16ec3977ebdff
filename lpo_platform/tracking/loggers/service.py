"""What shows a run elsewhere than in its folder: a guest, and never the reason that a run stops."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lightning.pytorch.loggers.logger import Logger

from lpo_platform.hardware.distributed import lead
from lpo_platform.methods.histograms import Histogram

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """What a guest is told of a run when it starts; series: what its weights are versions of; config: plain values."""

    name: str
    group: str | None = None
    job_type: str | None = None
    tags: Sequence[str] = ()
    series: str = "run"
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """Something that runs make and use. `digest` of its content is in its name, so that all runs mean the same one."""

    kind: str
    digest: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    aliases: Sequence[str] = ()
    series: str | None = None
    """Versions of one thing have the same; None for one that is named by its digest."""

    @property
    def name(self) -> str:
        return self.series or f"{self.kind}-{self.digest[:12]}"


class Guest(Logger):
    """A logger that gives up with one warning when its service fails in the middle of a run.

    A service does what it can: what it lacks (tables, artifacts) stays the nothing that it is here.
    """

    service: ClassVar[str]
    lost = False

    def attempt(self, action: Callable[[], Any]) -> None:
        if self.lost:
            return
        try:
            action()
        except Exception as error:  # any failure of a guest is survivable
            self.lost = True
            log.warning("%s stopped logging (%s); metrics.csv and metrics.jsonl go on.", self.service, reason(error))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: the configuration was given once, when the run started."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.attempt(lambda: self.write(metrics, step))

    def write(self, metrics: Mapping[str, float], step: int | None) -> None:
        raise NotImplementedError

    def pictures(self, key: str, pictures: Sequence[Any], captions: Sequence[str], step: int | None = None) -> None:
        """PIL pictures."""

    def log_histograms(self, found: Mapping[str, Histogram], step: int) -> None:
        """Those of a round."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int | None = None) -> None:
        """A cell is a number, a text, a PIL picture or None."""

    def used(self, artifact: Artifact) -> None:
        """What this run was made from."""

    def made(self, artifact: Artifact) -> None:
        """What this run leaves."""

    def finish(self, *, failed: bool = False) -> None:
        """Ends the run at the end of a job, so that the next job of a sweep starts its own."""
        self.lost = False
        self.attempt(lambda: self.end(failed))

    def end(self, failed: bool) -> None:
        raise NotImplementedError


class Service(Protocol):
    """An option of the logger group; its fields say where the service files runs."""

    name: ClassVar[str]

    def start(self, folder: Path, about: About) -> Guest | None:
        """A run that writes below `folder`, if anywhere on this machine; None where it is switched off."""
        ...


def invite(service: Service, folder: Path, about: About) -> Guest | None:
    """On the first process a guest; None with one line of warning where there can be none."""
    if not lead():
        return None
    try:
        return service.start(folder, about)
    except (Exception, SystemExit) as error:
        log.warning("%s is not used (%s); metrics.csv and metrics.jsonl hold everything.", service.name, reason(error))
        return None


def reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
