"""CUDA's autocast on tensors that only pretend to be there: the operators and the rules of the installed torch.

torch's own kernels ask in C++ whether a tensor is on a GPU, and a pretended one has to say no there. So each operator
that CUDA's autocast treats gets a kernel in Python with the same rule. Which operators these are is read from the C++
header that torch installs, so the lists are those of this version.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Kernel = Callable[..., Any]


def operators(rule: str) -> list[torch._ops.OpOverload]:
    """The operators that the header lists under one of its rules, as LOWER_PRECISION_FP."""
    listed = re.search(rf"#define AT_FORALL_{rule}\(_\)(.*?)\n\n", HEADER.read_text(), re.DOTALL)[1]
    found = []
    for name, overload in re.findall(r"_\((\w+)(?:, (\w+))?\)", listed):
        packet = getattr(torch.ops.aten, name, None)
        if packet is not None and (overload or "default") in packet.overloads():
            found.append(getattr(packet, overload or "default"))
    return found


class Casts:
    """The casts of weights that learn, kept until the outermost autocast ends, as CUDA's autocast keeps them."""

    def __init__(self, there: Callable[[Any], bool]) -> None:
        self.there, self.kept = there, {}

    def eligible(self, value: Any) -> bool:
        return self.there(value) and value.dtype in FLOATS

    def to(self, value: Any, dtype: torch.dtype) -> Any:
        if not self.eligible(value) or value.dtype == dtype:
            return value
        keep = torch.is_autocast_cache_enabled() and dtype != torch.float32 and value.dtype == torch.float32
        if not (keep and value.requires_grad and value.is_leaf and not value._is_view()):
            return value.to(dtype)
        if id(value) not in self.kept:
            self.kept[id(value)] = value, value.to(dtype)
        return self.kept[id(value)][1]

    def all(self, values: Any, dtype: torch.dtype) -> Any:
        if isinstance(values, dict):
            return {name: self.all(value, dtype) for name, value in values.items()}
        if isinstance(values, (list, tuple)):
            return type(values)(self.all(value, dtype) for value in values)
        return self.to(values, dtype)

    def widest(self, values: Any) -> torch.dtype:
        """The type to which mixed floats are promoted; before a float32 the other half precision is an error."""
        lower = torch.get_autocast_dtype("cuda")
        for value in filter(self.eligible, tree_leaves(values)):
            if value.dtype == torch.float32:
                return torch.float32
            if value.dtype != lower:
                raise RuntimeError("Unexpected floating ScalarType in at::autocast::prioritize")
        return lower


def kernels(casts: Casts) -> Iterator[tuple[torch._ops.OpOverload, Kernel]]:
    """A kernel for each operator that autocast treats."""
    norms = [torch.ops.aten.norm.Scalar, torch.ops.aten.norm.ScalarOpt_dim]
    chosen = [
        (operators("LOWER_PRECISION_FP"), lambda values: torch.get_autocast_dtype("cuda")),
        (operators("FP32") + norms, lambda values: torch.float32),
        (operators("PROMOTE"), casts.widest),
    ]
    for ops, choose in chosen:
        for op in ops:
            yield op, _cast(casts, op, choose)
    for op in operators("FP32_SET_OPT_DTYPE"):
        yield op, _in_float32(casts, op)
    yield torch.ops.aten.binary_cross_entropy.default, _banned


def _cast(casts: Casts, op: torch._ops.OpOverload, choose: Callable[[Any], torch.dtype]) -> Kernel:
    """Casts what comes in to a type that depends on all of it."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(KEY):
            dtype = choose((args, kwargs))
            return op(*casts.all(args, dtype), **casts.all(kwargs, dtype))

    return kernel


def _in_float32(casts: Casts, op: torch._ops.OpOverload) -> Kernel:
    """The operator itself computes and answers in float32, unless the caller names a type."""
    place = [argument.name for argument in op._schema.arguments].index("dtype")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        named = kwargs.get("dtype") or (args[place] if len(args) > place else None)
        with torch._C._ExcludeDispatchKeyGuard(KEY):
            return op(*args, **(kwargs if named or not casts.eligible(args[0]) else kwargs | {"dtype": torch.float32}))

    return kernel


def _banned(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.")


@contextmanager
def autocast(there: Callable[[Any], bool]) -> Iterator[None]:
    """Inside, torch.autocast("cuda") treats the tensors for which `there` holds. The real CUDA's kernels come back."""
    casts, library = Casts(there), torch.library.Library("aten", "IMPL", "AutocastCUDA")
    clear = torch.clear_autocast_cache
    for op, kernel in kernels(casts):
        library.impl(op, kernel, allow_override=True)
    torch.clear_autocast_cache = lambda: (casts.kept.clear(), clear())
    try:
        yield
    finally:
        torch.clear_autocast_cache = clear
        library._destroy()
