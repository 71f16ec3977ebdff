"""Pictures while training: condition | output | re-detected condition, the same items and noise every time."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lpo_platform.data.source import Data, first
from lpo_platform.evaluation.evaluate import Evaluator
from lpo_platform.evaluation.pictures import grid, save_png, to_pil
from lpo_platform.tasks.task import Task


class Samples(Callback):
    """Draws the first `count` held-out items at the end of every n-th round into folder/step-*.png.

    Every process draws them, as the forwards of a sharded model are collective, and the first one keeps them.
    """

    def __init__(
        self, folder: Path, data: Data, task: Task | None, evaluator: Evaluator, count: int, rounds: int
    ) -> None:
        self.folder, self.data, self.task, self.evaluator = Path(folder), data, task, evaluator
        self.count, self.rounds = count, rounds

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.rounds:
            return
        samples = first(self.data.test, self.count)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            module.policy.eval()
            drawn = self.evaluator.draw(module.policy, samples, self.task)
            module.policy.train()
        if not trainer.is_global_zero:
            return
        rows = [row for row in (drawn.control, drawn.images, drawn.detected) if row is not None]
        save_png(grid(rows), self.folder / f"step-{trainer.global_step:06d}.png")
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("samples", [to_pil(grid(rows))], step=trainer.global_step)
