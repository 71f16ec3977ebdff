"""Peak FLOP/s, memory and its bandwidth of GPUs, as their vendors state them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """peak: FLOP/s, of a GPU dense bf16 with float32 sums; memory: bytes; bandwidth: bytes/s, 0 where not stated."""

    name: str
    peak: float
    memory: float
    gpu: bool = True
    bandwidth: float = 0.0


DEVICES = {
    "a100": Device("A100 80 GB", 312e12, 80e9, bandwidth=2.04e12),
    "h100": Device("H100 SXM", 989e12, 80e9, bandwidth=3.35e12),
    "h200": Device("H200", 989e12, 141e9, bandwidth=4.8e12),
    "rtx4090": Device("RTX 4090", 165e12, 24e9, bandwidth=1.008e12),
}


def peak_of(gpu: str | None) -> float | None:
    """Dense bf16 FLOP/s of a GPU by the name that torch gives it; None where its maker's figure is not known here."""
    name = (gpu or "").lower().replace(" ", "")
    return next((device.peak for key, device in DEVICES.items() if key in name), None)
