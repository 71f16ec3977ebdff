"""The size of a picture's JPEG file (arXiv:2305.13301): rewards that need no model."""

from io import BytesIO
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Quality
from lpo_platform.rewards.pretrained import eight_bit
from lpo_platform.rewards.reward import Asked


class Compressibility:
    """Minus the size of the JPEG file in kB of 1000 bytes, (B,).

    Args:
        quality: of the JPEG, 1 to 95. Published: 95.
    """

    name: ClassVar[str] = "compressibility"
    input: ClassVar[str] = "pictures"
    sign: ClassVar[int] = -1

    def __init__(self, quality: Quality = 95) -> None:
        if not 1 <= quality <= 95:
            raise UserError(f"reward {self.name}: quality={quality}: must lie in 1 to 95")
        self.quality = quality

    def __call__(self, images: Tensor, prompts: list[str], condition: Asked | None = None) -> Tensor:
        pictures = eight_bit(images, self.name).permute(0, 2, 3, 1).cpu().numpy()
        sizes = torch.tensor([self._bytes(picture) for picture in pictures], dtype=torch.float32)
        return (self.sign * sizes / 1000).to(images.device)

    def _bytes(self, picture: np.ndarray) -> int:
        file = BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=self.quality)
        return file.tell()


class Incompressibility(Compressibility):
    """The size of the JPEG file in kB."""

    name: ClassVar[str] = "incompressibility"
    sign: ClassVar[int] = 1
