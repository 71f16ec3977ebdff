"""CPO's micro-step on a ControlNet with DINO: losses and gradient of a batch.

Variants:
    plain: as released: losers are drawn in the step, and a condition is encoded in every forward.
    exact: losers are prepared and each condition is encoded once. The mathematics is the same.
    cached: the reference's features are prepared, too.
    shared: as cached, with share_timestep=true.
    online: losers are drawn in the step, in our way (method.losers=online).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.commands.benchmark.bench import Setting
from lpo_platform.commands.benchmark.cpo import CPOStep
from lpo_platform.commands.benchmark.released import released
from lpo_platform.models.controlnet_dino import ControlNetDinoModel
from lpo_platform.models.random_weights import RandomStableDiffusion
from lpo_platform.tasks.canny import Canny

GUIDANCE = 7.5
LACKS = {"exact": {"features"}, "online": {"features", "loser"}}


@dataclass(frozen=True)
class CPODinoStep(CPOStep):
    """CPO on a ControlNet with DINO.

    Options:
        form: soft or hard.
        steps: sampling steps of a losing picture.
    """

    variants: ClassVar[tuple[str, ...]] = ("plain", "exact", "cached", "shared", "online")
    options: ClassVar[dict[str, Any]] = {"form": "hard", "steps": 20}
    without_transformer: ClassVar[str] = "CPO with DINO was released for UNets; use --model sd15"
    published: ClassVar[dict[str, dict[str, float]]] = {
        "sd15": {
            "UNet": 803.3,
            "ControlNet": 768.5,
            "DINOv2": 485.2,
            "loser": 65400.0,
            "plain": 80600.0,
            "cached": 10900.0,
        }
    }

    @classmethod
    def made(cls, setting: Setting, *, form: str, steps: int) -> "CPODinoStep":
        bench = super().made(setting, form=form)
        policy, batch = bench.method.policy, bench.batch
        policy.adapter.guidance, policy.adapter.num_inference_steps = GUIDANCE, steps
        bench.method.task = Canny(0.15, 0.3, "magnitude")
        with torch.no_grad(), bench.autocast(), policy.reference():
            batch["features"] = torch.stack([policy.features(batch[name]) for name in ("control", "loser")], 1)
        return bench

    @classmethod
    def new_control(cls, model: RandomStableDiffusion) -> ControlNetDinoModel:
        with torch.device(model.device):
            size = "small" if model.resolution >= 256 else "tiny"
            control = ControlNetDinoModel.from_controlnet(model.new_control(), adapter_size=size)
        torch.nn.init.normal_(control.dino.conv_out.weight, std=0.05)
        return control

    def _plain(self) -> tuple[Tensor, ...]:
        self.batch["loser"] = self.losers()
        return super()._plain()

    def losers(self) -> Tensor:
        method, adapter = self.method, self.method.policy.adapter
        empty = adapter.tokenize([""]).to(self.device)
        pictures = self.batch["tokens"], empty, self.batch["control"], method.normal(self.batch, "loser")
        detect = lambda images: method.task.worse(images, self.batch["control"])  # noqa: E731
        return released("cpo_dino").plain_losers(
            self.plain, *pictures, detect, steps=adapter.num_inference_steps, guidance=GUIDANCE
        )

    def _ours(self, variant: str) -> tuple[Tensor, ...]:
        self.method.share_timestep, lacks = variant == "shared", LACKS.get(variant, set())
        return self.method.loss({name: column for name, column in self.batch.items() if name not in lacks})[:1]

    def parts(self) -> dict[str, Callable[[], object]]:
        control, (_, *size) = self.plain.control, self.method.policy.adapter.latent_shape
        patch = control.dino.model.config.patch_size
        picture = torch.rand(1, 3, *(patch * side for side in size), device=self.device)
        own = {"DINOv2": lambda: control.dino.model(picture), "loser": self.losers}
        return {name: part for name, part in super().parts().items() if name in self.published["sd15"]} | own
