"""Condition Preference Optimisation (arXiv:2511.04753): prefer the true condition of a picture to a worse one.

Picture, noise and timestep are the same on both sides, so the two denoising errors differ by the condition alone. The
true condition is the winner. The loser is the condition that the detector finds in a picture which the starting
ControlNet drew from the winner.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import NotNegative, Positive
from lpo_platform.data.prepared.conditions import packed, unpacked, worse
from lpo_platform.methods import losses
from lpo_platform.methods.expectations import REFERENCE_DIFFERS, FirstLoss
from lpo_platform.methods.method import Batch, Method
from lpo_platform.models.adapter import Condition
from lpo_platform.models.sampling import Sampling
from lpo_platform.tasks.task import Task


class CPO(Method):
    """L = L_CPO + pretrain_weight * L_pre, in one backward pass, since DDP does not synchronise a second one.

    Args:
        beta: strength of the preference weight s = sigmoid(beta / 2 (d - r)). Published: 5000.
        margin: m of the hinge, in units of the mean squared error. Published: 0.005 to 0.03, by task.
        form: `soft` is the loss of train/reward_CPO.py (plain ControlNets), `hard` that of train/reward_CPO_DINO.py.
        pretrain_weight: factor of the supervised loss (--grad_scale of the scripts). Published: 0.02 to 0.1.
        share_timestep: L_pre uses timestep and noise of the pair, instead of drawing its own as the release does. The
            expectation is the same. A step takes 2.01 times fewer FLOPs than the released one (false: 1.46), at SD-1.5
            and 512 px.
        losers: `cached` draws the losing condition of every picture once; `online` draws it in every step, as the DINO
            scripts do.
        cache_features: whether the reference's features of both conditions are cached, 5 MB per pair in bf16 at 512 px.
            With a DINO ControlNet this saves most of the reference's work.
        task: its detector makes losers online; not needed where they are cached.
    """

    trains: ClassVar[tuple[str, ...]] = ("control",)
    rewards: ClassVar[tuple[str, ...]] = ("none",)
    needs: ClassVar[tuple[str, ...]] = ("moments", "text", "control", "loser")
    logs: ClassVar[dict[str, dict[str, str]]] = {
        "cpo/preference": {"what": "the preference loss L_CPO"},
        "cpo/pretraining": {"what": "denoising error with the true condition"},
        "cpo/difference": {"what": "error with the true condition minus that with the worse one"},
        "cpo/implicit_accuracy": {"what": "share of pairs that the policy separates better than the reference"},
        "cpo/weight": {"what": "mean weight s of a pair, 0.5 at the start"},
        "cpo/active": {"what": "share of pairs inside the margin"},
    }

    def __init__(
        self,
        *,
        beta: Positive = 5000.0,
        margin: NotNegative = 0.01,
        form: Literal["soft", "hard"] = "hard",
        pretrain_weight: NotNegative = 0.05,
        share_timestep: bool = False,
        losers: Literal["cached", "online"] = "cached",
        cache_features: bool = False,
        task: Task | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.task = task
        self.beta, self.margin, self.form = beta, margin, form
        self.pretrain_weight, self.share_timestep = pretrain_weight, share_timestep
        self.policy.freeze_reference()

    @classmethod
    def columns(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        online, cached = settings.get("losers") == "online", settings.get("cache_features")
        if online and cached:
            raise UserError(
                "method.cache_features=true: losers that are drawn online have no cached features; use "
                "method.losers=cached"
            )
        return tuple(name for name in cls.needs if name != "loser" or not online) + (("features",) if cached else ())

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        winner = batch["control"]
        loser = batch["loser"] if "loser" in batch else self.worse(batch)
        count, conditions = len(winner), torch.cat([winner, loser])

        # `count` rows for the pair and, unless they share timestep and noise with it, as many for L_pre
        streams = ("pair",) if self.share_timestep else ("pair", "pretrain")
        z = self.latents(batch).repeat(len(streams), 1, 1, 1)
        e = torch.cat([self.normal(batch, stream) for stream in streams])
        t = torch.cat([self.times(batch, stream) for stream in streams])
        process = self.policy.adapter.process
        x, target = process.add_noise(z, e, t), process.target(z, e, t)

        # one pass of the frozen encoder serves winner, loser, policy and reference
        encoded = self.policy.encode(x, t, self.text(batch).repeat(len(streams), 1, 1))
        pair = torch.arange(count, device=x.device)
        with self.policy.reference():
            cached = batch.get("features")
            features = self.policy.features(conditions) if cached is None else torch.cat(cached.unbind(1))
            output = self.policy.decode(encoded[pair.repeat(2)], features)
        reference_winner, reference_loser = losses.denoising_error(output, target[pair].repeat(2, 1, 1, 1)).chunk(2)

        # the policy decodes the pair under the winner, the pair under the loser, and L_pre's rows under the winner
        rows = torch.cat([pair, pair] if self.share_timestep else [pair, pair, pair + count])
        if self.policy.learns_features:
            features = self.policy.features(conditions)
        if not self.share_timestep:
            features = torch.cat([features, features[:count]])
        errors = losses.denoising_error(self.policy.decode(encoded[rows], features), target[rows])
        policy_winner, policy_loser, *pretrain = errors.split(count)

        self.note("loss", policy_winner, t[:count])
        four = (policy_winner, policy_loser, reference_winner, reference_loser)
        preference = losses.cpo(*four, t[:count], beta=self.beta, margin=self.margin, form=self.form)
        pretraining = (pretrain[0] if pretrain else policy_winner).mean()
        return preference + self.pretrain_weight * pretraining, self._report(four, preference, pretraining)

    def first_loss(self, loss: float, batch: Batch) -> FirstLoss | None:
        weight = float(self.trainer.callback_metrics["cpo/weight"])  # every step logs it
        what = f"the first weight of a pair is {weight:.4f}; 0.5 while policy and reference agree"
        return FirstLoss(what, abs(weight - 0.5), 0.01, REFERENCE_DIFFERS)

    @torch.no_grad()
    def worse(self, batch: Batch) -> Tensor:
        """Draws pictures with the starting ControlNet and detects their conditions: (B, 3, H, W)."""
        adapter, condition = self.policy.adapter, Condition(self.text(batch), batch["control"])
        sampling = Sampling(adapter.num_inference_steps, adapter.guidance)
        with self.policy.reference():
            found = worse(self.policy, self.task, condition, self._keys(batch), sampling, seed=self.seed)
        return unpacked(packed(found, self.task))  # as cached

    @torch.no_grad()
    def _report(self, four: tuple[Tensor, ...], preference: Tensor, pretraining: Tensor) -> dict[str, Tensor]:
        d, r = four[0] - four[1], four[2] - four[3]
        return {
            "cpo/preference": preference.detach(),
            "cpo/pretraining": pretraining.detach(),
            "cpo/difference": d.mean(),
            "cpo/implicit_accuracy": (d < r).float().mean(),
            "cpo/weight": losses.preference_weight(*four, beta=self.beta).mean(),
            "cpo/active": (d + self.margin > 0).float().mean(),
        }
