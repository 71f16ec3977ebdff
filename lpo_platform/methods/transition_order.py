"""In which order the transitions of a round are trained. Pure functions."""

from typing import Literal

from torch import Tensor

from lpo_platform.diffusion import noise

Order = Literal["samples", "steps", "mixed"]


def arrange(samples: int, steps: int, trained: int, order: Order, *, seed: int, stream: str) -> Tensor:
    """One pass over the transitions of `samples` trajectories, numbered sample x steps + step: (samples x trained,).

    Of each sample `trained` of its steps, drawn without replacement (kvablack/ddpo-pytorch), in a random order.
    `samples` keeps those of a sample together; `steps` takes one step of every sample, then another one of every
    sample, as pose-RL's code does in effect (2.5); `mixed` shuffles all.
    """
    drawn = noise.normal(range(samples), (steps,), seed=seed, stream=f"{stream}/steps").argsort(1)[:, :trained]
    chosen = noise.permutation(samples, seed=seed, stream=f"{stream}/samples")
    rows = chosen[:, None] * steps + drawn[chosen]
    if order == "mixed":
        return rows.flatten()[noise.permutation(rows.numel(), seed=seed, stream=f"{stream}/mixed")]
    return (rows if order == "samples" else rows.T).flatten()
