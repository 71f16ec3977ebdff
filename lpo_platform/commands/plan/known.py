"""Operations on the meta device, each computed once for its shapes: a network repeats the same few hundred.

The meta device finds the shape of a result in Python, which takes about as long as everything else of counting.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

META = torch.empty(0, device="meta")  # a mode that stands for a device may take the word "meta" for its own


@dataclass(frozen=True)
class Result:
    """What an operation makes. parts: of each tensor its size, strides and type; several: whether it is a tuple."""

    parts: tuple[tuple[Any, ...] | None, ...]
    several: bool
    flops: int

    def make(self) -> Any:
        made = tuple(part and META.new_empty_strided(*part[:2], dtype=part[2]) for part in self.parts)
        return made if self.several else made[0]


KNOWN: dict[tuple[Any, ...], Result] = {}
PURE: dict[Any, bool] = {}


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
    """The result of an operation, and its FLOPs."""
    if not pure(func):
        return _computed(func, args, kwargs)
    try:
        key = (func, *map(_frozen, args), *((name, _frozen(value)) for name, value in kwargs.items()))
        known = KNOWN.get(key)
    except (Valued, TypeError):
        return _computed(func, args, kwargs)
    if known is not None:
        return known.make(), known.flops
    result, count = _computed(func, args, kwargs)
    if (found := _described(result, count)) is not None:
        KNOWN[key] = found
    return result, count


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
    result = func(*args, **kwargs)
    counted = flop_registry.get(func._overloadpacket)
    return result, 0 if counted is None else counted(*args, **kwargs, out_val=result)


def pure(func: Any) -> bool:
    """Whether an operation makes new tensors and changes none."""
    if func not in PURE:
        schema = func._schema
        PURE[func] = not schema.is_mutable and all(made.alias_info is None for made in schema.returns)
    return PURE[func]


class Valued(Exception):
    """A tensor that has values, on which a result may depend."""


def _frozen(value: Any) -> Any:
    """What the shapes of a result depend on. Raises Valued."""
    if isinstance(value, Tensor):
        if not value.is_meta or value.dtype.is_complex:
            raise Valued
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return type(value), value  # True, 1 and 1.0 are equal, and give results of other types


def _described(result: Any, count: int) -> Result | None:
    """None for what cannot be made again from its sizes."""
    made = result if isinstance(result, tuple) else (result,)
    if not all(part is None or (isinstance(part, Tensor) and part.is_meta) for part in made):
        return None
    parts = tuple(None if part is None else (part.shape, part.stride(), part.dtype) for part in made)
    found = Result(parts, isinstance(result, tuple), count)
    again = found.make() if found.several else (found.make(),)
    same = all(_bytes(a) == _bytes(b) for a, b in zip(made, again, strict=True))
    return found if same else None


def _bytes(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.untyped_storage().nbytes()
