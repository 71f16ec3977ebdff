"""Object keypoint similarity as a reward: whether the people of a picture stand as they were asked to."""

from typing import ClassVar

import torch
from torch import Tensor

from lpo_platform.rewards.of_condition import OfCondition
from lpo_platform.tasks.keypoint_files import JOINTS
from lpo_platform.tasks.oks import oks


class Oks(OfCondition):
    """The mean OKS over the people asked for, in [0, 1]. A missing person and one too many count 0.

    COCO's OKS (cocoapi, pycocotools/cocoeval.py) with the box around the visible joints for the area. Everybody found
    stands for one person at most, the closest pairs first. Where nobody was asked for, it is 1 if nobody is found.

    Args:
        batch, task: see OfCondition.
    """

    name: ClassVar[str] = "oks"
    maps: ClassVar[str | None] = "people"

    def compare(self, maps: Tensor, reference: Tensor) -> Tensor:
        bodies = (people_of(of[..., :JOINTS, :]) for of in (maps, reference))
        return torch.stack([similarity(*pair) for pair in zip(*bodies, strict=True)])


def similarity(found: Tensor, wanted: Tensor) -> Tensor:
    """(P, 17, 3) and (G, 17, 3) -> a number in [0, 1]."""
    most = max(len(found), len(wanted))
    left, matched = oks(found, wanted), []
    for _ in range(min(len(found), len(wanted))):
        matched.append(left.max())
        row, column = divmod(int(left.argmax()), len(found))
        left[row], left[:, column] = -1, -1
    return torch.stack(matched).sum() / most if matched else wanted.new_tensor(float(most == 0))


def people_of(maps: Tensor) -> list[Tensor]:
    """The people of each picture, (P, K, 3) without the empty rows."""
    return [people[(people[..., 2] > 0).any(1)] for people in maps]
