"""A ControlNet that also reads its condition through DINOv2 (ZonglinL/CPO, controlnets/controlnet.py)."""

from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ControlNetModel, FluxControlNetModel, ModelMixin, SD3ControlNetModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import Dinov2Config, Dinov2Model

# adapter_size -> how its DINOv2 differs from the rest; tiny is ours, a patch of 4 pixels for each latent of model=tiny
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 4, "image_size": 64},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "giant": {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
}

# names in the published checkpoints, which transformers has up to 5.17 -> its names today
PUBLISHED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "mlp.weights_out": "mlp.down_proj",
}
FUSED, HALVES = "mlp.weights_in", ("mlp.gate_proj", "mlp.up_proj")  # giant has both in one layer there


def as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of either spelling, as the published checkpoints spell it."""
    old = {new: name for name, new in PUBLISHED.items()}
    renamed = {_renamed(name, old): value for name, value in state.items()}
    gates = [name for name in renamed if HALVES[0] in name]
    for gate in gates:
        halves = [renamed.pop(gate), renamed.pop(gate.replace(*HALVES))]
        renamed[gate.replace(HALVES[0], FUSED)] = torch.cat(halves)
    return renamed


def spelled(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """A state dict of either spelling, as the installed transformers spells it, of whose module `own` are the names."""
    state = as_published(state)
    if not any("attention.q_proj" in name for name in own):
        return state
    renamed = {_renamed(name, PUBLISHED): value for name, value in state.items()}
    for name in [name for name in renamed if FUSED in name]:
        halves = renamed.pop(name).chunk(2)
        renamed |= {name.replace(FUSED, half): value for half, value in zip(HALVES, halves, strict=True)}
    return renamed


OWN = "own"  # the adapter_size of an architecture without a name, whose fields the configuration holds
FIELDS = (
    "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "hidden_act",
    "layer_norm_eps", "qkv_bias", "layerscale_value", "use_swiglu_ffn",
)  # fmt: skip


def config_of(size: str, own: Mapping[str, Any] | None = None) -> Dinov2Config:
    """The configuration of a size; own: its fields where the size is OWN."""
    return Dinov2Config(**{"image_size": 518, "patch_size": 14} | SIZES.get(size, {}) | dict(own or {}))


def size_of(config: Dinov2Config) -> tuple[str, dict[str, Any] | None]:
    """The name of a DINOv2's architecture, and of one without a name its fields."""
    fields = {name: getattr(config, name) for name in FIELDS}
    for size in SIZES:
        named = config_of(size)
        if fields == {name: getattr(named, name) for name in FIELDS}:
            return size, None
    return OWN, fields


class Dino(nn.Module):
    """DINOv2 and a linear layer that starts at 0, so that the branch has no effect at first."""

    def __init__(self, config: Dinov2Config, channels: int) -> None:
        super().__init__()
        self.model = Dinov2Model(config)
        self.conv_out = nn.Linear(self.model.config.hidden_size, channels)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, images: Tensor, features: Tensor, resize: str) -> Tensor:
        """Adds to features (B, C, h, w) those of images (B, 3, H, W) in [0, 1], resized to one patch per feature."""
        size = [self.model.config.patch_size * side for side in features.shape[-2:]]
        images = interpolate(images, size, mode=resize, align_corners=True if resize == "bicubic" else None)
        tokens = self.model(2 * images - 1).last_hidden_state[:, 1:]
        return features + self.conv_out(tokens).mT.unflatten(2, features.shape[-2:])


