"""What is kept: the reference's weights while the policy's change, and the policy's in a file."""

from pathlib import Path

import torch
from torch import Tensor

from lpo_platform.commands.doctor.finding import NOTHING, Finding, difference, failed, ok, percent, skipped
from lpo_platform.commands.doctor.input_checks import Look
from lpo_platform.config.errors import UserError
from lpo_platform.models.export import restore
from lpo_platform.models.policy import Policy

ROUNDED = 1e-4  # a LoRA's factors are multiplied on writing and divided on reading


def has_reference(policy: Policy) -> bool:
    return policy.has_reference()


def reference(look: Look, before: Tensor) -> Finding:
    """before: the policy's output before its first step."""
    if not has_reference(look.job.policy):
        return skipped("reference", "the method compares with none")
    now = look.output(look.samples[0].caption, look.control, reference=True)
    change = difference(before, now)
    if change > ROUNDED:
        advice = "it shares weights with the policy: what it is compared with moves along; copy them in tune.freeze"
        return failed("reference", f"training changed the reference's output by {percent(change)}", advice)
    return ok("reference", "stays where the policy started")


def step(look: Look, before: Tensor, first: Finding | None = None) -> Finding:
    """first: what was found of an online method's first round, the reason if that taught nothing."""
    change = difference(before, look.output(look.samples[0].caption, look.control))
    if change <= NOTHING:
        advice = "what learns is not in the forward pass, or the optimiser does not have it: check tune= and optim="
        if first is not None and first.state != "ok":
            advice = first.reason
        return failed("step", "two steps of the optimiser change nothing", advice)
    return ok("step", f"two steps at a rate of 0.001 change the output by {percent(change)}")


@torch.no_grad()
def saved(look: Look, folder: Path) -> Finding:
    """Whether the model, exported, overwritten in memory and restored, draws the same sample."""
    policy = look.job.policy
    before = look.sample()
    for weight in policy.trainable().values():
        weight.mul_(1.1).add_(0.1)
    if difference(before, look.sample()) <= NOTHING:
        return skipped("save", "the sample does not depend on what learns")
    try:
        restore(policy, folder)
    except (UserError, RuntimeError, OSError, KeyError) as error:
        return failed("save", f"what was exported cannot be read: {str(error).splitlines()[0]}", "report this run")
    change = difference(before, look.sample())
    if change > ROUNDED:
        advice = "an export of this run would be another model: a tensor is not saved, or not read"
        return failed("save", f"after saving and loading, the sample differs by {percent(change)}", advice)
    return ok("save", "spoiled in memory and loaded again, it draws the same sample")
