"""How often a latent reward model prefers what people (or a labeller) prefer, at every level of noise."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Seed, Timestep
from lpo_platform.data.prepared.rows import Chosen
from lpo_platform.data.source import Sample
from lpo_platform.diffusion import noise
from lpo_platform.evaluation.evaluation import Evaluation
from lpo_platform.evaluation.statistics import compare, compare_sets
from lpo_platform.hardware.distributed import each, everywhere
from lpo_platform.methods.lrm import pair_accuracy
from lpo_platform.models.policy import Policy

ACCURACY = "lrm/pair_accuracy"
GAPS = ("aesthetic", "clip", "vqa")


class PairEvaluator:
    """Measures how often a latent reward model orders pairs as labelled: `lrm/pair_accuracy`, the mean over timesteps.

    Args:
        timesteps: at which the pictures are noised, each from 0 to 999.
        num_samples: held-out rows; null for all.
        batch: rows computed at once.
        seed: of the noise.
    """

    of_rewards: ClassVar[bool] = True

    def __init__(
        self,
        timesteps: tuple[Timestep, ...] = (1, 201, 401, 601, 751, 951),
        num_samples: Count | None = None,
        batch: Count = 32,
        seed: Seed = 12345,
    ) -> None:
        if not timesteps:
            raise UserError("metrics.timesteps=[]: the pictures are noised at no timestep; what works: at least one")
        self.timesteps, self.num_samples, self.batch, self.seed = tuple(timesteps), num_samples, batch, seed

    @torch.no_grad()
    def __call__(self, policy: Policy, rows: Chosen, *, title: str) -> Evaluation:
        """Per row the accuracy at each timestep, and at the first one the score gap of its first two pictures."""
        policy.eval()
        total = min(self.num_samples or len(rows), len(rows))
        with tqdm(total=total, desc=title, unit="row") as bar:

            def measure(start: int) -> dict[str, Tensor]:
                numbers = list(range(start, min(start + self.batch, total)))
                found = self._measure(policy, [rows[i] for i in numbers], numbers)
                bar.update(everywhere(len(numbers), bar.total - bar.n))
                return {name: value.float().cpu() for name, value in found.items()}

            parts = each(range(0, total, self.batch), measure)
        return Evaluation({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def _measure(self, policy: Policy, chunk: list[dict[str, Tensor]], keys: list[int]) -> dict[str, Tensor]:
        adapter, model = policy.adapter, policy.learning["reward"]
        moments = torch.stack([row["moments"].float() for row in chunk]).to(adapter.device)
        labels = torch.stack([row["labels"] for row in chunk]).to(adapter.device)
        count = moments.shape[1]
        told = torch.stack([row["tokens" if model.trains_text else "text"] for row in chunk])
        text = model.read(told.to(adapter.device))
        text = {name: part.repeat_interleave(count, 0) for name, part in text.items()}
        draw = lambda stream: noise.normal(keys, (count, *adapter.latent_shape), seed=self.seed, stream=stream)  # noqa: E731
        z = adapter.sample_latents(moments.flatten(0, 1), draw("vae").flatten(0, 1).to(adapter.device))
        scores, measured, empty = None, {}, model.empty()
        for timestep in self.timesteps:
            t = torch.full((len(z),), timestep, device=adapter.device)
            e = draw(f"t={timestep}").flatten(0, 1).to(adapter.device)
            found = model(adapter.process.add_noise(z, e, t), t, text, empty).view(-1, count)
            scores = found if scores is None else scores
            measured[f"{ACCURACY}/t={timestep}"] = pair_accuracy(found, labels)
        gaps = torch.stack([row["gaps"] for row in chunk])
        known = {f"gap/{name}": gaps[:, i] for i, name in enumerate(GAPS)}
        mean = torch.stack(list(measured.values())).mean(0)
        return {ACCURACY: mean} | measured | {"gap/lrm": scores[:, 0] - scores[:, 1]} | known

    def items(self, data: Any) -> list[Sample]:
        """The held-out rows that were measured."""
        total = min(self.num_samples or len(data.test), len(data.test))
        return [Sample(f"pair-{i:06d}", None, data.test.caption(i)) for i in range(total)]

    def compare(self, before: Evaluation, after: Evaluation, task: None = None) -> dict[str, dict[str, Any]]:
        """The `metrics` of result.json: accuracies, and where the data knows them correlations with the three gaps."""
        names = [name for name in before.scores if name.startswith(ACCURACY)]
        sides = [{name: side.scores[name].numpy() for name in names} for side in (before, after)]
        metrics = compare(*sides, dict.fromkeys(names, True))
        for name in GAPS:
            known = ~torch.isnan(after.scores[f"gap/{name}"]).numpy()
            if known.sum() > 2:
                metrics[f"lrm/correlation/{name}"] = _correlation(
                    before.scores["gap/lrm"].numpy()[known],
                    after.scores["gap/lrm"].numpy()[known],
                    after.scores[f"gap/{name}"].numpy()[known],
                )
        return metrics


def _correlation(before: np.ndarray, after: np.ndarray, gap: np.ndarray) -> dict[str, Any]:
    """Pearson's correlation of the model's score gap with another score's gap, before and after."""
    own, other = np.concatenate([before, after]), np.concatenate([gap, gap])
    return compare_sets(lambda rows: _pearson(own[rows], other[rows]), len(gap), higher_is_better=True)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    """0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / scale) if scale else 0.0
