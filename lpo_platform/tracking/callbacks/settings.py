"""What happens around the training steps of a run."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Callbacks:
    """every: optimiser steps in a round, at whose end a checkpoint is written; log_every: steps between two log lines.

    ema_decay: upper limit of the moving average's decay, null for none; evaluate: raw or ema, the weights that the
    final evaluation judges (both are exported); samples: pictures drawn every samples_every rounds, 0 for none;
    sentinel: the arguments of what watches these rounds (sentinel.py), null for nothing.
    """

    every: int = 20
    log_every: int = 1
    ema_decay: float | None = 0.9999
    evaluate: Literal["raw", "ema"] = "ema"
    samples: int = 8
    samples_every: int = 2
    sentinel: Any = None
