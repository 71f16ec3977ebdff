"""How well the people of pictures stand as those of others do: OKS, COCO's average precision, CPO's, and counts."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from lpo_platform.config import UserError
from lpo_platform.data.keypoint_files import People
from lpo_platform.tasks.oks import oks, reported_ap, shown_extent

Area = Literal["segment", "bbox", "bbox053", "keypoints", "image"]
UNANNOTATED = "people whose area is not annotated; what works: area=keypoints, area=image or a number"


def area_of(reference: People, convention: Area | float) -> NDArray[np.float64]:
    """(G,) square pixels that a person counts as, which OKS divides by.

    segment: the annotated area. bbox: of the annotated box, bbox053: 0.53 times that (xtcocotools). keypoints: of the
    box around the visible joints. image: of the picture. Or a number for everybody. UserError where it is not known.
    """
    count = len(reference.keypoints)
    if not isinstance(convention, str):
        return np.full(count, float(convention))
    if convention == "image":
        if reference.size is None:
            raise UserError(f"what.area=image: pictures whose size is not in their file, and {UNANNOTATED}")
        return np.full(count, float(np.prod(reference.size)))
    if convention == "keypoints":
        return shown_extent(torch.from_numpy(reference.keypoints)).numpy()
    area = reference.area if convention == "segment" else reference.box[:, 2] * reference.box[:, 3]
    if np.isnan(area).any():
        raise UserError(f"what.area={convention}: {UNANNOTATED}")
    return area * (0.53 if convention == "bbox053" else 1.0)


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
    """Of one picture, None where the reference shows nobody.

    oks: the mean over people of matched(). detection_rate: the share of people who have a counterpart at all.
    person_count_error: how many too many or too few. cpo_map: what CPO reports as mAP (specs/cpo.md section 5).
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
    """AP, AP50, AP75 and AR of pycocotools over (found, reference) by picture; None where it is not installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        return None
    annotations, results = [], []
    for image, (found, reference) in enumerate(pairs.values(), 1):
        shown = np.flatnonzero(visible(reference))
        areas = area_of(reference, convention)
        for person in shown:
            keypoints = reference.keypoints[person]
            row = {"keypoints": keypoints.flatten().tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum())}
            place = {"id": len(annotations) + 1, "image_id": image, "category_id": 1, "iscrowd": 0}
            annotations.append(row | place | {"area": float(areas[person]), "bbox": _box(keypoints)})
        for person in np.flatnonzero(visible(found)):
            row = {"keypoints": found.keypoints[person].flatten().tolist(), "score": float(found.scores[person])}
            results.append(row | {"image_id": image, "category_id": 1})
    if not annotations or not results:
        return {name: 0.0 for name in ("ap", "ap50", "ap75", "ar")}
    truth = COCO()
    truth.dataset = {
        "info": {}, "images": [{"id": i} for i in range(1, len(pairs) + 1)], "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, ap75, _, _, ar, *_ = (float(value) for value in evaluation.stats)
    return {"ap": ap, "ap50": ap50, "ap75": ap75, "ar": ar}


def _box(person: NDArray[np.float64]) -> list[float]:
    shown = person[person[:, 2] > 0, :2]
    return [*shown.min(0).tolist(), *np.ptp(shown, axis=0).tolist()]
