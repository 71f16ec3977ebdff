"""The latent reward model on a flow transformer: its first blocks score noisy latents for a prompt.

The image tower is the embedders and the first blocks of the transformer. The tokens of the picture are averaged after
some of the blocks, the last of them among these, and projected. The text tower is the pooled text of the frozen CLIP
encoders, which also is part of what every block reads. LPO (arXiv:2502.01051) reports such a model for Stable
Diffusion 3 without code; the parts that it does not state are ours (methods/README.md, "lrm").
"""

import copy
from collections.abc import Sequence
from functools import singledispatch
from typing import Any, ClassVar

import torch
from diffusers import FluxTransformer2DModel, ModelMixin, SD3Transformer2DModel
from torch import Tensor, nn

from lpo_platform.config.errors import UserError
from lpo_platform.models import flux_transformer, sd3_transformer
from lpo_platform.models.adapter import Adapter
from lpo_platform.models.latent_reward import LatentReward, Text
from lpo_platform.models.shared_encoder import encode
from lpo_platform.models.stable_diffusion_xl import unpack

AFTER = ("norm_out", "proj_out", "single_transformer_blocks")


class Frozen:
    """An adapter whose text encoders are read and do not learn. A deep copy of a reward model shares it."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        if any(weight.requires_grad for encoder in adapter.text_encoders for weight in encoder.parameters()):
            self.adapter = copy.copy(adapter)
            learning, kept = adapter.text_encoder, copy.deepcopy(adapter.text_encoder).requires_grad_(False).eval()
            for name in [name for name, part in vars(adapter).items() if part is learning]:
                setattr(self.adapter, name, kept)

    def __deepcopy__(self, memo: dict) -> "Frozen":
        return self


class TransformerReward(LatentReward):
    """Scores noisy latents (N, C, h, w) at times t (N,) for prompts: (N,).

    Args:
        trunk: the first blocks of the transformer; it is the attribute `unet`, as in LatentReward.
        adapter: whose text encoders give the prompts.
        taps: after which blocks, counted from 1, tokens are averaged.
        text_projection, guidance, multi_scale, multi_scale_guidance: see LatentReward. The scales are those of the
            taps, and the last tap is its middle.
    """

    trains_text: ClassVar[bool] = False

    def __init__(
        self,
        trunk: ModelMixin,
        adapter: Adapter,
        taps: Sequence[int],
        text_projection: Tensor | None = None,
        **settings: Any,
    ) -> None:
        nn.Module.__init__(self)
        self.unet, self.text_encoders, self.taps, self.text = trunk, nn.ModuleList(), tuple(taps), Frozen(adapter)
        self.pooled_width, self._empty = trunk.config.pooled_projection_dim, None
        start = torch.eye(self.pooled_width) if text_projection is None else text_projection
        self._build_head([width_of(trunk)] * len(self.taps), self.pooled_width, start, **settings)

    @classmethod
    def start(
        cls, adapter: Adapter, *, text_projection: Tensor | None = None, blocks: int | None = None, **settings: Any
    ) -> "TransformerReward":
        """An untrained model from the first blocks of a transformer. blocks: their number; None is the usual one."""
        most, usual = len(adapter.unet.transformer_blocks), default_blocks(adapter.unet)
        if blocks is not None and not 1 <= blocks <= most:
            raise UserError(f"tune.blocks={blocks}: what works for model={adapter.name}: 1 to {most}")
        trunk = trunk_of(adapter.unet, blocks or usual)
        return cls(trunk, adapter, taps_of(trunk), text_projection, **settings).requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> "TransformerReward":
        """Leaves out what no score depends on: DDP would wait for its gradient."""
        super().requires_grad_(requires_grad)
        for part in sd3_transformer.unread(self.unet.transformer_blocks[-1]):
            part.requires_grad_(False)
        return self

    @torch.no_grad()
    def encode(self, tokens: Tensor) -> Text:
        """Encodes B prompts: `context`, their packed text, for the image tower, and `target` (B, d)."""
        return self.read(self.text.adapter.embed(tokens))

    def read(self, text: Tensor) -> Text:
        """The same from packed text (B, L, D)."""
        return {"context": text, "target": unpack(text, self.pooled_width)[1]}

    @torch.no_grad()
    def empty(self) -> Tensor:
        """The text of the empty prompt, (1, L, D). It is encoded once."""
        if self._empty is None:
            self._empty = self.text.adapter.empty_text()
        return self._empty

    def features(self, latents: Tensor, t: Tensor, context: Tensor, empty: Tensor | None = None) -> Tensor:
        """Tokens of the picture averaged after every tap and, after the last one, enhanced: (N, sum of widths)."""
        num = len(latents)
        if self.guidance != 1.0:
            empty = self.empty() if empty is None else empty
            context = torch.cat([context, empty.expand(num, -1, -1).to(context.dtype)])
        *scales, middle = tapped(self.unet, latents, t, context, self.taps)
        return self.combine(scales, middle, num)


@singledispatch
def tapped(trunk: ModelMixin, x: Tensor, t: Tensor, text: Tensor, taps: Sequence[int]) -> list[Tensor]:
    """The mean of the picture's tokens after each tap, (R, D) float32, for text of R rows, a multiple of those of x."""
    raise UserError(f"a {type(trunk).__name__} has no latent reward model")


