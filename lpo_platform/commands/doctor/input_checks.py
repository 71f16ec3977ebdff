"""Checks whether the inputs of a model change its output: prompt, guidance, condition."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lpo_platform.commands.doctor.finding import NOTHING, Finding, difference, failed, ok, percent, skipped
from lpo_platform.commands.job import Job
from lpo_platform.data.source import Sample, first
from lpo_platform.data.truth import truth_of
from lpo_platform.diffusion import noise
from lpo_platform.evaluation.evaluator import Drawing, Evaluator
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import guides
from lpo_platform.models.sampling import sample_latents


@dataclass
class Look:
    """The model's answers at one noisy latent; of a reward model its scores."""

    job: Job
    samples: list[Sample]

    @classmethod
    def at(cls, job: Job) -> "Look":
        """Held-out captions and, with a task, pictures."""
        return cls(job, first(job.drawn.test, 4))

    @torch.no_grad()
    def output(
        self, prompt: str, control: Tensor | None = None, guidance: float = 1.0, *, reference: bool = False
    ) -> Tensor:
        """At the middle of the sampling times: (1, C, h, w), or (1,) scores."""
        policy, adapter = self.job.policy, self.job.policy.adapter
        policy.eval()
        x = noise.normal(["doctor"], adapter.latent_shape, seed=0, stream="doctor").to(adapter.device)
        t = adapter.process.times(10)[5:6]
        with self.job.hardware.autocast():
            tokens = adapter.tokenize([prompt])
            if "reward" in policy.learning:
                model = policy.learning["reward"]
                return model(x, t, model.encode(tokens), model.empty())
            text = Condition(adapter.embed(tokens), control)
            empty = adapter.empty_text() if guides(guidance) else None
            if not reference:
                return policy.predict(x, t, text, guidance=guidance, empty=empty)
            with policy.reference():
                return policy.predict(x, t, text, guidance=guidance, empty=empty)

    def controls(self) -> list[Tensor | None]:
        """The condition of every sample, (1, 3, H, W), None without a task."""
        if self.job.task is None:
            return [None] * len(self.samples)
        images = torch.stack([sample.image for sample in self.samples]).to(self.job.policy.adapter.device)
        with torch.no_grad(), self.job.hardware.autocast():
            return list(truth_of(self.samples, self.job.task, images)[1].split(1))

    def draw(self) -> Drawing:
        """Pictures of all samples, as an evaluation draws them."""
        with self.job.hardware.autocast():
            return Evaluator(num_samples=len(self.samples)).draw(self.job.policy, self.samples, self.job.task)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """What the policy draws from keyed noise: (1, C, h, w); of a reward model its score."""
        caption, control = self.samples[0].caption, self.control
        if "reward" in self.job.policy.learning:
            return self.output(caption)
        adapter = self.job.policy.adapter
        with self.job.hardware.autocast():
            condition = Condition(adapter.embed(adapter.tokenize([caption])), control)
            return sample_latents(self.job.policy, condition, ["doctor"], self.job.sampling, seed=0, stream="doctor")

    @property
    def control(self) -> Tensor | None:
        return self.controls()[0]


def prompt(look: Look) -> Finding:
    captions = list(dict.fromkeys(sample.caption for sample in look.samples))
    if len(captions) < 2:
        return skipped("prompt", "the data has one caption only")
    control = look.control
    change = difference(look.output(captions[0], control), look.output(captions[1], control))
    if change <= NOTHING:
        advice = "the text does not reach the model: check model.weights and its text encoder"
        return failed("prompt", "another caption changes nothing", advice)
    return ok("prompt", f"another caption changes the output by {percent(change)}")


def guidance(look: Look) -> Iterator[Finding]:
    """Of the method's own sampling and of other pictures'."""
    policy, method = look.job.policy, look.job.cfg.method
    asked = {"model.guidance": policy.adapter.guidance, "method.guidance": method.get("guidance", 1.0)}
    wanted = {key: value for key, value in asked.items() if guides(value)}
    if "reward" in policy.learning:
        yield skipped("guidance", "what learns draws no pictures")
    elif not wanted:
        yield skipped("guidance", "there is none: model.guidance and method.guidance are at most 1")
    else:
        caption, control = look.samples[0].caption, look.control
        plain = look.output(caption, control)
        for key, value in wanted.items():
            change = difference(plain, look.output(caption, control, value))
            if change <= NOTHING * (1 + 2 * value):  # by which it multiplies the rounding of two predictions
                advice = "the model sees no difference between a prompt and none: check its text encoder"
                yield failed("guidance", f"{key}={value:g} changes nothing", advice)
            else:
                yield ok("guidance", f"{key}={value:g} changes the output by {percent(change)}")


def condition(look: Look) -> Finding:
    if look.job.policy.control is None:
        return skipped("condition", "no control branch")
    caption, (one, *others) = look.samples[0].caption, look.controls()
    other = next((other for other in others if not torch.equal(one, other)), None)
    if other is None:
        advice = "check task= and its thresholds, or the column of the condition in data="
        return failed("condition", "all conditions of the first samples are equal", advice)
    change = difference(look.output(caption, one), look.output(caption, other))
    if change <= NOTHING:
        advice = "the control branch is disconnected: check control= and control.weights"
        return failed("condition", "another condition changes nothing, after two steps of training either", advice)
    return ok("condition", f"another condition changes the output by {percent(change)}")
