"""The keypoint reward of pose RL as its authors computed it (IITP-CARTE-LGE/cnrl2), kept for reproduction.

It hardly measures a pose: a person at half the size scores 1, and arms up instead of down score 0.975. `oks` measures
both.
"""

from typing import ClassVar

import torch
from torch import Tensor

from lpo_platform.rewards.of_condition import OfCondition
from lpo_platform.rewards.oks import people_of
from lpo_platform.tasks.keypoint_files import OF_WHOLE
from lpo_platform.tasks.skeleton import COCO_OF, SHOULDERS

FRAME = 1024  # pixels: the side of the pictures on which the original measured


class KeypointCosine(OfCondition):
    """The cosine between the coordinates of OpenPose's 18 joints, in [-1, 1]. It is 0 unless both show one person.

    With task.whole_body it is the mean over body, hands and face, as far as either picture shows them.

    Args:
        half: rounds the cosine to half precision, as the released code does.
        shared: batch and task, see OfCondition.
    """

    name: ClassVar[str] = "keypoint_cosine"
    maps: ClassVar[str | None] = "people"

    def __init__(self, half: bool = False, **shared: object) -> None:
        super().__init__(**shared)
        self.half = half

    def compare(self, maps: Tensor, reference: Tensor) -> Tensor:
        scale = FRAME / self.task.resolution
        scores = []
        for found, wanted in zip(people_of(maps), people_of(reference), strict=True):
            if len(found) != 1 or len(wanted) != 1:
                scores.append(maps.new_zeros(()))
                continue
            both = (described(person[0], scale) for person in (found, wanted))
            scores.append(similarity(*both, half=self.half))
        return torch.stack(scores)


def described(person: Tensor, scale: float) -> list[Tensor | None]:
    """The parts of (17 or 133, 3) for similarity(): the body, then hands and face. None is a part that is not seen."""
    parts = (person[where] for where in OF_WHOLE.values())
    places = (torch.where(part[:, 2:] > 0, part[:, :2] * scale, -1.0) if part[:, 2].any() else None for part in parts)
    return [body(person, scale), *places]


def body(person: Tensor, scale: float) -> Tensor:
    """(17, 3) of COCO -> (18, 2) in OpenPose's order, in whole pixels. A joint that is not seen is (-1, -1)."""
    neck = torch.cat([person[list(SHOULDERS), :2].mean(0), person[list(SHOULDERS), 2:].amin(0)])
    joints = torch.stack([neck if number is None else person[number] for number in COCO_OF])
    return torch.where(joints[:, 2:] > 0, (joints[:, :2] * scale).trunc(), -1.0)


def similarity(found: list[Tensor | None], wanted: list[Tensor | None], *, half: bool = False) -> Tensor:
    """The mean cosine over parts (body, hands, face) of (K, 2) coordinates. None is a part that was not detected.

    A part that neither picture shows is left out. Where one picture shows it, the other one counts as all -1.
    """
    cosines = []
    for p, q in zip(found, wanted, strict=True):
        if p is None and q is None:
            continue
        p, q = (torch.full_like(q, -1) if p is None else p), (torch.full_like(p, -1) if q is None else q)
        cosine = torch.cosine_similarity(p.flatten().double(), q.flatten().double(), 0)
        cosines.append(cosine.half().double() if half else cosine)
    return torch.stack(cosines).mean().float()
