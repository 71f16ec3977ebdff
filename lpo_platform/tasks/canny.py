"""Canny edges, in the form that CPO evaluates with and the form that it trains with."""

import json
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lpo_platform.config.numbers import NotNegative
from lpo_platform.tasks.task import Gray, unmixed

Form = Literal["binary", "magnitude"]


class Canny(Gray):
    """Canny edges of the grey-scale picture, (B, 1, H, W), by kornia.filters.canny (kernel 5 x 5, sigma 1).

    Args:
        low: lower threshold of the gradient magnitude. Published: 0.1, in the DINO rows 0.15.
        high: upper threshold. Published: 0.2, in the DINO rows 0.3.
        form: `binary` is Canny with hysteresis. `magnitude` is the form that CPO trains with (train/canny_tools.py of
            ZonglinL/CPO): a 7 x 7 blur and the suppressed magnitude above `low`, without hysteresis or binarisation.
            Its values may exceed 1.
        train_form: the form of the control images that training shows, null for `form`. Those of `magnitude` are not
            limited to 1. Published: `magnitude` in the DINO rows, whose evaluation is binary.
    """

    name: ClassVar[str] = "canny"
    nearest: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    scores: ClassVar[dict[str, bool]] = {"canny/f1": True, "canny/f1_above_chance": True}

    def __init__(
        self, low: NotNegative = 0.1, high: NotNegative = 0.2, form: Form = "binary", train_form: Form | None = None
    ) -> None:
        self.low, self.high, self.form, self.train_form = low, high, form, train_form
        self.bounded = train_form != "magnitude"

    @property
    def fingerprint(self) -> str:
        trained = () if self.train_form is None else (self.train_form,)
        return json.dumps([self.name, self.low, self.high, self.form, *trained])

    def detect(self, images: Tensor) -> Tensor:
        """The edges of images. The magnitude form is differentiable, the binary form is not."""
        return self._edges(images, self.form)

    def shown_in_training(self, images: Tensor) -> Tensor:
        if self.train_form is None:
            return super().shown_in_training(images)
        return self._edges(images, self.train_form).expand(-1, 3, -1, -1)

    def _edges(self, images: Tensor, form: Form) -> Tensor:
        if form == "magnitude":
            magnitude, _ = self._canny(images, hysteresis=False, kernel_size=(7, 7))
            return magnitude * (magnitude > self.low)
        with torch.no_grad():
            return self._canny(images)[1]

    def target(self, images: Tensor, maps: Tensor) -> Tensor:
        """The suppressed gradient magnitude of the pictures, since binary edges have no gradient."""
        return self._magnitude(images)

    def loss(self, images: Tensor, target: Tensor) -> Tensor:
        """Mean squared difference of suppressed magnitudes, whatever the form."""
        return self.distance(self._magnitude(images), target)

    def _magnitude(self, images: Tensor) -> Tensor:
        return self._canny(images, hysteresis=False)[0]

    def _canny(self, images: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        """kornia's suppressed magnitude and edges, in float32 whatever autocast the caller is in."""
        from kornia.filters import canny

        # torch convolves a batch of one in another order, which decides between equal neighbours of flat pictures
        batch = images.repeat(2, 1, 1, 1) if len(images) == 1 else images
        with unmixed(images):
            magnitude, edges = canny(batch.float(), self.low, self.high, **options)
        return magnitude[: len(images)], edges[: len(images)]

    def score(self, maps: Tensor, target: Tensor) -> dict[str, Tensor]:
        found, wanted = maps > 0.5, target > 0.5
        own = f1(found, wanted)
        return {"canny/f1": own, "canny/f1_above_chance": own - chance(found, wanted)}

    def grouped(self, maps: list[Tensor], target: Tensor) -> dict[str, Tensor]:
        """F1 over the edges of all pictures, as CPO's tables have it (ZonglinL/CPO, eval/eval.py)."""
        return {"canny/f1": f1(torch.cat(maps, 3) > 0.5, target.repeat(1, 1, 1, len(maps)) > 0.5)}


def chance(prediction: Tensor, target: Tensor) -> Tensor:
    """The F1 that the same edges reach in the wrong place, (B,).

    It is the mean over 15 cyclic shifts by quarters of the picture. More edges raise F1 wherever they are; what is left
    above chance is due to their places.
    """
    height, width = target.shape[-2:]
    shifts = [(i * height // 4, j * width // 4) for i in range(4) for j in range(4) if i or j]
    return torch.stack([f1(prediction, target.roll(shift, (-2, -1))) for shift in shifts]).mean(0)


def f1(prediction: Tensor, target: Tensor) -> Tensor:
    """F1 of boolean maps over all axes but the first, (B,) in [0, 1]: 2 TP / (2 TP + FP + FN).

    Two empty maps score 0, as in torchmetrics.
    """
    prediction, target = prediction.flatten(1), target.flatten(1)
    true_positive = (prediction & target).sum(1)
    errors = (prediction ^ target).sum(1)
    return 2 * true_positive / (2 * true_positive + errors).clamp_min(1)
