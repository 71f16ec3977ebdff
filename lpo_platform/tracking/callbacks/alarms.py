"""When a run should be looked at: pure functions of the scores of a fixed set of pictures, at the start and now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lpo_platform.evaluation.statistics import paired_interval

MAY_RISE = ("image/diversity",)


@dataclass(frozen=True)
class Change:
    """How a metric's mean over the same items has changed since the start.

    Attributes:
        before: the mean at the start.
        value: the mean now.
        ci95: the interval of the difference.
        spread: its standard deviation over the items, the root mean square of both sides' (the denominator of Cohen's
            d).
    """

    before: float
    value: float
    ci95: tuple[float, float]
    spread: float

    @property
    def difference(self) -> float:
        return self.value - self.before

    def beyond(self, effect: float) -> int:
        """1 or -1 where the whole interval of the difference is further from 0 than `effect` spreads, else 0."""
        low, high = self.ci95
        least = effect * self.spread
        return int(low > least) - int(high < -least)


@dataclass(frozen=True)
class Alarm:
    """What a run should be looked at for.

    Attributes:
        metric: the metric that has changed.
        kind: hacked or drift.
        message: what has changed, in words.
        change: how far it has changed.
    """

    metric: str
    kind: str
    message: str
    change: Change


def change(before: ArrayLike, now: ArrayLike) -> Change:
    """Compares (N,) paired items of the start and of now. An item that is nan on one side does not count."""
    before, now = np.asarray(before, dtype=np.float64), np.asarray(now, dtype=np.float64)
    keep = ~(np.isnan(before) | np.isnan(now))
    before, now = before[keep], now[keep]
    if not len(before):
        return Change(np.nan, np.nan, (np.nan, np.nan), np.nan)
    spread = float(np.sqrt((before.var() + now.var()) / 2))
    return Change(float(before.mean()), float(now.mean()), paired_interval(before, now), spread)


def hacked(trained: Mapping[str, Change], heldout: Mapping[str, Change], effect: float) -> list[Alarm]:
    """Raises an alarm for every held-out reward that fell by more than `effect` spreads while what is trained for rose.

    Higher is better for all of them.
    """
    risen = [name for name, of in trained.items() if of.beyond(0.0) > 0]
    return [
        Alarm(name, "hacked", f"{name} fell by {-of.difference:.3g} while {risen[0]} rose by "
              f"{trained[risen[0]].difference:.3g}: the reward may be exploited", of)
        for name, of in heldout.items() if risen and of.beyond(effect) < 0
    ]  # fmt: skip


def drifting(
    looks: Mapping[str, Change], history: Mapping[str, Sequence[float]], patience: int, effect: float
) -> list[Alarm]:
    """Raises an alarm for every statistic that moved far, and one way in each of the last `patience` evaluations.

    Diversity may rise.

    Args:
        looks: how each statistic of what the pictures look like has changed.
        history: the means of each at all evaluations so far, the start first.
        patience: the number of evaluations.
        effect: how far it has to have moved by now, in spreads.
    """
    found = []
    for name, of in looks.items():
        moves = np.sign(np.diff(history[name][-patience - 1 :]))
        way = of.beyond(effect)
        if way > 0 and name in MAY_RISE:
            continue
        if way and len(moves) == patience and (moves == way).all():
            went = "rises" if way > 0 else "falls"
            text = f"{name} {went} at every evaluation, from {of.before:.3g} to {of.value:.3g}: look at the pictures"
            found.append(Alarm(name, "drift", text, of))
    return found
