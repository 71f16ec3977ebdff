"""The few collective operations that online methods need; every one is the identity on a single process."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

Rows = dict[str, Tensor]


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share(items: range) -> range:
    """This process's contiguous part of a range, the parts as equal as possible and in the order of ranks."""
    rank, size = world()
    return items[len(items) * rank // size : len(items) * (rank + 1) // size]


def gather(rows: Rows) -> Rows:
    """Rows of all processes in the order of ranks; the numbers of rows may differ, zero included."""
    _, size = world()
    if size == 1:
        return rows
    count = torch.tensor([len(next(iter(rows.values())))], device=next(iter(rows.values())).device)
    counts = [torch.zeros_like(count) for _ in range(size)]
    dist.all_gather(counts, count)
    lengths = [int(c) for c in counts]
    return {name: _gather(column, lengths) for name, column in rows.items()}


def _gather(column: Tensor, lengths: list[int]) -> Tensor:
    """all_gather wants equal shapes: columns are padded to the longest and cut again."""
    padded = column.new_zeros((max(lengths), *column.shape[1:]))
    padded[: len(column)] = column
    received = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(received, padded)
    return torch.cat([part[:length] for part, length in zip(received, lengths, strict=True)])


def broadcast(module: nn.Module) -> None:
    """Gives every process the weights that the first has."""
    if world()[1] > 1:
        for weight in module.parameters():
            dist.broadcast(weight.data, 0)
