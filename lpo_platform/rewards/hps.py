"""Human Preference Score v2 and v2.1 (arXiv:2306.09341): a CLIP-H that learned which pictures people prefer."""

from typing import ClassVar

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPImageProcessor

from lpo_platform.config.errors import UserError, hint
from lpo_platform.config.numbers import Count
from lpo_platform.rewards.pretrained import Pretrained
from lpo_platform.tasks.detector import UNREADABLE, read_weights, weight_file


class Hps(Pretrained):
    """The cosine of picture and prompt, about 0.2 to 0.35.

    Args:
        weights: <file> or <hub id>::<file>. HPS_v2_compressed.pt is v2, HPS_v2.1_compressed.pt is v2.1.
        architecture: the name of the model in open_clip.
        batch: pictures of one forward.
    """

    name: ClassVar[str] = "hps"

    def __init__(
        self, weights: str = "xswu/HPSv2::HPS_v2.1_compressed.pt", architecture: str = "ViT-H-14", batch: Count = 32
    ) -> None:
        super().__init__(batch)
        if architecture not in open_clip.list_models():
            raise UserError(f"architecture={architecture}: open_clip has none{hint(architecture, ['ViT-H-14'])}")
        file = weight_file(weights, setting="weights")  # before the seconds that an empty model takes
        self.model = open_clip.create_model(architecture, load_weights=False, pretrained_text=False)
        self.tokenizer = open_clip.get_tokenizer(architecture)
        try:
            state = read_weights(file)
            self.model.load_state_dict(state.get("state_dict", state))
        except UNREADABLE as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"weights={weights}: not a {architecture} of open_clip. Reason: {reason}") from e
        self.model.requires_grad_(False).eval()
        side = self.model.visual.image_size
        side = side if isinstance(side, int) else side[0]
        self.processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    def encode(self, prompts: list[str]) -> Tensor:
        chunks = (prompts[start : start + self.batch] for start in range(0, len(prompts), self.batch))
        return torch.cat([self.model.encode_text(self.tokenizer(chunk).to(self.device)) for chunk in chunks])

    def score(self, images: Tensor, prompts: list[str], text: Tensor) -> Tensor:
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values.to(self.device)
        return F.cosine_similarity(self.model.encode_image(pixels), text, eps=0)
