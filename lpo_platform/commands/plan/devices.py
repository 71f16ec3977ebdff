"""Peak FLOP/s and memory of GPUs, as their vendors state them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """peak: FLOP/s, of a GPU dense bf16 with float32 sums; memory: bytes."""

    name: str
    peak: float
    memory: float
    gpu: bool = True


DEVICES = {
    "a100": Device("A100 80 GB", 312e12, 80e9),
    "h100": Device("H100 SXM", 989e12, 80e9),
    "h200": Device("H200", 989e12, 141e9),
    "rtx4090": Device("RTX 4090", 165e12, 24e9),
}


def peak_of(gpu: str | None) -> float | None:
    """Dense bf16 FLOP/s of a GPU by the name that torch gives it; None where its maker's figure is not known here."""
    name = (gpu or "").lower().replace(" ", "")
    return next((device.peak for key, device in DEVICES.items() if key in name), None)
