"""Whether the people of a picture stand as asked, person by person."""

import math

import numpy as np
import torch
from torch import Tensor

from lpo_platform.config.numbers import Positive
from lpo_platform.evaluation.keypoints import Area, measure
from lpo_platform.evaluation.measure import Pictures
from lpo_platform.evaluation.measures.bases import OfItems
from lpo_platform.tasks.keypoint_files import JOINTS, People, people

METRICS = {"oks": ("pose/oks_matched", True), "detection_rate": ("pose/detection_rate", True),
           "person_count_error": ("pose/person_count_error", False)}  # fmt: skip


class Poses(OfItems):
    """Measures OKS of the best one-to-one matching, detection rate and person-count error (keypoints.measure).

    It measures nothing for another task than `pose`. A picture whose condition shows nobody has nan.

    Args:
        area: what OKS divides by, the area of the people asked for.
    """

    def __init__(self, area: Area | Positive = "keypoints") -> None:
        self.area = area

    def score(self, pictures: Pictures) -> dict[str, Tensor]:
        if not shows_poses(pictures):
            return {}
        pairs = zip(people_of(pictures.maps), people_of(pictures.target), strict=True)
        found = [measure(*pair, self.area) or dict.fromkeys(METRICS, math.nan) for pair in pairs]
        return {metric: torch.tensor([item[name] for item in found]) for name, (metric, _) in METRICS.items()}

    def directions(self) -> dict[str, bool | None]:
        return dict(METRICS.values())


def shows_poses(pictures: Pictures) -> bool:
    """Whether the maps are those of task=pose, (B, P, 17, 3)."""
    return pictures.maps is not None and pictures.maps.ndim == 4 and pictures.maps.shape[2:] == (JOINTS, 3)


def people_of(maps: Tensor) -> list[People]:
    """Returns everybody who shows a joint, for each picture of (B, P, 17, 3) maps.

    A map has no scores: how sure the detector is of a person is the share of joints that it shows.
    """
    found = []
    for rows in maps.double().cpu().numpy():
        shown = (rows[..., 2] > 0).mean(1)
        found.append(people([{"keypoints": rows[i], "score": shown[i]} for i in np.flatnonzero(shown)]))
    return found
