"""Diffusion-DPO against its formula, a reading of the original's training step, and a whole run at toy size."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from toys.image_pairs import fill, row

from lpo_platform.commands import job, train
from lpo_platform.config import compose
from lpo_platform.config.errors import UserError
from lpo_platform.config.schema import CONF
from lpo_platform.data.prepared import preferences
from lpo_platform.evaluation import item_table
from lpo_platform.methods import losses
from lpo_platform.methods.diffusion_dpo import DiffusionDPO, winner_and_loser
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.tuning import Full, Lora, Tune


def made(tune: Tune, **options: object) -> DiffusionDPO:
    """On the embedded model, its policy moved away from the reference."""
    adapter = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=4)
    method = DiffusionDPO(policy=Policy(adapter, tune), optim=AdamW(), seed=0, steps=1, batch=4, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in method.policy.trainable().values():
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
    return method


def rows(adapter: StableDiffusion, labels: Tensor) -> dict[str, Tensor]:
    """A batch of as many rows as there are labels, random pictures."""
    generator = torch.Generator().manual_seed(1)
    count, num = labels.shape[:2]
    shape = (count, num, 2 * adapter.latent_shape[0], *adapter.latent_shape[1:])
    text = adapter.embed(adapter.tokenize([f"a red circle {'x' * i}" for i in range(count)]))
    return {
        "position": torch.arange(10, 10 + count),
        "moments": torch.randn(shape, generator=generator),
        "labels": labels,
        "text": text,
    }


def bradley_terry(scores: list[list[float]]) -> Tensor:
    values = torch.tensor(scores)
    return torch.sigmoid(values[:, :, None] - values[:, None, :])


def test_the_loss_is_the_formula_of_the_specification() -> None:
    """L = -log sigma(-beta/2 [(w - l) - (w_ref - l_ref)]), section 7.2, written out in double precision."""
    values = [(0.1, 0.2, 0.15, 0.15), (0.2, 0.1, 0.15, 0.15), (0.3, 0.3, 0.3, 0.3), (1.1, 1.0, 0.2, 0.6)]
    inside = [-0.5 * 20 * ((w - low) - (rw - rl)) for w, low, rw, rl in values]
    expected = [math.log(1 + math.exp(-x)) for x in inside]
    found = losses.diffusion_dpo(*torch.tensor(values).T, beta=20.0)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found[2].item() == pytest.approx(math.log(2)) and found[0] < found[2] < found[1]
    far = torch.tensor([1.0], requires_grad=True)
    loss = losses.diffusion_dpo(far, *torch.zeros(3, 1), beta=5000.0)
    loss.backward()
    assert loss.item() == pytest.approx(2500) and far.grad.item() == pytest.approx(2500)


def test_the_best_and_the_worst_picture_by_labels() -> None:
    two = torch.tensor([[[0.5, 1.0], [0.0, 0.5]], [[0.5, 0.0], [1.0, 0.5]]])
    assert [found.tolist() for found in winner_and_loser(two)] == [[0, 1], [1, 0]]
    scores = [[0.3, 0.1, 0.9, 0.2], [2.0, -1.0, 0.0, 1.0]]
    assert [found.tolist() for found in winner_and_loser(bradley_terry(scores))] == [[2, 0], [1, 1]]


@pytest.mark.parametrize("tune", [Full(), Lora(rank=2, alpha=2)], ids=["full", "lora"])
def test_the_gradient_is_that_of_the_original_step(tune: Tune) -> None:
    """Per pair, one forward at a time through diffusers' own UNet; the reference is a copy of the untouched one."""
    method = made(tune, beta=50.0, drop_text=0.0)
    adapter = method.policy.adapter
    reference = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=4).unet
    batch = rows(adapter, bradley_terry([[0.0, 1.0, 0.5], [2.0, 1.0, 0.0], [1.0, 0.0, 2.0]]))
    places = [(1, 0), (0, 2), (2, 1)]
    e, t = method.normal(batch, "pair"), method.times(batch, "pair")
    draws = [method.normal(batch, f"vae/{name}") for name in ("winner", "loser")]
    terms, accuracy = [], []
    for i, pair in enumerate(places):
        errors: dict[tuple[str, int], Tensor] = {}
        for side, (picture, draw) in enumerate(zip(pair, draws, strict=True)):
            mean, log_variance = batch["moments"][i, picture].chunk(2)
            z = (mean + torch.exp(0.5 * log_variance) * draw[i]) * adapter.vae.config.scaling_factor
            abar = adapter.process.alphas_cumprod[t[i]]
            x = (abar.sqrt() * z + (1 - abar).sqrt() * e[i])[None]
            for name, unet in (("policy", adapter.unet), ("reference", reference)):
                with torch.set_grad_enabled(name == "policy"):
                    output = unet(x, t[i], encoder_hidden_states=batch["text"][i][None]).sample
                errors[name, side] = (output - e[i]).pow(2).mean()
        inside = -0.5 * 50 * (errors["policy", 0] - errors["policy", 1])
        inside = inside + 0.5 * 50 * (errors["reference", 0] - errors["reference", 1])
        terms.append(-torch.nn.functional.logsigmoid(inside))
        accuracy.append(float(inside > 0))
    weights = list(method.policy.trainable().values())
    expected = torch.stack(terms).mean()
    theirs = torch.autograd.grad(expected, weights, allow_unused=True)

    loss, report = method.loss(batch)
    ours = torch.autograd.grad(loss, weights, allow_unused=True)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert report["dpo/accuracy"].item() == pytest.approx(sum(accuracy) / 3)
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if b is not None]
    difference = torch.cat([(a - b).flatten() for a, b in pairs]).norm()
    size = torch.cat([b.flatten() for _, b in pairs]).norm()
    assert size > 0 and difference < 1e-3 * size
    assert all(a is None or not a.any() for a, b in zip(ours, theirs, strict=True) if b is None)


