"""The control branches that a policy can start from."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel
from transformers import AutoModel, Dinov2Model

from lpo_platform.config.errors import UserError
from lpo_platform.models.adapter import Adapter
from lpo_platform.models.controlnet_dino import KINDS, SIZES, WithDino, size_of
from lpo_platform.models.weights import digest, whole


@dataclass(frozen=True)
class ControlNet:
    """A stock ControlNet of diffusers.

    Args:
        weights: `auto` takes the model's own for the task, `unet` starts a new one from the denoiser; else a folder or
            hub id, with ::<subfolder> if needed.
        subfolder: of the weights; null for none.
    """

    weights: str = "auto"
    subfolder: str | None = None

    def load(self, adapter: Adapter, task: str, *, nearest: bool = False) -> ControlNetModel:
        """The branch for a task. nearest: whether conditions must be resized without interpolation."""
        control = adapter.load_control(task, self.weights, self.subfolder)
        if isinstance(control, WithDino):
            raise UserError(f"control.weights={self.weights}: a ControlNet with DINO; use control=controlnet_dino")
        return control

    def digest(self, adapter: Adapter, task: str) -> str:
        """What identifies the starting weights in a cache key."""
        place = adapter.controls[task] if self.weights == "auto" else self.weights
        weights, _, subfolder = place.partition("::")
        return f"{digest(weights)}::{self.subfolder or subfolder}"


@dataclass(frozen=True)
class ControlNetDino(ControlNet):
    """A ControlNet that also reads its condition through DINOv2 (arXiv:2511.04753).

    Args:
        weights, subfolder: of a ControlNet with DINO, which is taken whole, or of a plain one, to which a DINOv2 is
            added.
        dino: the DINOv2 that is added: a folder, a hub id, or one of SIZES, which names Meta's weights. `auto` is
            small, and for a tiny model tiny, which has random weights only. Published: small.
        pretrained: false draws the weights of that size at random.
        dino_nearest: resizes every condition by nearest, as the authors' CPO scripts do (methods/README.md). By default
            canny and segmentation are resized by nearest and the others bicubically.
    """

    dino: str = "auto"
    pretrained: bool = True
    dino_nearest: bool = False

    def load(self, adapter: Adapter, task: str, *, nearest: bool = False) -> WithDino:
        control = adapter.load_control(task, self.weights, self.subfolder)
        if not isinstance(control, WithDino):
            size, own, dino = self._dino(adapter)
            control = KINDS[type(control)].from_controlnet(control, dino, adapter_size=size, dino_config=own)
        own = "nearest" if nearest else "bicubic"
        control.register_to_config(resize="nearest" if self.dino_nearest else control.config.resize or own)
        return control.to(memory_format=torch.channels_last)

    def _dino(self, adapter: Adapter) -> tuple[str, dict[str, Any] | None, Dinov2Model | None]:
        """The DINOv2 that is added: its size, its fields if that has no name, its weights, None for random ones."""
        auto = "tiny" if adapter.toy else "small"
        name = auto if self.dino == "auto" else self.dino
        if name == "tiny" or (name in SIZES and not self.pretrained):
            return name, None, None
        sizes = ", ".join(SIZES)
        if not self.pretrained:
            raise UserError(f"control.dino={name} with control.pretrained=false: name a size, one of {sizes}")
        place = f"facebook/dinov2-{name}" if name in SIZES else name
        dino = whole(AutoModel.from_pretrained, place, setting="control.dino", dtype=torch.float32)
        if dino.config.model_type != "dinov2":
            raise UserError(f"control.dino={name}: a {dino.config.model_type}, not a DINOv2")
        return *size_of(dino.config), dino

    def digest(self, adapter: Adapter, task: str) -> str:
        """The same without the DINOv2 that is added: its last layer is 0, so it has no effect yet."""
        return f"{super().digest(adapter, task)}::{self.dino_nearest}"
