"""What a GPU would need for a step, predicted from its operations on the meta device: a roofline for every kernel.

A kernel takes as long as its FLOPs at the GPU's peak, or as the bytes that it reads and writes at the GPU's bandwidth,
or LEAST, whichever is longest. Tensors count two bytes a number, as in bf16, and operations are not fused, except
attention. No kernel reaches its roof, so the share of the peak is the most that a measured step can have.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode

from lpo_platform.commands.plan.count import fused, tensors
from lpo_platform.commands.plan.devices import Device
from lpo_platform.commands.plan.known import run

LEAST = 3e-6  # seconds from one kernel's start to the next, however small it is
SIZE = 2  # bytes of a number in bf16
NO_KERNEL = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}


@dataclass
class Roofline:
    """kernels: how many are launched; moved: bytes read and written; flops: counted; seconds: predicted."""

    kernels: int = 0
    moved: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def follow(self, work: Callable[[], object], device: Device) -> None:
        """Adds what work does on meta tensors, forward and backward."""
        with fused(), Trace(self, device), _config.patch(meta_nonzero_assume_all_nonzero=True):
            work()

    def share(self, device: Device) -> float:
        """Of the device's peak FLOP/s."""
        return self.flops / self.seconds / device.peak if self.seconds else 0.0


class Trace(TorchDispatchMode):
    """Adds up operations."""

    def __init__(self, found: Roofline, device: Device) -> None:
        super().__init__()
        self.found, self.device = found, device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, count = run(func, args, kwargs or {})
        if launches(func):
            moved = SIZE * sum(tensor.numel() for tree in ((args, kwargs), result) for tensor in tensors(tree))
            self.found.kernels += 1
            self.found.moved += moved
            self.found.flops += count
            self.found.seconds += max(count / self.device.peak, moved / self.device.bandwidth, LEAST)
        return result


def launches(func: Any) -> bool:
    """Whether an operation computes: a view and an allocation do not."""
    views = any(made.alias_info is not None and not made.alias_info.is_write for made in func._schema.returns)
    return not views and func._schema.name.removeprefix("aten::") not in NO_KERNEL
