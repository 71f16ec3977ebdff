"""The control branches a policy can start from."""

from dataclasses import dataclass

from diffusers import ControlNetModel

from lpo_platform.models.adapter import Adapter
from lpo_platform.models.weights import digest


@dataclass(frozen=True)
class ControlNet:
    """A stock ControlNet. weights: auto (the model's for the task), unet (new, from the UNet), a folder or hub id."""

    weights: str = "auto"
    subfolder: str | None = None

    def load(self, adapter: Adapter, task: str) -> ControlNetModel:
        return adapter.load_control(task, self.weights, self.subfolder)

    def digest(self, adapter: Adapter, task: str) -> str:
        """What identifies the starting weights in a cache key."""
        place = adapter.controls[task] if self.weights == "auto" else self.weights
        weights, _, subfolder = place.partition("::")
        return f"{digest(weights)}::{self.subfolder or subfolder}"
