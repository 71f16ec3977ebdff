"""Histograms of rewards, losses and ratios of a round. They stay on the device and are read once, at its end."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lpo_platform.hardware.distributed import gather

BINS, TIMES = 32, 20
Noted = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Histogram:
    """A histogram.

    Attributes:
        values: the number of samples in each bin, or their mean, which is nan where there are none.
        edges: of the bins, one more than values.
    """

    values: list[float]
    edges: list[float]


def histogram(values: ArrayLike, bins: int = BINS) -> Histogram:
    """Counts the finite ones of (N,) values in equal bins between the smallest and the largest."""
    values = np.asarray(values, dtype=np.float64)
    counts, edges = np.histogram(values[np.isfinite(values)], bins)
    return Histogram(counts.tolist(), edges.tolist())


def by_timestep(t: ArrayLike, values: ArrayLike, *, last: float = 1000.0, bins: int = TIMES) -> Histogram:
    """Averages (N,) values by timestep t (N,), in equal bins of [0, last]."""
    t, values = np.asarray(t, dtype=np.float64), np.asarray(values, dtype=np.float64)
    t, values = t[np.isfinite(values)], values[np.isfinite(values)]
    counts, edges = np.histogram(t, bins, (0, last))
    sums, _ = np.histogram(t, bins, (0, last), weights=values)
    means = np.divide(sums, counts, out=np.full(bins, np.nan), where=counts > 0)
    return Histogram(means.tolist(), edges.tolist())


def note(noted: Noted, name: str, values: Tensor, t: Tensor | None = None) -> None:
    """Keeps values (B,) and, if given, their timesteps t (B,). A value of nan is a sample that does not count."""
    values = values.flatten().float()
    rows = torch.stack([values, torch.full_like(values, torch.nan) if t is None else t.to(values)], 1)
    noted.setdefault(name, []).append(rows.detach())


def histograms(noted: Noted) -> dict[str, Histogram]:
    """distribution/<name> and, where there are timesteps, by_timestep/<name>, over all processes."""
    found = {}
    for name, parts in noted.items():
        values, t = gather({name: torch.cat(parts)})[name].cpu().numpy().T
        if not np.isfinite(values).any():
            continue
        found[f"distribution/{name}"] = histogram(values)
        if np.isfinite(t).any():
            found[f"by_timestep/{name}"] = by_timestep(t, values)
    return found
