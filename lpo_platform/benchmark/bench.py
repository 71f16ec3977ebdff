"""What can be measured: a step of training or sampling, in its authors' form and in ours, at random weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.benchmark.random_model import Shape
from lpo_platform.hardware import Hardware


@dataclass(frozen=True)
class Bench(ABC):
    """A model with one step's inputs on its device. A step ends with the gradient; the optimiser's step, the same for
    all variants, is left out.

    variants: names of the forms, those of the authors begin with "plain". unit: what a step does `units` of, and costs
    are counted per. options: what build() takes beyond a shape and a size, with the published value. published: FLOPs
    that a specification names, in GFLOP per unit, by model and what is counted; the resolution is the model's own.
    """

    variants: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    published: ClassVar[dict[str, dict[str, float]]]
    source: ClassVar[str]

    units: int
    autocast: Callable[[], AbstractContextManager]

    @classmethod
    @abstractmethod
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
    ) -> "Bench":
        """device may be "meta", where a step is counted, not computed; hardware says device and precision."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def step(self, variant: str) -> Tensor:
        """Runs one step, leaving its gradient where it has one; returns a scalar that depends on all of it."""

    @abstractmethod
    def parts(self) -> dict[str, Callable[[], object]]:
        """The forwards that a step is made of; one call each is one unit's."""
