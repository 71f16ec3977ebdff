"""What all methods share: the policy, the optimiser, keyed random numbers, and checkpoints of the trained weights."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from lpo_platform.config.numbers import Count, Seed
from lpo_platform.data.prepared.conditions import PACKED, unpacked
from lpo_platform.diffusion import noise
from lpo_platform.hardware.distributed import mean
from lpo_platform.hardware.sharding import whole
from lpo_platform.hardware.transfer import upload
from lpo_platform.methods.expectations import FirstLoss, Samples
from lpo_platform.methods.histograms import Noted, histograms, note
from lpo_platform.methods.optim import Optim
from lpo_platform.models.policy import Policy

Batch = dict[str, Tensor]
Logs = dict[str, dict[str, str] | None]


class Method(L.LightningModule):
    """Base of all methods. A method names the columns of a sample that it needs and computes a loss; the rest is here.

    A batch holds `position` (B,), the number of each sample in the run, and the columns named in `needs`.

    Args:
        policy: the model with its trained and frozen weights, and the reference.
        optim: the optimiser and its learning-rate schedule.
        seed: of every random number of the run.
        steps: optimiser steps of the run. For online methods it is the number of rounds.
        batch: samples of one optimiser step, over all processes and micro-batches.
    """

    trains: ClassVar[tuple[str, ...]] = ("control", "denoiser", "reward")
    """What it can train; `trains` of the chosen tune must be one of these. A control branch needs a task."""
    reads: ClassVar[str] = "pictures"
    """What it learns from: "pictures", "prompts" (of pictures, where a condition is needed) or "pairs"."""
    rewards: ClassVar[tuple[str, ...]] = ("none", "pictures", "latents", "condition")
    """The kinds of rewards that it takes, with "none" where it can do without."""
    differentiable: ClassVar[bool] = False
    """Whether the loss of the task must have a gradient in the picture."""
    denoisers: ClassVar[tuple[str, ...]] = ("unet", "transformer")
    """The kinds of denoisers that it can train."""
    unsharded: ClassVar[dict[str, str]] = {}
    """Its settings that do not work with hardware=fsdp, and why."""
    needs: ClassVar[tuple[str, ...]]
    """Columns of a training sample. README.md lists them with their shapes."""
    logs: ClassVar[Logs] = {}
    """The metrics it logs by name, with fields of Metric (tracking/loggers/metrics.py); bases are read, too. None takes
    out what a base logs and this class does not."""
    needs_winner: ClassVar[bool] = False
    """Whether rows of preferences that name no winner are left out."""
    online: ClassVar[bool] = False
    """Whether it draws its own samples, in rounds."""
    schedule_interval: ClassVar[str] = "step"

    @classmethod
    def columns(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The columns that the method needs under these settings."""
        return cls.needs

    def __init__(self, *, policy: Policy, optim: Optim, seed: Seed, steps: Count, batch: Count) -> None:
        super().__init__()
        self.policy, self.optim, self.seed, self.steps, self.batch = policy, optim, seed, steps, batch
        self.strict_loading = False
        self.noted: Noted = {}
        self.watched: dict[str, Tensor] = {}
        """What must be finite in the current step: the loss and, after the backward pass, the gradient norm."""

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss, a scalar, and the numbers to log beside it, which carry no gradient."""

    # What lpo-plan and lpo-doctor call; the types are those of expectations.py.

    @classmethod
    def small(cls, settings: Mapping[str, Any], processes: int) -> dict[str, Any]:
        """The settings of two short steps, as lpo-doctor takes them."""
        return {"steps": 2, "batch": 2 * processes}

    def updates(self) -> float:
        """The optimiser steps of the run."""
        return self.steps

    def examples(self, samples: Samples, count: int) -> list[tuple[float, Batch]]:
        """Micro-batches of `count` samples, each with its share of all micro-batches: more than one where their costs
        differ."""
        return [(1.0, samples.batch(count))]

    def first_loss(self, loss: float, batch: Batch) -> FirstLoss | None:
        """The first loss against its closed form while policy and reference are equal; None where there is no closed
        form."""
        return None

    def assumed(self) -> list[str]:
        """The assumptions behind the counts of lpo-plan, in words."""
        return []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss, report = self.loss(batch)
        values = mean({"train/loss": loss.detach(), **report}, 1)  # every process has as many samples
        self.log_dict(values, on_step=True, on_epoch=False)
        self.watched = {"loss": values["train/loss"]}
        return loss

    def note(self, name: str, values: Tensor, t: Tensor | None = None) -> None:
        """Keeps values (B,), with their timesteps t (B,) if there are any, for the histograms of this round."""
        note(self.noted, name, values, t)

    def on_train_epoch_end(self) -> None:
        found, self.noted = histograms(self.noted), {}
        for logger in self.trainer.loggers if self.trainer.is_global_zero else ():
            if hasattr(logger, "log_histograms"):
                logger.log_histograms(found, max(0, self.trainer.global_step - 1))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, schedule = self.optim.build(self.policy.trainable().values(), self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.schedule_interval}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradients after 16-mixed has unscaled them, and logs their norm before clipping."""
        self._unscale(optimizer)
        weights = list(self.policy.trainable().values())
        if self.optim.clip is None:
            norm = torch.nn.utils.get_total_norm(weight.grad for weight in weights if weight.grad is not None)
        else:
            norm = torch.nn.utils.clip_grad_norm_(weights, self.optim.clip)
        rate = torch.tensor(optimizer.param_groups[0]["lr"])  # on the CPU: Lightning would wait to move a float
        self.watched["gradient norm"] = whole(norm)
        self.log_dict({"train/grad_norm": self.watched["gradient norm"], "train/lr": rate})

    def _unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradients by the loss scale where Lightning has not done so.

        Lightning leaves the gradients of a fused optimiser scaled, because that optimiser divides them in its step.
        Clipping them before would make them 65536 times too short. The scaler remembers that it has divided.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep = {f"policy.{name}" for name in self.policy.trainable()}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keep}

    # What the losses of the methods read.

    def latents(self, batch: Batch) -> Tensor:
        """Draws once from the VAE posterior of each image: (B, C, h, w)."""
        return self.policy.adapter.sample_latents(batch["moments"], self.normal(batch, "vae"))

    def text(self, batch: Batch) -> Tensor:
        """The text embeddings. They are cached unless the text encoder learns."""
        return self.policy.adapter.embed(batch["tokens"]) if self.policy.trains_text else batch["text"]

    def normal(self, batch: Batch, stream: str) -> Tensor:
        """Standard normal noise in the shape of latents. Each purpose has a stream of its own."""
        drawn = noise.normal(self._keys(batch), self.policy.adapter.latent_shape, seed=self.seed, stream=stream)
        return upload(drawn, self.device)

    def times(self, batch: Batch, stream: str) -> Tensor:
        """The timesteps to train at, as the process draws them: (B,)."""
        return upload(self.drawn_times(batch, stream), self.device)

    def drawn_times(self, batch: Batch, stream: str) -> Tensor:
        """The same as times(), on the CPU, where a choice by timestep does not wait for the GPU."""
        process = self.policy.adapter.process
        return process.training_times(self._keys(batch), seed=self.seed, stream=f"{stream}/t")

    def uniform(self, batch: Batch, stream: str) -> Tensor:
        """Uniform numbers in [0, 1): (B,)."""
        return upload(noise.uniform(self._keys(batch), seed=self.seed, stream=stream), self.device)

    def _keys(self, batch: Batch) -> list[int]:
        return batch["position"].tolist()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves a batch to the device, except for the positions, which key the noise on the CPU.

        Control images are moved as their cache keeps them, and become float32 on the device.
        """
        moved = {k: v if k == "position" else v.to(device, non_blocking=True) for k, v in batch.items()}
        images = {*PACKED} & {*self.needs}  # an online method has latents under the name of a loser
        return {k: unpacked(v) if v.dtype == torch.uint8 or k in images else v for k, v in moved.items()}
