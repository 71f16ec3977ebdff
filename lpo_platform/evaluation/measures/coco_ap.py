"""COCO's average precision of poses, by pycocotools (extra `pose`)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lpo_platform.config.numbers import Count, Positive
from lpo_platform.evaluation import keypoints
from lpo_platform.evaluation.keypoints import Area
from lpo_platform.evaluation.measure import Pictures
from lpo_platform.evaluation.measures.bases import OfSets, pictures_of
from lpo_platform.evaluation.measures.people import people_of, shows_poses
from lpo_platform.evaluation.significance import enough
from lpo_platform.evaluation.statistics import compare_sets
from lpo_platform.tasks.keypoint_files import JOINTS

FEATURES = "poses"
METRICS = {"ap": "pose/coco_ap", "ap50": "pose/coco_ap50", "ap75": "pose/coco_ap75", "ar": "pose/coco_ar"}
MOST = 20  # people of a picture that COCO looks at
WAIT = 2  # seconds after which a progress bar appears


class CocoAp(OfSets):
    """Measures pose/coco_ap, ap50, ap75 and ar over the set. It measures nothing for another task than `pose`.

    A map has no scores of its people, so the share of visible joints stands for them (people_of). `lpo-eval what=oks`
    reads a detector's own scores and annotated areas.

    Args:
        area: what OKS divides by.
        images_per_item: how many pictures every item has.
        resamples: how many times the items are resampled for the intervals.
    """

    def __init__(self, area: Area | Positive = "keypoints", images_per_item: Count = 1, resamples: Count = 200) -> None:
        self.area, self.images_per_item, self.resamples = area, images_per_item, resamples

    def features(self, pictures: Pictures) -> dict[str, Tensor]:
        if not pictures.drawn or not shows_poses(pictures):
            return {}
        keypoints.CocoAp([], self.area)  # what is missing is said before everything is drawn
        return {FEATURES: torch.stack([first(pictures.maps), first(pictures.target)], 1).flatten(1)}

    def compare(
        self, before: dict[str, Tensor], after: dict[str, Tensor], real: dict[str, Tensor]
    ) -> dict[str, dict[str, Any]]:
        if FEATURES not in before:
            return {}
        count = len(before[FEATURES]) // self.images_per_item
        with tqdm(total=4 * enough(self.resamples, count), desc="COCO AP, intervals", delay=WAIT, leave=False) as bar:
            of = self._of(torch.cat([before[FEATURES], after[FEATURES]]), bar)
            return {
                metric: compare_sets(
                    lambda items, name=name: of(items)[name], count, higher_is_better=True, resamples=self.resamples
                )
                for name, metric in METRICS.items()
            }

    def _of(self, rows: Tensor, bar: tqdm) -> Callable[[NDArray[np.int64]], dict[str, float]]:
        """Returns a function that gives all metrics of a choice of items, and computes each choice once."""
        found, wanted = (people_of(side) for side in rows.unflatten(1, (2, MOST, JOINTS, 3)).unbind(1))
        measured = keypoints.CocoAp(list(zip(found, wanted, strict=True)), self.area)
        pictures, known = pictures_of(len(rows), self.images_per_item), {}

        def of(items: NDArray[np.int64]) -> dict[str, float]:
            if items.tobytes() not in known:
                bar.update()
                known[items.tobytes()] = measured(pictures[:, items].ravel())
            return known[items.tobytes()]

        return of


def first(maps: Tensor) -> Tensor:
    """(B, P, 17, 3) -> (B, 20, 17, 3): the people with most visible joints, and nobody in the rows left."""
    order = (maps[..., 2] > 0).sum(2).argsort(dim=1, descending=True, stable=True)[:, :MOST]
    chosen = maps.gather(1, order[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
    return F.pad(chosen, (0, 0, 0, 0, 0, MOST - chosen.shape[1]))
