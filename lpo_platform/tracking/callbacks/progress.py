"""One bar for the whole training, with time left, instead of one per epoch."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class Progress(ProgressBar):
    """Counts optimiser steps of the run, or rounds; a resumed run starts where it stopped."""

    def __init__(self, title: str, steps: int, *, rounds: bool = False) -> None:
        super().__init__()
        self.title, self.steps, self.rounds, self.bar = title, steps, rounds, None
        self.shown = True

    def disable(self) -> None:
        """Lightning asks for this on all processes but the first."""
        self.shown = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        unit, done = ("round", trainer.current_epoch) if self.rounds else ("step", trainer.global_step)
        self.bar = tqdm(total=self.steps, initial=done, desc=self.title, unit=unit, disable=not self.shown)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        done = trainer.global_step - self.bar.n
        if done and not self.rounds:
            self.bar.update(done)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.rounds:
            self.bar.update()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()
