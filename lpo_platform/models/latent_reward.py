"""The latent reward model (arXiv:2502.01051): the encoder half of a diffusion model scores noisy latents for a prompt.

There are two towers, as in CLIP. The image tower is conv_in, down blocks and middle of the UNet. It reads (x_t, t,
prompt), and its features are pooled and projected. The text tower is the model's text encoder. The score is
exp(logit_scale) times the cosine between both. Up blocks are not built, because nothing reads them.
"""

import copy
from importlib import import_module
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from hydra.utils import get_class
from torch import Tensor, nn

from lpo_platform.config.errors import UserError, hint
from lpo_platform.config.options import offered
from lpo_platform.hardware.transfer import upload
from lpo_platform.models.adapter import Adapter
from lpo_platform.models.shared_encoder import descend, embed_time, precision
from lpo_platform.models.stable_diffusion_xl import at_place, encode_text, unpack

UP = ("up_blocks.", "conv_norm_out.", "conv_out.")
Text = dict[str, Tensor]


def encoder_half(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of conv_in, time embeddings, down blocks and middle; the rest of the weights is never copied."""
    half = empty_half(unet.config)
    state = {k: v.detach().clone() for k, v in unet.state_dict().items() if not k.startswith(UP)}
    half.load_state_dict(state, assign=True)
    return half


def empty_half(config: dict[str, Any]) -> UNet2DConditionModel:
    """The encoder half of that configuration on the meta device, for load_state_dict(assign=True)."""
    with torch.device("meta"):
        half = UNet2DConditionModel.from_config(config)
    del half.up_blocks, half.conv_norm_out, half.conv_act, half.conv_out
    return half


class LatentReward(nn.Module):
    """Scores noisy latents (N, C, h, w) at timesteps t (N,) for prompts: (N,).

    Args:
        unet: the encoder half.
        text_encoders: of the diffusion model.
        empty_tokens: of the empty prompt.
        text_projection: (d, d), the first weight of the projection of the text feature. None where the text encoder has
            a projection of its own (SDXL).
        guidance: visual feature enhancement, V = V_empty + guidance (V_text - V_empty) on the pooled middle vector; 1
            is none. Published: 7.5.
        multi_scale: whether the vectors of the down blocks stand before that of the middle. Published: true.
        multi_scale_guidance: whether the enhancement applies to every scale. Published: false.
    """

    trains_text: ClassVar[bool] = True
    """Whether its text encoders are its own and learn."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoders: list[nn.Module],
        empty_tokens: Tensor,
        text_projection: Tensor | None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.unet, self.text_encoders = unet, nn.ModuleList(text_encoders)
        self.register_buffer("empty_tokens", empty_tokens, persistent=False)
        last, channels = text_encoders[-1].config, unet.config.block_out_channels
        width = last.hidden_size if text_projection is not None else last.projection_dim
        self._build_head([*channels, channels[-1]], width, text_projection, **settings)

    def _build_head(
        self,
        widths: list[int],
        width: int,
        text_projection: Tensor | None,
        *,
        guidance: float = 7.5,
        multi_scale: bool = True,
        multi_scale_guidance: bool = False,
    ) -> None:
        """widths: of the scales and, last, of the middle; width: of the text feature."""
        self.guidance, self.multi_scale, self.multi_scale_guidance = guidance, multi_scale, multi_scale_guidance
        self.visual_projection = nn.Linear(sum(widths) if multi_scale else widths[-1], width, bias=False)
        nn.init.normal_(self.visual_projection.weight, std=0.02)
        self.text_projection = None
        if text_projection is not None:
            self.text_projection = nn.Linear(width, width, bias=False)
            self.text_projection.weight = nn.Parameter(text_projection.detach().clone().float())
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    @classmethod
    def start(cls, adapter: Adapter, *, text_projection: Tensor | None = None, **settings: Any) -> "LatentReward":
        """An untrained model from the towers of a diffusion model. text_projection None starts at the identity."""
        encoders = [copy.deepcopy(encoder) for encoder in adapter.text_encoders]
        if text_projection is None and len(encoders) == 1:
            text_projection = torch.eye(encoders[0].config.hidden_size)
        half = encoder_half(adapter.unet)
        return cls(half, encoders, adapter.tokenize([""]), text_projection, **settings).requires_grad_(True)

    @classmethod
    def from_pretrained(cls, place: str, model: Adapter | str, **settings: Any) -> "LatentReward":
        """A trained model of a folder or hub id, `::<subfolder>` allowed.

        Args:
            place: such as <run>/export/reward.
            model: whose latents it scores, as an adapter or by the name of an option ("sd15").
            settings: those of the class, in place of the folder's.
        """
        if isinstance(model, str):
            targets = dict(offered("model"))
            if (target := targets.get(model)) is None:
                raise UserError(f"model={model}: no such option{hint(model, targets)}")
            model = get_class(target).from_pretrained(model)
        return import_module("lpo_platform.models.reward_folder").load_reward(model, place, **settings)

    def encode(self, tokens: Tensor) -> Text:
        """Encodes B prompts: `context` (B, L, D) for the image tower, and `target` (B, d)."""
        tokens = upload(tokens, self.visual_projection.weight.device)
        end = self.empty_tokens[..., 1:2]  # an empty prompt is its start and its end
        place = (tokens == end.to(tokens.device)).int().argmax(-1)
        if len(self.text_encoders) == 2:
            context = encode_text(*self.text_encoders, tokens, place[:, 1])
            return {"context": context, "target": unpack(context, self.text_encoders[1].config.projection_dim)[1]}
        states = self.text_encoders[0](_padded_with_end(tokens, place)).last_hidden_state
        return {"context": states, "target": at_place(states, place)}

    def read(self, tokens: Tensor) -> Text:
        """What a training sample holds of its prompt: tokens, since the text encoders learn."""
        return self.encode(tokens)

    def empty(self) -> Tensor:
        """The context of the empty prompt, (1, L, D)."""
        return self.encode(self.empty_tokens)["context"]

    def forward(self, latents: Tensor, t: Tensor, text: Text, empty: Tensor | None = None) -> Tensor:
        """Scores latents. `text` holds the row of encode() of each latent; `empty` is what empty() returned."""
        return self.score(self.features(latents, t, text["context"], empty), text["target"])

    def score(self, features: Tensor, target: Tensor) -> Tensor:
        """The head, in the precision of its weights: features (N, F) of the image and target (N, d) -> (N,)."""
        weight = self.visual_projection.weight
        device = "cpu" if features.is_meta else features.device.type  # torch has no autocast for meta tensors
        with torch.autocast(device, enabled=False):  # half precision resolves logits to 0.05 only
            visual, target = self.visual_projection(features.to(weight.dtype)), target.to(weight.dtype)
            target = target if self.text_projection is None else self.text_projection(target)
            return self.logit_scale.exp() * (F.normalize(visual, dim=1) * F.normalize(target, dim=1)).sum(1)

    def features(self, latents: Tensor, t: Tensor, context: Tensor, empty: Tensor | None = None) -> Tensor:
        """Pooled features of every scale and, enhanced, of the middle: (N, sum of their widths) float32."""
        num, unet = len(latents), self.unet
        if self.guidance != 1.0:
            empty = self.empty() if empty is None else empty
            context = torch.cat([context, empty.expand(num, -1, -1).to(context.dtype)])
        time, sequence = embed_time(unet, latents, t, context)
        _, blocks, hidden = descend(unet, unet.conv_in(latents.to(precision(unet))), time, sequence)
        layers = (len(block.resnets) for block in unet.down_blocks)
        scales = [outputs[count - 1] for count, outputs in zip(layers, blocks, strict=True)]  # before the down-sampler
        pooled = [scale.float().mean((2, 3)) for scale in scales]
        return self.combine(pooled, hidden.float().mean((2, 3)), num)

    def combine(self, scales: list[Tensor], middle: Tensor, num: int) -> Tensor:
        """The pooled scales, where they are used, and the enhanced middle: of (2 N, c) each -> (N, sum of c)."""
        used = scales if self.multi_scale else []
        used = [self._enhance(p, num) if self.multi_scale_guidance else p[:num] for p in used]
        return torch.cat([*used, self._enhance(middle, num)], 1)

    def _enhance(self, pooled: Tensor, num: int) -> Tensor:
        """(2N, c), with the prompt and without, -> (N, c); where both are the same rows nothing is left to enhance."""
        if len(pooled) == num:
            return pooled
        prompted, empty = pooled.split(num)
        return empty + self.guidance * (prompted - empty)


def _padded_with_end(tokens: Tensor, place: Tensor) -> Tensor:
    """Everything after the end token becomes the end token, as SD-1.5's tokenizer pads: (B, L) -> (B, L).

    SD-2.1's tokenizer pads otherwise, and LRM-1.5 serves it, too. place: where the end tokens are, (B,). Words
    that were added to a tokenizer have higher ids than the end token.
    """
    place = place.unsqueeze(1)
    after = torch.arange(tokens.shape[1], device=tokens.device) > place
    return torch.where(after, tokens.gather(1, place), tokens)
