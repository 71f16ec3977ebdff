"""What online methods share: an epoch is a round, whose samples the policy draws at its start."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Guidance
from lpo_platform.data.source import Sample
from lpo_platform.diffusion import noise
from lpo_platform.hardware.distributed import Rows, gather, mean, share, world
from lpo_platform.hardware.sharding import whole
from lpo_platform.methods.expectations import ConstantRewards, Samples, SamplingWork
from lpo_platform.methods.method import Batch, Method
from lpo_platform.models.policy import guides
from lpo_platform.models.shared_encoder import Encoded


class Online(Method):
    """Base of methods that draw their own samples. Prompts are numbered over the whole run; the number keys the noise.

    Args:
        rounds: how many rounds the run has. A round draws samples and then updates on them.
        prompts: how many prompts a round has, over all processes.
        sample_batch: how many prompts a process samples at once; null for all of its own. It limits memory and changes
            no number.

    Attributes:
        guidance: classifier-free guidance of every prediction; 1 is none.
    """

    online: ClassVar[bool] = True
    reads: ClassVar[str] = "prompts"
    needs: ClassVar[tuple[str, ...]] = ()
    logs: ClassVar[dict[str, dict[str, str]]] = {
        "reward/spread": {"what": "standard deviation within a prompt", "panel": "Reward", "axis": "round"},
        "rollout/samples": {"what": "pairs or pictures to learn from", "panel": "Rollouts", "axis": "round"},
        "distribution/reward": {
            "what": "of a round", "panel": "Distributions", "axis": "round", "kind": "histogram",
        },
        "distribution/log_ratio": {
            "what": "of the updates of a round", "panel": "Distributions", "axis": "round", "kind": "histogram",
        },
    }  # fmt: skip
    guidance: Guidance
    pictures = False
    """Whether the items of a round are samples with their pictures. Otherwise they are captions."""
    schedule_interval = "epoch"  # how many steps a round will have is not known in advance

    def __init__(self, *, rounds: Count, prompts: Count, sample_batch: Count | None = None, **shared: Any) -> None:
        super().__init__(steps=rounds, **shared)
        self.prompts, self.sample_batch = prompts, sample_batch
        self._empty: Tensor | None = None
        self._nothing = False
        self.round: dict[str, Tensor] = {}
        """What the last round reports. It is logged when training on it begins."""

    @abstractmethod
    def collect(self, items: Sequence[str] | Sequence[Sample], positions: range) -> Rows:
        """Draws samples for some of this process's prompts.

        Returns columns with a common first axis, `prompt` and `step` (B,) among them. Means over these prompts, for the
        report, are left in `self.round`.
        """

    @classmethod
    def small(cls, settings: Mapping[str, Any], processes: int) -> dict[str, Any]:
        """The settings of one round of two prompts for each process."""
        return {"rounds": 1, "prompts": 2 * processes, "batch": 16 * processes}

    def examples(self, samples: Samples, count: int) -> list[tuple[float, Batch]]:
        raise UserError(f"{type(self).__name__}: cannot be counted, for it has no `examples` of its micro-batches")

    def sampling_work(self, samples: Samples) -> SamplingWork:
        """What one prompt of a round costs."""
        raise UserError(f"{type(self).__name__}: cannot be counted, for it has no `sampling_work`, what a prompt costs")

    def constant_rewards(self) -> ConstantRewards | None:
        """Whether the rewards of the round that was just sampled are all the same; None where they differ."""
        spread = self.round.get("reward/spread")
        if spread is None or float(spread) > 0:
            return None
        return ConstantRewards("the reward gives all candidates of a step the same score", hopeless=True)

    def without_samples(self) -> str:
        """What to do where a round gave nothing to learn from."""
        return "check that the reward tells samples apart"

    def begin(self, items: Sequence[str] | Sequence[Sample], positions: range) -> Callable[[], Rows]:
        """Starts collect() and returns a function that finishes it, so that its last part may overlap with the next
        prompts."""
        rows = self.collect(items, positions)
        return lambda: rows

    @torch.no_grad()
    def sample_round(self, number: int, items: Sequence[str] | Sequence[Sample], micro_batch: int) -> list[Batch]:
        """Samples round `number` and returns this process's micro-batches.

        Args:
            number: the number of the round, from 0.
            items: the prompts of all processes. Each process reads its own.
            micro_batch: how many rows one forward has.

        Raises:
            UserError: there are fewer prompts than processes.
        """
        if self.prompts < world()[1]:
            raise UserError(
                f"method.prompts={self.prompts}: a round needs at least one for each of {world()[1]} processes"
            )
        self.policy.eval()
        positions = share(range(number * self.prompts, (number + 1) * self.prompts))
        size, begun, reports = self.sample_batch or len(positions), [], []
        for start in range(0, len(positions), size):
            chunk = positions[start : start + size]
            begun.append(self.begin([items[p % self.prompts] for p in chunk], chunk))
            reports.append({name: len(chunk) / len(positions) * value for name, value in self.round.items()})
        self.policy.train()
        parts = [end() for end in begun]
        rows = gather({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        report = {name: torch.stack([report[name] for report in reports]).sum() for name in reports[0]}
        self.round = mean(report, len(positions))
        self.round["rollout/samples"] = torch.tensor(float(len(rows["prompt"])))
        return self.shuffle(number, rows, micro_batch)

    def shuffle(self, number: int, rows: Rows, micro_batch: int) -> list[Batch]:
        """Shuffles the rows of all processes and splits them into batches, the same for any number of processes."""
        canonical = torch.argsort(rows["prompt"] * 2**20 + rows["step"]).cpu()
        shuffled = noise.permutation(len(canonical), seed=self.seed, stream=f"deal/{number}")
        return self.split_batches(rows, canonical[shuffled], micro_batch)

    def split_batches(self, rows: Rows, order: Tensor, micro_batch: int) -> list[Batch]:
        """Splits the rows, in this order, into steps of `batch`, and this process's share of each into micro-batches.

        With `weight`, the sum of weight x loss is the mean over the samples of a step, once DDP has averaged it over
        processes and accumulation over micro-batches. The last step may be smaller. Padding rows, which give every
        process as many rows, have weight 0. A round without samples is one batch without a weight.
        """
        total = len(order)
        if total == 0:
            return [{"position": torch.zeros(1, dtype=torch.long)}]
        rank, size = world()
        accumulation = self.batch // (micro_batch * size)
        batches = []
        for start in range(0, total, self.batch):
            step = order[start : start + self.batch]
            count = -(-len(step) // size)
            own = step[rank * count : (rank + 1) * count]
            weight = torch.zeros(count)
            weight[: len(own)] = accumulation * size / len(step)
            own = torch.cat([own, step[:1].expand(count - len(own))])
            for part in range(0, count, micro_batch):
                chosen = own[part : part + micro_batch]
                columns = {name: column[chosen.to(column.device)] for name, column in rows.items()}
                batches.append(columns | {"position": chosen, "weight": weight[part : part + micro_batch]})
        return batches

    def on_train_epoch_start(self) -> None:
        self.log_dict(self.round)

    def training_step(self, batch: Batch, index: int) -> Tensor | None:
        """Trains on a micro-batch. Without samples nothing changes; several processes then exchange gradients of 0."""
        self._nothing = "weight" not in batch
        if not self._nothing:
            return super().training_step(batch, index)
        if world()[1] == 1:
            return None
        return torch.stack([0 * whole(weight.sum()) for weight in self.policy.trainable().values()]).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._nothing and world()[1] == 1:
            return  # nothing was scaled, so 16-mixed has nothing to unscale
        super().on_before_optimizer_step(optimizer)
        if self._nothing:
            optimizer.zero_grad(set_to_none=True)  # without gradients there is no weight decay and no momentum either

    def embed(self, captions: list[str]) -> Tensor:
        adapter = self.policy.adapter
        return adapter.embed(adapter.tokenize(captions))

    def predict(self, x: Tensor, t: Tensor, text: Tensor, features: Tensor | None = None) -> Tensor:
        """The guided output. features are those of the conditions, if there are any."""
        return self.policy.decode_guided(self.encode(x, t, text), features, guidance=self.guidance)

    def encode(self, x: Tensor, t: Tensor, text: Tensor) -> Encoded:
        return self.policy.encode_guided(x, t, text, guidance=self.guidance, empty=self.empty())

    def empty(self) -> Tensor | None:
        """The unconditional text, None without guidance. It is encoded once unless the text encoder learns."""
        if guides(self.guidance) and (self._empty is None or self.policy.trains_text):
            self._empty = self.policy.adapter.empty_text()
        return self._empty

    def keyed(self, positions: Sequence[noise.Key], stream: str) -> Tensor:
        """Standard normal noise in the shape of latents for prompts of this round."""
        drawn = noise.normal(list(positions), self.policy.adapter.latent_shape, seed=self.seed, stream=stream)
        return drawn.to(self.device, non_blocking=True)
