"""FLOPs and memory of a piece of work on the meta device, where it costs neither."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpo_platform.commands.plan.known import run

__all__ = ["flops", "peak"]


def peak(work: Callable[[], object]) -> int:
    """Most bytes that tensors made by the work held at once: activations, temporary results and new gradients."""
    tracker = Live()
    with fused(), tracker, _config.patch(meta_nonzero_assume_all_nonzero=True):
        work()
    return tracker.peak


class Live(TorchDispatchMode):
    """Adds up the storages that operations make until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, weakref.ref] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tensors((args, kwargs)):
            self._add(tensor.untyped_storage(), 0)  # a weight or an input, whose views are no new bytes
        result, _ = run(func, args, kwargs or {})
        for tensor in tensors(result):
            self._add(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        return result

    def _add(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self.known:
            return

        def freed(_: object) -> None:
            del self.known[key]
            self.live -= size

        self.known[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@contextmanager
def fused() -> Iterator[None]:
    """Attention as a GPU computes it, without the matrix of weights, which the meta device would keep."""
    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        if attn_mask is not None:
            return plain(query, key, value, attn_mask, **options)
        causal = options.get("is_causal", False)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)[0]

    F.scaled_dot_product_attention = attention  # not a mode of torch: checkpoints compute again without it
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def flops(work: Callable[[], object]) -> int:
    """2 per multiply-add, forward and backward. On the meta device a mask selects every row."""
    counter = Operations()
    with counter, _config.patch(meta_nonzero_assume_all_nonzero=True):
        work()
    return counter.total


class Operations(TorchDispatchMode):
    """Adds up what torch's registry says of operations. Its own FlopCounterMode also follows the modules, which takes
    longer than everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, count = run(func, args, kwargs or {})
        self.total += count
        return result
