"""Finds, without a GPU, where a step makes the host wait for it.

A host that runs ahead of the GPU hides its own work. Whatever asks for a value, or copies without non_blocking, ends
that: the GPU's queue must run empty first. Meta tensors stand for the GPU's: they lie elsewhere and have no values.
"""

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = str(Path(__file__).resolve().parents[2])
aten = torch.ops.aten
# their result is a value, or has as many rows as values say
VALUES = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_dim}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Waits(TorchDispatchMode):
    """found: how often each line of this package has let the host wait, under `<operation> in <file>:<line>`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, op = kwargs or {}, func.overloadpacket
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is None or not waits(op, first, args[1:], kwargs):
            return func(*args, **kwargs)
        self.found[f"{op} in {caller()}"] += 1
        if op is aten._local_scalar_dense:
            return 1  # any value, so that the step goes on
        if op is aten._to_copy and first.is_meta:
            return torch.zeros(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        if op is aten.copy_ and not first.is_meta:
            return first
        return func(*args, **kwargs)


def waits(op: Any, first: Tensor, others: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether this call of an operation on `first` and others does."""
    if op in VALUES:
        return first.is_meta
    if op in INDEXED:
        return first.is_meta and any(i is not None and (not i.is_meta or i.dtype == torch.bool) for i in others[0])
    if op is aten._to_copy:
        there = options.get("device")
        crosses, outward = there is not None and first.is_meta != (torch.device(there).type == "meta"), first.is_meta
    elif op is aten.copy_:
        crosses, outward = first.is_meta != others[0].is_meta, not first.is_meta
    else:
        return False
    return crosses and (outward or not (options.get("non_blocking") or others[1:2] == (True,)))


class OfNumbers(TorchFunctionMode):
    """Adds tensors that are made of Python's numbers on the device, which not every torch dispatches."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and result.is_meta and not isinstance(args[0], Tensor):
            self.waits.found[f"torch.{func.__name__} in {caller()}"] += 1
        return result


def caller() -> str:
    """The innermost line of this package outside of this file."""
    for frame, line in traceback.walk_stack(None):
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE) and file != __file__:
            return f"{Path(file).relative_to(PACKAGE)}:{line}"
    return "elsewhere"


def host_waits(work: Callable[[], object]) -> Counter[str]:
    """What lets the host wait in `work`, which is done on meta tensors; a mask selects every row there."""
    mode = Waits()
    with mode, OfNumbers(mode), _config.patch(meta_nonzero_assume_all_nonzero=True):
        work()
    return mode.found
