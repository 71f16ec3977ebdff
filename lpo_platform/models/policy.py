"""What learns, and its frozen reference. It is the only module that checkpoints, EMA and DDP see."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from diffusers import ControlNetModel, FluxControlNetModel
from torch import Tensor, nn

from lpo_platform.models.adapter import Adapter, Condition
from lpo_platform.models.shared_encoder import Encoded, decode, encode, features_of, residuals_of
from lpo_platform.models.tuning import Lora, Tune, adapters_off


def guides(guidance: float) -> bool:
    """Whether this guidance differs from none. 0 to 1 are none, as in diffusers, where distilled models ask for 0."""
    return guidance > 1.0


class Policy(nn.Module):
    """A denoiser with an optional control branch. `learning` holds what trains; nothing else is registered."""

    def __init__(self, adapter: Adapter, tune: Tune, control: ControlNetModel | None = None) -> None:
        super().__init__()
        self._adapter, self.tune = [adapter], tune  # in a list: a frozen part must not become a submodule
        self.learning = nn.ModuleDict(tune.learns(adapter, control))
        self._active: dict[str, nn.Module | None] = {"unet": adapter.unet, "control": control}
        self.reference_copy: dict[str, nn.Module] | None = None
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
    def control(self) -> ControlNetModel | None:
        return self._active["control"]

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def place(self, device: torch.device | str, frozen_dtype: torch.dtype | None = None) -> "Policy":
        """Moves what learns, the reference and the adapter's frozen parts to a device."""
        if frozen_dtype is not None:
            for weight in self.tune.halved(dict(self.learning.items())):
                weight.data = weight.data.to(frozen_dtype)
        self.adapter.to(device, frozen_dtype)
        for module in (self.reference_copy or {}).values():
            module.to(device)
        return self.to(device)

    def freeze_reference(self) -> None:
        """Keeps the present weights as the reference. With LoRA nothing is copied."""
        self.reference_copy = self.tune.freeze(dict(self.learning.items()))

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, predictions are the reference's, without a gradient. freeze_reference() must have been called."""
        if self.reference_copy is None:
            raise RuntimeError("reference() before freeze_reference()")
        active, self._active = self._active, {**self._active, **self.reference_copy}
        try:
            with torch.no_grad():
                if isinstance(self.tune, Lora):
                    with adapters_off(self.adapter.unet):
                        yield
                else:
                    yield
        finally:
            self._active = active

    @contextmanager
    def start(self) -> Iterator[None]:
        """Inside, it predicts as it did before it learned: by the reference's weights where there is a reference."""
        training = self.training
        self.eval()
        try:
            with nullcontext() if self.reference_copy is None else self.reference():
                yield
        finally:
            self.train(training)

    @property
    def networks(self) -> list[nn.Module]:
        """The denoiser and what learns beside it, each once."""
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
        """Whether features() depends on what learns. FLUX's are computed by the frozen autoencoder."""
        return not isinstance(self.control, FluxControlNetModel)

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
