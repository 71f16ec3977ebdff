"""TensorBoard: event files in the run folder, `tensorboard --logdir <run>/tensorboard` shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger

from lpo_platform.methods.histograms import Histogram
from lpo_platform.tracking.loggers.service import About, RunLogger


class TensorBoardRun(RunLogger, TensorBoardLogger):
    """Curves, pictures and histograms; of a histogram by timestep the means, as a picture of bars has them."""

    service: ClassVar[str] = "TensorBoard"

    def write(self, metrics: Mapping[str, float], step: int | None) -> None:
        TensorBoardLogger.log_metrics(self, metrics, step)

    def pictures(self, key: str, pictures: Sequence[Any], captions: Sequence[str], step: int | None = None) -> None:
        for number, picture in enumerate(pictures):
            name = key if len(pictures) == 1 else f"{key}/{number}"
            self.attempt(lambda n=name, p=picture: self.experiment.add_image(n, np.asarray(p), step, dataformats="HWC"))

    def log_histograms(self, found: Mapping[str, Histogram], step: int) -> None:
        for name, histogram in found.items():
            self.attempt(lambda n=name, h=histogram: self._add(n, h, step))

    def _add(self, name: str, histogram: Histogram, step: int) -> None:
        """Its own way takes the values themselves; sums over them are read off the middles of the bins."""
        counts, edges = np.nan_to_num(histogram.values), np.asarray(histogram.edges)
        middles = (edges[1:] + edges[:-1]) / 2
        self.experiment.add_histogram_raw(
            name, edges[0], edges[-1], counts.sum(), (counts * middles).sum(), (counts * middles**2).sum(),
            edges[1:].tolist(), counts.tolist(), step,
        )  # fmt: skip

    def end(self, failed: bool) -> None:
        self.finalize("failed" if failed else "success")


@dataclass(frozen=True)
class TensorBoard:
    """Event files in the run folder."""

    name: ClassVar[str] = "TensorBoard"

    def open(self, folder: Path, about: About) -> TensorBoardRun:
        logger = TensorBoardRun(str(folder), name="tensorboard", version="")
        _ = logger.experiment  # a missing package is known now, not at the first step
        return logger
