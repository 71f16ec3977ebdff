"""Object keypoint similarity, and the average precision that CPO reports from it (ZonglinL/CPO, eval/eval_poses.py)."""

import math

import torch
from torch import Tensor

SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip
LEAST = 32.0**2  # square pixels, below which COCO calls an object small and judges no pose
THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))


def closeness(prediction: Tensor, target: Tensor, area: Tensor) -> Tensor:
    """exp(-d^2 / (2 area (2 sigma)^2)) of each joint: (P, 17, 3) and (G, 17, 3), area (G,) -> (G, P, 17)."""
    squared = (prediction[None, :, :, :2] - target[:, None, :, :2]).square().sum(3)
    sigmas = torch.tensor(SIGMAS, dtype=squared.dtype, device=squared.device)
    return torch.exp(-squared / (2 * area[:, None, None] * (2 * sigmas).square()))


def extent(people: Tensor) -> Tensor:
    """Area of the box around the joints, (G, 17, 2 or 3) -> (G,), as CPO takes it for the area of a person."""
    low, high = people[..., :2].amin(1), people[..., :2].amax(1)
    return (high - low).prod(1) + 1e-8


def shown_extent(people: Tensor) -> Tensor:
    """Area of the box around the visible joints, (G, 17, 3) -> (G,), 0 without any.

    The box of one joint has no area, nor has that of a straight arm, and a pixel beside it would be infinitely far. So
    the area is at least that of a square with a quarter of the box's longer side, and at least LEAST.
    """
    shown = people[..., 2] > 0
    far = torch.tensor(math.inf, dtype=people.dtype, device=people.device)
    xy, seen = people[..., :2], shown[..., None]
    sides = torch.where(seen, xy, -far).amax(1) - torch.where(seen, xy, far).amin(1)
    area = torch.maximum(sides.prod(1), (sides.amax(1) / 4).square()).clamp_min(LEAST)
    return torch.where(shown.any(1), area, 0)


def oks(prediction: Tensor, target: Tensor, area: Tensor | None = None) -> Tensor:
    """(P, 17, 3) and (G, 17, 3) -> (G, P): the mean closeness over the joints that the target shows.

    COCO's definition; area (G,) is that of the target's people, by default of the box around their visible joints. A
    joint that the prediction lacks counts 0.
    """
    shown, found = target[..., 2] > 0, prediction[..., 2] > 0
    area = (shown_extent(target) if area is None else area) + 1e-8
    close = closeness(prediction, target, area) * (shown[:, None] & found)
    return close.sum(2) / shown.sum(1)[:, None].clamp_min(1)


def reported_oks(prediction: Tensor, target: Tensor) -> Tensor:
    """(P, 17, 3) and (G, 17, 3) -> (G, P), as CPO's evaluation has it.

    Only joints whose visibilities are the same number count; one that is invisible in both is right. Invisible joints
    of the target lie at 0, 0 for its area, which is therefore too large.
    """
    hidden = target[..., 2:] == 0
    area = extent(torch.where(hidden, 0, target[..., :2]))
    agree = prediction[None, :, :, 2] == target[:, None, :, 2]
    both_hidden = agree & (target[:, None, :, 2] == 0)
    close = torch.where(both_hidden, 1.0, closeness(prediction, target, area)) * agree
    return close.sum(2) / (agree.sum(2) + 1e-6)


def reported_ap(prediction: Tensor, target: Tensor) -> Tensor:
    """CPO's mAP of one picture: the share of people whose best reported OKS reaches a threshold, over .5, .55, ... .95.

    A prediction may serve several people, further ones cost nothing; without a prediction it is 0.
    """
    if len(prediction) == 0:
        return target.new_zeros(())
    best = reported_oks(prediction, target).amax(1)
    thresholds = torch.tensor(THRESHOLDS, dtype=best.dtype, device=best.device)
    return (best[:, None] >= thresholds).to(best.dtype).mean()
