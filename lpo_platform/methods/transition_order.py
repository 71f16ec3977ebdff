"""The order in which the transitions of a round are trained, as a pure function."""

from typing import Literal

from torch import Tensor

from lpo_platform.diffusion import noise

Order = Literal["samples", "steps", "mixed"]


def arrange(samples: int, steps: int, trained: int, order: Order, *, seed: int, stream: str) -> Tensor:
    """One pass over the transitions of all trajectories: (samples x trained,) numbers, sample x steps + step.

    Args:
        samples: number of trajectories.
        steps: transitions of each trajectory.
        trained: of them, drawn for each trajectory without replacement, in a random order (kvablack/ddpo-pytorch).
        order: `samples` keeps the transitions of a trajectory together. `steps` takes one transition of every
            trajectory, then another one of every trajectory, as IITP-CARTE-LGE/cnrl2 does in effect. `mixed` shuffles.
        seed, stream: key of the random numbers.
    """
    drawn = noise.normal(range(samples), (steps,), seed=seed, stream=f"{stream}/steps").argsort(1)[:, :trained]
    chosen = noise.permutation(samples, seed=seed, stream=f"{stream}/samples")
    rows = chosen[:, None] * steps + drawn[chosen]
    if order == "mixed":
        return rows.flatten()[noise.permutation(rows.numel(), seed=seed, stream=f"{stream}/mixed")]
    return (rows if order == "samples" else rows.T).flatten()
