"""Random numbers that are keyed by their purpose, and not by when or where they are drawn.

A draw is a function of (seed, stream, position). The position numbers the samples of a run from the first to the last.
A resumed run, another batch size and another number of processes therefore see the same noise, and no state of a
generator is saved.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Key = int | str


def key(*parts: Key) -> int:
    """A 63-bit seed that is a stable function of its parts."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def normal(positions: Sequence[Key], shape: Sequence[int], *, seed: int, stream: str) -> Tensor:
    """Standard normal noise, (len(positions), *shape) in float32 on the CPU."""
    return _draw(positions, seed, stream, lambda generator: torch.randn(tuple(shape), generator=generator))


def integers(positions: Sequence[Key], high: int, *, seed: int, stream: str) -> Tensor:
    """Uniform integers in [0, high), shape (len(positions),), on the CPU."""
    return _draw(positions, seed, stream, lambda generator: torch.randint(high, (), generator=generator))


def uniform(positions: Sequence[Key], *, seed: int, stream: str) -> Tensor:
    """Uniform numbers in [0, 1), shape (len(positions),), on the CPU."""
    return _draw(positions, seed, stream, lambda generator: torch.rand((), generator=generator))


def permutation(size: int, *, seed: int, stream: str) -> Tensor:
    """A permutation of range(size)."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(key(seed, stream)))


def _draw(positions: Sequence[Key], seed: int, stream: str, one: Callable[[torch.Generator], Tensor]) -> Tensor:
    generator = torch.Generator()
    return torch.stack([one(generator.manual_seed(key(seed, stream, position))) for position in positions])
