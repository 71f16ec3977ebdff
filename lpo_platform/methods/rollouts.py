"""Prompts for online methods. An epoch is a round, which the policy samples when the Trainer asks for its batches."""

import logging
from collections.abc import Sequence

import lightning as L
from torch.utils.data import DataLoader

from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.order import Order
from lpo_platform.data.source import Sample, Source
from lpo_platform.data.tables.decode import Unusable
from lpo_platform.methods.method import Batch
from lpo_platform.methods.online import Online

log = logging.getLogger(__name__)


class Rollouts(L.LightningDataModule):
    """Round r takes the prompts r P to (r + 1) P - 1 of an endless shuffled reading of the source."""

    def __init__(self, prompts: Source, method: Online, *, micro_batch: int, seed: int) -> None:
        super().__init__()
        self.prompts, self.method, self.micro_batch, self.seed = prompts, method, micro_batch, seed
        self._sampled: tuple[int, list[Batch]] | None = None

    def train_dataloader(self) -> DataLoader:
        """The micro-batches of the round that is due. A round is sampled once, however often Lightning asks.

        Lightning asks twice where a run resumes, the first time with the current_epoch of the round before, and once
        where the run has finished already.
        """
        number = self.trainer.fit_loop.epoch_progress.current.processed
        if number >= self.method.steps:
            return DataLoader([])
        if self._sampled is None or self._sampled[0] != number:
            items = Items(self.prompts, self.numbers(number)) if self.method.pictures else self.captions(number)
            with self.trainer.precision_plugin.forward_context():
                self._sampled = number, self.method.sample_round(number, items, self.micro_batch)
        return DataLoader(self._sampled[1], batch_size=None)

    def captions(self, number: int) -> list[str]:
        return [self.prompts.caption(item) for item in self.numbers(number)]

    def numbers(self, number: int) -> list[int]:
        """The items of the source that round `number` takes."""
        count = self.method.prompts
        order = Order.of(self.prompts, self.method.steps * count, self.seed)
        return [order.row(position) for position in range(number * count, (number + 1) * count)]


class Items(Sequence):
    """Some items of a source, read when they are asked for: each process reads the pictures of its own.

    In the place of one that cannot be used comes the next that can, and the log says so.
    """

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        self.source, self.numbers = source, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Sample:
        number, total = self.numbers[place], len(self.source)
        for step in range(total):
            try:
                return self.source[(number + step) % total]
            except Unusable as error:
                log.warning("%s; the next row that can be used takes its place", error)
        raise UserError(f"none of {total} rows can be used; the last reasons stand above")
