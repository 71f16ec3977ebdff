"""Guard rails while training: does what is trained for rise at the expense of what nobody trains for?"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from torch import Tensor

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
    """Scores the pictures of the first `items` held-out items whenever `Samples` draws them, and once at the start.

    What is trained for is the reward or, without one, the task's own scores. Gold is what nobody trains for: the data's
    judge, the task's second detector and the rewards of `gold`. An alarm rings when the first has risen and a gold has
    fallen, by more than `effect` of its standard deviation over the items, or when what the pictures look like moves
    one way `patience` times in a row and by more than `drift` such deviations; it goes to the log, to sentinel.json and
    into the metrics, once for as long as it lasts. stop: training then ends in order. keep_best: the weights whose gold
    is the best so far, and better than at the start, lie in export/<part>_best.

    The noise of the pictures is keyed and nothing else is random, so a run is the same with and without it.
    """

    def __init__(
        self,
        *,
        folder: Path,
        data: Data,
        task: Task | None,
        reward: Reward | StepReward | None,
        gold: dict[str, Reward] | None = None,
        items: int = 32,
        patience: int = 4,
        effect: float = 0.1,
        drift: float = 1.0,
        stop: bool = False,
        keep_best: bool = True,
    ) -> None:
        self.folder, self.data, self.task, self.reward, self.gold = folder, data, task, reward, gold or {}
        self.items, self.patience, self.effect, self.drift = items, patience, effect, drift
        self.stop, self.keep_best = stop, keep_best
        self.start: dict[str, dict[str, Tensor]] = {}
        self.history: dict[str, list[float]] = {}
        self.alarms: list[dict[str, Any]] = []
        self.ringing: list[list[str]] = []
        self.evaluations, self.best, self.stopped = 0, 0.0, False

    def look(self, trainer: L.Trainer, module: L.LightningModule, samples: list[Sample], drawn: Drawing) -> None:
        """One evaluation, of what was drawn for its items; every process makes it and takes the first one's numbers."""
        scores = agree(self.scores(samples, drawn))
        self.start = self.start or scores
        changes = {kind: {n: change(self.start[kind][n], v) for n, v in of.items()} for kind, of in scores.items()}
        for name, of in changes["image"].items():
            self.history.setdefault(name, []).append(of.value)
        rung = hacked(changes["trained"], changes["gold"], self.effect)
        rung += drifting(changes["image"], self.history, self.patience, self.drift)
        step = max(0, trainer.global_step - 1)  # as Lightning numbers what is logged after a step
        self._ring(rung, step)
        flat = {f"sentinel/{name}": of.value for group in changes.values() for name, of in group.items()}
        counts = {"sentinel/evaluation": float(self.evaluations), "sentinel/alarms": float(len(self.alarms))}
        for logger in trainer.loggers if lead() else ():
            logger.log_metrics({name: value for name, value in flat.items() if np.isfinite(value)} | counts, step)
        self.evaluations += 1
        if self.keep_best and (worth := improvement(changes["gold"])) > self.best:
            self.best = worth
            export(module.policy, self.folder / "export", "_best")
        if self.stop and self.ringing:
            self.stopped = trainer.should_stop = True

    def scores(self, samples: list[Sample], drawn: Drawing) -> dict[str, dict[str, Tensor]]:
        """trained, gold and image: by name (N,) on the CPU; but for image, higher is better."""
        captions, images = [sample.caption for sample in samples], drawn.images
        own = {} if self.task is None else self.task.score(drawn.maps, drawn.target)
        trained = {name: value if self.task.scores[name] else -value for name, value in own.items()}
        if self.reward is not None:
            trained = {row_of(self.reward): scores_of(self.reward, drawn, captions)["score"]}
        gold = {} if self.task is None else self.task.second_scores(images, drawn.target)
        alignment = alignment_of(self.data, images.cpu(), captions)
        gold |= {} if alignment is None else {ALIGNMENT: alignment}
        gold |= {f"gold/{name}": scores_of(reward, drawn, captions)["score"] for name, reward in self.gold.items()}
        looks = {f"image/{name}": value for name, value in appearance(images).items()}
        found = {"trained": trained, "gold": gold, "image": looks}
        return {kind: {name: value.float().cpu() for name, value in of.items()} for kind, of in found.items()}

    def _ring(self, rung: list[Alarm], step: int) -> None:
        for alarm in rung:
            if [alarm.metric, alarm.kind] in self.ringing:
                continue
            self.alarms.append(_entry(alarm, step))
            if lead():
                log.warning("sentinel, step %d: %s", step, alarm.message)
        self.ringing = [[alarm.metric, alarm.kind] for alarm in rung]
        if lead():
            write_json(self.folder / "sentinel.json", self.alarms)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.stopped:  # resumed after it had ended
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        names = ("start", "history", "alarms", "ringing", "evaluations", "best", "stopped")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
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
    """The same question about all items and metrics of a run's evaluation; its alarms join those of `file`.

    better: of each metric whether higher is, None where neither is. Returns what the alarms say.
    """
    sides = before.of_items(), after.of_items()
    own = set(task.scores if task else ()) if reward is None else {row_of(reward)}
    sign = {name: 1 if higher else -1 for name, higher in better.items() if higher is not None and name in sides[0]}
    found = {name: change(way * sides[0][name], way * sides[1][name]) for name, way in sign.items()}
    gold = {name: of for name, of in found.items() if name not in own and not name.startswith(("image/", "reward/"))}
    rung = hacked({name: of for name, of in found.items() if name in own}, gold, effect)
    known = [entry for entry in read_json(file) or [] if entry["step"] is not None]
    write_json(file, known + [_entry(alarm, None) for alarm in rung])
    return [alarm.message for alarm in rung]


def _entry(alarm: Alarm, step: int | None) -> dict[str, Any]:
    """A line of sentinel.json; without a step it is about the run's evaluation."""
    told = {name: value for name, value in asdict(alarm.change).items() if name != "spread"}
    entry = {"step": step, "metric": alarm.metric, "kind": alarm.kind, "message": alarm.message}
    return entry | told | {"ci95": list(alarm.change.ci95)}


def improvement(gold: dict[str, Change]) -> float:
    """Mean change of the gold metrics, each in standard deviations over the items; 0 where there are none."""
    known = [of.difference / max(of.spread, 1e-6) for of in gold.values() if np.isfinite(of.difference)]
    return float(np.mean(known)) if known else 0.0