@tapped.register
def tapped_sd3(trunk: SD3Transformer2DModel, x: Tensor, t: Tensor, text: Tensor, taps: Sequence[int]) -> list[Tensor]:
    encoded, found = encode(trunk, x, t, text), []
    hidden, context = encoded.hidden, encoded.context
    for number, block in enumerate(trunk.transformer_blocks, 1):
        if number > 1:  # the first block is encode's
            hidden, context = sd3_transformer.through(trunk, block, hidden, context, encoded.time)
        if number in taps:
            found.append(hidden.float().mean(1))
    return found


@tapped.register
def tapped_flux(trunk: FluxTransformer2DModel, x: Tensor, t: Tensor, text: Tensor, taps: Sequence[int]) -> list[Tensor]:
    encoded, found = encode(trunk, x, t, text), []
    hidden, context, places = encoded.hidden, encoded.context, flux_transformer.rotary(trunk, x, encoded.context)
    for number, block in enumerate(trunk.transformer_blocks, 1):
        if number > 1:
            hidden, context = flux_transformer.through(trunk, block, hidden, context, encoded.time, places)
        if number in taps:
            found.append(hidden.float().mean(1))
    return found


def trunk_of(transformer: ModelMixin, blocks: int) -> ModelMixin:
    """A copy of the embedders and the first blocks; the other weights are never copied."""
    trunk = empty_trunk(type(transformer), transformer.config, blocks)
    own = transformer.state_dict()
    trunk.load_state_dict({name: own[name].detach().clone() for name in trunk.state_dict()}, assign=True)
    if hasattr(transformer, "distilled_guidance"):
        trunk.distilled_guidance = transformer.distilled_guidance
    return trunk


def empty_trunk(kind: type[ModelMixin], config: dict[str, Any], blocks: int) -> ModelMixin:
    """The trunk of that configuration on the meta device, for load_state_dict(assign=True)."""
    with torch.device("meta"):
        trunk = kind.from_config(config)
    trunk.transformer_blocks = trunk.transformer_blocks[:blocks]
    for name in AFTER:
        if hasattr(trunk, name):
            delattr(trunk, name)
    return trunk


def default_blocks(transformer: ModelMixin) -> int:
    """Half of the blocks, the deeper half if they are odd, as in DiNa-LRM (arXiv:2602.11146); of FLUX all that keep
    picture and text apart."""
    blocks = len(transformer.transformer_blocks)
    return blocks if hasattr(transformer, "single_transformer_blocks") else -(-blocks // 2)


def taps_of(trunk: ModelMixin) -> tuple[int, ...]:
    """Thirds of the trunk, of FLUX's quarters: the numbers of the blocks after which tokens are averaged."""
    blocks = len(trunk.transformer_blocks)
    parts = 4 if isinstance(trunk, FluxTransformer2DModel) else 3
    return tuple(sorted({-(-blocks * part // parts) for part in range(1, parts + 1)}))


def width_of(trunk: ModelMixin) -> int:
    return trunk.config.num_attention_heads * trunk.config.attention_head_dim
