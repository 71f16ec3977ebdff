"""FID (arXiv 1706.08500) as clean-fid computes it, against pictures of the data, of a folder, or a stored reference."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count
from lpo_platform.evaluation.frechet import Frechet, moments
from lpo_platform.evaluation.measure import Pictures
from lpo_platform.evaluation.measures.bases import OfSets, pictures_of
from lpo_platform.evaluation.measures.inception import Inception
from lpo_platform.evaluation.measures.reference import Moments, moments_of
from lpo_platform.evaluation.significance import enough
from lpo_platform.evaluation.statistics import compare_sets
from lpo_platform.hardware.distributed import lead

NAME, FEATURES = "quality/fid", "inception"
WAIT = 2  # seconds after which a progress bar appears


class Fid(OfSets):
    """Measures quality/fid. Fewer than some thousand pictures overestimate it.

    Args:
        weights: a file of Inception's weights (inception.py says which).
        reference: a folder of pictures, a file that `lpo-eval what=fid what.save=<file>` stored, or clean-fid's .npz.
            null takes the pictures of the data, at the model's resolution.
        images_per_item: how many pictures every item has.
        per_picture: whether the result is the mean of FIDs that each have one picture of every item, as CPO reports
            it (ZonglinL/CPO, eval/eval.py). Otherwise it is one FID over all pictures.
        resamples: how many times the items are resampled for the interval. The reference is not resampled.
    """

    def __init__(
        self,
        weights: str,
        reference: str | None = None,
        images_per_item: Count = 1,
        per_picture: bool = False,
        resamples: Count = 200,
    ) -> None:
        if reference is not None and not Path(reference).expanduser().exists():
            raise UserError(f"reference={reference}: no such file or folder; what works: lpo-eval what=fid what.save=")
        self.inception, self.reference, self._moments = Inception(weights), reference, None
        self.images_per_item, self.per_picture, self.resamples = images_per_item, per_picture, resamples

    def features(self, pictures: Pictures) -> dict[str, Tensor]:
        if self.reference is None and pictures.drawn and pictures.real is None:
            raise UserError("reference=null: these data have no pictures; what works: a folder or a stored reference")
        if self.reference is not None and not pictures.drawn:
            return {}
        if self.reference is not None and lead():
            self._stored(pictures.images.device)  # what is wrong with it is said before everything is drawn
        return {FEATURES: self.inception(pictures.images)}

    def compare(
        self, before: dict[str, Tensor], after: dict[str, Tensor], real: dict[str, Tensor]
    ) -> dict[str, dict[str, Any]]:
        known = self._stored(torch.device("cpu")) if self.reference else moments(real[FEATURES].numpy())
        distance = Frechet(*known)
        rows = distance.along(torch.cat([before[FEATURES], after[FEATURES]]).numpy())
        pictures = pictures_of(len(rows), self.images_per_item)
        count = pictures.shape[1] // 2
        bar = tqdm(total=4 * enough(self.resamples, count), desc="FID, interval", delay=WAIT, leave=False)

        def measured(items: NDArray[np.int64]) -> float:
            bar.update()
            groups = pictures[:, items] if self.per_picture else pictures[:, items].reshape(1, -1)
            return float(np.mean([distance(rows[group]) for group in groups]))

        with bar:
            return {NAME: compare_sets(measured, count, higher_is_better=False, resamples=self.resamples)}

    def _stored(self, device: torch.device) -> Moments:
        if self._moments is None:
            self._moments = moments_of(self.reference, self.inception, device)
        return self._moments
