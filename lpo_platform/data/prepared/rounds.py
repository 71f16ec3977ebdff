"""Training batches as rounds. An epoch is a fixed number of steps, and its order follows from seed and number.

A round is the amount of work between two checkpoints. Only its number decides what it holds, so that a resumed run
reads what an uninterrupted run would have read.
"""

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lpo_platform.diffusion import noise
from lpo_platform.hardware.distributed import world


class Stream(Dataset):
    """Position p of an endless shuffled reading of `rows`, each pass in an order of its own.

    Where rows count unequally (`rows.weights`), a sample has a `weight`: its row's share of its step's total, times the
    micro-batches in a step, those of all processes, so that the sum of weight x loss, averaged over micro-batches and
    processes, is the weighted mean. Where rows have several captions (`num_captions`), a sample has one, drawn by its
    position.
    """

    def __init__(self, rows: Dataset, columns: tuple[str, ...], seed: int, batch: int, micro_batch: int) -> None:
        self.rows, self.columns, self.seed = rows, columns, seed
        self.batch, self.micro_batch = batch, micro_batch
        self.weights: Tensor | None = getattr(rows, "weights", None)
        self._pass: tuple[int, Tensor] | None = None
        self._total: tuple[int, Tensor] | None = None

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        number = self._row(position)
        row = self._with_one_caption(self.rows[number], position)
        sample = {"position": torch.tensor(position)} | {name: row[name] for name in self.columns}
        if self.weights is not None:
            share = self.weights[number] / self._weight_of(position // self.batch)
            sample["weight"] = share * (self.batch // self.micro_batch)
        return sample

    def _with_one_caption(self, row: dict[str, Tensor], position: int) -> dict[str, Tensor]:
        if "num_captions" not in row:
            return row
        drawn = noise.integers([position], int(row["num_captions"]), seed=self.seed, stream="caption")
        return row | {name: row[name][drawn[0]] for name in ("tokens", "text")}

    def _weight_of(self, step: int) -> Tensor:
        """The summed weights of a step's rows; added up once, for its samples are read one after the other."""
        if self._total is None or self._total[0] != step:
            positions = range(step * self.batch, (step + 1) * self.batch)
            self._total = step, sum(self.weights[self._row(p)] for p in positions)
        return self._total[1]

    def _row(self, position: int) -> int:
        number, place = divmod(position, len(self.rows))
        if self._pass is None or self._pass[0] != number:
            self._pass = number, noise.permutation(len(self.rows), seed=self.seed, stream=f"order/{number}")
        return int(self._pass[1][place])


class Rounds(L.LightningDataModule):
    """`steps` optimiser steps of `batch` samples in rounds of `every` steps, handed out in micro-batches.

    Of every step each process reads its contiguous share: the steps are the same on any number of processes.
    """

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
        self.stream = Stream(rows, columns, seed, batch, micro_batch)
        self.batch, self.micro_batch, self.steps, self.every = batch, micro_batch, steps, every
        self.num_workers = num_workers

    @property
    def num_rounds(self) -> int:
        return -(-self.steps // self.every)

    def train_dataloader(self) -> DataLoader:
        first = self.trainer.current_epoch * self.every
        last = min(first + self.every, self.steps)
        rank, size = world()
        own = self.batch // size
        starts = range(first * self.batch + rank * own, last * self.batch, self.batch)
        positions = [position for start in starts for position in range(start, start + own)]
        workers = {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}
        return DataLoader(self.stream, batch_size=self.micro_batch, sampler=positions, **workers)