@pytest.mark.parametrize("tune", [Full(), Lora(rank=2, alpha=2)], ids=["full", "lora"])
def test_a_policy_that_has_not_moved_has_no_margin(tune: Tune) -> None:
    adapter = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=4)
    method = DiffusionDPO(policy=Policy(adapter, tune), optim=AdamW(), seed=0, steps=1, batch=4)
    loss, report = method.loss(rows(adapter, bradley_terry([[0.0, 1.0], [1.0, 0.0]])))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6) and report["dpo/margin"] == 0
    loss.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in method.policy.trainable().values())


def test_prompts_are_dropped_as_often_as_asked() -> None:
    method = made(Lora(rank=2), drop_text=0.2)
    adapter = method.policy.adapter
    text = adapter.embed(adapter.tokenize(["a red circle"]))
    batch = {"position": torch.arange(2000), "text": text.expand(2000, -1, -1)}
    found, empty = method.prompts(batch), adapter.embed(adapter.tokenize([""]))[0]
    dropped = torch.stack([torch.equal(row, empty) * torch.ones(()) for row in found]).bool()
    assert all(torch.equal(row, text[0]) for row in found[~dropped])
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=0.03)


class Labelled:
    """Preferences whose labels are known before a picture is read, or only then."""

    fingerprint, weights = "labelled", torch.arange(1.0, 6.0)

    def __init__(self, first: list[float], *, known: bool) -> None:
        self.first = first
        if known:
            self.preferred = np.array(first)

    def __len__(self) -> int:
        return len(self.first)


@pytest.mark.parametrize("known", [True, False])
def test_rows_without_a_winner_are_left_out(known: bool) -> None:
    adapter = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=4)
    options = {"columns": DiffusionDPO.needs, "title": "", "decided": True}
    what = preferences.preparation(Labelled([1.0, 0.5, 0.0, 0.7], known=known), adapter, **options)
    assert (what.numbers is not None and what.numbers.tolist() == [0, 2, 3]) == known
    winners = [not what.accepts({"labels": torch.tensor([[0.5, p], [1 - p, 0.5]])}) for p in (1.0, 0.5, 0.0, 0.7)]
    assert winners == [True, False, True, True]
    every = preferences.preparation(Labelled([0.5], known=True), adapter, columns=DiffusionDPO.needs, title="")
    assert every.numbers is None and every.accepts is None
    if known:
        with pytest.raises(UserError, match="all 1 usable preferences are ties"):
            preferences.preparation(Labelled([0.5], known=True), adapter, **options)


@pytest.mark.slow
def test_a_run_from_generated_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [
        "method=diffusion_dpo", "method.steps=3", "method.batch=4", "hardware.micro_batch=2", "tune=lora",
        "reward=toy", "data.prompts.num_train=8", "data.prompts.num_test=4", "data.num_validation=2",
        "data.num_images=3", "model.num_inference_steps=3", "metrics.num_samples=4", "callbacks.every=2",
        "callbacks.samples=2", "callbacks.log_every=1", "logger=none", "optim=adafactor",
    ]  # fmt: skip
    cfg = OmegaConf.create(compose.compose("train", overrides, [], CONF).values)
    metrics = train.train(copy.deepcopy(cfg), tmp_path / "run")
    assert {"reward/toy", "text/alignment", "image/latent_fd"} <= set(metrics)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in logged] == [0, 1, 2]
    assert all(math.isfinite(line["train/loss"]) and "dpo/accuracy" in line for line in logged)
    assert list((tmp_path / "run" / "export" / "lora").glob("*.safetensors"))


@pytest.mark.slow
def test_a_run_from_rated_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pick-a-Pic's layout, a third of the rows tied: held-out prompts are drawn, ties are not trained on."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "pairs", [row(i) for i in range(9)])
    overrides = [
        "method=diffusion_dpo", "data=image_pairs", "data.path=pairs", "method.steps=2", "method.batch=2", "tune=lora",
        "model.num_inference_steps=2", "metrics.num_samples=3", "callbacks.every=2", "callbacks.samples=2",
        "logger=none", "method.drop_text=0.5",
    ]  # fmt: skip
    cfg = OmegaConf.create(compose.compose("train", overrides, [], CONF).values)
    metrics = train.train(copy.deepcopy(cfg), tmp_path / "run")
    assert set(metrics) == {"image/diversity"}
    rows = item_table.read(tmp_path / "run" / "evaluation" / "items.parquet")
    assert [row["caption"] for row in rows] == ["prompt 100", "prompt 100"]
    made = job.assemble(cfg)
    assert len(made.preferences("train")) == 9 and made.rows().numbers.tolist() == [0, 1, 3, 4, 6, 7]
