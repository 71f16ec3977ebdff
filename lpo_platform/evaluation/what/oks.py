"""Measurements over two folders, as people know them from the scripts of papers; one JSON report each."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Positive
from lpo_platform.evaluation.keypoints import Area, coco_ap, measure, visible
from lpo_platform.evaluation.statistics import mean_interval
from lpo_platform.runs.record import write_json
from lpo_platform.tasks.keypoint_files import BadKeypoints, People, fitted, read_folder


def report(
    items: Mapping[str, Mapping[str, float]], settings: Mapping[str, Any], left_out: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Returns settings, metrics (mean, 95 % bootstrap interval, number of items), what is left out, and all items.

    An item without a finite number is left out of that metric, and counted under the reason `not finite: <metric>`.
    """
    if not items:
        reasons = "; ".join(f"{len(names)} {reason}" for reason, names in left_out.items() if names)
        raise UserError(f"nothing to measure: {reasons or 'no files'}")
    metrics = {}
    for name in next(iter(items.values())):
        values = [item[name] for item in items.values() if math.isfinite(item[name])]
        mean = sum(values) / len(values) if values else math.nan
        if wrong := [item for item, found in items.items() if not math.isfinite(found[name])]:
            left_out = {**left_out, f"not finite: {name}": wrong}
        metrics[name] = {"mean": mean, "ci95": list(mean_interval(values)), "count": len(values)}
    rows = [{"name": name, **item} for name, item in items.items()]
    return {"settings": dict(settings), "metrics": metrics, "left_out": dict(left_out), "items": rows}


class Oks:
    """Measures whether the people of `target` stand as those of `original`: OKS, detection rate, counts, CPO's mAP, AP.

    Pictures are paired by name.

    Args:
        original: a folder of keypoint files, or a single one (tasks/keypoint_files.py).
        target: the same of the pictures that are measured.
        area: what OKS divides by (evaluation/keypoints.py). It changes the result a lot, so the report states it.
    """

    name = "oks"

    paths: ClassVar[dict[str, str]] = {"original": "file or folder", "target": "file or folder"}

    def __init__(self, original: str, target: str, area: Area | Positive = "keypoints") -> None:
        self.original, self.target, self.area = original, target, area

    def __call__(self, folder: Path, device: torch.device | None = None) -> dict[str, Any]:
        original, broken = read_folder("what.original", self.original)
        target, further = read_folder("what.target", self.target)
        pairs: dict[str, tuple[People, People]] = {}
        misfits: list[str] = []
        for name in sorted(set(original) & set(target)):
            try:
                size = original[name].size if visible(original[name]).any() else None
                pairs[name] = (fitted(target[name], size), original[name])
            except BadKeypoints:
                misfits.append(name)
        found = {name: measure(*pair, self.area) for name, pair in pairs.items()}
        left_out = {
            "missing in target": sorted(set(original) - set(target)),
            "missing in original": sorted(set(target) - set(original)),
            "nobody in original": [name for name, item in found.items() if item is None],
        }
        left_out |= {"of pictures with different proportions": misfits} if misfits else {}
        for word, reasons in (("original", broken), ("target", further)):
            left_out |= {f"{reason} in {word}": names for reason, names in reasons.items()}
        items = {name: item for name, item in found.items() if item is not None}
        settings = {"what": self.name, "original": self.original, "target": self.target, "area": self.area}
        result = report(items, settings, left_out)
        result["coco"] = coco_ap({name: pairs[name] for name in items}, self.area)
        write_json(folder / "report.json", result)
        return result
