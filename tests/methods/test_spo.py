"""SPO against literal readings: how often it denoises, what is judged at which t, which pairs, and their gradient."""

import copy
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from toys.instances import first

from lpo_platform.commands import train
from lpo_platform.config import compose
from lpo_platform.config.errors import UserError
from lpo_platform.config.schema import CONF
from lpo_platform.methods.optim import AdamW
from lpo_platform.methods.spo import SPO
from lpo_platform.models.policy import Policy
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.tuning import Lora

CAPTIONS = ["a red circle above a blue square", "a green triangle left of a red circle"]
POSITIONS = range(4, 6)


class Redness:
    """A reward of pictures that can be written down; remembers at which t it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, images: Tensor, prompts: list[str], condition: Tensor | None = None) -> Tensor:
        return 120 * images[:, 0].mean((1, 2)) + torch.tensor([float(len(prompt)) for prompt in prompts])


class StepwiseRedness(Redness):
    def at(self, images: Tensor, prompts: list[str], t: Tensor) -> Tensor:
        self.asked += t.tolist()
        return self(images, prompts)


def made(reward: Redness | None = None, **options: object) -> SPO:
    adapter = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=6)
    settings = {"candidates": 3, "num_steps": 6, "skip_steps": 2, "guidance": 3.0, "threshold": 0.3, "decode_batch": 4}
    settings |= {"rounds": 1, "prompts": 2, "batch": 8}
    policy = Policy(adapter, Lora(rank=2, alpha=2))
    method = SPO(policy=policy, reward=reward or Redness(), optim=AdamW(), seed=0, **settings | options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return method


def forwards(method: SPO) -> tuple[list[Tensor], list[Tensor]]:
    """Fills with every latent that is denoised and its t."""
    read: tuple[list[Tensor], list[Tensor]] = ([], [])
    denoise = method.policy.encode_guided

    def watched(x: Tensor, t: Tensor, *arguments: object, **options: object) -> Tensor:
        read[0].extend(x)
        read[1].extend(t)
        return denoise(x, t, *arguments, **options)

    method.policy.encode_guided = watched
    return read


@pytest.mark.parametrize(
    ("inner", "forks"), first([(0, [[2], [3], [4], [5]]), (1, [[2, 3], [4, 5]]), (2, [[2, 3, 4], [5]])], keep=1)
)
def test_every_point_is_denoised_once(inner: int, forks: list[list[int]]) -> None:
    """K b a step from the first fork on, before it b (with guidance twice as many rows of the UNet)."""
    method = made(inner_steps=inner)
    read, at = forwards(method)
    with torch.no_grad():
        found = method.explore(method.embed(CAPTIONS), POSITIONS)
    assert [[move.index for move in fork.moves] for fork in found] == forks
    assert len(read) == 2 * 3 + 3 * 2 * 3  # prompts x steps 0 to 2 + K x prompts x steps 3 to 5
    points = {(x.numpy().tobytes(), int(t)) for x, t in zip(read, at, strict=True)}
    assert len(points) == len(read)
    assert [int(fork.t) for fork in found] == [
        *(int(method.policy.adapter.process.times(6)[moves[-1] + 1]) for moves in forks[:-1]), 0
    ]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("inner", first([0, 1], keep=1))
def test_the_shared_prediction_is_what_a_second_one_would_be(inner: int) -> None:
    """Clean latents by the closed form x0 = (x - sqrt(1 - abar) e) / sqrt(abar), the next step from a new forward."""
    method = made(inner_steps=inner)
    process, text = method.policy.adapter.process, method.embed(CAPTIONS)
    found = method.explore(text, POSITIONS)
    for fork, following in pairwise(found):
        ends, t = fork.moves[-1].following, fork.t
        abar = process.alphas_cumprod[t]
        for k in range(3):
            output = method.predict(ends[k], t.expand(2), text)
            clean = (ends[k] - (1 - abar).sqrt() * output) / abar.sqrt()
            torch.testing.assert_close(fork.clean[k], clean, rtol=1e-3, atol=1e-3)
        first = following.moves[0]
        x = first.x[0]
        assert all(torch.equal(first.x[k], x) for k in range(3))
        kept = [[torch.equal(x[b], ends[k, b]) for k in range(3)] for b in range(2)]
        assert all(sum(row) == 1 for row in kept)
        gaussian = method.step(method.predict(x, t.expand(2), text), first.index, x)
        drawn = gaussian.sample(method.draw(POSITIONS, first.index, 3))
        torch.testing.assert_close(first.following, drawn, rtol=1e-3, atol=1e-3)
    assert torch.equal(found[-1].clean, found[-1].moves[-1].following) and found[-1].t == 0


@torch.no_grad()
@pytest.mark.parametrize("inner", first([0, 1], keep=1))
def test_pairs_obey_the_rule(inner: int) -> None:
    """Every picture scored by itself; best and worst of K, if the softmax of the two differs by more than 0.3."""
    reward = StepwiseRedness()
    method = made(reward, inner_steps=inner)
    found = method.collect(CAPTIONS, POSITIONS)
    asked = reward.asked
    forks = method.explore(method.embed(CAPTIONS), POSITIONS)
    assert asked == [float(fork.t) for fork in forks for _ in range(6)]
    expected = []
    for fork in forks:
        for b, caption in enumerate(CAPTIONS):
            scores = [reward(method.policy.adapter.decode(fork.clean[k, b][None]), [caption]).item() for k in range(3)]
            best, worst = max(range(3), key=scores.__getitem__), min(range(3), key=scores.__getitem__)
            p = torch.softmax(torch.tensor([scores[best], scores[worst]]), 0)
            if p[0] - p[1] > 0.3:
                expected += [(move, b, best, worst) for move in fork.moves]
    assert 0 < len(expected) < sum(len(fork.moves) for fork in forks) * 2
    rows = {(int(p), int(s)): i for i, (p, s) in enumerate(zip(found["prompt"], found["step"], strict=True))}
    assert len(rows) == len(found["t"]) == len(expected)
    for move, b, best, worst in expected:
        i = rows[POSITIONS[b], move.index]
        assert found["t"][i] == method.policy.adapter.process.times(6)[move.index]
        assert torch.equal(found["winner"][i], move.following[best, b])
        assert torch.equal(found["loser"][i], move.following[worst, b])
        assert torch.equal(found["x"][i], move.x[best, b])
        assert ("x_loser" in found) == bool(inner)
        if inner:
            assert torch.equal(found["x_loser"][i], move.x[worst, b])
    assert method.round["rollout/valid"].item() * len(forks) * 2 == pytest.approx(len(expected) / (1 + inner))


@pytest.mark.parametrize("inner", first([0, 1], keep=1))
def test_the_gradient_is_that_of_four_forwards(inner: int) -> None:
    """Section 3.3 literally: Gaussian log-densities of DDIM's step by diffusers' own UNets, means over C, H, W."""
    method = made(inner_steps=inner, threshold=0.05)
    adapter = method.policy.adapter
    reference = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=6).unet
    with torch.no_grad():
        rows = method.collect(CAPTIONS, POSITIONS)
        empty = adapter.empty_text()
    batch = {name: column[:6] for name, column in rows.items()} | {"weight": torch.arange(6.0) / 15}
    if inner:
        shared = [torch.equal(a, b) for a, b in zip(batch["x"], batch["x_loser"], strict=True)]
        assert any(shared) and not all(shared)

    def log_density(unet: torch.nn.Module, x: Tensor, following: Tensor, t: int, text: Tensor) -> Tensor:
        before = max(t - 1000 // 6, 0)
        a, b = adapter.process.alphas_cumprod[t], adapter.process.alphas_cumprod[before]
        pair = unet(torch.stack([x, x]), t, encoder_hidden_states=torch.stack([empty[0], text])).sample
        e = pair[0] + 3.0 * (pair[1] - pair[0])
        sigma = ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        mean = b.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - b - sigma**2).sqrt() * e
        return (-((following - mean) ** 2) / (2 * sigma**2) - sigma.log() - 0.5 * math.log(2 * math.pi)).mean()

    total = torch.zeros(())
    for i in range(6):
        log_ratios = []
        for side, x in (("winner", "x"), ("loser", "x_loser" if inner else "x")):
            arguments = (batch[x][i], batch[side][i], int(batch["t"][i]), batch["text"][i])
            with torch.no_grad():
                theirs = log_density(reference, *arguments)
            log_ratios.append((log_density(adapter.unet, *arguments) - theirs).exp().clamp(0.9, 1.1).log())
        total = total - batch["weight"][i] * torch.nn.functional.logsigmoid(10 * (log_ratios[0] - log_ratios[1]))
    weights = list(method.policy.trainable().values())
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(total, weights)])
    loss, _ = method.loss(batch)
    ours = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
    assert loss.item() == pytest.approx(total.item(), rel=1e-4)
    assert theirs.norm() > 0 and (ours - theirs).norm() < 1e-3 * theirs.norm()


@torch.no_grad()
def test_a_reward_without_preferences_gives_no_pairs() -> None:
    method = made(inner_steps=1, threshold=0.999999)
    rows = method.collect(CAPTIONS, POSITIONS)
    assert {len(column) for column in rows.values()} == {0} and rows["x"].shape[1:] == (4, 16, 16)
    assert method.shuffle(0, rows, 8) == [{"position": torch.zeros(1, dtype=torch.long)}]


def test_more_skipped_steps_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.skip_steps=6: what works: 0 to num_steps - 1 = 5"):
        made(skip_steps=6)


@pytest.mark.slow
def test_a_run_of_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [
        "method=spo", "method.rounds=2", "method.prompts=3", "method.candidates=2", "method.num_steps=4",
        "method.skip_steps=1", "method.inner_steps=1", "method.threshold=0.0", "method.batch=4", "tune=lora",
        "optim.clip=null", "data.num_train=8", "data.num_test=4", "metrics.num_samples=2", "callbacks.every=1",
        "model.num_inference_steps=3", "callbacks.samples=2", "logger=none",
    ]  # fmt: skip
    cfg = OmegaConf.create(compose.compose("train", overrides, [], CONF).values)
    metrics = train.train(copy.deepcopy(cfg), tmp_path / "run")
    assert {"reward/toy", "text/alignment"} <= set(metrics)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("rollout/valid" in line for line in lines)
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses and all(map(math.isfinite, losses))
    assert list((tmp_path / "run" / "export" / "lora").glob("*.safetensors"))
