"""Copies to and from the device that the host does not wait for, and tensors put together as they are."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. From pageable memory the host would wait there until the GPU's queue is empty."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def download(columns: dict[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """Copies on the CPU, and what waits until they have arrived: another thread may, so that this one need not."""
    if not any(column.is_cuda for column in columns.values()):
        return columns, lambda: None
    here = {name: torch.empty_like(column, device="cpu") for name, column in columns.items()}
    for name, column in columns.items():
        here[name] = here[name].pin_memory().copy_(column, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return here, arrived.synchronize


def stack(values: Sequence[Tensor]) -> Tensor:
    """torch.stack of data that must stay as it is. Autocast would widen it, and on a CPU it refuses the other half."""
    with torch.autocast(values[0].device.type, enabled=False):
        return torch.stack(list(values))
