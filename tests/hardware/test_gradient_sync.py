"""One summed backward syncs both losses under DDP; two backwards, as in the original, do not."""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from toys import forked


def _rank(rank: int, port: int, two_backwards: bool, results) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    weight = nn.Linear(1, 1, bias=False)
    model = DistributedDataParallel(weight)
    pretraining, preference = torch.tensor([[1.0 + rank]]), torch.tensor([[10.0 * (1 + rank)]])
    losses = [model(x).sum() for x in (pretraining, preference)]
    if two_backwards:
        for loss in losses:
            loss.backward()
    else:
        sum(losses).backward()
    results[rank] = weight.weight.grad.item()
    dist.destroy_process_group()


def _gradients(*, two_backwards: bool) -> list[float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with forked.context().Manager() as manager:
        results = manager.dict()
        mp.start_processes(_rank, (port, two_backwards, results), nprocs=2, start_method=forked.METHOD)
        return [results[0], results[1]]


def test_one_backward_is_synced() -> None:
    assert _gradients(two_backwards=False) == [16.5, 16.5]


def test_two_backwards_are_not() -> None:
    """The trap itself: whoever splits CPO's loss into two backwards gets these."""
    assert _gradients(two_backwards=True) == [11.5, 21.5]
