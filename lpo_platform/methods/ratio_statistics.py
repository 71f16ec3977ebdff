"""Statistics of the policy's log-ratios in a round, by step. They are summed on the device and read once per round."""

import torch
from torch import Tensor
from torch.distributed import ReduceOp

from lpo_platform.hardware.distributed import total
from lpo_platform.methods.losses import kl_estimate

MEANS = ("ratio", "change", "kl_k1", "kl_k2", "kl_k3", "clipped_high", "clipped_low", "no_gradient")


class Ratios:
    """Sums of ratios, divergences and clipped shares.

    Args:
        t: (T,), the timesteps of the trained steps; they name the columns.
        clip: a ratio outside 1 +- clip is counted as clipped.
    """

    def __init__(self, t: Tensor, clip: float) -> None:
        self.t, self.clip = t, clip
        self.sums = torch.zeros(len(t), 1 + len(MEANS), dtype=torch.float64, device=t.device)
        self.largest = torch.zeros(2, device=t.device)

    @torch.no_grad()
    def add(self, step: Tensor, log_ratio: Tensor, drift: Tensor, advantage: Tensor, counts: Tensor) -> None:
        """Adds the rows (B,) of a micro-batch.

        Args:
            step: the number of the row's step.
            log_ratio: log-probability under the policy minus that under the policy that sampled.
            drift: log-probability before the first update minus that computed while sampling. The difference is
                rounding.
            advantage: of the row's sample.
            counts: false for rows that only even out the processes.
        """
        ratio = log_ratio.exp()
        high, low = ratio > 1 + self.clip, ratio < 1 - self.clip
        dead = (advantage == 0) | (high & (advantage > 0)) | (low & (advantage < 0))
        kls = [kl_estimate(form, log_ratio) for form in ("k1", "k2", "k3")]
        columns = torch.stack([torch.ones_like(ratio), ratio, (ratio - 1).abs(), *kls, high, low, dead], 1)
        self.sums.index_add_(0, step, (columns * counts[:, None]).double())
        largest = torch.stack([ratio, drift.expm1().abs()]) * counts
        self.largest = torch.maximum(self.largest, largest.amax(1))

    def report(self) -> dict[str, float]:
        """Means over the round and all processes, the largest ratio, and by timestep the mean of |ratio - 1| and the
        clipped share.
        """
        t, table = self.t.tolist(), total(self.sums).cpu()
        largest = total(self.largest, ReduceOp.MAX).tolist()
        counts, sums = table[:, 0], table[:, 1:]
        means = (sums.sum(0) / counts.sum().clamp_min(1)).tolist()
        found = {f"ddpo/{name}": value for name, value in zip(MEANS, means, strict=True)}
        found |= {"ddpo/ratio_max": largest[0], "ddpo/drift": largest[1]}
        by_step = sums / counts.clamp_min(1)[:, None]
        high, low = MEANS.index("clipped_high"), MEANS.index("clipped_low")
        for time, row in zip(t, by_step.tolist(), strict=True):
            found[f"ddpo/t{round(time):03d}/change"] = row[MEANS.index("change")]
            found[f"ddpo/t{round(time):03d}/clipped"] = row[high] + row[low]
        return found
