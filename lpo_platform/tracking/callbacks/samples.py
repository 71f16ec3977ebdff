"""Pictures while training: condition | output | re-detected condition, the same items and noise every time."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lpo_platform.data.picture_files import grid, save_png, to_pil
from lpo_platform.data.source import Data, first
from lpo_platform.evaluation.evaluator import Evaluator
from lpo_platform.tasks.task import Task
from lpo_platform.tracking.callbacks.sentinel import Sentinel
from lpo_platform.tracking.loggers.service import RunLogger


class Samples(Callback):
    """Draws held-out items at the end of every n-th round and of the last; the first `count` go to folder/step-*.png.

    A sentinel looks at the same pictures, at as many as it asks for, and at those of the start. Every process draws
    them, as the forwards of a sharded model are collective, and the first one keeps them.
    """

    def __init__(
        self,
        folder: Path,
        data: Data,
        task: Task | None,
        evaluator: Evaluator,
        count: int,
        rounds: int,
        sentinel: Sentinel | None = None,
    ) -> None:
        self.folder, self.data, self.task, self.evaluator = Path(folder), data, task, evaluator
        self.count, self.rounds, self.sentinel = count, rounds, sentinel

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.sentinel is not None and not self.sentinel.start:
            self.draw(trainer, module)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.rounds == 0 or trainer.current_epoch + 1 == trainer.max_epochs:
            self.draw(trainer, module)

    def draw(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        watched = 0 if self.sentinel is None else self.sentinel.items
        samples = first(self.data.test, max(self.count, watched))
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            module.policy.eval()
            drawn = self.evaluator.draw(module.policy, samples, self.task)
            if self.sentinel is not None:
                self.sentinel.evaluate(trainer, module, samples, drawn)
            module.policy.train()
        if trainer.is_global_zero and self.count:
            rows = [row[: self.count] for row in (drawn.control, drawn.images, drawn.detected) if row is not None]
            sheet = grid(rows)
            save_png(sheet, self.folder / f"step-{trainer.global_step:06d}.png")
            for logger in trainer.loggers:
                if isinstance(logger, RunLogger):
                    logger.pictures("samples", [to_pil(sheet)], [" | ".join(s.caption for s in samples[: self.count])],
                                    max(0, trainer.global_step - 1))  # fmt: skip
