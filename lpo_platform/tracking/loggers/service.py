"""Loggers that show a run elsewhere than in its folder. A service that fails never stops a run."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lightning.pytorch.loggers.logger import Logger

from lpo_platform.hardware.distributed import lead
from lpo_platform.methods.histograms import Histogram

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """What a service knows of a run when it starts.

    Args:
        name: how the service lists the run.
        group: runs that belong together, as those of a sweep.
        job_type: the method.
        tags: words to search for.
        series: what the weights of the run are versions of.
        config: the configuration as plain values.
    """

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


class RunLogger(Logger):
    """A logger that gives up with one warning when its service fails in the middle of a run.

    A method that a service lacks (tables, artifacts) does nothing.
    """

    service: ClassVar[str]
    lost = False

    def attempt(self, action: Callable[[], Any]) -> None:
        if self.lost:
            return
        try:
            action()
        except Exception as error:  # no failure of a service ends a run
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
        """Logs the histograms of a round."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int | None = None) -> None:
        """A cell is a number, a text, a PIL picture or None."""

    def used(self, artifact: Artifact) -> None:
        """Records an artifact that this run used."""

    def made(self, artifact: Artifact) -> None:
        """Records an artifact that this run made."""

    def finish(self, *, failed: bool = False) -> None:
        """Ends the run at the end of a job, so that the next job of a sweep starts its own."""
        self.lost = False
        self.attempt(lambda: self.end(failed))

    def end(self, failed: bool) -> None:
        raise NotImplementedError


class NoLogger(RunLogger):
    """A logger that does nothing: on all processes but the first, and where there is no service."""

    service = "none"
    name = version = None
    lost = True  # nothing is attempted

    def write(self, metrics: Mapping[str, float], step: int | None) -> None:
        pass

    def end(self, failed: bool) -> None:
        pass


class Service(Protocol):
    """An option of the logger group; its fields say where the service files runs."""

    name: ClassVar[str]

    def open(self, folder: Path, about: About) -> RunLogger | None:
        """A run that writes below `folder`, if anywhere on this machine; None where it is switched off."""
        ...


def open_logger(service: Service, folder: Path, about: About) -> RunLogger | None:
    """A logger on the first process; None with one line of warning where the service cannot be used."""
    if not lead():
        return None
    try:
        return service.open(folder, about)
    except (Exception, SystemExit) as error:
        log.warning("%s is not used (%s); metrics.csv and metrics.jsonl hold everything.", service.name, reason(error))
        return None


def reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def logged(service: Service | None, folder: Path, about: About) -> Iterator[RunLogger]:
    """A logger for the time of a run; the service learns whether the run failed."""
    logger = (open_logger(service, folder, about) if service else None) or NoLogger()
    try:
        yield logger
    except BaseException:
        logger.finish(failed=True)
        raise
    logger.finish()
