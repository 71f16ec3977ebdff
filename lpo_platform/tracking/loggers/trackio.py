"""Trackio: a dashboard on this machine, `trackio show --project <project>`."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lpo_platform.methods.histograms import Histogram
from lpo_platform.tracking.loggers.service import About, RunLogger
from lpo_platform.tracking.loggers.wandb import run_id, shareable


class TrackioRun(RunLogger):
    """Curves, pictures, histograms and tables."""

    service: ClassVar[str] = "Trackio"

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def version(self) -> str:
        return ""

    def write(self, metrics: Mapping[str, Any], step: int | None) -> None:
        self.run.log(dict(metrics), step=step)

    def pictures(self, key: str, pictures: Sequence[Any], captions: Sequence[str], step: int | None = None) -> None:
        import trackio

        for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            name = key if len(pictures) == 1 else f"{key}/{number}"
            self.log_metrics({name: trackio.Image(picture, caption=caption)}, step)

    def log_histograms(self, found: Mapping[str, Histogram], step: int) -> None:
        import trackio

        bars = {n: trackio.Histogram(np_histogram=(np.nan_to_num(h.values), h.edges)) for n, h in found.items()}
        self.log_metrics(bars, step)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int | None = None) -> None:
        import trackio
        from PIL.Image import Image

        data = [[trackio.Image(cell) if isinstance(cell, Image) else cell for cell in row] for row in rows]
        self.log_metrics({key: trackio.Table(columns=list(columns), data=data)}, step)

    def end(self, failed: bool) -> None:
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.finish()


@dataclass(frozen=True)
class Trackio:
    """project: its name; space: a Hugging Face Space that shows it to others, null to stay on this machine."""

    name: ClassVar[str] = "Trackio"
    project: str
    space: str | None = None

    def open(self, folder: Path, about: About) -> TrackioRun:
        import trackio

        with redirect_stdout(io.StringIO()):
            run = trackio.init(
                project=self.project, name=f"{about.name}-{run_id(folder)}", group=about.group, space_id=self.space,
                config=shareable(about.config), resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
        return TrackioRun(run)
