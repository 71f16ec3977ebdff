"""Training batches as rounds: an epoch is a fixed number of steps, and its order is a function of seed and number.

A round is the smallest amount of work worth a checkpoint. Because nothing but the round's number decides what it
holds, a resumed run reads exactly what the straight run would have read.
"""

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lpo_platform import noise


class Stream(Dataset):
    """Position p of an endless shuffled reading of `rows`, each pass in an order of its own."""

    def __init__(self, rows: Dataset, columns: tuple[str, ...], seed: int) -> None:
        self.rows, self.columns, self.seed = rows, columns, seed
        self._pass: tuple[int, Tensor] | None = None

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        number, place = divmod(position, len(self.rows))
        if self._pass is None or self._pass[0] != number:
            self._pass = number, noise.permutation(len(self.rows), seed=self.seed, stream=f"order/{number}")
        row = self.rows[int(self._pass[1][place])]
        return {"position": torch.tensor(position)} | {name: row[name] for name in self.columns}


class Rounds(L.LightningDataModule):
    """`steps` optimiser steps of `batch` samples in rounds of `every` steps, handed out in micro-batches."""

    def __init__(
        self,
        rows: Dataset,
        columns: tuple[str, ...],
        *,
        batch: int,
        micro_batch: int,
        steps: int,
        every: int,
        seed: int,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.stream = Stream(rows, columns, seed)
        self.batch, self.micro_batch, self.steps, self.every = batch, micro_batch, steps, every
        self.num_workers = num_workers

    @property
    def num_rounds(self) -> int:
        return -(-self.steps // self.every)

    def train_dataloader(self) -> DataLoader:
        first = self.trainer.current_epoch * self.every
        last = min(first + self.every, self.steps)
        positions = range(first * self.batch, last * self.batch)
        workers = {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}
        return DataLoader(self.stream, batch_size=self.micro_batch, sampler=positions, **workers)
