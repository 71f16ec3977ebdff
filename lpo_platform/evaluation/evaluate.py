"""Held-out measurements of a policy, item by item, so that two models can be compared on the same noise."""

import itertools
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from lpo_platform.data.cache import write_atomically
from lpo_platform.data.conditions import truth_of
from lpo_platform.data.source import Data, Sample, first
from lpo_platform.distributed import each, everywhere
from lpo_platform.evaluation.generate import Sampling, sample_latents
from lpo_platform.evaluation.statistics import compare, compare_frechet, compare_pooled
from lpo_platform.models.adapter import Adapter, Condition
from lpo_platform.models.policy import Policy
from lpo_platform.record import write_text
from lpo_platform.rewards.reward import Asked, Reward, StepReward, parts
from lpo_platform.tasks.task import Task

LATENT_FD = "image/latent_fd"
DIVERSITY = "image/diversity"
ALIGNMENT = "text/alignment"
PARTS = ("features", "real", "images", "control", "detected", "counts")


@dataclass
class Evaluation:
    """What one model drew for N items.

    scores: per metric (N,), nan where it is undefined. features, real: (N, F) latent statistics of the drawn and of the
    true pictures. control, images, detected: of the first items, the condition, the picture and what the detector finds
    in it, (n, 3, H, W) in [0, 1]. counts: of every item, what a task pools over the set, with a first axis N.
    """

    scores: dict[str, Tensor]
    features: Tensor | None = None
    real: Tensor | None = None
    images: Tensor | None = None
    control: Tensor | None = None
    detected: Tensor | None = None
    counts: Tensor | None = None

    def save(self, file: Path) -> None:
        tensors = {name: value for name in PARTS if (value := getattr(self, name)) is not None}
        tensors |= {f"score:{name}": value for name, value in self.scores.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, save({name: value.contiguous() for name, value in tensors.items()}))

    @classmethod
    def load(cls, file: Path) -> "Evaluation":
        tensors = load_file(file)
        scores = {name[6:]: tensors.pop(name) for name in list(tensors) if name.startswith("score:")}
        return cls(scores, **tensors)


@dataclass(frozen=True)
class Drawing:
    """Pictures drawn for some items, with what they were drawn from; maps only where there is a task."""

    latents: Tensor
    images: Tensor
    control: Tensor | None
    target: Tensor | None
    maps: Tensor | None
    detected: Tensor | None


class Evaluator:
    """The protocol: how many held-out items, how pictures are sampled, which seed. Null takes the model's setting.

    images_per_item: pictures of each item, whose mean is the item's score; from two on their diversity is measured.
    guards: also what else the data can say of a picture, to see at whose expense a score has risen.
    """

    def __init__(
        self,
        num_samples: int = 200,
        batch: int = 50,
        seed: int = 12345,
        eta: float = 0.0,
        guidance: float | None = None,
        num_steps: int | None = None,
        shown: int = 16,
        images_per_item: int = 1,
        guards: bool = False,
    ) -> None:
        self.num_samples, self.batch, self.seed, self.shown = num_samples, batch, seed, shown
        self.images_per_item, self.guards = images_per_item, guards
        self.eta, self.guidance, self.num_steps = eta, guidance, num_steps

    def sampling(self, adapter: Adapter) -> Sampling:
        guidance = adapter.guidance if self.guidance is None else self.guidance
        return Sampling(self.num_steps or adapter.num_inference_steps, guidance, self.eta)

    def items(self, data: Data) -> list[Sample]:
        """The first num_samples of the held-out split."""
        return first(data.test, self.num_samples)

    @torch.no_grad()
    def __call__(
        self, policy: Policy, data: Data, task: Task | None, *, title: str, reward: Reward | StepReward | None = None
    ) -> Evaluation:
        """Draws the pictures of every held-out item and scores them; a reward's own score of them stands beside.

        The batches are dealt to the processes, whose number changes nothing; each of them gets the whole result.
        """
        policy.eval()
        samples = self.items(data)
        with tqdm(total=len(samples), desc=title, unit="item") as bar:

            def measure(start: int) -> Evaluation:
                chunk = samples[start : start + self.batch]
                drawn = [self._evaluate(policy, chunk, data, task, reward, n) for n in range(self.images_per_item)]
                bar.update(everywhere(len(chunk), bar.total - bar.n))
                return _show(_average(drawn), self.shown - start)

            parts = each(range(0, len(samples), self.batch), measure)
        return _join(parts)

    def draw(self, policy: Policy, samples: list[Sample], task: Task | None, number: int = 0) -> Drawing:
        """Picture `number` of every item, rounded to 8 bits as a PNG would be; the same for an item in any batch."""
        adapter = policy.adapter
        control = target = None
        if task is not None:
            target, control = truth_of(samples, task, _stack(samples).to(adapter.device))
        condition = Condition(adapter.embed(adapter.tokenize([s.caption for s in samples])), control)
        ids, sampling = [s.id for s in samples], self.sampling(adapter)
        stream = f"evaluate/{number}" if number else "evaluate"
        latents = sample_latents(policy, condition, ids, sampling, seed=self.seed, stream=stream)
        images = adapter.decode(latents).mul(255).round().div(255)
        maps = None if task is None else task.detect(images)
        return Drawing(latents, images, control, target, maps, None if maps is None else task.render(maps))

    def _evaluate(
        self,
        policy: Policy,
        samples: list[Sample],
        data: Data,
        task: Task | None,
        reward: Reward | StepReward | None,
        number: int,
    ) -> Evaluation:
        adapter, drawn = policy.adapter, self.draw(policy, samples, task, number)
        captions, images = [s.caption for s in samples], drawn.images.cpu()
        scores = {} if task is None else task.score(drawn.maps, drawn.target) | task.judge(drawn.images, drawn.target)
        counts = None if task is None else task.counts(drawn.maps, drawn.target)
        alignment = data.alignment(images, captions)
        if alignment is not None:
            scores[ALIGNMENT] = alignment
        if reward is not None:
            scores |= {f"reward/{part}": score for part, score in scores_of(reward, drawn, captions).items()}
        if self.guards:
            scores |= data.guards(images, captions)
        real = None
        if samples[0].image is not None:
            zeros = torch.zeros_like(drawn.latents)
            real = latent_statistics(adapter.sample_latents(adapter.encode_moments(_stack(samples)), zeros))
        return Evaluation(
            {name: value.float().cpu() for name, value in scores.items()},
            latent_statistics(drawn.latents),
            real,
            images,
            None if drawn.control is None else drawn.control.cpu(),
            None if drawn.detected is None else drawn.detected.cpu(),
            None if counts is None else counts.cpu(),
        )

    def compare(self, before: Evaluation, after: Evaluation, task: Task | None) -> dict[str, dict]:
        return compare_evaluations(before, after, task)


