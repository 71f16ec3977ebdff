"""Held-out measurements of a policy, item by item, so that two models can be compared on the same noise."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from lpo_platform.config.errors import RunFailed
from lpo_platform.config.numbers import Count, Guidance, NotNegative, SamplingSteps, Seed, Whole
from lpo_platform.data.picture_files import save_png
from lpo_platform.data.source import Data, Sample, alignment_of, first, guards_of
from lpo_platform.data.truth import truth_of
from lpo_platform.evaluation.compare import GUARD, LATENT_FD, compare_evaluations
from lpo_platform.evaluation.evaluation import Evaluation, joined, parts_in
from lpo_platform.evaluation.measure import Measure, Pictures
from lpo_platform.evaluation.protocol import Protocol
from lpo_platform.evaluation.texts import Texts
from lpo_platform.hardware.distributed import agree, each, everywhere, lead
from lpo_platform.models.adapter import Adapter, Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampler, Sampling, sample_latents
from lpo_platform.rewards.reward import Asked, Reward, StepReward, parts, row_of, score_latents
from lpo_platform.tasks.task import Task

__all__ = ["ALIGNMENT", "DIVERSITY", "LATENT_FD", "Drawing", "Evaluation", "Evaluator", "compare_evaluations"]
DIVERSITY = "image/diversity"
ALIGNMENT = "text/alignment"
HELP = "what helps: a lower optim.lr where it was trained, hardware.precision=32-true, or another autoencoder"


@dataclass(frozen=True)
class Asking:
    """Some items: what their pictures should show, and what they are drawn from; maps only where there is a task."""

    samples: list[Sample]
    target: Tensor | None
    condition: Condition


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
    """Draws pictures for held-out items and scores them. A setting that is null takes the model's own value.

    Args:
        num_samples: held-out items.
        batch: items that a process holds at once. It changes no number.
        rows: items computed at once, always exactly this many (the last group is padded), because rounding depends on
            the shape.
        seed: of the noise that pictures start from.
        eta: noise of the sampler.
        guidance: classifier-free guidance.
        num_steps: steps of the sampler.
        shown: items whose pictures are kept for the report.
        images_per_item: pictures of each item, whose mean is the item's score. From two on their diversity is measured.
        guards: also takes what else the data can measure in pictures, such as the area of objects, which shows side
            effects of a training.
        pool_items: where a task can pool a metric (F1), an item's score is that of all its pictures taken as one.
        guidance_base: guidance of the base model, if it differs.
        same_noise: all items start from the same noise.
        sampler: `ddim`, or `unipc`, which has no eta. FLUX has its own.
        save: keeps all pictures as PNG files.
        task: settings of the task that differ from those of training, such as its detector's weights. The caller builds
            that task.
        protocol: the published protocol that these settings follow, if any.
        measures: further measures of the pictures, by name.
    """

    of_rewards: ClassVar[bool] = False  # it measures what a model draws, not a reward model

    def __init__(
        self,
        num_samples: Count = 200,
        batch: Count = 50,
        rows: Count = 10,
        seed: Seed = 12345,
        eta: NotNegative = 0.0,
        guidance: Guidance | None = None,
        num_steps: SamplingSteps | None = None,
        shown: Whole = 16,
        images_per_item: Count = 1,
        guards: bool = False,
        pool_items: bool = False,
        guidance_base: Guidance | None = None,
        same_noise: bool = False,
        sampler: Sampler = "ddim",
        save: bool = False,
        task: dict[str, str | int | float | bool | None] | None = None,
        protocol: Protocol | None = None,
        measures: dict[str, Measure] | None = None,
    ) -> None:
        self.num_samples, self.batch, self.rows, self.seed, self.shown = num_samples, batch, rows, seed, shown
        self.images_per_item, self.pool_items, self.guards = images_per_item, pool_items, guards
        self.eta, self.guidance, self.guidance_base, self.num_steps = eta, guidance, guidance_base, num_steps
        self.same_noise, self.sampler, self.save = same_noise, sampler, save
        self.protocol, self.measures = protocol, measures or {}

    def sampling(self, adapter: Adapter, *, base: bool = False) -> Sampling:
        asked = self.guidance if not base or self.guidance_base is None else self.guidance_base
        guidance = adapter.guidance if asked is None else asked
        return Sampling(self.num_steps or adapter.num_inference_steps, guidance, self.eta, self.sampler)

    def items(self, data: Data) -> list[Sample]:
        """The first num_samples of the held-out split."""
        return first(data.test, self.num_samples)

    @torch.no_grad()
    def __call__(
        self,
        policy: Policy,
        data: Data,
        task: Task | None,
        *,
        title: str,
        reward: Reward | StepReward | None = None,
        base: bool = False,
        under_way: Path | None = None,
        pictures: Path | None = None,
    ) -> Evaluation:
        """Draws the pictures of every held-out item and scores them, also by the reward of the run.

        The batches are dealt to the processes, whose number changes nothing; each of them gets the whole result. What
        is measured is kept in the folder `under_way`, from which an interrupted evaluation continues, also with other
        batches and processes. pictures: the folder that gets them where they are saved.
        """
        policy.eval()
        samples = self.items(data)
        done = agree(parts_in(under_way) if under_way is not None and lead() else [])
        known = {number for part in done for number in part.numbers.tolist()}
        missing = [number for number in range(len(samples)) if number not in known]
        texts = Texts(policy.adapter, [samples[number].caption for number in missing])
        with tqdm(total=len(samples), initial=len(known), desc=title, unit="item") as bar:

            def measure(start: int) -> Evaluation:
                numbers = missing[start : start + self.batch]
                units = [numbers[i : i + self.rows] for i in range(0, len(numbers), self.rows)]
                part = joined(map(compute, units), self.shown)
                part.numbers = torch.tensor(numbers)
                if under_way is not None:
                    part.save(under_way / f"{numbers[0]:08d}.safetensors", under_way.name)
                bar.update(everywhere(len(numbers), bar.total - bar.n))
                return part

            def compute(numbers: list[int]) -> Evaluation:
                filled = [*numbers, *numbers[-1:] * (self.rows - len(numbers))]
                asking = self._ask(policy, [samples[number] for number in filled], task, texts)
                drawn = [self._draw(policy, asking, task, n, base=base) for n in range(self.images_per_item)]
                if self.save and pictures is not None:
                    save_drawn(pictures, numbers, asking, drawn)
                said = self._said(policy, asking, drawn, data, task, reward)
                return said.of(numbers, self.shown)

            new = each(range(0, len(missing), self.batch), measure)
        return joined([*done, *new], self.shown)

    def draw(self, policy: Policy, samples: list[Sample], task: Task | None, number: int = 0) -> Drawing:
        """Picture `number` of every item, rounded to 8 bits as in a PNG. Up to rounding it is the same in any batch."""
        asking = self._ask(policy, samples, task, Texts(policy.adapter, []))
        return self._draw(policy, asking, task, number)

    def _ask(self, policy: Policy, samples: list[Sample], task: Task | None, texts: Texts) -> Asking:
        control = target = None
        if task is not None:
            target, control = truth_of(samples, task, _stack(samples).to(policy.adapter.device))
        return Asking(samples, target, Condition(texts([s.caption for s in samples]), control))

    def _draw(self, policy: Policy, asking: Asking, task: Task | None, number: int, *, base: bool = False) -> Drawing:
        adapter, control = policy.adapter, asking.condition.control
        ids = ["every item" if self.same_noise else s.id for s in asking.samples]
        stream = f"evaluate/{number}" if number else "evaluate"
        sampling = self.sampling(adapter, base=base)
        latents = sample_latents(policy, asking.condition, ids, sampling, seed=self.seed, stream=stream)
        images = adapter.decode(latents).mul(255).round().div(255)
        if bad := int((~torch.isfinite(images)).flatten(1).any(1).sum()):
            raise RunFailed(f"{bad} of {len(images)} pictures that the model draws are not finite; {HELP}")
        maps = None if task is None else task.detect(images)
        return Drawing(latents, images, control, asking.target, maps, None if maps is None else task.render(maps))

    def _said(
        self,
        policy: Policy,
        asking: Asking,
        drawn: list[Drawing],
        data: Data,
        task: Task | None,
        reward: Reward | StepReward | None,
    ) -> Evaluation:
        """All scores and features of K pictures of B items, on the CPU."""
        samples, one = asking.samples, drawn[0]
        captions, ids = [s.caption for s in samples], [s.id for s in samples]
        real = None if samples[0].image is None else _stack(samples).to(one.images.device)
        pictures = [
            Pictures(d.images, captions, ids, real, asking.target, asking.condition.control, d.maps) for d in drawn
        ]
        each_picture = [self._scores(d, p, data, task, reward) for d, p in zip(drawn, pictures, strict=True)]
        scores = {name: _columns([said[name] for said in each_picture]) for name in each_picture[0]}
        if len(drawn) > 1:
            scores[DIVERSITY] = diversity([d.images for d in drawn])
            scores |= task.grouped([d.maps for d in drawn], asking.target) if task and self.pool_items else {}
        counts = None
        if task is not None and (each_count := [task.counts(d.maps, d.target) for d in drawn])[0] is not None:
            counts = torch.stack(each_count).sum(0)
        rows = [self._features(p) for p in pictures]
        true, latents, guards = {}, None, {}
        if real is not None:
            guards = self._guards(data, real.cpu(), captions)
            true = self._features(Pictures(real, captions, ids, drawn=False))
            moments = policy.adapter.encode_moments(real)
            latents = latent_statistics(policy.adapter.sample_latents(moments, torch.zeros_like(one.latents)))
        return Evaluation(
            {name: value.float().cpu() for name, value in scores.items()},
            latent_statistics(one.latents),
            latents,
            *(None if value is None else value.cpu() for value in (one.images, one.control, one.detected, counts)),
            {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]},
            true,
            {name: value.float() for name, value in guards.items() if name.startswith(GUARD)},
        )

    def _scores(
        self, drawn: Drawing, pictures: Pictures, data: Data, task: Task | None, reward: Reward | StepReward | None
    ) -> dict[str, Tensor]:
        """The scores of one picture of each item, (B,) each."""
        captions, images = pictures.captions, drawn.images.cpu()
        scores = {}
        if task is not None:
            scores = task.score(drawn.maps, drawn.target) | task.second_scores(drawn.images, drawn.target)
        alignment = alignment_of(data, images, captions)
        scores |= {} if alignment is None else {ALIGNMENT: alignment}
        if reward is not None:
            scores |= {row_of(reward, part): score for part, score in scores_of(reward, drawn, captions).items()}
        scores |= self._guards(data, images, captions)
        for measure in self.measures.values():
            scores |= measure.score(pictures)
        return scores

    def _guards(self, data: Data, images: Tensor, captions: list[str]) -> dict[str, Tensor]:
        return guards_of(data, images, captions) if self.guards else {}

    def _features(self, pictures: Pictures) -> dict[str, Tensor]:
        """The rows of every measure, (B, F) under "<measure>:<name>"."""
        return {
            f"{name}:{part}": row.float().cpu()
            for name, measure in self.measures.items()
            for part, row in measure.features(pictures).items()
        }

    def compare(self, before: Evaluation | None, after: Evaluation, task: Task | None) -> dict[str, dict]:
        return compare_evaluations(before, after, task, self.measures)


def scores_of(reward: Reward | StepReward, drawn: Drawing, captions: list[str]) -> dict[str, Tensor]:
    """What a reward says of finished pictures: `score` and its named parts, if any, (B,) each."""
    if isinstance(reward, StepReward):
        return {"score": score_latents(reward, drawn.latents, captions)}
    asked = None
    if drawn.control is not None:
        asked = Asked(drawn.target, drawn.control, torch.arange(len(captions), device=drawn.control.device))
    return parts(reward, drawn.images, captions, asked)


def latent_statistics(latents: Tensor) -> Tensor:
    """Mean and standard deviation of each latent channel in each quadrant: (B, C, h, w) -> (B, 8C).

    A Frechet distance over these needs no network and no download, and sees washed-out, noisy or repeated pictures.
    """
    quadrants = [half for rows in latents.float().chunk(2, 2) for half in rows.chunk(2, 3)]
    return torch.cat([torch.cat([q.mean((2, 3)), q.std((2, 3))], 1) for q in quadrants], 1).cpu()


def diversity(images: list[Tensor]) -> Tensor:
    """Mean root-mean-square distance between two of K pictures of an item: K times (B, 3, H, W) -> (B,)."""
    pairs = itertools.combinations(images, 2)
    return torch.stack([(a - b).square().flatten(1).mean(1).sqrt() for a, b in pairs]).mean(0)


def save_drawn(folder: Path, numbers: list[int], asking: Asking, drawn: list[Drawing]) -> None:
    """group_<picture>/<item>.png as CPO's evaluation names them, and condition/<item>.png."""
    for row, number in enumerate(numbers):
        for group, pictures in enumerate(drawn):
            save_png(pictures.images[row], folder / f"group_{group}" / f"{number}.png")
        if asking.condition.control is not None:
            save_png(asking.condition.control[row], folder / "condition" / f"{number}.png")


def _stack(samples: list[Sample]) -> Tensor:
    return torch.stack([sample.image for sample in samples])


def _columns(values: list[Tensor]) -> Tensor:
    """(B,) of each of K pictures -> (B, K), or (B,) for one."""
    return values[0] if len(values) == 1 else torch.stack(values, 1)
