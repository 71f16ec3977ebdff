"""hardware.micro_batch=auto: the largest micro-batch whose counted memory fits."""

from bisect import bisect_left
from dataclasses import replace

import torch
from omegaconf import DictConfig, OmegaConf

from lpo_platform.commands.job_log import say
from lpo_platform.commands.plan.bytes import memory, size
from lpo_platform.commands.plan.work import activations, assemble
from lpo_platform.config.errors import UserError
from lpo_platform.hardware.distributed import agree, lead
from lpo_platform.hardware.hardware import Hardware

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


def with_micro_batch(hardware: Hardware, cfg: DictConfig) -> Hardware:
    """With a number for hardware.micro_batch=auto, the same on every process; null where nothing is trained."""
    if hardware.micro_batch != "auto":
        return hardware
    micro = None
    if "method" in cfg:
        here = OmegaConf.merge(cfg, {"hardware": {"devices": hardware.local_processes}})
        half = hardware.frozen_dtype != torch.float32
        with torch.random.fork_rng(devices=[]):
            micro = agree(largest(here, hardware.memory, half=half) if lead() else None)
        say(f"hardware.micro_batch=auto: {micro} of {cfg.method.batch // hardware.processes} fit")
    return replace(hardware, micro_batch=micro)
