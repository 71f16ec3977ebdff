"""The same run in small: its own model, method and data, on a few samples, for two steps."""

import copy
from typing import Any

import numpy as np
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lpo_platform.data.source import Data
from lpo_platform.runs.files import fingerprint

ROWS = 8
# the learning rate of a recipe, rising from 0, may move no output by more than rounding
RATE = 1e-3


def small(cfg: DictConfig, processes: int) -> DictConfig:
    """Two steps of two samples on each process, or one round of two prompts; sizes divide as the run's own do."""
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    method = cfg.method
    method.update(get_class(method._target_).small(method, processes))
    own = method.batch // processes
    asked = cfg.hardware.micro_batch
    most = own if asked in (None, "auto") else min(asked, own)
    cfg.hardware.micro_batch = max(size for size in range(1, most + 1) if own % size == 0)
    cfg.optim.lr, cfg.optim.warmup_steps, cfg.optim.schedule = RATE, 0, "constant"
    cfg.callbacks.samples, cfg.callbacks.every, cfg.callbacks.sentinel = 0, 2, None
    if "merged" in cfg.tune:
        cfg.tune.merged = False
    return cfg


class Few:
    """The first `count` items of a split; whatever else it offers it offers as before."""

    def __init__(self, source: Any, count: int) -> None:
        self.source, self.count = source, min(count, len(source))
        self.fingerprint = fingerprint("few", self.count, source.fingerprint)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.source[i]

    def __getattr__(self, name: str) -> Any:
        if name == "order":
            raise AttributeError(name)  # that of a stream is one of all its rows
        value = getattr(self.source, name)
        return value[: self.count] if isinstance(value, np.ndarray | Tensor) else value  # what is known of its rows


def few(data: Data, count: int = ROWS) -> Data:
    """The data with a few rows in each split."""
    if hasattr(data, "few"):
        return data.few(lambda prompts: few(prompts, count), count)
    cut = copy.copy(data)
    for split in ("train", "validation", "test"):
        if hasattr(cut, split):
            setattr(cut, split, Few(getattr(cut, split), count))
    return cut
