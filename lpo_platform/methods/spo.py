"""Step-by-step preference optimisation (arXiv:2406.04314): preferences between the predicted pictures of K branches.

From x_t the policy draws K candidates, as in LPO. The reward needs a picture, so the clean latent is predicted from
every candidate and decoded. The trajectory continues from a random branch and reuses its prediction, so every point is
denoised once.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, NotNegative, Positive, SamplingSteps, Several, Whole
from lpo_platform.diffusion import noise
from lpo_platform.diffusion.gaussian import Gaussian
from lpo_platform.hardware.distributed import Rows
from lpo_platform.hardware.transfer import upload
from lpo_platform.methods.expectations import Samples, SamplingWork
from lpo_platform.methods.lpo import LPO
from lpo_platform.methods.method import Batch, Logs
from lpo_platform.methods.preferences import select
from lpo_platform.rewards.reward import PredictionReward, Reward, predicted


@dataclass(frozen=True)
class Move:
    """Step number `index` of K branches, from x to `following`, (K, B, C, h, w) each."""

    index: int
    x: Tensor
    following: Tensor


@dataclass(frozen=True)
class Fork:
    """K branches that leave one point.

    Attributes:
        moves: the steps of the branches.
        clean: (K, B, C, h, w), the clean latents predicted at t from the ends of the branches. After the last step of
            the trajectory they are the ends themselves, and t is 0.
        t: the timestep of the prediction.
    """

    moves: list[Move]
    clean: Tensor
    t: Tensor


class SPO(LPO):
    """LPO with a reward of pictures. The settings that are not listed are those of LPO.

    Args:
        reward: of pictures, or of predicted pictures (`spm`).
        candidates: K, the branches of a fork. Published: 4; SDXL: 2.
        num_steps: steps of the sampler. Published: 20.
        skip_steps: steps before the first fork. Published: 4. Stable Diffusion 3 has as little noise after 9 of its 20.
        inner_steps: further steps that each branch takes before it is graded; they become pairs, too. Published: 0;
            SDXL: 3.
        threshold: p_w - p_l must exceed it. Published: 0.3; SDXL: 0.4.
        beta: strength of the preference, on the mean log-ratio. Published: 10.
        decode_batch: pictures decoded and graded at once. It limits memory and changes no number.
    """

    rewards: ClassVar[tuple[str, ...]] = ("pictures",)
    logs: ClassVar[Logs] = {"refresh/*": None}

    def __init__(
        self,
        *,
        reward: Reward | PredictionReward,
        candidates: Several = 4,
        num_steps: SamplingSteps = 20,
        skip_steps: Whole = 4,
        inner_steps: Whole = 0,
        threshold: NotNegative = 0.3,
        beta: Positive = 10.0,
        decode_batch: Count = 16,
        **shared: Any,
    ) -> None:
        constant = (threshold, threshold)
        super().__init__(
            reward=reward, candidates=candidates, num_steps=num_steps, beta=beta, threshold=constant,
            threshold_rule="constant", window=None, refresh_reward=None, refresh=None, **shared,
        )  # fmt: skip
        if not 0 <= skip_steps < num_steps:
            raise UserError(f"method.skip_steps={skip_steps}: what works: 0 to num_steps - 1 = {num_steps - 1}")
        self.skip_steps, self.inner_steps, self.decode_batch = skip_steps, inner_steps, decode_batch

    @property
    def points(self) -> int:
        return self.num_steps - self.skip_steps

    def example(self, text: Tensor, count: int) -> Batch:
        batch = super().example(text, count)
        if self.inner_steps:
            batch |= {"x_loser": batch["x"], "step": torch.ones(count, dtype=torch.long, device=self.device)}
        return batch

    def sampling_work(self, samples: Samples) -> SamplingWork:
        latents = torch.empty(1, *self.policy.adapter.latent_shape, device=self.device)
        alone = self.skip_steps + 1 + self.candidates * (self.num_steps - self.skip_steps - 1)
        forks = len(range(self.skip_steps, self.num_steps, 1 + self.inner_steps))
        return SamplingWork(alone, ((forks * self.candidates, lambda: self.policy.adapter.decode(latents)),))

    def collect(self, captions: list[str], positions: range) -> Rows:
        text = self.embed(captions)
        forks = self.explore(text, positions)
        t, clean = (torch.stack([getattr(fork, name) for fork in forks]) for name in ("t", "clean"))
        scores = self.score(captions, t, clean)
        self.note("reward", scores, t[:, None, None].expand_as(scores).flatten())
        winner, loser, valid = select(scores.transpose(0, 1), self.thresholds(t)[:, None])
        self.round = {
            "rollout/valid": valid.float().mean(),
            "reward/mean": scores.mean(),
            "reward/spread": scores.std(1).mean(),
        }
        parts = []
        for fork, best, worst, counts in zip(forks, winner, loser, valid, strict=True):
            prompt = counts.nonzero().flatten()
            best, worst = best[prompt], worst[prompt]
            moves = (move for move in fork.moves if move.index < self.window.stop)  # the others drew no noise
            parts += [self.pairs(move, prompt, best, worst) for move in moves]
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        prompt = rows["prompt"]
        return rows | {
            "prompt": torch.arange(positions.start, positions.stop, device=prompt.device)[prompt],
            "text": text[prompt],
        }

    def pairs(self, move: Move, prompt: Tensor, best: Tensor, worst: Tensor) -> Rows:
        """One step of the best and the worst branch. With inner steps `x_loser` is where the worst one started."""
        index = torch.full_like(prompt, move.index)
        rows = {
            "prompt": prompt,
            "step": index,
            "t": self.policy.adapter.process.times(self.num_steps)[index],
            "x": move.x[best, prompt],
            "winner": move.following[best, prompt],
            "loser": move.following[worst, prompt],
        }
        return rows | ({"x_loser": move.x[worst, prompt]} if self.inner_steps else {})

    def explore(self, text: Tensor, positions: range) -> list[Fork]:
        """Samples one trajectory per prompt and returns its forks. Every point is denoised once."""
        process, many = self.policy.adapter.process, text.repeat(self.candidates, 1, 1)
        times, prompts = process.times(self.num_steps), torch.arange(len(text), device=text.device)
        forks, x = [], self.keyed(positions, "rollout")
        for index in range(self.skip_steps):
            output = self.predict(x, times[index].expand(len(x)), text)
            x = self.step(output, index, x).sample(self.draw(positions, index, 1)[0])
        output = self.predict(x, times[self.skip_steps].expand(len(x)), text)
        for first in range(self.skip_steps, self.num_steps, 1 + self.inner_steps):
            branches = self.step(output, first, x).sample(self.draw(positions, first, self.candidates))
            moves = [Move(first, x.expand_as(branches), branches)]
            end = min(first + 1 + self.inner_steps, self.num_steps)
            for index in range(first + 1, end):
                flat = branches.flatten(0, 1)
                gaussian = self.step(self.predict(flat, times[index].expand(len(flat)), many), index, flat)
                fresh = self.draw(positions, index, self.candidates).flatten(0, 1)
                moves.append(Move(index, branches, gaussian.sample(fresh).view_as(branches)))
                branches = moves[-1].following
            if end == self.num_steps:
                forks.append(Fork(moves, branches, torch.zeros_like(times[0])))
                break
            flat = branches.flatten(0, 1)
            t = times[end].expand(len(flat))
            output = self.predict(flat, t, many)
            forks.append(Fork(moves, process.clean(output, t, flat)[0].view_as(branches), times[end]))
            kept = noise.integers(list(positions), self.candidates, seed=self.seed, stream=f"choice/{end}")
            kept = upload(kept, text.device)
            x, output = (of.view_as(branches)[kept, prompts] for of in (branches, output))
        return forks

    def step(self, output: Tensor, index: int, x: Tensor) -> Gaussian:
        """The Gaussian of step `index` from x (N, C, h, w)."""
        process = self.policy.adapter.process
        t = process.times(self.num_steps)[index].expand(len(x))
        return process.step(output, t, process.previous(t, self.num_steps, eta=self.eta), x, eta=self.eta)

    def draw(self, positions: range, index: int, count: int) -> Tensor:
        """Standard normal noise for `count` points after a step: (count, B, C, h, w)."""
        shape = (count, *self.policy.adapter.latent_shape)
        drawn = noise.normal(list(positions), shape, seed=self.seed, stream=f"candidates/{index}")
        return upload(drawn, self.device).transpose(0, 1)

    def score(self, captions: list[str], t: Tensor, clean: Tensor) -> Tensor:
        """The rewards of the pictures of clean latents (F, K, B, C, h, w) that were predicted at t (F,): (F, K, B)."""
        shape, found = clean.shape[:3], []
        t = self.policy.adapter.process.as_ddim(t)  # the times that step-aware models have learned
        latents, t = clean.flatten(0, 2), t[:, None, None].expand(shape).flatten()
        prompts = captions * (shape[0] * shape[1])
        for start in range(0, len(latents), self.decode_batch):
            part = slice(start, start + self.decode_batch)
            pictures = self.policy.adapter.decode(latents[part])
            found.append(predicted(self.reward, pictures, prompts[part], t[part]))
        return torch.cat(found).view(shape)

    def thresholds(self, t: Tensor) -> Tensor:
        return torch.full(t.shape, self.threshold[0], device=t.device)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """LPO's loss. Winner and loser of an inner step leave two points, which need a forward each."""
        if not self.inner_steps:
            return super().loss(batch)
        first = (batch["step"] - self.skip_steps) % (1 + self.inner_steps) == 0
        apart = (~first).nonzero().flatten()
        policy = self.gaussians(batch, apart)
        with self.policy.reference():
            reference = self.gaussians(batch, apart)
        winner, loser = (
            ours.log_prob(batch[name]) - theirs.log_prob(batch[name])
            for ours, theirs, name in zip(policy, reference, ("winner", "loser"), strict=True)
        )
        return self.pair_loss(batch, winner, loser)

    def gaussians(self, batch: Batch, apart: Tensor) -> tuple[Gaussian, Gaussian]:
        """The Gaussians of the steps from x and from x_loser, in one forward.

        apart: the numbers of the rows where x and x_loser differ; in the first step of a fork they do not.
        """
        count = len(batch["t"])
        rows = torch.arange(count, device=apart.device)
        points = {name: torch.cat([batch[name], batch[name][apart]]) for name in ("t", "text")}
        gaussian = self.gaussian(points | {"x": torch.cat([batch["x"], batch["x_loser"][apart]])})
        of_loser = rows.index_put((apart,), count + torch.arange(len(apart), device=apart.device))
        return tuple(Gaussian(gaussian.mean[chosen], gaussian.std[chosen]) for chosen in (rows, of_loser))
