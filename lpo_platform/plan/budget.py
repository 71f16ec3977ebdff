"""hardware.micro_batch=auto: the largest micro-batch whose counted memory fits."""

from bisect import bisect_left
from dataclasses import replace

from omegaconf import DictConfig

from lpo_platform.config import UserError
from lpo_platform.plan.bytes import memory, size
from lpo_platform.plan.work import activations, assemble

ROOM = 0.9  # share of a memory that is planned for; allocators and libraries take the rest


def largest(cfg: DictConfig, room: float, *, half: bool) -> int:
    """Samples of the largest that divides a process's share of the batch, for `room` bytes; half as memory() has it.

    UserError where a single sample does not fit.
    """
    job = assemble(cfg)
    own = job.method.batch // job.hardware.processes
    sizes = [micro for micro in range(1, own + 1) if own % micro == 0]

    def needed(micro: int) -> float:
        cut = replace(job, micro=micro)
        return sum(memory(cut, activations(cut), half=half).values())

    if needed(own) <= ROOM * room:
        return own
    place = bisect_left(sizes, True, hi=len(sizes) - 1, key=lambda micro: needed(micro) > ROOM * room)
    if place == 0:
        raise UserError(
            f"hardware.micro_batch=auto: one sample needs {size(needed(1))}, there are {size(ROOM * room)} of "
            f"{size(room)} to plan with; what helps: hardware.gradient_checkpointing=true, more hardware.memory_gb"
        )
    return sizes[place - 1]
