"""The benchmark compares like with like: LRM's and LPO's original steps and ours give the same numbers."""

from pathlib import Path

import pytest
import torch
from parity import lpo as plain_lpo
from parity import lrm as plain_lrm
from toys.benchmark import step_flops
from toys.benchmark_lpo import SHAPES, gradient, perturb
from toys.instances import first
from toys.shapes import TOY, TOY_XL

from lpo_platform.commands.benchmark import cell, lpo
from lpo_platform.commands.benchmark.command import benchmark
from lpo_platform.commands.benchmark.lrm import LRMStep
from lpo_platform.commands.benchmark.measure import part_flops
from lpo_platform.diffusion import noise
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.models.random_weights import SD15, SDXL, Shape, random_model

BENCHES = (LRMStep, lpo.Update, lpo.Rollout, lpo.Iteration)


@SHAPES
def test_the_plain_lrm_step_and_ours_are_one(shape: Shape) -> None:
    bench = LRMStep.build(shape, batch=3)
    method, batch = bench.method, bench.batch
    batch["labels"][2] = 0.5  # a tie, beside a pair with either order
    perturb(method.model, 0.02)
    first_pictures_first = lambda drawn: drawn.unflatten(0, (3, 2)).transpose(0, 1).flatten(0, 1)  # noqa: E731
    posterior, e = (first_pictures_first(method._draw(batch, stream, 2)) for stream in ("vae", "reward"))
    chosen = noise.integers([0, 1, 2], 20, seed=method.seed, stream="reward/t")
    t = torch.arange(951, 0, -50)[chosen]

    ours, _ = method.loss(batch)
    plain = bench.plain_loss(plain_lrm.Draws(posterior, e, t))
    assert ours > 1e-3
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=0)
    mine, theirs = gradient(ours, method.model), gradient(plain, method.model)
    assert (mine - theirs).norm() < 1e-3 * theirs.norm()


@SHAPES
@pytest.mark.parametrize("checkpointing", first([False, True], keep=1))
def test_the_plain_lpo_update_and_ours_are_one(shape: Shape, checkpointing: bool) -> None:
    """For a policy that has left its reference, so far that some ratios are clipped and others are not."""
    bench = lpo.Update.build(shape, batch=6)
    perturb(bench.plain.unet, 0.3 if shape is TOY else 0.2)
    (rows,) = bench.pairs
    with torch.no_grad():
        gaussian = bench.method.gaussian(rows)
    for side in ("winner", "loser"):
        rows[side] = gaussian.sample(rows[side])

    loss, report = bench.method.loss(rows)
    mine = gradient(loss, bench.plain.unet)
    bench.plain.checkpoint(checkpointing)
    plain = bench.plain_loss(rows)
    theirs = gradient(plain, bench.plain.unet)
    assert 0 < report["lpo/clipped"] < 1 and theirs.norm() > 0
    torch.testing.assert_close(loss, plain, rtol=1e-3, atol=0)
    assert (mine - theirs).norm() < 2e-3 * theirs.norm()


@SHAPES
def test_the_plain_rollout_and_ours_find_the_same_pairs(shape: Shape) -> None:
    bench = lpo.Rollout.build(shape, batch=3, steps=4)
    method, positions = bench.method, range(3)
    method.reward.model.logit_scale.fill_(7.0)  # scores of random weights are close to each other
    perturb(bench.plain.unet, 0.05)
    adapter = method.policy.adapter
    shape_ = (method.candidates, *adapter.latent_shape)
    draws = plain_lpo.Draws(
        lambda: method.keyed(positions, "rollout"),
        lambda i: noise.normal([0, 1, 2], shape_, seed=method.seed, stream=f"candidates/{i}").transpose(0, 1),
        lambda i: noise.integers([0, 1, 2], method.candidates, seed=method.seed, stream=f"choice/{i}"),
    )
    rows, scores = plain_lpo.rollout(bench.plain, adapter.tokenize(bench.captions), draws, bench.settings)
    with torch.no_grad():
        ours = method.collect(bench.captions, positions)
        t, _, candidates = method.explore(method.embed(bench.captions), positions)
        torch.testing.assert_close(method.score(bench.captions, t, candidates), scores, rtol=1e-3, atol=1e-2)

    assert 0 < len(ours["t"]) < 12, "some pairs must be valid and some not"
    for name in ("t", "x", "winner", "loser"):
        torch.testing.assert_close(ours[name], rows[name], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours["text"][:, : rows["text"].shape[1]], rows["text"])


