"""What happens around the training steps of a run."""

from dataclasses import dataclass
from typing import Any, Literal

from lpo_platform.config.numbers import Count, Decay, Whole


@dataclass(frozen=True)
class Callbacks:
    """How often a run logs and saves, and what watches it.

    Attributes:
        every: optimiser steps of a round, which ends with a checkpoint. Online methods count rounds instead.
        log_every: optimiser steps between two log lines.
        ema_decay: upper limit of the decay of the moving average of the weights; null for no average.
        evaluate: the weights that the final evaluation takes, `raw` or `ema`. Both are exported.
        samples: pictures drawn every `samples_every` rounds; 0 for none.
        sentinel: the arguments of the guard rails that look at those rounds (sentinel.py); null for none.
    """

    every: Count = 20
    log_every: Count = 1
    ema_decay: Decay | None = 0.9999
    evaluate: Literal["raw", "ema"] = "ema"
    samples: Whole = 8
    samples_every: Count = 2
    sentinel: Any = None
