"""The weights that are trained, and their frozen reference. Checkpoints, EMA and DDP see this module only."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from lpo_platform.models.adapter import Adapter, Condition
from lpo_platform.models.controlnet_dino import WithDino
from lpo_platform.models.shared_encoder import Encoded, decode, encode, features_of, residuals_of
from lpo_platform.models.tuning import Lora, Tune, adapters_off, swapped

START = "start"
"""Name of the reference that is the policy as it was before training."""


def guides(guidance: float) -> bool:
    """Whether classifier-free guidance is on, which takes a value above 1. In diffusers distilled models ask for 0."""
    return guidance > 1.0


class Policy(nn.Module):
    """A denoiser with an optional control branch. Only `learning`, the modules that are trained, is registered."""

    def __init__(self, adapter: Adapter, tune: Tune, control: ControlNetModel | None = None) -> None:
        super().__init__()
        self._adapter, self.tune = [adapter], tune  # in a list: a frozen part must not become a submodule
        self.learning = nn.ModuleDict(tune.learns(adapter, control))
        self._active: dict[str, nn.Module | None] = {"unet": adapter.unet, "control": control}
        self.references: dict[str, dict[str, nn.Module]] = {}
        self._kept: dict[str, dict[str, Tensor]] = {}  # adapters of trailing references, which share the denoiser
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(f"tune={type(tune).__name__} trains no weight")

    @property
    def adapter(self) -> Adapter:
        return self._adapter[0]

    @property
    def trains_unet(self) -> bool:
        return "unet" in self.learning

    @property
    def trains_text(self) -> bool:
        return "text_encoder" in self.learning

    @property
    def reads_tokens(self) -> bool:
        """Whether prompts have to be encoded in every step, because a text encoder is trained, here or in a reward
        model."""
        rewards = [part for name, part in self.learning.items() if name == "reward"]
        return self.trains_text or any(reward.trains_text for reward in rewards)

    @property
    def control(self) -> ControlNetModel | None:
        return self._active["control"]

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def place(self, device: torch.device | str, frozen_dtype: torch.dtype | None = None) -> "Policy":
        """Moves the trained weights, the references and the adapter's frozen parts to a device."""
        if frozen_dtype is not None:
            for weight in self.tune.halved(dict(self.learning.items())):
                weight.data = weight.data.to(frozen_dtype)
        self.adapter.to(device, frozen_dtype)
        for module in self.frozen:
            module.to(device)
        for weights in self._kept.values():
            weights.update({name: weight.to(device) for name, weight in weights.items()})
        return self.to(device)

    @property
    def frozen(self) -> list[nn.Module]:
        """The frozen copies of trained modules that the references consist of."""
        return [module for modules in self.references.values() for module in modules.values()]

    def freeze_reference(self, name: str = START) -> None:
        """Keeps the present weights as the reference of that name. With LoRA only the adapters are copied. The start
        has none yet, so nothing is copied for it."""
        if isinstance(self.tune, Lora) and name != START:
            self._kept[name] = {key: weight.detach().clone() for key, weight in self.trainable().items()}
        else:
            self.references[name] = self.tune.freeze(dict(self.learning.items()))

    def has_reference(self, name: str = START) -> bool:
        return name in self.references or name in self._kept

    @contextmanager
    def reference(self, name: str = START) -> Iterator[None]:
        """Inside, predictions are the reference's, without a gradient. freeze_reference() must have been called."""
        if not self.has_reference(name):
            raise RuntimeError(f"reference({name!r}) before freeze_reference({name!r})")
        active, self._active = self._active, {**self._active, **self.references.get(name, {})}
        if name in self._kept:
            below = swapped(self.trainable(), self._kept[name])
        else:
            below = adapters_off(self.adapter.unet) if isinstance(self.tune, Lora) else nullcontext()
        try:
            with torch.no_grad(), below:
                yield
        finally:
            self._active = active

    @contextmanager
    def start(self) -> Iterator[None]:
        """Inside, it predicts as it did before training: with the reference if there is one."""
        training = self.training
        self.eval()
        try:
            with self.reference() if self.has_reference() else nullcontext():
                yield
        finally:
            self.train(training)

    def reference_weights(self, name: str) -> dict[str, Tensor]:
        """The weights of a reference that trails the policy, by the names of trainable()."""
        if name in self._kept:
            return self._kept[name]
        modules = nn.ModuleDict(self.references[name])
        found = {f"learning.{key}": weight for key, weight in modules.named_parameters()}
        return {key: found[key] for key in self.trainable()}

    @torch.no_grad()
    def blend(self, name: str, keep: float) -> None:
        """Moves a reference towards the policy: keep times its own weights plus 1 - keep times the present ones."""
        present, reference = self.trainable(), self.reference_weights(name)
        torch._foreach_lerp_(list(reference.values()), [present[key].detach() for key in reference], 1 - keep)

    @property
    def networks(self) -> list[nn.Module]:
        """The denoiser and the other modules that are trained, each once."""
        return list(dict.fromkeys((self.adapter.unet, *self.learning.values())))

    def encode(self, x: Tensor, t: Tensor, text: Tensor) -> Encoded:
        """Runs the encoder half of the denoiser, without a graph where the denoiser is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_unet):
            return encode(self._active["unet"], x, t, text)

    def features(self, control: Tensor | None) -> Tensor | None:
        """The features of condition images (B, 3, H, W) in [0, 1]; None without a condition.

        They do not depend on x and t, so that one row serves all predictions under its condition.
        """
        return None if control is None else features_of(self._active["control"], control, self.adapter)

    @property
    def learns_features(self) -> bool:
        """Whether features() depends on trained weights. Those of a transformer come from the frozen autoencoder."""
        return isinstance(self.control, ControlNetModel | WithDino)

    def decode(self, encoded: Encoded, features: Tensor | None = None) -> Tensor:
        """The output (B, C, h, w) in float32 for an encoding and the features of its conditions."""
        branch = self._active["control"]
        residuals = None if branch is None else residuals_of(branch, encoded, features)
        return decode(self._active["unet"], encoded, residuals).float()

    def predict(
        self, x: Tensor, t: Tensor, condition: Condition, *, guidance: float = 1.0, empty: Tensor | None = None
    ) -> Tensor:
        """The output at (x, t). With guidance, empty (1, L, D) must be adapter.empty_text()."""
        encoded = self.encode_guided(x, t, condition.text, guidance=guidance, empty=empty)
        return self.decode_guided(encoded, self.features(condition.control), guidance=guidance)

    def encode_guided(
        self, x: Tensor, t: Tensor, text: Tensor, *, guidance: float, empty: Tensor | None = None
    ) -> Encoded:
        """The first half of predict. With guidance it has 2 B rows, without text and with text."""
        if not guides(guidance):
            return self.encode(x, t, text)
        return self.encode(x, t, torch.cat([empty.expand_as(text), text]))

    def decode_guided(self, encoded: Encoded, features: Tensor | None = None, *, guidance: float) -> Tensor:
        """The second half of predict, (B, C, h, w) in float32. features have B rows."""
        if not guides(guidance):
            return self.decode(encoded, features)
        features = None if features is None else features.repeat(2, 1, 1, 1)
        free, conditional = self.decode(encoded, features).chunk(2)
        return free + guidance * (conditional - free)
