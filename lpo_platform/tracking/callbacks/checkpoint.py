"""Checkpoints that survive a kill: written under another name, then renamed. The last two are kept."""

import logging
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lpo_platform.config.errors import UserError
from lpo_platform.hardware.distributed import lead
from lpo_platform.runs import signals

log = logging.getLogger(__name__)


class Checkpoint(Callback):
    """Saves at the end of every n-th epoch and of the last, also where that comes early.

    The first Ctrl-C finishes the step in hand and stops, the second aborts it; of several processes, which may be in
    different steps, the first aborts it.
    """

    def __init__(self, folder: Path, every: int = 1, keep: int = 2) -> None:
        self.folder, self.every, self.keep, self.interrupted = Path(folder), every, keep, False
        self._previous_handler: Any = None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.world_size == 1:
            self._previous_handler = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        signals.take_back()  # Lightning's handler of SIGTERM waits for the other processes and ends with success

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.world_size == 1:
            signal.signal(signal.SIGINT, self._previous_handler or signal.default_int_handler)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.on_fit_end(trainer, module)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        done = trainer.current_epoch + 1
        if done % self.every and done < trainer.max_epochs and not trainer.should_stop:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"step={trainer.global_step:08d}.ckpt"
        temporary = final.with_suffix(".tmp")
        trainer.save_checkpoint(temporary, weights_only=False)  # every process gathers, the first one writes
        if not trainer.is_global_zero:
            return
        os.replace(temporary, final)
        for old in checkpoints(self.folder)[: -self.keep]:
            old.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    return sorted(folder.glob("step=*.ckpt"))


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that can be read whole; a broken one is passed over with a warning.

    UserError where there are checkpoints and none can be read.
    """
    found, broken = checkpoints(folder), []
    for file in reversed(found):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            if not any(name.startswith("policy.") for name in content["state_dict"]):
                raise ValueError("it holds no policy")
        except Exception as error:  # of a torn archive, torch raises many types
            broken.append(f"{file}: not a readable checkpoint of this platform ({str(error).partition(chr(10))[0]})")
            continue
        for problem in broken if lead() else ():
            log.warning("%s; the run goes on from %s", problem, file.name)
        return file
    if broken:
        raise UserError("\n  ".join([*broken, f"delete {folder} to start again"]))
    return None
