"""One thing to measure: a kind of step at a model's shape and a size, counted on meta tensors and timed on a device."""

import gc
from dataclasses import dataclass, field
from typing import Any

import torch

from lpo_platform.commands.benchmark import ddpo, lpo
from lpo_platform.commands.benchmark.bench import Bench
from lpo_platform.commands.benchmark.control import ControlStep
from lpo_platform.commands.benchmark.control_reward import ControlRewardStep
from lpo_platform.commands.benchmark.cpo import CPOStep
from lpo_platform.commands.benchmark.cpo_dino import CPODinoStep
from lpo_platform.commands.benchmark.generate import Generation
from lpo_platform.commands.benchmark.lrm import LRMStep
from lpo_platform.commands.benchmark.measure import Result, interleaved
from lpo_platform.commands.benchmark.roofline import Roofline
from lpo_platform.commands.benchmark.waits import host_waits
from lpo_platform.commands.plan.count import flops, peak
from lpo_platform.commands.plan.devices import Device
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.models.random_flux import FLUX
from lpo_platform.models.random_sd3 import SD3, SD35L, SD35M
from lpo_platform.models.random_weights import SD15, SD21, SDXL, tiny

STEPS: dict[str, type[Bench]] = {
    "cpo": CPOStep,
    "cpo-dino": CPODinoStep,
    "control": ControlStep,
    "control-reward": ControlRewardStep,
    "lrm": LRMStep,
    "lpo-update": lpo.Update,
    "lpo-rollout": lpo.Rollout,
    "lpo-iteration": lpo.Iteration,
    "ddpo-update": ddpo.Update,
    "ddpo-round": ddpo.Round,
    "generate": Generation,
}
PUBLISHED = (SD15, SD21, SDXL, SD3, SD35M, SD35L, FLUX)
MODELS = {"tiny": tiny} | {shape.name: lambda shape=shape: shape for shape in PUBLISHED}


@dataclass(frozen=True)
class Cell:
    """A step to measure.

    Attributes:
        what: the kind of step, of STEPS.
        model: of MODELS.
        batch: pictures, pairs or prompts of a step.
        resolution: in pixels; None is the model's own.
        options: of the step.
        chosen: variants; all if empty.
    """

    what: str
    model: str
    batch: int = 1
    resolution: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    chosen: tuple[str, ...] = ()

    @property
    def kind(self) -> type[Bench]:
        return STEPS[self.what]

    @property
    def variants(self) -> tuple[str, ...]:
        return self.chosen or self.kind.variants

    @property
    def name(self) -> str:
        """As it is asked for on the command line."""
        options = {"batch": self.batch, "resolution": self.resolution} | self.options
        given = " ".join(f"--{key} {value}" for key, value in options.items() if value is not None)
        return f"--what {self.what} --model {self.model} {given}"

    def build(self, **place: Any) -> Bench:
        """Raises UserError where the original has no such step."""
        shape = MODELS[self.model]()
        return self.kind.build(shape, batch=self.batch, resolution=self.resolution, **place, **self.options)

    def counted(self, bench: Bench, *, memory: bool = False, predicted_on: Device | None = None) -> dict[str, Result]:
        """Counts each variant of a step built on meta tensors: FLOPs per unit and the host's waits in a step.

        With `memory` also the largest number of bytes that its tensors hold at once beside the weights, in float32;
        with a GPU also what roofline.py predicts of a step there.
        """
        results: dict[str, Result] = {}
        for variant in self.variants:
            counts: list[int] = []
            waits = host_waits(lambda v=variant, counts=counts: counts.append(flops(lambda: bench.step(v))))
            results[variant] = {"flops": counts[0] / bench.units, "waits": sum(waits.values())}
            if memory:
                release(bench)
                most: list[int] = []
                host_waits(lambda v=variant, most=most: most.append(peak(lambda: bench.step(v))))
                results[variant]["counted_bytes"] = most[0]
                release(bench)
            if predicted_on:
                found = Roofline()
                host_waits(lambda v=variant, found=found: found.follow(lambda: bench.step(v), predicted_on))
                results[variant] |= {"kernels": found.kernels, "moved_bytes": found.moved}
                results[variant] |= {"predicted_seconds": found.seconds, "predicted_share": found.share(predicted_on)}
                release(bench)
        return results

    def measured(self, hardware: Hardware, repeats: int, warmup: int, until: float | None = None) -> dict[str, Result]:
        """Seconds and memory of every variant's steps; until: time.monotonic() after which no round starts."""
        bench = self.build(device=hardware.device.type, hardware=hardware)
        try:
            return interleaved(bench, self.variants, repeats, warmup, until)
        finally:
            release(bench)
            del bench
            gc.collect()
            if hardware.gpu:
                torch.cuda.empty_cache()


def release(bench: Bench) -> None:
    """Drops the gradients of the step before."""
    for module in (bench.method.policy, bench.method.policy.adapter.unet):
        module.zero_grad(set_to_none=True)
