"""What a run computes on: device, precision, and how a batch is cut to fit."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from lpo_platform.config import UserError

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": torch.float32}


@dataclass(frozen=True)
class Hardware:
    """accelerator: auto, cpu or gpu; precision: auto or one of Lightning's (auto is bf16-mixed on a GPU, else 32-true).

    micro_batch: samples in one forward; null is the whole batch. The gradient is the same, only accumulated.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = "auto"
    micro_batch: int | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise UserError("hardware=gpu: torch finds no CUDA device here; use hardware=cpu or hardware=auto")

    @property
    def device(self) -> torch.device:
        gpu = self.accelerator != "cpu" and torch.cuda.is_available()
        return torch.device("cuda", 0) if gpu else torch.device("cpu")

    @property
    def chosen_precision(self) -> str:
        if self.precision != "auto":
            return self.precision
        return "bf16-mixed" if self.device.type == "cuda" else "32-true"

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Frozen parts need no master weights: they are kept in the precision they compute in."""
        return DTYPES[self.chosen_precision]

    def autocast(self) -> AbstractContextManager:
        """The precision of forwards outside the Trainer, equal to that inside it."""
        if self.frozen_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.frozen_dtype)

    def split(self, batch: int) -> tuple[int, int]:
        """(micro-batch, accumulation) of a batch; UserError with the sizes that do if it does not divide."""
        micro = min(self.micro_batch or batch, batch)
        if batch % micro:
            sizes = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
            raise UserError(f"hardware.micro_batch={micro} does not divide method.batch={batch}; these do: {sizes}")
        return micro, batch // micro

    def describe(self) -> str:
        gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if gpu else f"{torch.get_num_threads()} CPU threads"
        return f"{name}, {self.chosen_precision}"
