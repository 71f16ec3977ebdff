"""Rows that are there, read as prepared rows are."""

from collections.abc import Iterable, Iterator

from torch import Tensor
from torch.utils.data import Dataset

from lpo_platform.data.prepared.order import Order


class Readable(Dataset):
    weights: Tensor | None = None

    def order(self, positions: int, seed: int) -> Order:
        return Order(len(self), positions, seed)

    def read(self, order: Order, positions: Iterable[int]) -> Iterator[dict[str, Tensor]]:
        return (self[order.row(position)] for position in positions)
