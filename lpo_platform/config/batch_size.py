"""How a global batch divides among processes and micro-batches."""

from __future__ import annotations


def batch_problem(batch: int, micro: int | None, processes: int) -> str | None:
    """Why a step of `batch` samples cannot be cut into equal micro-batches on all processes, and what can; or None."""
    if batch % processes:
        return f"method.batch={batch} does not divide among {processes} processes; nearest: {nearest(batch, processes)}"
    own = batch // processes
    if micro is None or micro >= own or own % micro == 0:
        return None
    sizes = ", ".join(str(size) for size in range(1, own + 1) if own % size == 0)
    part = f"method.batch={batch}" if processes == 1 else f"the {own} of method.batch={batch} on each process"
    return f"hardware.micro_batch={micro} does not divide {part}; these do: {sizes}"


def nearest(number: int, unit: int) -> str:
    """The multiples of `unit` around a number that is none."""
    below = number // unit * unit
    return " or ".join(str(size) for size in (below, below + unit) if size)
