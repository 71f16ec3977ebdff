"""How well the people of pictures stand as those of others do: OKS, COCO's average precision, CPO's, and counts."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from lpo_platform.config.errors import UserError
from lpo_platform.tasks.keypoint_files import People
from lpo_platform.tasks.oks import oks, reported_ap, shown_extent

Area = Literal["segment", "bbox", "bbox053", "keypoints", "image"]
UNANNOTATED = "people whose area is not annotated; what works: area=keypoints, area=image or a number"


def area_of(reference: People, convention: Area | float) -> NDArray[np.float64]:
    """(G,) square pixels that a person counts as, which OKS divides by.

    segment: the annotated area. bbox: of the annotated box, bbox053: 0.53 times that (xtcocotools). keypoints: of the
    box around the visible joints, with a floor (tasks/oks.py), which also stands for an annotated area of 0. image: of
    the picture. Or a number for everybody. UserError where it is not known.
    """
    count = len(reference.keypoints)
    if not isinstance(convention, str):
        if not 0 < convention < math.inf:
            raise UserError(f"what.area={convention}: no area; what works: square pixels above 0, such as 20000")
        return np.full(count, float(convention))
    if convention == "image":
        if reference.size is None:
            raise UserError(f"what.area=image: pictures whose size is not in their file, and {UNANNOTATED}")
        return np.full(count, float(np.prod(reference.size)))
    if convention == "keypoints":
        return shown_area(reference)
    area = reference.area if convention == "segment" else reference.box[:, 2] * reference.box[:, 3]
    if np.isnan(area).any():
        raise UserError(f"what.area={convention}: {UNANNOTATED}")
    return np.where(area > 0, area * (0.53 if convention == "bbox053" else 1.0), shown_area(reference))


def shown_area(people: People) -> NDArray[np.float64]:
    """(G,) of the boxes around the visible joints."""
    return shown_extent(torch.from_numpy(people.keypoints)).numpy()


def matched(similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    """(G, P) -> (G,): that of each person's counterpart when the sum of all is largest, 0 without one."""
    best = np.zeros(len(similarity))
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    best[rows] = similarity[rows, columns]
    return best


def visible(reference: People) -> NDArray[np.bool_]:
    """(G,): whether a person shows a joint at all."""
    return (reference.keypoints[..., 2] > 0).any(1)


def measure(found: People, reference: People, convention: Area | float) -> dict[str, float] | None:
    """The metrics of one picture; None where the reference shows nobody.

    oks: the mean over people of matched(). detection_rate: the share of people who have a counterpart at all.
    person_count_error: how many too many or too few. cpo_map: what CPO reports as mAP (tasks/oks.py).
    """
    shown, there = visible(reference), visible(found)
    if not shown.any():
        return None
    wanted, seen = reference.keypoints[shown], found.keypoints[there]
    area = area_of(reference, convention)[shown]
    best = matched(oks(*map(torch.from_numpy, (seen, wanted, area))).numpy())
    binary = [torch.from_numpy(np.concatenate([k[..., :2], k[..., 2:] > 0], 2)) for k in (seen, wanted)]
    return {
        "oks": float(best.mean()),
        "detection_rate": min(len(seen), len(wanted)) / len(wanted),
        "person_count_error": float(abs(len(seen) - len(wanted))),
        "cpo_map": float(reported_ap(*binary)),
    }


def coco_ap(pairs: Mapping[str, tuple[People, People]], convention: Area | float) -> dict[str, float] | None:
    """CocoAp over (found, reference) by picture; None where pycocotools is not installed."""
    if find_spec("pycocotools") is None:
        return None
    return CocoAp(list(pairs.values()), convention)(np.arange(len(pairs)))


class CocoAp:
    """AP, AP50, AP75 and AR of pycocotools over (found, reference) of pictures, or over any choice of them.

    Raises UserError where it is not installed.
    """

    def __init__(self, pairs: Sequence[tuple[People, People]], convention: Area | float) -> None:
        try:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        except ImportError as error:
            raise UserError("pycocotools is not installed; what works: pip install 'lpo-platform[pose]'") from error
        annotations, results = [], []
        for image, (found, reference) in enumerate(pairs, 1):
            annotations += [row | {"image_id": image} for row in _annotated(reference, area_of(reference, convention))]
            results += [row | {"image_id": image} for row in _detected(found)]
        self.evaluation = None
        if not annotations or not results:
            return
        truth = COCO()
        truth.dataset = {
            "info": {}, "images": [{"id": i} for i in range(1, len(pairs) + 1)],
            "annotations": [row | {"id": number} for number, row in enumerate(annotations, 1)],
            "categories": [{"id": 1, "name": "person"}],
        }  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
            self.evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
            self.evaluation.params.areaRng, self.evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            self.evaluation.evaluate()
        self.of_pictures = self.evaluation.evalImgs

    def __call__(self, pictures: NDArray[np.int64]) -> dict[str, float]:
        """The metrics of the pictures with these numbers, which may repeat; 0 where there are no people, or none was
        found."""
        if self.evaluation is None:
            return dict.fromkeys(("ap", "ap50", "ap75", "ar"), 0.0)
        self.evaluation.evalImgs = [self.of_pictures[number] for number in pictures]
        for params in (self.evaluation.params, self.evaluation._paramsEval):
            params.imgIds = list(range(len(pictures)))
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluation.accumulate()
        precision, recall = self.evaluation.eval["precision"], self.evaluation.eval["recall"]
        parts = {"ap": precision, "ap50": precision[0], "ap75": precision[5], "ar": recall}
        return {name: float(part.clip(min=0).mean()) for name, part in parts.items()}


def _annotated(people: People, area: NDArray[np.float64]) -> list[dict]:
    """COCO's annotations of everybody who shows a joint."""
    return [
        {
            "keypoints": joints.flatten().tolist(), "num_keypoints": int((joints[:, 2] > 0).sum()), "category_id": 1,
            "iscrowd": 0, "area": float(size), "bbox": _box(joints),
        }
        for joints, size, there in zip(people.keypoints, area, visible(people), strict=True)
        if there
    ]  # fmt: skip


def _detected(people: People) -> list[dict]:
    return [
        {"keypoints": joints.flatten().tolist(), "score": float(score), "category_id": 1}
        for joints, score, there in zip(people.keypoints, people.scores, visible(people), strict=True)
        if there
    ]


def _box(person: NDArray[np.float64]) -> list[float]:
    shown = person[person[:, 2] > 0, :2]
    return [*shown.min(0).tolist(), *np.ptp(shown, axis=0).tolist()]
