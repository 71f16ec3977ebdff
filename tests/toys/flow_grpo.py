"""The noisy step of Flow-GRPO, written from its formula."""

import math


def flow_grpo(x: float, v: float, s: float, ahead: float, a: float) -> tuple[float, float]:
    """Mean and standard deviation of arXiv:2505.05470's step, as its published code computes them."""
    dt, std = ahead - s, a * math.sqrt(s / (1 - (ahead if s == 1 else s)))
    mean = x * (1 + std**2 / (2 * s) * dt) + v * (1 + std**2 * (1 - s) / (2 * s)) * dt
    return mean, std * math.sqrt(-dt)
