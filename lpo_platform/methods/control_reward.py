"""ControlNet++ (arXiv:2404.07987): what a detector finds in the predicted picture should be the condition.

The picture is predicted in one step from a noised latent. Only timesteps up to `max_timestep` are rewarded, because the
prediction is too blurred above it.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, NotNegative
from lpo_platform.hardware.transfer import upload
from lpo_platform.methods import losses
from lpo_platform.methods.expectations import Samples
from lpo_platform.methods.method import Batch, Method
from lpo_platform.models.adapter import Condition
from lpo_platform.tasks.task import Task


class ControlReward(Method):
    """L = L_pre + reward_weight * L_rew in one backward, both at the same x_t.

    L_rew = E[task loss of the decoded x0_hat | t <= max_timestep]. Only the rewarded pictures are decoded, and the sum
    of their losses is divided by the number expected, so that the loss depends neither on the micro-batch nor on the
    number of processes. The README of this folder says how the released code differs.

    Args:
        task: whose detector looks at the predicted picture. Its loss must have a gradient in the picture.
        reward_weight: factor of L_rew. Published: 1.0 (canny, hed, depth), 0.5 (lineart, ADE20K), 0.2 (COCO-Stuff).
        max_timestep: the largest timestep, from 0 to 999, that is rewarded; on a flow model the time with the same
            ratio of noise to signal. Published: 200.
    """

    trains: ClassVar[tuple[str, ...]] = ("control",)
    rewards: ClassVar[tuple[str, ...]] = ("none",)
    differentiable: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("moments", "text", "control", "target")
    logs: ClassVar[dict[str, dict[str, str]]] = {
        "control_reward/reward": {"what": "the task's loss of predicted pictures"},
        "control_reward/pretraining": {"what": "denoising error"},
    }

    def __init__(
        self, *, task: Task, reward_weight: NotNegative = 1.0, max_timestep: Count = 200, **shared: Any
    ) -> None:
        super().__init__(**shared)
        if not task.differentiable:
            raise UserError(
                f"method=control_reward: task={task.name}, as it is set, has no gradient in the picture; leave its "
                "settings as they are, or use method=cpo"
            )
        self.task, self.reward_weight = task, reward_weight
        self.max_timestep, self.share = self.policy.adapter.process.up_to(max_timestep)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        process = self.policy.adapter.process
        z, e, drawn = self.latents(batch), self.normal(batch, "pretrain"), self.drawn_times(batch, "pretrain")
        t = upload(drawn, self.device)
        x, target = process.add_noise(z, e, t), process.target(z, e, t)
        output = self.policy.predict(x, t, Condition(self.text(batch), batch["control"]))
        errors = losses.denoising_error(output, target)
        self.note("loss", errors, t)
        pretraining = errors.mean()

        rows = (drawn <= self.max_timestep).nonzero().flatten()  # on the CPU, so that nothing waits for the GPU
        reward = output.new_zeros(())
        if len(rows):
            rows = upload(rows, self.device)
            clean, _ = process.clean(output[rows], t[rows], x[rows])
            pictures = self.policy.adapter.decode(clean)
            reward = self.task.loss(pictures, batch["target"][rows].float()).sum() / self.expected(len(drawn))
        report = {"control_reward/reward": reward.detach(), "control_reward/pretraining": pretraining.detach()}
        return pretraining + self.reward_weight * reward, report

    def examples(self, samples: Samples, count: int) -> list[tuple[float, Batch]]:
        """Micro-batches whose pictures are all rewarded, and all not: the first decode, and detect."""
        candidates = torch.arange(100 * count)
        rewarded = self.drawn_times({"position": candidates}, "pretrain") <= self.max_timestep
        share = self.expected(1)
        both = ((share, candidates[rewarded]), (1 - share, candidates[~rewarded]))
        return [(part, samples.batch(count) | {"position": positions[:count]}) for part, positions in both]

    def expected(self, count: int) -> float:
        """The expected number of samples that are rewarded among `count`."""
        return count * self.share
