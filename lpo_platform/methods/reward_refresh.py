"""Trains a latent reward model, between rounds, on what the policy draws by now.

A policy that climbs a fixed reward model leaves the pictures that the model knows. There the model extrapolates, and
the policy follows its errors: in the toy world objects grow, and the true score does not.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lpo_platform.config.errors import RunFailed
from lpo_platform.config.numbers import Count, Positive, SamplingSteps, Several
from lpo_platform.data.prepared.own_pairs import generate, labels_of
from lpo_platform.diffusion import noise
from lpo_platform.hardware.distributed import broadcast
from lpo_platform.methods import losses
from lpo_platform.methods.lrm import pair_accuracy
from lpo_platform.models.adapter import Adapter
from lpo_platform.models.latent_reward import LatentReward
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling
from lpo_platform.rewards.lrm import LRM
from lpo_platform.rewards.reward import Reward


class Refresh:
    """Draws pictures with the policy, labels them, and trains the reward model on them. It is ours, not published.

    Args:
        labeller: makes the reward of pictures that says which of the policy's pictures is better.
        num_images: pictures drawn for each prompt of the round.
        steps: optimiser steps of the training, by AdamW.
        batch: prompts of one step.
        lr: learning rate.
        temperature: the difference of the labeller's scores that is preferred with probability 0.73.
    """

    def __init__(
        self,
        labeller: Callable[[], Reward],
        num_images: Several = 4,
        steps: Count = 40,
        batch: Count = 24,
        lr: Positive = 3e-4,
        temperature: Positive = 0.1,
    ) -> None:
        self.make_labeller, self._labeller = labeller, None
        self.num_images, self.steps, self.batch, self.lr, self.temperature = num_images, steps, batch, lr, temperature

    @property
    def labeller(self) -> Reward:
        """The labeller. It is loaded when it is first needed."""
        if self._labeller is None:
            self._labeller = self.make_labeller()
        return self._labeller

    def __call__(self, reward: LRM, policy: Policy, captions: list[str], sampling: Sampling, *, key: str) -> dict:
        """Trains `reward.model` in place, the same on every process. `key` is of this round and keys its noise."""
        latents, scores = self._drawn(reward, policy, captions, sampling, key)
        reward.model.requires_grad_(True)
        with torch.enable_grad():
            accuracy = self._train(reward.model, policy.adapter, captions, latents, scores, sampling.num_steps, key)
        reward.model.requires_grad_(False)
        broadcast(reward.model)
        reward.empty = None  # it was encoded by the weights of before
        return {"refresh/true_score": scores.mean().to(latents.device), "refresh/accuracy": accuracy}

    def _drawn(
        self, reward: LRM, policy: Policy, captions: list[str], sampling: Sampling, key: str
    ) -> tuple[Tensor, Tensor]:
        """Latents (P, N, C, h, w) of the policy's pictures of each prompt, and the labeller's scores of them (P, N)."""
        adapter, keys = policy.adapter, [f"{key}/{i}" for i in range(len(captions))]
        images, scores = generate(
            policy, captions, keys, self.num_images, sampling, reward.batch, self.labeller, seed=0
        )
        with torch.no_grad():
            moments = torch.cat([adapter.encode_moments(part) for part in images.flatten(0, 1).split(reward.batch)])
        latents = adapter.sample_latents(moments, torch.zeros_like(moments[:, : adapter.latent_shape[0]]))
        return latents.unflatten(0, scores.shape), scores

    def _train(
        self,
        model: LatentReward,
        adapter: Adapter,
        captions: list[str],
        latents: Tensor,
        scores: Tensor,
        num_steps: SamplingSteps,
        key: str,
    ) -> Tensor:
        """The steps of the optimiser, at the timesteps of sampling. Returns the mean accuracy over them."""
        labels = torch.stack([labels_of(row, self.temperature) for row in scores]).to(latents.device)
        tokens, times = adapter.tokenize(captions), adapter.process.times(num_steps)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr)
        accuracies: list[Tensor] = []
        for step in range(self.steps):
            rows = noise.permutation(len(captions), seed=0, stream=f"{key}/rows/{step}")[: self.batch]
            drawn = noise.integers(rows.tolist(), len(times), seed=0, stream=f"{key}/t/{step}").to(times.device)
            t = times[drawn].repeat_interleave(self.num_images)
            x = latents[rows].flatten(0, 1)
            e = noise.normal(range(len(x)), adapter.latent_shape, seed=0, stream=f"{key}/noise/{step}").to(x.device)
            text = {k: v.repeat_interleave(self.num_images, 0) for k, v in model.encode(tokens[rows]).items()}
            found = model(adapter.process.add_noise(x, e, t), t, text, model.empty()).view(-1, self.num_images)
            loss = losses.pair_preference(found, labels[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            accuracies.append(pair_accuracy(found.detach(), labels[rows]).mean())
        if not torch.isfinite(loss):
            helps = "what helps: a lower method.refresh.lr"
            raise RunFailed(f"{key}: the loss of the reward model is {loss.item()}; {helps}")
        return torch.stack(accuracies).mean()
