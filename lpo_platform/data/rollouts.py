"""Prompts for online methods: an epoch is a round, made by the policy when the Trainer asks for its batches."""

import lightning as L
import torch
from torch.utils.data import DataLoader

from lpo_platform import noise
from lpo_platform.data.source import Source
from lpo_platform.methods.online import Online


class Rollouts(L.LightningDataModule):
    """Round r takes prompts r P ... (r + 1) P - 1 of an endless shuffled reading of the source."""

    def __init__(self, prompts: Source, method: Online, *, micro_batch: int, seed: int) -> None:
        super().__init__()
        self.prompts, self.method, self.micro_batch, self.seed = prompts, method, micro_batch, seed

    def train_dataloader(self) -> DataLoader:
        number = self.trainer.current_epoch
        with self.trainer.precision_plugin.forward_context():
            batches = self.method.play(number, self.captions(number), self.micro_batch)
        return DataLoader(batches, batch_size=None)

    def captions(self, number: int) -> list[str]:
        positions = torch.arange(number * self.method.prompts, (number + 1) * self.method.prompts)
        total, found = len(self.prompts), []
        for position in positions.tolist():
            reading, place = divmod(position, total)
            found.append(self.prompts.caption(int(self._order(reading)[place])))
        return found

    def _order(self, reading: int) -> torch.Tensor:
        return noise.permutation(len(self.prompts), seed=self.seed, stream=f"order/{reading}")