class WithDino:
    """What ControlNets with a DINO branch share; it stands before the class of diffusers among their bases.

    Args:
        adapter_size: one of SIZES, or `own`, whose architecture dino_config says.
        resize: `nearest` or `bicubic`. None is that of a checkpoint which does not say, as the authors' do not; it is
            then nearest, as in their code.
        dino_config: the fields of a DINOv2 without a name among SIZES.
    """

    stock: ClassVar[type[ModelMixin]]

    def __init__(
        self,
        adapter_size: str = "small",
        resize: str | None = None,
        dino_config: dict[str, Any] | None = None,
        **plain: Any,
    ) -> None:
        super().__init__(**plain)
        self.register_to_config(adapter_size=adapter_size, resize=resize, dino_config=dino_config)
        self.dino = Dino(config_of(adapter_size, dino_config), self.condition_width)
        self.requires_grad_(True)

    @property
    def condition_width(self) -> int:
        """Channels of the features of a condition: those of a transformer's tokens."""
        return self.inner_dim

    @classmethod
    def from_controlnet(
        cls,
        control: ModelMixin,
        dino: Dinov2Model | None = None,
        *,
        adapter_size: str,
        dino_config: dict[str, Any] | None = None,
    ) -> "WithDino":
        """Starts as the plain ControlNet, bit for bit. Without `dino` the DINOv2 is random, and the same each time."""
        plain = {key: control.config[key] for key in signature(cls.stock.__init__).parameters if key in control.config}
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            new = cls(adapter_size=adapter_size, dino_config=dino_config, **plain)
        new.load_state_dict(new.state_dict() | control.state_dict())
        if dino is not None:
            new.dino.model.load_state_dict(dino.state_dict())
        return new

    def with_dino(self, images: Tensor, features: Tensor) -> Tensor:
        """Adds what DINO sees in images (B, 3, H, W) in [0, 1] to their features (B, C, h, w)."""
        return self.dino(images, features, self.config.resize or "nearest")

    def requires_grad_(self, requires_grad: bool = True) -> "WithDino":
        """Leaves out the token of masked patches, which are not used: DDP would wait for its gradient."""
        super().requires_grad_(requires_grad)
        self.dino.model.embeddings.mask_token.requires_grad_(False)
        return self

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        super().save_pretrained(save_directory, **options)
        file = Path(save_directory) / SAFETENSORS_WEIGHTS_NAME
        save_file(as_published(load_file(file)), file, {"format": "pt"})

    def _fix_state_dict_keys_on_load(self, state_dict: dict[str, Tensor]) -> None:
        """Diffusers' place for names that have changed."""
        super()._fix_state_dict_keys_on_load(state_dict)
        renamed = spelled(state_dict, self.state_dict())
        state_dict.clear()
        state_dict.update(renamed)

    @classmethod
    def _get_init_keys(cls, input_class: type) -> set[str]:
        """What diffusers reads of a config.json; it would see `plain` alone."""
        return {"adapter_size", "resize", "dino_config", *signature(cls.stock.__init__).parameters}


class ControlNetDinoModel(WithDino, ControlNetModel):
    """diffusers' ControlNetModel with a DINO branch.

    The stock forward adds the output of controlnet_cond_embedding after conv_in. The output of DINO is added inside
    that embedding, so that stock pipelines, and code that computes the features of a condition once, work unchanged.
    """

    stock: ClassVar[type[ModelMixin]] = ControlNetModel

    def __init__(self, *own: Any, **plain: Any) -> None:
        super().__init__(*own, **plain)
        self.controlnet_cond_embedding.register_forward_hook(self._add_dino)

    @property
    def condition_width(self) -> int:
        return self.config.block_out_channels[0]

    def _add_dino(self, embedding: nn.Module, inputs: tuple[Tensor], features: Tensor) -> Tensor:
        return self.with_dino(inputs[0], features)


class FluxControlNetDinoModel(WithDino, FluxControlNetModel):
    """FLUX's ControlNet with a DINO branch, one patch for every token (flux_transformer.py). It is ours."""

    stock: ClassVar[type[ModelMixin]] = FluxControlNetModel


class SD3ControlNetDinoModel(WithDino, SD3ControlNetModel):
    """The ControlNet of Stable Diffusion 3 with a DINO branch, one patch for every token (sd3_transformer.py)."""

    stock: ClassVar[type[ModelMixin]] = SD3ControlNetModel


KINDS = {kind.stock: kind for kind in (ControlNetDinoModel, FluxControlNetDinoModel, SD3ControlNetDinoModel)}
"""By the class of a plain ControlNet, the class with DINO."""


def _renamed(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name
