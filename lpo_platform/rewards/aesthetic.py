"""The LAION aesthetic predictor: how much people like a picture. It does not read the caption."""

from pathlib import Path
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPModel

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count
from lpo_platform.models.weights import Dtype, load, whole
from lpo_platform.rewards.pretrained import Pretrained
from lpo_platform.tasks.detector import UNREADABLE, read_weights

FIRST = "layers.0.weight"


class Predictor(nn.Module):
    """(B, width) embeddings -> (B,); linear throughout, in the layout of the published weight files."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
            nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings)[:, 0]


class Aesthetic(Pretrained):
    """A rating on the scale of its training data, 1 to 10; most pictures get 4 to 7.

    Args:
        weights: the file sac+logos+ava1-l14-linearMSE, as .pth or .safetensors.
        clip: folder or hub id of CLIP ViT-L/14.
        batch: pictures of one forward.
        dtype: of CLIP. The predictor computes in float32.
    """

    name: ClassVar[str] = "aesthetic"

    def __init__(
        self, weights: str, clip: str = "openai/clip-vit-large-patch14", batch: Count = 32, dtype: Dtype = "float32"
    ) -> None:
        super().__init__(batch)
        self.predictor = predictor(weights)
        self.model = whole(CLIPModel.from_pretrained, clip, setting="clip", dtype=dtype)
        del self.model.text_model
        self.processor = load(CLIPImageProcessor.from_pretrained, clip, setting="clip")
        width, wanted = self.model.config.projection_dim, self.predictor.layers[0].in_features
        if width != wanted:
            raise UserError(f"clip={clip}: its embeddings are {width} wide; the predictor reads {wanted}")

    def score(self, images: Tensor, prompts: list[str], text: Tensor) -> Tensor:
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values
        embeddings = self.model.get_image_features(pixel_values=pixels.to(self.device, self.model.dtype)).pooler_output
        return self.predictor(F.normalize(embeddings.float(), dim=-1))


def predictor(weights: str) -> Predictor:
    """The predictor with the weights of a .pth or .safetensors file; UserError where that is none."""
    path = Path(weights).expanduser()
    wanted = "the file sac+logos+ava1-l14-linearMSE as .pth or .safetensors"
    if not path.is_file():
        raise UserError(f"weights={weights}: no such file; give {wanted}")
    try:
        state = read_weights(path)
        model = Predictor(state[FIRST].shape[1])
        model.load_state_dict(state)
    except (*UNREADABLE, KeyError, IndexError) as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"weights={weights}: not the aesthetic predictor; give {wanted}. Reason: {reason}") from e
    return model.float().requires_grad_(False).eval()
