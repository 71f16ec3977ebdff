"""The few collective operations that a run needs; every one is the identity on a single process."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Rows = dict[str, Tensor]
Item = TypeVar("Item")
Result = TypeVar("Result")


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def lead() -> bool:
    """Whether this is the process that prints and writes. It is known before the processes have connected."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def agree(value: Any) -> Any:
    """The first process's value, on every process."""
    if world()[1] == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, 0)
    return told[0]


def wait() -> None:
    """Waits until every process is here."""
    if world()[1] > 1:
        dist.barrier()


def deal(items: Sequence[Item]) -> list[Item]:
    """This process's part of the work that the first process has listed."""
    rank, size = world()
    return list(agree(list(items)))[rank::size]


def each(items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """work(item) for every item in order, on every process; the items are dealt in turn and are the same everywhere.

    Every process works equally often, on the last item again where they do not divide: the forwards of a sharded model
    are collective.
    """
    rank, size = world()
    if size == 1:
        return [work(item) for item in items]
    turns = -(-len(items) // size)
    own = [work(items[min(turn * size + rank, len(items) - 1)]) for turn in range(turns)]
    everyone: list[list[Result]] = [[] for _ in range(size)]
    dist.all_gather_object(everyone, own)
    return [everyone[i % size][i // size] for i in range(len(items))]


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


def mean(values: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Scalar means over this process's `count` items -> the means over the items of all processes."""
    if world()[1] == 1 or not values:
        return values
    weighted = torch.stack(
        [*(value.float() for value in values.values()), torch.ones_like(next(iter(values.values())))]
    )
    weighted = weighted * count
    dist.all_reduce(weighted)
    return dict(zip(values, weighted[:-1] / weighted[-1], strict=True))


def total(value: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """The sum (or maximum) over all processes."""
    if world()[1] > 1:
        value = value.clone()
        dist.all_reduce(value, operation)
    return value


def broadcast(module: nn.Module) -> None:
    """Gives every process the weights that the first has."""
    if world()[1] > 1:
        for weight in module.parameters():
            dist.broadcast(weight.data, 0)


def everywhere(done: int, left: int) -> int:
    """The progress of all processes together, for a progress bar, from that of this one; at most `left`."""
    return min(done * world()[1], left)
