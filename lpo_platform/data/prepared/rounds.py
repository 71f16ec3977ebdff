"""Training batches as rounds. An epoch is a fixed number of steps, and its order follows from seed and number.

A round is the amount of work between two checkpoints. Only its number decides what it holds, so that a resumed run
reads what an uninterrupted run would have read. Rows are made ahead of their step, across the ends of rounds.
"""

from collections.abc import Iterator
from typing import Protocol

import lightning as L
import torch
from torch import Tensor

from lpo_platform.data.prepared.order import Order
from lpo_platform.diffusion import noise
from lpo_platform.hardware.distributed import world
from lpo_platform.hardware.transfer import stack, upload

Row = dict[str, Tensor]


class Readable(Protocol):
    """Rows that can be read in an order. weights: how much each counts, None for equally."""

    weights: Tensor | None

    def __len__(self) -> int: ...

    def order(self, positions: int, seed: int) -> Order: ...

    def read(self, order: Order, positions: Iterator[int]) -> Iterator[Row]: ...


class Rounds(L.LightningDataModule):
    """`steps` optimiser steps of `batch` samples in rounds of `every` steps, handed out in micro-batches.

    Of every step each process reads its contiguous share: the steps are the same on any number of processes.

    Where rows count unequally, a sample has a `weight`: its row's share of its step's total, times the micro-batches in
    a step, those of all processes, so that the sum of weight x loss, averaged over micro-batches and processes, is the
    weighted mean. Where rows have several captions (`num_captions`), a sample has one, drawn by its position.
    """

    def __init__(
        self,
        rows: Readable,
        columns: tuple[str, ...],
        *,
        batch: int,
        micro_batch: int,
        steps: int,
        every: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.rows, self.columns, self.seed = rows, columns, seed
        self.batch, self.micro_batch, self.steps, self.every = batch, micro_batch, steps, every
        self.order = rows.order(steps * batch, seed)
        self._ahead: Iterator[Row] = iter(())
        self._step: int | None = None  # that comes next in _ahead

    @property
    def num_rounds(self) -> int:
        return -(-self.steps // self.every)

    def train_dataloader(self) -> "Round":
        first = self.trainer.current_epoch * self.every
        return Round(self, range(first, min(first + self.every, self.steps)))

    def positions(self, steps: range) -> Iterator[int]:
        """The positions that this process reads in some steps."""
        rank, size = world()
        own = self.batch // size
        return (position for step in steps for position in self._of(step)[rank * own : (rank + 1) * own])

    def batches(self, steps: range) -> Iterator[Row]:
        """The micro-batches of some steps."""
        if self._step != steps.start:
            self._ahead = self.rows.read(self.order, self.positions(range(steps.start, self.steps)))
        for step in steps:
            self._step = None  # unless the step is read whole
            samples = [self._sample(position) for position in self.positions(range(step, step + 1))]
            self._weigh(samples, step)
            self._step = step + 1
            for start in range(0, len(samples), self.micro_batch):
                yield collate(samples[start : start + self.micro_batch])

    def _of(self, step: int) -> range:
        return range(step * self.batch, (step + 1) * self.batch)

    def _sample(self, position: int) -> Row:
        row = next(self._ahead)
        if "num_captions" in row:
            drawn = noise.integers([position], int(row["num_captions"]), seed=self.seed, stream="caption")
            row = row | {name: row[name][drawn[0]] for name in ("tokens", "text") if name in row}
        return {"position": torch.tensor(position)} | {name: row[name] for name in self.columns}

    def _weigh(self, samples: list[Row], step: int) -> None:
        """Where a row that cannot be used is replaced by another, the weight of the replaced row counts."""
        if self.rows.weights is None:
            return
        total = sum(self.rows.weights[self.order.row(position)] for position in self._of(step))
        for sample in samples:
            share = self.rows.weights[self.order.row(int(sample["position"]))] / total
            sample["weight"] = share * (self.batch // self.micro_batch)


class Round:
    """The micro-batches of a round, for Lightning."""

    def __init__(self, rounds: Rounds, steps: range) -> None:
        self.rounds, self.steps = rounds, steps

    def __len__(self) -> int:
        _, size = world()
        return len(self.steps) * (self.rounds.batch // size // self.rounds.micro_batch)

    def __iter__(self) -> Iterator[Row]:
        return self.rounds.batches(self.steps)


def collate(samples: list[Row]) -> Row:
    """Samples as a batch, where they are; those that are on the CPU are moved to where others are."""
    return {name: _stacked([sample[name] for sample in samples]) for name in samples[0]}


def _stacked(values: list[Tensor]) -> Tensor:
    device = next((value.device for value in values if value.device.type != "cpu"), None)
    stacked = stack(values if device is None else [upload(value, device) for value in values])
    return stacked.pin_memory() if device is None and torch.cuda.is_available() else stacked
