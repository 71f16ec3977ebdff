"""Guard rails while training: does the trained reward rise while rewards that nobody trains for fall?"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lpo_platform.config.numbers import Count, NotNegative
from lpo_platform.data.source import Data, Sample, alignment_of
from lpo_platform.evaluation.appearance import appearance
from lpo_platform.evaluation.evaluation import Evaluation
from lpo_platform.evaluation.evaluator import ALIGNMENT, Drawing, scores_of
from lpo_platform.hardware.distributed import agree, lead
from lpo_platform.models.export import export
from lpo_platform.rewards.reward import Reward, StepReward, row_of
from lpo_platform.runs.files import read_json
from lpo_platform.runs.record import write_json
from lpo_platform.tasks.task import Task
from lpo_platform.tracking.callbacks.alarms import Alarm, Change, change, drifting, hacked

log = logging.getLogger(__name__)


class Sentinel(Callback):
    """Watches for reward hacking: it scores held-out pictures whenever `Samples` draws them, and once at the start.

    What is trained for is the reward or, without one, the task's own scores. Held-out rewards are those that nobody
    trains for: the data's judge, the task's second detector and the rewards of `gold`. An alarm is raised when what is
    trained for has risen and a held-out reward has fallen, or when the pictures drift. It goes to the log, to
    sentinel.json and into the metrics, once for as long as it is active.

    The noise of the pictures is keyed and nothing else is random, so a run is the same with and without it.

    Args:
        folder: the folder of the run.
        data: the data option, whose judge grades pictures if it has one.
        task: the task, whose second detector grades pictures if it has one.
        reward: what is trained for; None where it is the task's own scores.
        gold: further held-out rewards by name.
        items: how many held-out items it watches.
        patience: after how many moves in the same direction a change of what the pictures look like is a drift.
        effect: how far a held-out reward has to fall for an alarm, in standard deviations over the items.
        drift: how far the pictures have to drift for an alarm, in such standard deviations.
        stop: whether an alarm ends the training in order.
        keep_best: whether export/<part>_best gets the weights whose held-out rewards are the best so far, if they are
            better than at the start.
    """

    def __init__(
        self,
        *,
        folder: Path,
        data: Data,
        task: Task | None,
        reward: Reward | StepReward | None,
        gold: dict[str, Reward] | None = None,
        items: Count = 32,
        patience: Count = 4,
        effect: NotNegative = 0.1,
        drift: NotNegative = 1.0,
        stop: bool = False,
        keep_best: bool = True,
    ) -> None:
        self.folder, self.data, self.task, self.reward, self.gold = folder, data, task, reward, gold or {}
        self.items, self.patience, self.effect, self.drift = items, patience, effect, drift
        self.stop, self.keep_best = stop, keep_best
        self.start: dict[str, dict[str, Tensor]] = {}
        self.history: dict[str, list[float]] = {}
        self.alarms: list[dict[str, Any]] = []
        self.active: list[list[str]] = []
        self.evaluations, self.best, self.stopped = 0, 0.0, False

    def evaluate(self, trainer: L.Trainer, module: L.LightningModule, samples: list[Sample], drawn: Drawing) -> None:
        """Scores the pictures that were drawn. Every process does so, and all take the numbers of the first one."""
        scores = agree(self.scores(samples, drawn))
        self.start = self.start or scores
        changes = {kind: {n: change(self.start[kind][n], v) for n, v in of.items()} for kind, of in scores.items()}
        for name, of in changes["image"].items():
            self.history.setdefault(name, []).append(of.value)
        raised = hacked(changes["trained"], changes["heldout"], self.effect)
        raised += drifting(changes["image"], self.history, self.patience, self.drift)
        step = max(0, trainer.global_step - 1)  # as Lightning numbers what is logged after a step
        self._report(raised, step)
        flat = {f"sentinel/{name}": of.value for group in changes.values() for name, of in group.items()}
        counts = {"sentinel/evaluation": float(self.evaluations), "sentinel/alarms": float(len(self.alarms))}
        for logger in trainer.loggers if lead() else ():
            logger.log_metrics({name: value for name, value in flat.items() if np.isfinite(value)} | counts, step)
        self.evaluations += 1
        if self.keep_best and (worth := improvement(changes["heldout"])) > self.best:
            self.best = worth
            export(module.policy, self.folder / "export", "_best")
        if self.stop and self.active:
            self.stopped = trainer.should_stop = True

    def scores(self, samples: list[Sample], drawn: Drawing) -> dict[str, dict[str, Tensor]]:
        """Returns the scores (N,) by name, on the CPU, of each kind: trained, heldout and image.

        Higher is better for all but image.
        """
        captions, images = [sample.caption for sample in samples], drawn.images
        own = {} if self.task is None else self.task.score(drawn.maps, drawn.target)
        trained = {name: value if self.task.scores[name] else -value for name, value in own.items()}
        if self.reward is not None:
            trained = {row_of(self.reward): scores_of(self.reward, drawn, captions)["score"]}
        heldout = {} if self.task is None else self.task.second_scores(images, drawn.target)
        alignment = alignment_of(self.data, images.cpu(), captions)
        heldout |= {} if alignment is None else {ALIGNMENT: alignment}
        heldout |= {f"gold/{name}": scores_of(reward, drawn, captions)["score"] for name, reward in self.gold.items()}
        looks = {f"image/{name}": value for name, value in appearance(images).items()}
        found = {"trained": trained, "heldout": heldout, "image": looks}
        return {kind: {name: value.float().cpu() for name, value in of.items()} for kind, of in found.items()}

    def _report(self, raised: list[Alarm], step: int) -> None:
        for alarm in raised:
            if [alarm.metric, alarm.kind] in self.active:
                continue
            self.alarms.append(_entry(alarm, step))
            if lead():
                log.warning("sentinel, step %d: %s", step, alarm.message)
        self.active = [[alarm.metric, alarm.kind] for alarm in raised]
        if lead():
            write_json(self.folder / "sentinel.json", self.alarms)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.stopped:  # resumed after it had ended
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        names = ("start", "history", "alarms", "active", "evaluations", "best", "stopped")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, "active" if name == "ringing" else name, value)  # as older checkpoints call it
        if "gold" in self.start:
            self.start["heldout"] = self.start.pop("gold")  # as older checkpoints call it
        trained = self.start.get("trained", {})
        if "reward/score" in trained and self.reward is not None:  # as rows of rewards were called once
            trained[row_of(self.reward)] = trained.pop("reward/score")


def last_look(
    file: Path,
    before: Evaluation,
    after: Evaluation,
    better: dict[str, bool | None],
    task: Task | None,
    reward: Reward | StepReward | None,
    effect: float,
) -> list[str]:
    """Asks whether the reward was hacked, of all items and metrics of a run's evaluation. Returns what the alarms say.

    Args:
        file: sentinel.json, to which the alarms are added.
        before: the evaluation of the start.
        after: the evaluation of the result.
        better: for each metric whether higher is better; None where neither is.
        task: the task, whose own scores are trained for without a reward.
        reward: what was trained for.
        effect: how far a held-out reward has to fall for an alarm, in standard deviations over the items.
    """
    sides = before.of_items(), after.of_items()
    own = set(task.scores if task else ()) if reward is None else {row_of(reward)}
    sign = {name: 1 if higher else -1 for name, higher in better.items() if higher is not None and name in sides[0]}
    found = {name: change(way * sides[0][name], way * sides[1][name]) for name, way in sign.items()}
    heldout = {name: of for name, of in found.items() if name not in own and not name.startswith(("image/", "reward/"))}
    raised = hacked({name: of for name, of in found.items() if name in own}, heldout, effect)
    known = [entry for entry in read_json(file) or [] if entry["step"] is not None]
    write_json(file, known + [_entry(alarm, None) for alarm in raised])
    return [alarm.message for alarm in raised]


def _entry(alarm: Alarm, step: int | None) -> dict[str, Any]:
    """A line of sentinel.json; without a step it is about the run's evaluation."""
    numbers = {name: value for name, value in asdict(alarm.change).items() if name != "spread"}
    entry = {"step": step, "metric": alarm.metric, "kind": alarm.kind, "message": alarm.message}
    return entry | numbers | {"ci95": list(alarm.change.ci95)}


def improvement(heldout: dict[str, Change]) -> float:
    """Mean change of the held-out rewards, each in standard deviations over the items; 0 where there are none."""
    known = [of.difference / max(of.spread, 1e-6) for of in heldout.values() if np.isfinite(of.difference)]
    return float(np.mean(known)) if known else 0.0
