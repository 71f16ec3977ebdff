"""What GPUs can do, as their makers state it."""

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
