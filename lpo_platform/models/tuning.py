"""Which weights are trained. Each class names the trained modules and makes their frozen reference."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Protocol

from peft import LoraConfig
from torch import Tensor, nn

from lpo_platform.config.errors import UserError, one_line
from lpo_platform.config.numbers import Count, Guidance, Positive
from lpo_platform.models.lora import ATTENTION

if TYPE_CHECKING:
    from lpo_platform.models.adapter import Adapter

Modules = dict[str, nn.Module]


class Tune(Protocol):
    """Chooses what is trained among the parts of a policy: unet, text_encoder, control."""

    trains: ClassVar[str]
    """What is trained, for methods that can train it: "control", "denoiser" or "reward"."""
    unsharded: ClassVar[dict[str, str]] = {}
    """Settings that do not work with hardware=fsdp, and why. The key "" means the class itself."""

    def learns(self, adapter: "Adapter", control: nn.Module | None) -> Modules: ...
    def freeze(self, modules: Modules) -> Modules: ...

    def halved(self, modules: Modules) -> list[nn.Parameter]:
        """Frozen weights inside the trained modules that no file is written from; they get the frozen precision."""
        return []


class Control(Tune):
    """The ControlNet is trained, the denoiser is frozen."""

    trains: ClassVar[str] = "control"
    unsharded: ClassVar[dict[str, str]] = {}

    def learns(self, adapter: "Adapter", control: nn.Module | None) -> Modules:
        control.requires_grad_(True)
        for part in adapter.unread_control(control) if hasattr(adapter, "unread_control") else ():
            part.requires_grad_(False)
        return {"control": control}

    def freeze(self, modules: Modules) -> Modules:
        return _copies(modules)


class Full(Tune):
    """Every weight of the UNet or transformer is trained.

    Args:
        text_encoder: whether the text encoder is trained, too.
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
    """Low-rank adapters on the denoiser's attention are trained (arXiv:2106.09685). The reference is the denoiser
    without them.

    A starts at N(0, (1 / rank)^2) and B at 0.

    Args:
        rank: of the adapters. Published: 4 (LPO, SPO, DDPO on SD-1.5), 64 (LPO and SPO on SDXL).
        alpha: the update is alpha / rank times B A. Published: equal to the rank.
        targets: ends of the names of the adapted layers. Null takes those that are published for the model
            (`lora_targets` of its class).
        merged: whether the whole UNet with the adapters added is exported, too: 3.4 GB for SD-1.5, 10.3 GB for SDXL,
            twice with EMA, and the UNet then stays in float32. `model.lora=<export>/lora` needs no such export.
    """

    trains: ClassVar[str] = "denoiser"
    unsharded: ClassVar[dict[str, str]] = {
        "": "adapters are a few MB, there is nothing to shard; use hardware=ddp",
    }

    def __init__(
        self,
        rank: Count = 4,
        alpha: Positive = 4.0,
        targets: tuple[str, ...] | None = None,
        merged: bool = False,
    ) -> None:
        self.rank, self.alpha, self.targets, self.merged = rank, alpha, targets, merged

    def learns(self, adapter: "Adapter", control: nn.Module | None) -> Modules:
        targets = list(self.targets or getattr(adapter, "lora_targets", ATTENTION))
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=targets, init_lora_weights="gaussian")
        try:
            adapter.unet.add_adapter(config)
        except ValueError as error:
            usual = ", ".join(getattr(adapter, "lora_targets", ATTENTION))
            reason = f"the denoiser cannot have adapters there ({one_line(error)})"
            raise UserError(f"tune.targets=[{', '.join(targets)}]: {reason}; usual: {usual}") from error
        return {"unet": adapter.unet}

    def freeze(self, modules: Modules) -> Modules:
        return {}

    def halved(self, modules: Modules) -> list[nn.Parameter]:
        """The UNet below the adapters, unless it is exported with them inside: half precision would round them away."""
        return [] if self.merged else [weight for weight in modules["unet"].parameters() if not weight.requires_grad]


class Reward(Tune):
    """A latent reward model learns. It starts as a copy of a part of the denoiser and, of a UNet, of the text encoders.

    Args:
        guidance, multi_scale, multi_scale_guidance: see models/latent_reward.py.
        text_projection: a CLIP model, whose text_projection is the first weight of the text tower's projection.
            Published: openai/clip-vit-large-patch14 for SD-1.5. Null starts at the identity.
        blocks: how many blocks of a transformer it reads. Published: 18 (LPO on SD3), 12 (DiNa-LRM on SD3.5-medium).
            Null is half of them, of FLUX all double blocks.
        weights: folder or hub id of a reward model to continue from.
    """

    trains: ClassVar[str] = "reward"
    unsharded: ClassVar[dict[str, str]] = {
        "": "a reward model is half a denoiser and fits a GPU whole; use hardware=ddp",
    }

    def __init__(
        self,
        guidance: Guidance = 7.5,
        multi_scale: bool = True,
        multi_scale_guidance: bool = False,
        text_projection: str | None = None,
        blocks: Count | None = None,
        weights: str | None = None,
    ) -> None:
        self.settings = {
            "guidance": guidance,
            "multi_scale": multi_scale,
            "multi_scale_guidance": multi_scale_guidance,
        }
        self.text_projection, self.blocks, self.weights = text_projection, blocks, weights

    def learns(self, adapter: "Adapter", control: nn.Module | None) -> Modules:
        from lpo_platform.models.reward_folder import load_reward, read_text_projection, start_reward

        if self.weights is not None:
            return {"reward": load_reward(adapter, self.weights, **self.settings).requires_grad_(True)}
        start = None if self.text_projection is None else read_text_projection(self.text_projection)
        return {"reward": start_reward(adapter, text_projection=start, blocks=self.blocks, **self.settings)}

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


@contextmanager
def swapped(weights: dict[str, nn.Parameter], others: dict[str, Tensor]) -> Iterator[None]:
    """The values of `others` in the place of those of these weights. Nothing is copied."""
    own = {name: weight.data for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.data = others[name]
    try:
        yield
    finally:
        for name, weight in weights.items():
            weight.data = own[name]


def _copies(modules: Modules) -> Modules:
    return {name: copy.deepcopy(module).requires_grad_(False).eval() for name, module in modules.items()}
