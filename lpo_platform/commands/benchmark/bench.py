"""The contract of what is measured: a step of training or sampling in its authors' form and in ours."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lpo_platform.commands.benchmark.released import released
from lpo_platform.config.errors import UserError
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.methods.method import Method
from lpo_platform.models.policy import Policy
from lpo_platform.models.random_flux import FluxShape, RandomFlux
from lpo_platform.models.random_sd3 import RandomStableDiffusion3, SD3Shape
from lpo_platform.models.random_weights import Shape, random_model
from lpo_platform.models.stable_diffusion import StableDiffusion

Plain = released("cpo").Parts
TRANSFORMERS = {
    FluxShape: (RandomFlux, released("flux").FluxParts),
    SD3Shape: (RandomStableDiffusion3, released("sd3").SD3Parts),
}
"""Of a transformer's shape: the model with random weights, and the modules of a plain step."""


@dataclass(frozen=True)
class Setting:
    """What a step of any kind is built from, as Bench.build() has it."""

    shape: Shape
    batch: int
    resolution: int | None
    device: str
    hardware: Hardware | None
    seed: int

    def model(self) -> StableDiffusion:
        make, _ = TRANSFORMERS.get(type(self.shape), (random_model, Plain))
        return make(self.shape, resolution=self.resolution, device=self.device)

    def parts(self, policy: Policy, reference: nn.Module) -> Plain:
        """The modules of a plain step of a ControlNet."""
        model = policy.adapter
        _, kind = TRANSFORMERS.get(type(self.shape), (random_model, Plain))
        return kind(model.unet, model.vae, model.text_encoder, policy.control, reference)

    def columns(self, model: StableDiffusion, count: int, *pictures: str) -> dict[str, Tensor]:
        """A batch of `count` samples whose pictures are noise."""
        size = (count, 3, model.resolution, model.resolution)
        columns = {name: torch.rand(size, device=model.device) for name in pictures}
        columns["tokens"] = model.any_tokens(count)
        with torch.no_grad(), self.autocast():
            columns["moments"] = model.encode_moments(columns["pixels"])
            columns["text"] = model.embed(columns["tokens"])
        return columns | {"position": torch.arange(count)}

    def place(self, policy: Policy) -> Policy:
        return policy.place(self.hardware.device, self.hardware.frozen_dtype) if self.hardware else policy

    @property
    def autocast(self) -> Callable[[], AbstractContextManager]:
        return self.hardware.autocast if self.hardware else nullcontext


@dataclass(frozen=True)
class Bench(ABC):
    """A model with one step's inputs on its device. A step ends with the gradient; the optimiser's step, the same for
    all variants, is left out.

    Attributes:
        variants: the names of the forms. Those of the authors begin with "plain".
        unit: what a step processes. A step processes `units` of it, and costs are counted per unit.
        options: what build() takes beyond a shape and a size, with the published values.
        published: what the stock classes of diffusers and transformers need, in GFLOP per unit, by model and by part,
            at the model's own resolution. The README of this folder says how these figures were counted.
        without_sdxl: the method's name, where its authors do not train SDXL.
        without_transformer: the reason why flow transformers have no such step.
    """

    variants: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    published: ClassVar[dict[str, dict[str, float]]]
    without_sdxl: ClassVar[str | None] = None
    without_transformer: ClassVar[str | None] = None

    units: int
    autocast: Callable[[], AbstractContextManager]
    method: Method

    @classmethod
    def build(
        cls,
        shape: Shape,
        *,
        batch: int,
        resolution: int | None = None,
        device: str = "cpu",
        hardware: Hardware | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """device may be "meta", where a step is counted, not computed; hardware says device and precision.

        Raises UserError for SDXL where the original has none, and for a transformer where there is no plain form.
        """
        if type(shape) in TRANSFORMERS:
            if cls.without_transformer:
                raise UserError(f"--model {shape.name}: {cls.without_transformer}")
        elif cls.without_sdxl and shape.text_encoder_2 is not None:
            raise UserError(f"--model {shape.name}: the original of {cls.without_sdxl} has no SDXL; use --model sd15")
        torch.manual_seed(seed)
        return cls.made(Setting(shape, batch, resolution, device, hardware, seed), **cls.options | options)

    @classmethod
    @abstractmethod
    def made(cls, setting: Setting, **options: Any) -> Self:
        """Draws model and inputs from torch's generator; `options` are the kind's own."""

    @property
    def device(self) -> torch.device:
        return self.method.policy.adapter.device

    @abstractmethod
    def step(self, variant: str) -> Tensor:
        """Runs one step, leaving its gradient where it has one; returns a scalar that depends on all of it."""

    @abstractmethod
    def parts(self) -> dict[str, Callable[[], object]]:
        """The forwards that a step is made of; one call each is one unit's."""
