"""What a run computes, piece by piece, counted by running the method itself on the meta device.

Detectors and rewards of pictures are left out, for their shapes are known only with their weights; a latent reward
model is counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lpo_platform.commands.build import create
from lpo_platform.commands.plan.count import flops, peak
from lpo_platform.commands.plan.reading import Reading
from lpo_platform.commands.plan.shapes import adapter_of, policy_of
from lpo_platform.commands.plan.stand_ins import Given, reward_like
from lpo_platform.config.signature import attribute, signature
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.methods.method import Batch, Method
from lpo_platform.models.policy import Policy, guides
from lpo_platform.models.sampling import Sampling


@dataclass(frozen=True)
class Piece:
    """Something that is computed `times` times in a run, by all processes together."""

    name: str
    flops: float
    times: float


@dataclass
class PlannedJob:
    """A configuration's objects on the meta device; hardware: how the batch is cut."""

    cfg: DictConfig
    hardware: Hardware
    policy: Policy
    method: Method
    micro: int
    predictions: dict[float, tuple[float, float]] = field(default_factory=dict)
    """By guidance, the costs that are counted already."""

    @property
    def needs(self) -> tuple[str, ...]:
        asked = get_class(self.cfg.method._target_).columns(self.cfg.method)
        text = "tokens" if self.policy.reads_tokens else "text"
        return tuple(text if name == "text" else name for name in asked if name != "control" or self.cfg.get("task"))

    @property
    def pictures(self) -> int:
        """Pictures in a training sample."""
        return self.cfg.data.get("num_images", 2) if "labels" in self.needs else 1

    def columns(self, count: int) -> dict[str, Callable[[], Tensor]]:
        """Columns of `count` training samples, by name."""
        adapter, size = self.policy.adapter, self.policy.adapter.resolution
        channels, *latent = adapter.latent_shape
        n = (self.pictures,) if "labels" in self.needs else ()
        tokens = lambda: adapter.tokenize([""] * count).to("meta")  # noqa: E731
        picture = lambda: _meta(count, 3, size, size)  # noqa: E731
        return {
            "moments": lambda: _meta(count, *n, 2 * channels, *latent),
            "tokens": tokens,
            "text": lambda: _meta(count, *self.text[0]),
            "control": picture,
            "loser": picture,
            "target": lambda: Given().target(picture(), picture()[:, :1]).half(),
            "labels": lambda: _meta(count, *n, *n),
            "features": lambda: torch.stack([self.policy.features(picture())] * 2, 1).detach(),
        }

    @cached_property
    def text(self) -> tuple[list[int], int]:
        """Shape of one embedded prompt, and the FLOPs of embedding it."""
        adapter, shapes = self.policy.adapter, []
        with torch.no_grad():
            tokens = adapter.tokenize([""]).to("meta")
            cost = flops(lambda: shapes.append(adapter.embed(tokens).shape[1:]))
        return list(shapes[0]), cost

    def column(self, name: str, count: int) -> Tensor:
        return self.columns(count)[name]()

    def batch(self, count: int) -> Batch:
        """A micro-batch as training has it (methods/expectations.py, Samples)."""
        made = self.columns(count)
        batch = {name: made[name]() for name in self.needs if name in made}
        if "labels" in batch:
            batch["weight"] = _meta(count)
        return batch | {"position": torch.arange(count)}


def assemble(cfg: DictConfig) -> PlannedJob:
    """UserError where a batch does not divide, or the model's shape is not known.

    With hardware.micro_batch=auto it is 1, the least that budget.py can choose.
    """
    here = {"accelerator": "cpu", "precision": "32-true", "compile": False, "attention": "auto"}
    here |= {"micro_batch": 1} if cfg.hardware.micro_batch == "auto" else {}
    hardware = create(cfg.hardware, **here)
    policy = policy_of(cfg)
    hardware.prepare(policy.networks)
    policy.train()
    method = _method(cfg, policy)
    return PlannedJob(cfg, hardware, policy, method, hardware.split(method.batch)[0])


def _method(cfg: DictConfig, policy: Policy) -> Method:
    adapter, node = policy.adapter, OmegaConf.to_container(cfg.method, resolve=True)
    asked = signature(node["_target_"])
    live: dict[str, Any] = {"policy": policy, "optim": create(cfg.optim), "seed": cfg.seed}
    if asked is None or asked["task"]:
        live["task"] = Given() if cfg.get("task") else None
    if cfg.get("reward") and (asked is None or asked["reward"]):
        live["reward"] = reward_like(get_class(cfg.reward._target_), adapter_of(cfg.model))  # of a UNet without LoRA
    method: Method = create(node, **live).to("meta")
    adapter.process.to("meta")
    return method


def activations(job: PlannedJob) -> int:
    """Bytes at the peak of a micro-batch's forward and backward, beside weights and their gradients, in float32."""
    for weight in job.policy.trainable().values():
        weight.grad = torch.zeros_like(weight)
    return max(peak(partial(_gradient, job, batch)) for _, batch in job.method.examples(job, job.micro))


