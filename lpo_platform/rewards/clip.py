"""CLIP score: the cosine between picture and caption (arXiv:2104.08718, without its factor and its clipping at 0)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from lpo_platform.config.numbers import Count
from lpo_platform.models.weights import Dtype, load_tokenizer, whole
from lpo_platform.rewards.pretrained import Pretrained, eight_bit

VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class Clip(Pretrained):
    """The cosine of the projected embeddings, in [-1, 1]; about 0.1 to 0.4 for pictures of their captions.

    Captions are cut at the 77 tokens that CLIP reads.

    Args:
        weights: folder or hub id of a CLIP of transformers.
        processor: the same for its processor; null takes that of the weights.
        batch: pictures of one forward.
        dtype: of the model.
    """

    name: ClassVar[str] = "clip"

    def __init__(
        self, weights: str = VIT_H, processor: str | None = None, batch: Count = 32, dtype: Dtype = "float32"
    ) -> None:
        super().__init__(batch)
        self.model = whole(CLIPModel.from_pretrained, weights, setting="weights", dtype=dtype)
        setting = "weights" if processor is None else "processor"
        self.processor = load_tokenizer(CLIPProcessor.from_pretrained, processor or weights, setting=setting)

    def encode(self, prompts: list[str]) -> Tensor:
        chunks = (prompts[start : start + self.batch] for start in range(0, len(prompts), self.batch))
        return torch.cat([self.model.get_text_features(**self._tokens(chunk)).pooler_output for chunk in chunks])

    def score(self, images: Tensor, prompts: list[str], text: Tensor) -> Tensor:
        return F.cosine_similarity(self._seen(images), text.float(), eps=0)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """The projected embeddings of pictures: (B, 3, H, W) in [0, 1] -> (B, D)."""
        with torch.autocast(self.device.type, enabled=False):
            parts = images.to(self.device).split(self.batch)
            return torch.cat([self._seen(eight_bit(part, self.name)) for part in parts])

    def _seen(self, images: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=self._pixels(images)).pooler_output.float()

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt").pixel_values
        return pixels.to(self.device, self.model.dtype)

    def _tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.processor.tokenizer(
            prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
