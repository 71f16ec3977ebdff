"""ImageReward (arXiv:2304.05977): a BLIP that reads picture and prompt together, and a linear head."""

import re
from typing import ClassVar

from torch import Tensor
from transformers import (
    AutoTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPImageProcessor,
)

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count
from lpo_platform.models.weights import load_tokenizer
from lpo_platform.rewards.aesthetic import Predictor
from lpo_platform.rewards.pretrained import Pretrained
from lpo_platform.tasks.detector import UNREADABLE, read_weights, weight_file

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output over its training data
TOKENS = 35  # of a prompt that are read
HEAD = 64  # channels of an attention head, in every BLIP

# From the names of BLIP's own code to those of transformers, in this order.
NAMES = (
    (r"^blip\.visual_encoder\.blocks\.", "vision.encoder.layers."),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"(^vision.*)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"(^vision.*)\.attn\.", r"\1.self_attn."),
    (r"(^vision.*)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"^blip\.text_encoder\.", "text."),
)
# What the file has beside: heads of BLIP's pretraining, and numbers that are counted, not learned.
UNUSED = re.compile(r"^blip\.(vision_proj|text_proj|itm_head|temp)\b|position_ids$")


class ImageReward(Pretrained):
    """About -2 to 2. Over ImageReward's own pictures the mean is 0 and the standard deviation 1.

    Args:
        weights: ImageReward.pt, as <file> or <hub id>::<file>.
        tokenizer: folder or hub id of BERT's tokenizer.
        batch: pictures of one forward.
    """

    name: ClassVar[str] = "image_reward"

    def __init__(
        self,
        weights: str = "THUDM/ImageReward::ImageReward.pt",
        tokenizer: str = "google-bert/bert-base-uncased",
        batch: Count = 32,
    ) -> None:
        super().__init__(batch)
        try:
            state = renamed(read_weights(weight_file(weights, setting="weights")))
            self.vision, self.text, self.mlp = towers(state)
            self.load_state_dict(state)
        except (*UNREADABLE, KeyError) as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"weights={weights}: not ImageReward's. Reason: {reason}") from e
        self.float().requires_grad_(False).eval()
        self.tokenizer = load_tokenizer(AutoTokenizer.from_pretrained, tokenizer, setting="tokenizer")
        side = self.vision.config.image_size
        self.processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    def score(self, images: Tensor, prompts: list[str], text: Tensor) -> Tensor:
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values.to(self.device)
        options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
        tokens = self.tokenizer(prompts, **options).to(self.device)
        seen = self.vision(pixels).last_hidden_state
        read = self.text(tokens.input_ids, tokens.attention_mask, encoder_hidden_states=seen).last_hidden_state[:, 0]
        return (self.mlp(read) - MEAN) / STD


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ImageReward's weights under the names of transformers."""
    found = {}
    for name, weight in state.items():
        if not UNUSED.search(name):
            for old, new in NAMES:
                name = re.sub(old, new, name)
            found[name] = weight
    return found


def towers(state: dict[str, Tensor]) -> tuple[BlipVisionModel, BlipTextModel, Predictor]:
    """Builds networks of the shapes of the renamed weights. Raises KeyError where an expected name is missing."""
    patches, positions = (
        state["vision.embeddings.patch_embedding.weight"],
        state["vision.embeddings.position_embedding"],
    )
    words, inner = state["text.embeddings.word_embeddings.weight"], "encoder.layer.0.intermediate.dense.weight"
    vision = BlipVisionConfig(
        hidden_size=patches.shape[0],
        intermediate_size=state["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_layers(state, r"vision\.encoder\.layers\.(\d+)\."),
        num_attention_heads=patches.shape[0] // HEAD,
        image_size=round((positions.shape[1] - 1) ** 0.5) * patches.shape[-1],
        patch_size=patches.shape[-1],
        layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        encoder_hidden_size=patches.shape[0],
        intermediate_size=state[f"text.{inner}"].shape[0],
        num_hidden_layers=_layers(state, r"text\.encoder\.layer\.(\d+)\."),
        num_attention_heads=words.shape[1] // HEAD,
        max_position_embeddings=state["text.embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
    )
    return BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False), Predictor(words.shape[1])


def _layers(state: dict[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(pattern, name)))
