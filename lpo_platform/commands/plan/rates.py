"""The FLOP/s of a device, as its vendor states them, or as a matrix product measures them here."""

import time

import psutil
import torch

from lpo_platform.commands.plan.devices import DEVICES, Device


def device_of(name: str) -> Device:
    """A row of DEVICES; `auto` is what is here."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        memory, name = psutil.virtual_memory().total, f"{torch.get_num_threads()} CPU threads"
        return Device(name, measured("cpu", torch.float32), memory, gpu=False)
    if name == "auto":
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.name, measured("cuda", torch.bfloat16), properties.total_memory)
    return DEVICES[name]


def measured(device: str, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of a matrix product that fills the device."""
    size = 8192 if device == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    a @ a
    synchronize()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        a @ a
        synchronize()
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - started)
