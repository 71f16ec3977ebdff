"""What a run's processes compute in a step and a round, and can compute in a second, for its live utilisation."""

import torch
from omegaconf import DictConfig

from lpo_platform.commands.plan.devices import peak_of
from lpo_platform.commands.plan.rates import measured
from lpo_platform.commands.plan.work import assemble, rollouts, update
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.tracking.callbacks.throughput import Work


def work_of(cfg: DictConfig, hardware: Hardware) -> Work:
    """Counted on the meta device; the device's FLOP/s are its maker's for bf16, or measured by a matrix product."""
    job = assemble(cfg)
    kind, dtype = hardware.device.type, hardware.frozen_dtype
    stated = peak_of(torch.cuda.get_device_name(hardware.device)) if hardware.gpu else None
    if stated and dtype == torch.float32:
        stated /= 2  # TF32
    peak = hardware.processes * (stated or measured(kind, dtype if hardware.gpu else torch.float32))
    return Work(update(job), rollouts(job) if job.method.online else 0.0, peak)