def update(job: PlannedJob) -> float:
    """FLOPs of an optimiser's step, of all processes."""
    share, examples = job.method.batch / job.micro, job.method.examples(job, job.micro)
    return share * sum(weight * flops(partial(_gradient, job, batch)) for weight, batch in examples)


def _gradient(job: PlannedJob, batch: Batch) -> None:
    job.method.loss(batch)[0].backward()


def _meta(*size: int) -> Tensor:
    return torch.empty(size, device="meta")


def pieces(job: PlannedJob, reading: Reading | None) -> list[Piece]:
    """Everything that a run computes with its models."""
    method, found = job.method, []
    if method.online:
        found.append(Piece("rollouts of a round", rollouts(job), method.steps))
    else:
        for name, cost in _preparation(job).items():
            found.append(Piece(name, cost, reading.makes))
    found.append(Piece("optimiser step", update(job), steps(job)))
    return [*found, _evaluation(job)]


def steps(job: PlannedJob) -> float:
    """Optimiser steps of a run."""
    return job.method.updates()


def rollouts(job: PlannedJob) -> float:
    """FLOPs of a round's samples, scored, of all processes."""
    return job.method.prompts * rollout_flops(job)


def rollout_flops(job: PlannedJob) -> float:
    """FLOPs of one prompt's samples, scored."""
    start, step = _prediction(job, job.method.guidance)
    with torch.no_grad():
        work = job.method.sampling_work(job)
        return start + work.predictions * step + sum(times * flops(more) for times, more in work.more)


def _prediction(job: PlannedJob, guidance: float) -> tuple[float, float]:
    """FLOPs of what a prompt needs once, its text and the features of its condition, and of each step from it."""
    if guidance in job.predictions:
        return job.predictions[guidance]
    policy, columns = job.policy, job.columns(1)
    text, x, t = columns["text"](), _meta(1, *policy.adapter.latent_shape), _meta(1)
    control = columns["control"]() if job.cfg.get("task") else None
    empty = policy.adapter.empty_text() if guides(guidance) else None

    def step() -> None:
        encoded = policy.encode_guided(x, t, text, guidance=guidance, empty=empty)
        policy.decode_guided(encoded, features, guidance=guidance)

    with torch.no_grad():
        features = policy.features(control)
        job.predictions[guidance] = job.text[1] + flops(lambda: policy.features(control)), flops(step)
    return job.predictions[guidance]


def _picture(job: PlannedJob, sampling: Sampling) -> float:
    """FLOPs of one picture from its caption and condition."""
    start, step = _prediction(job, sampling.guidance)
    latents = _meta(1, *job.policy.adapter.latent_shape)
    with torch.no_grad():
        return start + sampling.num_steps * step + flops(lambda: job.policy.adapter.decode(latents))


def before_training(job: PlannedJob) -> bool:
    """Whether all samples are made before the first step: what draws them is sharded then, or changes."""
    changes = job.hardware.strategy == "fsdp" or job.policy.trains_text
    return changes and len(_preparation(job)) > 1


def _preparation(job: PlannedJob) -> dict[str, float]:
    """FLOPs of one training sample's frozen parts, as data/ computes them, and of what is drawn for it."""
    adapter, columns, cfg = job.policy.adapter, job.columns(1), job.cfg
    picture, sampling = columns["control"](), Sampling(adapter.num_inference_steps, adapter.guidance)
    with torch.no_grad():
        total = job.pictures * flops(lambda: adapter.encode_moments(picture))
        total += job.text[1] if "text" in job.needs else 0
        total += flops(columns["features"]) if "features" in job.needs else 0
    count, what = 0, ""
    if {"labels", "control"} <= {*job.needs}:
        count, what = cfg.method.group, "pictures of a condition"
    elif attribute(cfg.data._target_, "draws", False):
        count, what = job.pictures, "pictures of a prompt"
    elif "loser" in job.needs and not cfg.data.get("loser"):
        count, what = 1, "a loser"
    drawn = {f"{what}, drawn": count * _picture(job, sampling)} if count else {}
    return {"preparation of a sample": total} | drawn


def _evaluation(job: PlannedJob) -> Piece:
    """Before and after training."""
    evaluator = create(job.cfg.metrics)
    if evaluator.of_rewards:
        columns = {name: make() for name, make in job.columns(1).items() if name in job.needs}
        batch = columns | {"weight": _meta(1), "position": torch.arange(1)}
        with torch.no_grad():
            cost = len(evaluator.timesteps) * flops(lambda: job.method.loss(batch))
        data = job.cfg.data
        held_out = data.prompts.num_test if "prompts" in data else evaluator.num_samples or 0
        return Piece("evaluation of a pair", cost, 2 * held_out)
    cost = _picture(job, evaluator.sampling(job.policy.adapter))
    return Piece("evaluation picture", cost, 2 * evaluator.num_samples * evaluator.images_per_item)
