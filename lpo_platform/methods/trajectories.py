"""What policy gradients learn from: pictures with the trajectories that led to them, and their rewards."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.conditions import from_uint8, to_uint8
from lpo_platform.data.source import Sample
from lpo_platform.data.truth import truth_of
from lpo_platform.diffusion import noise
from lpo_platform.diffusion.rollout import rollout
from lpo_platform.diffusion.weighting import Weighting, step_weights, steps
from lpo_platform.hardware.distributed import Rows
from lpo_platform.methods.method import Batch
from lpo_platform.methods.online import Online
from lpo_platform.methods.overlap import Aside
from lpo_platform.rewards.reward import Asked, Reward, StepReward, checked, name_of, parts, reward_of
from lpo_platform.tasks.task import Task


class Trajectories(Online):
    """group: pictures of each prompt; num_steps, eta, guidance: of sampling; window: the steps that are kept, first and
    last + 1, null for all; slide: rounds after which the window moves on by a step, from the last place back to the
    first, null if it stays; noisy: whether all steps draw noise or those of the window, as in MixGRPO
    (arXiv:2507.21802); weighting: of the kept steps in the update; overlap: whether on a GPU the rewards of
    `sample_batch` prompts are computed while the next ones are sampled. With a task every prompt comes with the
    condition that its picture in the data shows.

    t, weights (K,): of the K steps kept in this round.
    """

    def __init__(
        self,
        *,
        reward: Reward | StepReward,
        task: Task | None,
        group: int = 8,
        num_steps: int = 50,
        eta: float = 1.0,
        guidance: float = 5.0,
        window: tuple[int, int] | None = None,
        slide: int | None = None,
        noisy: Literal["all", "window"] = "all",
        weighting: Weighting = "none",
        overlap: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.reward, self.task, self.pictures = reward, task, task is not None
        self.group, self.num_steps, self.eta, self.guidance = group, num_steps, eta, guidance
        self.weighting = weighting
        # a reward of latents shares the model's tokenizer, which serves one thread at a time
        self.aside = Aside(("cuda",) if overlap and not isinstance(reward, StepReward) else ())
        first, last = window or (0, num_steps)
        if not 0 <= first < last <= num_steps:
            raise UserError(f"method.window=[{first}, {last}]: what works: 0 <= first < last <= {num_steps}")
        if slide is not None and slide < 1:
            raise UserError(f"method.slide={slide}: what works: a number of rounds, or null for a window that stays")
        self.first, self.slide, self.noisy = range(first, last), slide, noisy
        self.place(0)
        t, _, std = steps(self.policy.adapter.process, num_steps, eta)
        reached = slice(None) if slide else self.window
        silent = t[reached][std[reached] <= 0].tolist()
        if silent:
            raise UserError(
                f"method.eta={eta}: the step from t={silent[0]} draws no noise, so its outcome has no probability; "
                "what works: method.eta above 0, and a method.window that leaves out a step from t=0"
            )

    def place(self, number: int) -> None:
        """Puts the window where it is in round `number`."""
        process, kept = self.policy.adapter.process, self.first
        if self.slide is not None:
            start = (kept.start + number // self.slide) % (self.num_steps - len(kept) + 1)
            kept = range(start, start + len(kept))
        self.window = slice(kept.start, kept.stop)
        self.t, slope, std = (of[self.window] for of in steps(process, self.num_steps, self.eta))
        self.weights = step_weights(self.weighting, slope, std)

    def play(self, number: int, items: Sequence[str] | Sequence[Sample], micro_batch: int) -> list[Batch]:
        self.place(number)
        return super().play(number, items, micro_batch)

    def collect(self, items: Sequence[str] | Sequence[Sample], positions: range) -> Rows:
        """A row is a prompt: text (P, L, D) or tokens, control images, `key` of prompt and condition; and of its G
        pictures latents (P, G, K + 1, C, h, w), log_prob (P, G, K), float32, and reward/score, reward/<part> (P, G).
        """
        return self.begin(items, positions)()

    def begin(self, items: Sequence[str] | Sequence[Sample], positions: range) -> Callable[[], Rows]:
        """collect(), whose rewards may come later."""
        captions = [item.caption for item in items] if self.pictures else list(items)
        ids = [(item.caption, item.id) if self.pictures else (item,) for item in items]
        tokens = self.policy.adapter.tokenize(captions)
        rows = {
            "prompt": torch.tensor(positions, device=self.device),
            "key": torch.tensor([noise.key(*name) for name in ids], device=self.device),
            "text": tokens.to(self.device) if self.policy.trains_text else self.policy.adapter.embed(tokens),
        }
        prompt, asked = torch.arange(len(positions), device=self.device).repeat_interleave(self.group), None
        if self.pictures:
            maps, drawn = truth_of(items, self.task, torch.stack([item.image for item in items]).to(self.device))
            rows["control"] = to_uint8(drawn, gray=self.task.gray)
            asked = Asked(maps, from_uint8(rows["control"]), prompt)
        text, features = self.embedded(rows["text"][prompt]), self.features(rows.get("control"), prompt)
        keys = [f"{position}/{member}" for position in positions for member in range(self.group)]
        trajectory = list(
            rollout(
                lambda x, t: self.predict(x, t, text, features),
                self.policy.adapter.process,
                self.keyed(keys, "rollout"),
                num_steps=self.num_steps,
                eta=self.eta,
                noise=lambda index: self.keyed(keys, f"rollout/{index}"),
                noisy=range(self.window.start, self.window.stop) if self.noisy == "window" else None,
            )
        )
        kept, finished = trajectory[self.window], trajectory[-1].following
        judged = self.aside(lambda: self.judge(finished, captions, asked), finished.device)
        pictures = {
            "latents": torch.stack([*(step.x for step in kept), kept[-1].following], 1),
            "log_prob": torch.stack([step.gaussian.log_prob(step.following) for step in kept], 1),
        }
        self.round = {}

        def end() -> Rows:
            columns = pictures | {f"reward/{part}": of for part, of in judged().items()}
            return rows | {name: column.unflatten(0, (-1, self.group)) for name, column in columns.items()}

        return end

    def embedded(self, text: Tensor) -> Tensor:
        """Rows of a round's text, which are tokens while the text encoder learns."""
        return self.policy.adapter.embed(text) if self.policy.trains_text else text

    def features(self, control: Tensor | None, row: Tensor) -> Tensor | None:
        """Of control images (U, ...), each looked at once, those of `row` (N,); None without a task."""
        return None if control is None else self.policy.features(from_uint8(control))[row]

    def judge(self, latents: Tensor, captions: list[str], asked: Asked | None) -> dict[str, Tensor]:
        """The reward of finished latents (P G, C, h, w) of P captions: `score` and its named parts, (P G,) each."""
        captions = [caption for caption in captions for _ in range(self.group)]
        if isinstance(self.reward, StepReward):
            return {"score": checked(name_of(self.reward), reward_of(self.reward, latents, captions), len(latents))}
        images = torch.cat([self.policy.adapter.decode(part) for part in latents.split(self.group)])
        return parts(self.reward, images.mul(255).round().div(255), captions, asked)  # 8 bits, as a file has them
