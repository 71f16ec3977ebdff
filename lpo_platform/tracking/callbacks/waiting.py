"""How long a training waits for its data."""

import time

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lpo_platform.data.prepared.rows import Rows

SHARE = "perf/waiting_for_data"


class Waiting(Callback):
    """Logs the share of each round in which the next rows had not been read yet."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self._started, self._before = rows, 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._started, self._before = time.perf_counter(), self.rows.waited

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        share = (self.rows.waited - self._before) / (time.perf_counter() - self._started)
        module.log(SHARE, torch.tensor(share))  # on the CPU: Lightning would wait to move a float
