"""The one list of everything that a run logs: its name, the axis that it is drawn over, its panel on a dashboard.

What every run logs stands here. What a method logs stands in its class, as `logs`: fields of Metric by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal

from lpo_platform.config.options import offered
from lpo_platform.config.signature import attributes

Axis = Literal["step", "round", "evaluation"]
Kind = Literal["curve", "histogram", "image", "table"]
AXES: dict[Axis, str] = {"step": "trainer/global_step", "round": "epoch", "evaluation": "sentinel/evaluation"}
"""What is logged beside every metric of an axis. An offline method's epoch is `callbacks.every` steps."""


@dataclass(frozen=True)
class Metric:
    """A metric, or all that fit a pattern.

    Args:
        name: as it is logged; * stands for anything.
        what: its meaning.
        panel: of a dashboard.
        axis: what it is drawn over.
        summary: which value stands for the run, the last one where it is None (an explicit `last` is sometimes stored
            as a mapping by W&B).
        kind: a histogram has counts or, by timestep, means.
    """

    name: str
    what: str
    panel: str = "Method"
    axis: Axis = "step"
    summary: Literal["min", "max"] | None = None
    kind: Kind = "curve"


PANELS = (
    "Training", "Reward", "Rollouts", "Method", "Distributions", "Pictures", "Evaluation", "Guard rails",
    "Throughput", "Time",
)  # fmt: skip
COMMON = (
    Metric("train/loss", "the loss that is minimised", "Training"),
    Metric("train/grad_norm", "norm of the gradient before clipping", "Training"),
    Metric("train/lr", "learning rate", "Training"),
    Metric("distribution/loss", "of the samples of a round", "Distributions", "round", kind="histogram"),
    Metric("by_timestep/loss", "mean loss by timestep, of a round", "Distributions", "round", kind="histogram"),
    Metric("by_timestep/*", "mean by timestep, of a round", "Distributions", "round", kind="histogram"),
    Metric("samples", "held-out items: condition, picture, what is detected in it", "Pictures", kind="image"),
    Metric("eval/grid", "held-out items before and after", "Pictures", kind="image"),
    Metric("eval/table", "every metric before and after, with its interval", "Evaluation", kind="table"),
    Metric("eval/items", "every held-out item, with pictures and scores", "Evaluation", kind="table"),
    Metric("eval/*", "the trained model on all held-out items", "Evaluation"),
    Metric("sentinel/alarms", "alarms so far", "Guard rails", "evaluation", "max"),
    Metric("sentinel/*", "trained reward, held-out rewards and what pictures look like", "Guard rails", "evaluation"),
    Metric(
        "throughput/*",
        "pictures in a second; counted FLOPs over what the devices can do; waiting for data",
        "Throughput",
        "round",
    ),
    Metric("perf/*", "seconds of each part of the job", "Time"),
)


@cache
def logged_by(method: str) -> tuple[Metric, ...]:
    """What a run logs with a method, whose class is named as in _target_: what it and its bases say, and COMMON."""
    own = {name: fields for said in reversed(attributes(method, "logs")) for name, fields in said.items()}
    return (*(Metric(name, **fields) for name, fields in own.items() if fields is not None), *COMMON)


def every_metric() -> list[Metric]:
    """What runs log with all methods that come with the platform, in the order of the panels."""
    found = {metric.name: metric for _, target in offered("method") if target for metric in logged_by(target)}
    place = {panel: number for number, panel in enumerate(PANELS)}
    return sorted(found.values(), key=lambda metric: place.get(metric.panel, len(PANELS)))


def find(name: str, metrics: Sequence[Metric]) -> Metric | None:
    """The metric of that name, else the first pattern that it fits; None for one that nobody has declared."""
    exact = (metric for metric in metrics if metric.name == name)
    return next(exact, None) or next((metric for metric in metrics if fnmatchcase(name, metric.name)), None)