def scores_of(reward: Reward | StepReward, drawn: Drawing, captions: list[str]) -> dict[str, Tensor]:
    """What a reward says of finished pictures: `score` and its named parts, if any, (B,) each."""
    if isinstance(reward, StepReward):
        return {"score": reward_of(reward, drawn.latents, captions)}
    asked = None
    if drawn.control is not None:
        asked = Asked(drawn.target, drawn.control, torch.arange(len(captions), device=drawn.control.device))
    return parts(reward, drawn.images, captions, asked)


def reward_of(reward: StepReward, latents: Tensor, captions: list[str]) -> Tensor:
    """What a reward of noisy latents says of finished ones, at t = 1: (B,)."""
    rows = torch.arange(len(latents), device=latents.device)
    return reward(latents, torch.ones_like(rows), reward.encode(captions), rows)


def latent_statistics(latents: Tensor) -> Tensor:
    """Mean and standard deviation of each latent channel in each quadrant: (B, C, h, w) -> (B, 8C).

    A Frechet distance over these needs no network and no download, and sees washed-out, noisy or repeated pictures.
    """
    quadrants = [half for rows in latents.float().chunk(2, 2) for half in rows.chunk(2, 3)]
    return torch.cat([torch.cat([q.mean((2, 3)), q.std((2, 3))], 1) for q in quadrants], 1).cpu()


def compare_evaluations(before: Evaluation, after: Evaluation, task: Task | None) -> dict[str, dict]:
    """The `metrics` of result.json: paired differences with 95 % bootstrap intervals."""
    better = {name: None if name.startswith("guard/") else True for name in before.scores} | (
        task.scores if task else {}
    )
    numbers = [{name: value.numpy() for name, value in side.scores.items()} for side in (before, after)]
    metrics = pooled(before, after, task) | compare(*numbers, {name: better[name] for name in before.scores})
    if before.real is None:
        return metrics
    features = (side.numpy() for side in (before.real, before.features, after.features))
    return metrics | {LATENT_FD: compare_frechet(*features)}


def pooled(before: Evaluation, after: Evaluation, task: Task | None) -> dict[str, dict]:
    """The task's metrics of the whole set, {} where it has none."""
    if task is None or before.counts is None:
        return {}
    sides = (before.counts.numpy(), after.counts.numpy())
    return {
        name: compare_pooled(
            *sides, lambda sums, name=name: task.pool(torch.from_numpy(sums))[name].numpy(), higher_is_better=better
        )
        for name, better in task.pooled.items()
    }


def write_items(file: Path, samples: list[Sample], before: Evaluation, after: Evaluation) -> None:
    """One JSON line per held-out item with its scores before and after."""
    lines = []
    for index, sample in enumerate(samples):
        row = {"id": sample.id, "caption": sample.caption}
        for name in before.scores:
            for side, evaluation in (("before", before), ("after", after)):
                value = float(evaluation.scores[name][index])
                row[f"{name}/{side}"] = value if math.isfinite(value) else None
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(file, "".join(lines))


def _stack(samples: list[Sample]) -> Tensor:
    return torch.stack([sample.image for sample in samples])


def _average(drawn: list[Evaluation]) -> Evaluation:
    """Several pictures of the same items: scores are their means, diversity their mean distance."""
    first = drawn[0]
    if len(drawn) == 1:
        return first
    scores = {name: torch.stack([d.scores[name] for d in drawn]).mean(0) for name in first.scores}
    counts = None if first.counts is None else torch.stack([d.counts for d in drawn]).sum(0)
    pairs = itertools.combinations(drawn, 2)
    distances = [(a.images - b.images).square().flatten(1).mean(1).sqrt() for a, b in pairs]
    return replace(first, scores=scores | {DIVERSITY: torch.stack(distances).mean(0)}, counts=counts)


def _show(part: Evaluation, count: int) -> Evaluation:
    """Without the pictures of all but the first `count` items."""
    pictures = {name: getattr(part, name) for name in ("images", "control", "detected")}
    return replace(part, **{name: v if v is None else v[: max(0, count)].clone() for name, v in pictures.items()})


def _join(parts: list[Evaluation]) -> Evaluation:
    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    scores = {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores}
    return Evaluation(scores, **{name: joined(name) for name in PARTS})
