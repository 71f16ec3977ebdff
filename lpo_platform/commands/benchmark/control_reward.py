"""ControlNet++'s micro-step on edges: loss and gradient of a batch, of which one in five has a rewarded timestep.

Variants:
    plain-ckpt: as released: pictures and text are encoded, every predicted picture is decoded and compared, with
        gradient checkpointing.
    plain: the same without checkpointing.
    exact: with cached VAE moments, text and targets; only rewarded pictures are decoded. The mathematics is the same.
    exact-ckpt: the same with gradient checkpointing, to compare memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lpo_platform.commands.benchmark.bench import Setting
from lpo_platform.commands.benchmark.control import ControlStep
from lpo_platform.commands.benchmark.released import released
from lpo_platform.methods.control_reward import ControlReward
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.tuning import Control
from lpo_platform.tasks.canny import Canny

SETTINGS = {"reward_weight": 1.0, "max_timestep": 200}  # canny's
ONE_IN = 5  # 201 timesteps of 1000 are rewarded


@dataclass(frozen=True)
class ControlRewardStep(ControlStep):
    """A step has five pictures for each one of `batch`, so that one fifth of them is rewarded."""

    without_sdxl: ClassVar[str] = "ControlNet++"
    without_transformer: ClassVar[str] = "ControlNet++ was released for UNets; use --model sd15"
    published: ClassVar[dict[str, dict[str, float]]] = {
        "sd15": {
            "UNet": 803.3,
            "ControlNet": 283.3,
            "VAE encoder": 1116.7,
            "VAE decoder": 2514.5,
            "text encoder": 13.3,
            "plain": 8400.0,
            "exact": 3200.0,
        }
    }

    method: ControlReward

    @classmethod
    def made(cls, setting: Setting) -> "ControlRewardStep":
        model, units, autocast = setting.model(), ONE_IN * setting.batch, setting.autocast
        policy = setting.place(Policy(model, Control(), model.new_control()))
        shared = {"policy": policy, "optim": AdamW(), "seed": setting.seed, "steps": 1, "batch": units}
        method = ControlReward(task=Canny(), **shared, **SETTINGS).to(model.device)
        columns = setting.columns(model, units, "pixels", "control")
        with torch.no_grad(), autocast():
            columns["target"] = method.task.target(columns["pixels"], columns["control"]).half()
        columns["position"] = positions(method, setting.batch)
        return cls(units, autocast, method, setting.parts(policy, policy.control), columns)

    def _plain(self) -> Tensor:
        method, batch = self.method, self.batch
        draws = method.normal(batch, "vae"), method.normal(batch, "pretrain"), method.times(batch, "pretrain")
        return released("control_reward").plain_loss(
            self.plain, batch["pixels"], batch["tokens"], batch["control"], *draws, **SETTINGS
        )

    def parts(self) -> dict[str, Callable[[], object]]:
        model, batch = self.method.policy.adapter, {name: column[:1] for name, column in self.batch.items()}
        x, t, text = self.method.latents(batch), self.method.times(batch, "pretrain"), batch["text"]
        return {
            "UNet": lambda: model.unet(x, t, text),
            "ControlNet": lambda: self.plain.control(x, t, text, batch["control"], return_dict=False),
            "VAE encoder": lambda: model.encode_moments(batch["pixels"]),
            "VAE decoder": lambda: model.decode(x),
            "text encoder": lambda: model.embed(batch["tokens"]),
        }


def positions(method: ControlReward, batch: int) -> Tensor:
    """Numbers of samples: after each one with a rewarded timestep four without, `batch` times."""
    candidates = torch.arange(100 * batch)
    rewarded = method.drawn_times({"position": candidates}, "pretrain") <= method.max_timestep
    with_, without = candidates[rewarded][:batch], candidates[~rewarded][: (ONE_IN - 1) * batch]
    return torch.cat([with_[:, None], without.view(batch, -1)], 1).flatten()