@pytest.mark.parametrize("bench", first(BENCHES, keep=1))
def test_a_step_leaves_the_gradient_of_its_loss(bench: type) -> None:
    options = {"steps": 2} if bench.options else {}
    built = bench.build(TOY, batch=2, **options)
    learning = built.method.policy
    for variant in bench.variants:
        assert built.step(variant).isfinite()
        norms = [p.grad.norm() for p in learning.parameters() if p.grad is not None]
        assert all(norm.isfinite() for norm in norms)
        assert bench is lpo.Rollout or sum(norms) > 0


def test_a_rollout_is_counted_as_the_sum_of_its_parts() -> None:
    """Ours saves the reward's texts and what the text does not reach, and computes the rest."""
    steps, prompts = 2, 3
    bench = lpo.Rollout.build(TOY, batch=prompts, device="meta", steps=steps)
    parts, count = part_flops(bench), step_flops(bench, lpo.Rollout.variants)
    unet, tower, texts = parts["UNet"], parts["LRM tower, 8 halves"], parts["LRM text encoders, 8 sequences"]
    head = 2 * 4 * sum(p.numel() for p in (bench.plain.reward.visual_projection.weight,)) + 2 * 4 * 32 * 32
    assert count["plain"] == prompts * steps * (2 * unet + tower + texts + head) + (prompts + 1) * texts / 8
    saved = count["plain"] - count["exact"]
    assert prompts * steps * texts < saved + 2 * (prompts + 1) * texts / 8
    assert count["exact"] > prompts * steps * (2 * unet + tower) * 0.7


def test_an_update_needs_half_of_the_forwards() -> None:
    count = step_flops(lpo.Update.build(TOY_XL, batch=2), lpo.Update.variants)
    assert 2.0 < count["plain"] / count["exact"] < 2.05
    assert count["plain-ckpt"] > count["plain"] and count["exact-ckpt"] > count["exact"]


def test_an_iteration_learns_from_the_share_of_its_pairs_that_is_assumed() -> None:
    bench = lpo.Iteration.build(TOY, batch=3, device="meta", steps=5, valid=0.8)
    assert [len(pairs["t"]) for pairs in bench.pairs] == [10, 2] and bench.units == 3


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "kind"), [(SD15, LRMStep), (SD15, lpo.Rollout), (SDXL, LRMStep)])
def test_the_parts_cost_what_the_specification_says(shape: Shape, kind: type) -> None:
    published = kind.published[shape.name]
    counted = part_flops(kind.build(shape, batch=1, device="meta"))
    for name, flops in counted.items():
        assert flops / 1e9 == pytest.approx(published[name], rel=0.015), name


def test_words_without_a_vocabulary_have_stable_ids() -> None:
    model = random_model(TOY)
    one, other, empty = model.tokenize(["a red cat", "a red dog in a very long sentence", ""])
    assert one[:3].tolist() == other[:3].tolist() and one[3] != other[3] and len(other) == 6
    assert one.tolist()[0] == 48 and empty.tolist() == [48, 49, 49, 49, 49, 49] and other[-1] == 49
    assert random_model(TOY_XL).tokenize(["a", "b"]).shape == (2, 2, 6)


@pytest.mark.parametrize("what", ["lrm", pytest.param("lpo-iteration", marks=pytest.mark.slow)])
def test_the_command_measures_every_step(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(cell.MODELS, "sd15", lambda: TOY)  # which has published figures
    few = ["--steps", "2", "--valid", "0.5"] if what == "lpo-iteration" else []
    options = [
        "--what",
        what,
        "--model",
        "sd15",
        "--device",
        "cpu",
        "--repeats",
        "2",
        "--variants",
        "plain,exact",
        "--batch",
        "2",
        *few,
    ]
    report = benchmark([*options, "--no-memory", "--json", str(tmp_path / "out.json")])
    assert "| plain / this: FLOPs, time, CPU time |" in capsys.readouterr().out
    assert report["variants"]["plain"]["flops"] > report["variants"]["exact"]["flops"]
    assert all(len(result["seconds"]) == 2 for result in report["variants"].values())
    assert (tmp_path / "out.json").stat().st_size > 0


@pytest.mark.gpu
@pytest.mark.parametrize("bench", BENCHES)
@SHAPES
def test_a_step_on_a_gpu_in_mixed_precision(bench: type, shape: Shape) -> None:
    built = bench.build(shape, batch=2, hardware=Hardware(accelerator="gpu"), **({"steps": 2} if bench.options else {}))
    assert all(built.step(variant).isfinite() for variant in bench.variants)
