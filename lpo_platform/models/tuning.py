"""Which weights learn. Each class names the modules that learn and how their frozen reference is made."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Protocol

from peft import LoraConfig
from torch import nn

if TYPE_CHECKING:
    from lpo_platform.models.adapter import Adapter

Modules = dict[str, nn.Module]


class Tune(Protocol):
    """Chooses what learns among the parts of a policy: unet, text_encoder, control."""

    trains: ClassVar[str]
    """What learns, for methods that can train it: "control", "denoiser" or "reward"."""
    unsharded: ClassVar[dict[str, str]] = {}
    """Settings that hardware=fsdp cannot have, "" for all of this class, and why."""

    def learns(self, adapter: "Adapter", control: nn.Module | None) -> Modules: ...
    def freeze(self, modules: Modules) -> Modules: ...

    def halved(self, modules: Modules) -> list[nn.Parameter]:
        """The frozen weights inside what learns that are kept in the frozen precision: no file is written from them."""
        return []


class Control(Tune):
    """The ControlNet learns, the UNet is frozen."""

    trains: ClassVar[str] = "control"
    unsharded: ClassVar[dict[str, str]] = {}

    def learns(self, adapter: "Adapter", control: nn.Module | None) -> Modules:
        return {"control": control.requires_grad_(True)}

    def freeze(self, modules: Modules) -> Modules:
        return _copies(modules)


class Full(Tune):
    """Every weight of the UNet or transformer learns.

    Args:
        text_encoder: whether the text encoder learns, too.
    """

    trains: ClassVar[str] = "denoiser"
    unsharded: ClassVar[dict[str, str]] = {"text_encoder": "a text encoder is not sharded; use hardware=ddp"}

    def __init__(self, text_encoder: bool = False) -> None:
        self.text_encoder = text_encoder

    def learns(self, adapter: "Adapter", control: nn.Module | None) -> Modules:
        modules = {"unet": adapter.unet.requires_grad_(True)}
        if self.text_encoder:
            modules["text_encoder"] = adapter.text_encoder.requires_grad_(True)
            for part in adapter.unread_text:
                part.requires_grad_(False)
        return modules

    def freeze(self, modules: Modules) -> Modules:
        return _copies(modules)


class Lora(Tune):
    """Low-rank adapters on the UNet's attention learn (arXiv:2106.09685). The reference is the UNet without them.

    A starts at N(0, (1 / rank)^2) and B at 0.

    Args:
        rank: of the adapters. Published: 4 (LPO, SPO, DDPO on SD-1.5), 64 (LPO and SPO on SDXL).
        alpha: the update is alpha / rank times B A. Published: equal to the rank.
        targets: ends of the names of the adapted layers. Published: these.
        merged: whether the whole UNet with the adapters added is exported, too: 3.4 GB for SD-1.5, 10.3 GB for SDXL,
            twice with EMA, and the UNet then stays in float32. `model.lora=<export>/lora` needs no such export.
    """

    trains: ClassVar[str] = "denoiser"
    unsharded: ClassVar[dict[str, str]] = {
        "": "adapters are a few MB, there is nothing to shard; use hardware=ddp",
    }

    def __init__(
        self,
        rank: int = 4,
        alpha: float = 4.0,
        targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0"),
        merged: bool = False,
    ) -> None:
        self.merged = merged
        self.config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")

    def learns(self, adapter: "Adapter", control: nn.Module | None) -> Modules:
        adapter.unet.add_adapter(self.config)
        return {"unet": adapter.unet}

    def freeze(self, modules: Modules) -> Modules:
        return {}

    def halved(self, modules: Modules) -> list[nn.Parameter]:
        """The UNet below the adapters, unless it is exported with them inside: half precision would round them away."""
        return [] if self.merged else [weight for weight in modules["unet"].parameters() if not weight.requires_grad]

class Reward(Tune):
    """A latent reward model learns. It starts as a copy of the denoiser's encoder half and text encoders.

    Args:
        guidance, multi_scale, multi_scale_guidance: see models/latent_reward.py.
        text_projection: a CLIP model, whose text_projection is the first weight of the text tower's projection.
            Published: openai/clip-vit-large-patch14 for SD-1.5. Null starts at the identity.
        weights: folder or hub id of a reward model to continue from.
    """

    trains: ClassVar[str] = "reward"
    unsharded: ClassVar[dict[str, str]] = {
        "": "a reward model is half a denoiser and fits a GPU whole; use hardware=ddp",
    }

    def __init__(
        self,
        guidance: float = 7.5,
        multi_scale: bool = True,
        multi_scale_guidance: bool = False,
        text_projection: str | None = None,
        weights: str | None = None,
    ) -> None:
        self.settings = {
            "guidance": guidance,
            "multi_scale": multi_scale,
            "multi_scale_guidance": multi_scale_guidance,
        }
        self.text_projection, self.weights = text_projection, weights

    def learns(self, adapter: "Adapter", control: nn.Module | None) -> Modules:
        from lpo_platform.models.latent_reward import LatentReward
        from lpo_platform.models.reward_folder import load_reward, read_text_projection

        if self.weights is not None:
            return {"reward": load_reward(adapter, self.weights, **self.settings).requires_grad_(True)}
        start = None if self.text_projection is None else read_text_projection(self.text_projection)
        return {"reward": LatentReward.start(adapter, text_projection=start, **self.settings)}

    def freeze(self, modules: Modules) -> Modules:
        return {}


@contextmanager
def adapters_off(unet: nn.Module) -> Iterator[None]:
    """The UNet without its LoRA adapters.

    PEFT sets requires_grad=False on adapters that are off, so nothing may collect parameters in here.
    """
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


def _copies(modules: Modules) -> Modules:
    return {name: copy.deepcopy(module).requires_grad_(False).eval() for name, module in modules.items()}
