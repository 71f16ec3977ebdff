"""How fast a training is: pictures per second, and the share of the device's arithmetic that its models use."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

log = logging.getLogger(__name__)

WAITING = "throughput/waiting_for_data"
PATIENCE = 20.0  # seconds of training after which the seconds that counting takes are worth it


@dataclass(frozen=True)
class Work:
    """What the processes compute together, and can compute.

    Attributes:
        step: FLOPs of an optimiser step.
        round: FLOPs of a round beside its steps: rollouts.
        peak: FLOP/s of all devices.
    """

    step: float
    round: float
    peak: float


class Throughput(L.Callback):
    """Logs once in a round, over its steps and rollouts; drawing, evaluating and saving between rounds do not count.

    It waits for the device once in a round. FLOPs are counted on the meta device, as lpo-plan counts them, and only in
    a training that takes long enough.

    Args:
        step_images: pictures in an optimiser step; 0 for a method that makes its own in rounds.
        round_images: pictures that such a method makes in a round.
        count: counts the work.
        waited: seconds in which the training has waited for its data so far; None where nobody measures that.
    """

    def __init__(
        self, step_images: int, round_images: int, count: Callable[[], Work], waited: Callable[[], float] | None = None
    ) -> None:
        self.step_images, self.round_images, self.count, self.waited = step_images, round_images, count, waited
        self.work: Work | None = None
        self.counted = False
        self.trained = 0.0
        self.end = Resumed(self)

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self.resume(trainer)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.steps = trainer.global_step  # of the checkpoint
        if self.step_images:
            self.resume(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        seconds, steps = time.perf_counter() - self.started, trainer.global_step - self.steps
        self.trained += seconds
        if not trainer.is_global_zero or not steps:
            return
        found = {"throughput/images_per_second": (steps * self.step_images + self.round_images) / seconds}
        if self.waited:
            found[WAITING] = (self.waited() - self.before) / seconds
        if work := self._counted():
            flops = steps * work.step + work.round
            found["throughput/model_flop_utilisation"] = flops / seconds / work.peak
        for logger in trainer.loggers:
            logger.log_metrics(found | {"epoch": trainer.current_epoch}, max(0, trainer.global_step - 1))

    def resume(self, trainer: L.Trainer) -> None:
        """The next round begins."""
        self.started, self.steps = time.perf_counter(), trainer.global_step
        self.before = self.waited() if self.waited else 0.0

    def _counted(self) -> Work | None:
        """The work, counted once; None in a short training and where it cannot be counted."""
        if not self.counted and self.trained >= PATIENCE:
            self.counted = True
            try:
                with torch.random.fork_rng(devices=[]):
                    self.work = self.count()
            except Exception as error:  # an own part that knows no meta device: the training goes on
                log.warning("the FLOPs of a step cannot be counted (%s), so the utilisation is not logged", error)
        return self.work


class Resumed(L.Callback):
    """Stands behind the callbacks whose time does not count."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.throughput.resume(trainer)
