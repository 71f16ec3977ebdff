"""Ends a training at its first number that is not finite, before anything that depends on it is saved."""

import logging
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lpo_platform.config.errors import RunFailed
from lpo_platform.hardware.distributed import lead
from lpo_platform.methods.method import Method
from lpo_platform.models.weights import listed, not_finite
from lpo_platform.tracking.callbacks.checkpoint import checkpoints

log = logging.getLogger(__name__)

NORM = "gradient norm"
ROW = 32  # skipped steps one after the other: by then the scale has fallen from 2^16 to 2^-16


class Finite(Callback):
    """Looks at every step's loss and gradient norm, at a round's rewards and, at its end, at the weights.

    A step's numbers travel to the host while the next steps are queued, and are looked at once they have arrived: the
    host waits at the first step and at the end of a round only, where others wait, too. With 16-mixed a step whose
    scaled gradients overflow is skipped, as the scaler has decided; such steps are counted, and ROW of them one after
    the other end the training.

    Args:
        folder: the run folder, whose newest checkpoint a message names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.skipped, self.row, self.started = Path(folder), 0, 0, False
        self.waiting: deque[tuple[int, list[str], Tensor, torch.cuda.Event | None]] = deque()

    def on_train_start(self, trainer: L.Trainer, module: Method) -> None:
        self._weights(trainer, module)

    def on_train_epoch_start(self, trainer: L.Trainer, module: Method) -> None:
        rewards = {name: value for name, value in getattr(module, "round", {}).items() if name.startswith("reward/")}
        self._watch(trainer.global_step + 1, rewards)

    def on_train_batch_end(self, trainer: L.Trainer, module: Method, *_: Any) -> None:
        stepped = NORM in module.watched  # else a micro-batch that only accumulates
        self._watch(trainer.global_step + (not stepped), module.watched)
        module.watched = {}
        self._look(trainer, module, wait=stepped and not self.started)
        self.started = self.started or stepped

    def on_train_epoch_end(self, trainer: L.Trainer, module: Method) -> None:
        self._look(trainer, module, wait=True)
        self._weights(trainer, module)
        if _scaler(trainer) is not None:
            module.log("train/skipped_steps", torch.tensor(float(self.skipped)))

    def on_train_end(self, trainer: L.Trainer, module: Method) -> None:
        if self.skipped and lead():
            log.warning("%d of %d steps were skipped: their gradients overflowed in 16 bits", self.skipped,
                        trainer.global_step)  # fmt: skip

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "row": self.row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped, self.row = state["skipped"], state["row"]

    def _watch(self, step: int, values: dict[str, Tensor]) -> None:
        if values:
            seen = torch.stack([value.detach().float() for value in values.values()])
            host = torch.empty(seen.shape)
            host = (host.pin_memory() if seen.is_cuda else host).copy_(seen, non_blocking=True)
            event = torch.cuda.current_stream(seen.device).record_event() if seen.is_cuda else None
            self.waiting.append((step, list(values), host, event))

    def _look(self, trainer: L.Trainer, module: Method, *, wait: bool) -> None:
        """At what has arrived, or with `wait` at everything."""
        while self.waiting:
            step, names, host, event = self.waiting[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self.waiting.popleft()
            found = dict(zip(names, host.tolist(), strict=True))
            bad = [name for name, fine in zip(names, host.isfinite().tolist(), strict=True) if not fine]
            if bad == [NORM] and _scaler(trainer) is not None:
                self._skip(trainer, module, step)
            elif bad:
                self._end(trainer, module, f"the {bad[0]} is {found[bad[0]]} in step {step} of the training")
            elif NORM in names:
                self.row = 0

    def _skip(self, trainer: L.Trainer, module: Method, step: int) -> None:
        self.skipped, self.row = self.skipped + 1, self.row + 1
        if self.row >= ROW:
            self._end(trainer, module, f"the gradients of {ROW} steps up to step {step} overflow, however scaled")

    def _weights(self, trainer: L.Trainer, module: Method) -> None:
        if names := not_finite({k.removeprefix("learning."): v for k, v in module.policy.trainable().items()}):
            self._end(trainer, module, f"after step {trainer.global_step} {listed({'not finite': names})}")

    def _end(self, trainer: L.Trainer, module: Method, what: str) -> None:
        rate, clip = getattr(module.optim, "lr", None), module.optim.clip
        helps = [f"a lower optim.lr{'' if rate is None else f' than {rate:g}'}"]
        helps += ["optim.clip=1"] if clip is None else []
        helps += [] if trainer.precision_plugin.precision == "32-true" else ["hardware.precision=32-true"]
        helps += ["a look at the data and the reward"]
        kept = checkpoints(self.folder / "checkpoints")
        left = f"{kept[-1].name} is the last good checkpoint" if kept else "no checkpoint was written"
        raise RunFailed(f"{what}, the first number that is not finite; {left}; what helps: {', '.join(helps)}")


def _scaler(trainer: L.Trainer) -> Any:
    """What scales the loss of 16-mixed; None for other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)
