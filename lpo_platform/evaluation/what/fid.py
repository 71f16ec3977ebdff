"""FID of a folder of pictures, and the stored reference that later ones are compared with."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count
from lpo_platform.evaluation.frechet import Frechet, moments
from lpo_platform.evaluation.measures.inception import Inception
from lpo_platform.evaluation.measures.reference import features_of, moments_of, store
from lpo_platform.evaluation.statistics import statistic_interval
from lpo_platform.runs.record import write_json


class FidOfFolder:
    """Measures FID of `pictures` against `reference`, and stores with `save` what a later reference can name.

    Args:
        pictures: a folder of pictures.
        weights: a file of Inception's weights.
        reference: a folder of pictures or a stored reference (.safetensors, .npz); null measures nothing.
        save: the .safetensors that gets mean and covariance of the pictures, for `metrics.measures.fid.reference`.
        resamples: how many times the pictures are resampled for the interval.
    """

    paths: ClassVar[dict[str, str]] = {"pictures": "folder", "weights": "file", "reference": "file or folder"}

    def __init__(
        self, pictures: str, weights: str, reference: str | None = None, save: str | None = None, resamples: Count = 200
    ) -> None:
        if reference is None and save is None:
            raise UserError("reference=null save=null: nothing to do; add what.reference or what.save")
        if save is not None and not save.endswith(".safetensors"):
            raise UserError(f"save={save}: a reference is stored as safetensors; what works: save=<name>.safetensors")
        self.pictures, self.weights, self.reference = pictures, weights, reference
        self.save, self.resamples = save, resamples

    def __call__(self, folder: Path, device: torch.device) -> dict[str, Any]:
        inception = Inception(self.weights)
        (features, left_out), metrics = features_of(self.pictures, inception, device), {}
        if self.save is not None:
            store(Path(self.save).expanduser(), moments(features), len(features), inception)
        if self.reference is not None:
            distance = Frechet(*moments_of(self.reference, inception, device))
            rows = distance.along(features)
            interval = statistic_interval(lambda i: distance(rows[i]), len(rows), resamples=self.resamples)
            metrics["fid"] = {"mean": distance(rows), "ci95": list(interval), "count": len(rows)}
        settings = {"what": "fid", "protocol": "clean-fid, mode clean"} | {
            name: getattr(self, name) for name in ("pictures", "weights", "reference", "save")
        }
        result = {"settings": settings, "metrics": metrics, "left_out": left_out, "items": []}
        write_json(folder / "report.json", result)
        return result
