"""Everything that a run logs, once: what it is called, what it is drawn over, where it stands on a dashboard."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

Axis = Literal["step", "round", "evaluation"]
Kind = Literal["curve", "histogram", "image", "table"]
AXES: dict[Axis, str] = {"step": "trainer/global_step", "round": "epoch", "evaluation": "sentinel/evaluation"}
"""What is logged beside every metric of an axis. An offline method's epoch is `callbacks.every` steps."""


@dataclass(frozen=True)
class Metric:
    """One name, or a pattern with *, on a `panel`; `methods` log it, all where none is named.

    summary: which value stands for the run, the last one where it is None (an explicit `last` is sometimes stored as a
    mapping by W&B). kind: a histogram has counts or, by timestep, means.
    """

    name: str
    panel: str
    what: str
    axis: Axis = "step"
    summary: Literal["min", "max"] | None = None
    kind: Kind = "curve"
    methods: tuple[str, ...] = ()


PAIRS, ONLINE = ("lpo", "spo"), ("lpo", "spo", "ddpo")
METRICS = (
    Metric("train/loss", "Training", "what is descended"),
    Metric("train/grad_norm", "Training", "norm of the gradient before clipping"),
    Metric("train/lr", "Training", "learning rate"),
    Metric("reward/mean", "Reward", "of all candidates of a round", "round", "max", methods=PAIRS),
    Metric("reward/score", "Reward", "of all pictures of a round", "round", "max", methods=("ddpo",)),
    Metric("reward/std", "Reward", "over the pictures of a round", "round", methods=("ddpo",)),
    Metric("reward/spread", "Reward", "standard deviation within a prompt", "round", methods=ONLINE),
    Metric("reward/*", "Reward", "a named part of the reward", "round", methods=("ddpo",)),
    Metric("rollout/samples", "Rollouts", "pairs or pictures to learn from", "round", methods=ONLINE),
    Metric("rollout/valid", "Rollouts", "share of steps whose best and worst differ enough", "round", methods=PAIRS),
    Metric("rollout/no_advantage", "Rollouts", "share of pictures that teach nothing", "round", methods=("ddpo",)),
    Metric("refresh/*", "Rollouts", "the reward model's training on the policy's pictures", "round", methods=("lpo",)),
    Metric("lpo/margin", "Method", "winner's log-ratio less the loser's", methods=PAIRS),
    Metric("lpo/accuracy", "Method", "share of pairs whose winner became likelier", methods=PAIRS),
    Metric("lpo/clipped", "Method", "share of pairs beyond the clip", methods=PAIRS),
    Metric("ddpo/*", "Method", "ratios, divergences and clipping, of the round and by timestep", "round",
           methods=("ddpo",)),
    Metric("cpo/preference", "Method", "the hinge on the preference", methods=("cpo",)),
    Metric("cpo/pretraining", "Method", "denoising error with the true condition", methods=("cpo",)),
    Metric("cpo/difference", "Method", "error with the true condition less that with the worse one", methods=("cpo",)),
    Metric("cpo/implicit_accuracy", "Method", "share of pairs better told apart than at the start", methods=("cpo",)),
    Metric("cpo/weight", "Method", "how much a pair's gradient counts", methods=("cpo",)),
    Metric("cpo/active", "Method", "share of pairs inside the margin", methods=("cpo",)),
    Metric("control_reward/reward", "Method", "the task's loss of predicted pictures", methods=("control_reward",)),
    Metric("control_reward/pretraining", "Method", "denoising error", methods=("control_reward",)),
    Metric("dpo/accuracy", "Method", "share of pairs told apart", methods=("diffusion_dpo", "dpo_control")),
    Metric("dpo/margin", "Method", "how far they are told apart", methods=("diffusion_dpo", "dpo_control")),
    Metric("dpo/winner", "Method", "gain on the winner's error", methods=("diffusion_dpo", "dpo_control")),
    Metric("dpo/loser", "Method", "gain on the loser's error", methods=("diffusion_dpo", "dpo_control")),
    Metric("lrm/accuracy", "Method", "share of pairs ordered as labelled", methods=("lrm",)),
    Metric("lrm/scale", "Method", "the temperature's inverse", methods=("lrm",)),
    Metric("val/pair_accuracy", "Method", "the same on validation rows", "round", "max", methods=("lrm",)),
    Metric("distribution/loss", "Distributions", "of the samples of a round", "round", kind="histogram"),
    Metric("distribution/reward", "Distributions", "of a round", "round", kind="histogram", methods=ONLINE),
    Metric("distribution/advantage", "Distributions", "of a round's pictures", "round", kind="histogram",
           methods=("ddpo",)),
    Metric("distribution/log_ratio", "Distributions", "of the updates of a round", "round", kind="histogram",
           methods=ONLINE),
    Metric("by_timestep/loss", "Distributions", "mean loss by timestep, of a round", "round", kind="histogram"),
    Metric("by_timestep/*", "Distributions", "mean by timestep, of a round", "round", kind="histogram"),
    Metric("samples", "Pictures", "held-out items: condition, picture, what is detected in it", kind="image"),
    Metric("eval/grid", "Pictures", "held-out items before and after", kind="image"),
    Metric("eval/table", "Evaluation", "every metric before and after, with its interval", kind="table"),
    Metric("eval/items", "Evaluation", "every held-out item, with pictures and scores", kind="table"),
    Metric("eval/*", "Evaluation", "the trained model on all held-out items"),
    Metric("sentinel/alarms", "Guard rails", "alarms so far", "evaluation", "max"),
    Metric("sentinel/*", "Guard rails", "trained reward, held-out rewards and what pictures look like", "evaluation"),
    Metric("throughput/*", "Throughput", "pictures in a second; counted FLOPs over what the devices can do", "round"),
    Metric("perf/*", "Time", "seconds of each part of the job"),
)  # fmt: skip


def logged_by(method: str) -> list[Metric]:
    return [metric for metric in METRICS if not metric.methods or method in metric.methods]


def find(name: str, metrics: Sequence[Metric] = METRICS) -> Metric | None:
    """The metric of that name, else the first pattern that it fits; None for one that nobody has declared."""
    exact = (metric for metric in metrics if metric.name == name)
    return next(exact, None) or next((metric for metric in metrics if fnmatchcase(name, metric.name)), None)
