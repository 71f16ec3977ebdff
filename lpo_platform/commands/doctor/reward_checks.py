"""Whether a reward tells pictures apart, each of its parts, and how much each part counts."""

from collections.abc import Iterator

import torch

from lpo_platform.commands.doctor.finding import Finding, doubtful, failed, ok, skipped
from lpo_platform.commands.doctor.input_checks import Look
from lpo_platform.commands.job import Job
from lpo_platform.evaluation.evaluator import scores_of
from lpo_platform.rewards.reward import weights_of

LITTLE = 0.01  # of the variation: a part below it is not heard


@torch.no_grad()
def reward(look: Look) -> Iterator[Finding]:
    """Scores of pictures that the model draws of the held-out samples; UserError where one is not finite."""
    if look.job.reward is None:
        yield skipped("reward", "reward=none")
        return
    drawn = look.draw()
    with look.job.hardware.autocast():
        scores = scores_of(look.job.reward, drawn, [sample.caption for sample in look.samples])
    named = [name for name in scores if name != "score"] or ["score"]
    weights = weights_of(look.job.reward, named)
    heard = {name: abs(weights[name]) * float(scores[name].std(correction=0)) for name in named}
    total = sum(heard.values())
    for name in named:
        low, high = float(scores[name].min()), float(scores[name].max())
        what, check = f"{name} of {len(drawn.images)} pictures lies in {low:.4g} to {high:.4g}", "reward"
        if not torch.isfinite(scores[name]).all():
            yield failed(check, f"{name} is not finite", "check its weights, or hardware.precision=32-true")
        elif low == high:
            yield failed(
                check, f"{name} is {low:.4g} for all pictures", "nothing can be learned from it: check reward="
            )
        elif heard[name] < LITTLE * total:
            share = heard[name] / total
            yield doubtful(check, f"{what}, {share:.1%} of the score's variation", "raise its weight, or leave it out")
        else:
            more = f", {heard[name] / total:.0%} of the score's variation" if len(named) > 1 else ""
            yield ok(check, what + more)


def labels(job: Job, rows: object) -> Finding:
    """Whether preferences name winners."""
    if "labels" not in job.needs():
        return skipped("labels", "the method reads no preferences")
    ties = sum(bool((row["labels"] == 0.5).all()) for row in (rows[i] for i in range(len(rows))))
    if ties == len(rows):
        return failed("labels", f"all of the first {ties} preferences are ties", "check the labels of data=")
    return ok("labels", f"{len(rows) - ties} of the first {len(rows)} preferences have a winner")
