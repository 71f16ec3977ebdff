"""LPO's loss, rollouts and rounds: values computed by hand, and the original's code written literally."""

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from toys import lpo as toy_lpo
from toys.instances import first

from lpo_platform.diffusion import noise
from lpo_platform.diffusion.gaussian import Gaussian
from lpo_platform.methods import losses
from lpo_platform.methods.lpo import LPO
from lpo_platform.methods.optim import AdamW
from lpo_platform.methods.rollouts import Rollouts
from lpo_platform.models.tuning import Full, Lora, Tune
from lpo_platform.tracking.callbacks.checkpoint import Checkpoint, newest

TUNES = [Lora(rank=2), Full()]

# The loss.


@pytest.mark.parametrize(
    ("winner", "loser", "expected"), [(0.0, 0.0, 0.693147), (0.001, -0.001, 0.313262), (0.0, 0.2, 47.655090)]
)
def test_values(winner: float, loser: float, expected: float) -> None:
    w, b = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (winner, loser))
    loss = losses.lpo(w, b, beta=500.0, clip=0.1)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.sum().backward()
    assert (b.grad.item() == 0) is (loser == 0.2)
    assert w.grad.item() == pytest.approx(-500 * (1 - math.exp(-expected)), rel=1e-6)


def test_the_worst_margin_has_a_finite_loss_and_gradient() -> None:
    """The original takes log(sigmoid(.)), which is -inf from -88.7 on in float32; the bound is -100.3."""
    w, b = (torch.tensor([v], requires_grad=True) for v in (math.log(0.9) + 1e-5, math.log(1.1) - 1e-5))
    loss = losses.lpo(w, b, beta=500.0, clip=0.1)
    loss.sum().backward()
    assert loss.item() == pytest.approx(100.335 - 0.01, abs=2e-3)
    assert (w.grad.item(), b.grad.item()) == (-500, 500)
    beyond = losses.lpo(torch.tensor([-3.0]), torch.tensor([3.0]), beta=500.0, clip=0.1)
    assert beyond.item() == pytest.approx(-500 * math.log(0.9 / 1.1), rel=1e-6)
    assert torch.sigmoid(torch.tensor(-100.3)).log().item() == -math.inf


# One forward serves winner and loser.


def test_margin_identity() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 5, 4, 8, 8, generator=generator, dtype=torch.float64)
    winner, loser = torch.randn(2, 5, 4, 8, 8, generator=generator)
    std = torch.rand(5, 1, 1, 1, generator=generator, dtype=torch.float64) + 0.02
    ours, theirs = Gaussian(policy, std), Gaussian(reference, std)
    ratios = [ours.log_prob(x) - theirs.log_prob(x) for x in (winner, loser)]
    margin = ((winner.double() - loser.double()) * (policy - reference) / std**2).flatten(1).mean(1)
    torch.testing.assert_close(ratios[0] - ratios[1], margin, atol=0, rtol=1e-10)
    moved = policy - reference
    ratio = ((winner.double() - reference) * moved - moved**2 / 2).div(std**2).flatten(1).mean(1)
    torch.testing.assert_close(ratios[0], ratio, atol=0, rtol=1e-10)


def literal_mean_and_std(unet: UNet2DConditionModel, step: LPO, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One CFG prediction of the original and its transition, formulas of section 3.1."""
    process = step.policy.adapter.process
    x, t = batch["x"], batch["t"]
    empty = step.policy.adapter.empty_text().expand_as(batch["text"])
    free, conditional = (unet(x, t, text).sample for text in (empty, batch["text"]))
    output = free + step.guidance * (conditional - free)
    here, there = (process.alphas_cumprod[v].view(-1, 1, 1, 1) for v in (t, (t - 1000 // step.num_steps).clamp(min=0)))
    if process.prediction == "epsilon":
        e, x0 = output, (x - (1 - here).sqrt() * output) / here.sqrt()
    else:
        e, x0 = here.sqrt() * output + (1 - here).sqrt() * x, here.sqrt() * x - (1 - here).sqrt() * output
    std = ((1 - there) / (1 - here) * (1 - here / there)).sqrt()
    return there.sqrt() * x0 + (1 - there - std**2).sqrt() * e, std


def literal_loss(policy: UNet2DConditionModel, reference: UNet2DConditionModel, step: LPO, batch: dict) -> Tensor:
    """The original's four forwards: winner and loser under the policy and under a copy made before LoRA was added."""
    ratios = []
    for name in ("winner", "loser"):
        logs = []
        for unet in (policy, reference):
            mean, std = literal_mean_and_std(unet, step, batch)
            log = (
                -((batch[name].detach() - mean) ** 2) / (2 * std**2) - torch.log(std) - math.log(math.sqrt(2 * math.pi))
            )
            logs.append(log.mean(dim=tuple(range(1, log.ndim))))
        ratios.append(torch.clamp(torch.exp(logs[0] - logs[1].detach()), 1 - step.clip, 1 + step.clip))
    return -torch.log(torch.sigmoid(step.beta * (torch.log(ratios[0]) - torch.log(ratios[1])))).mean()


def whole(step: LPO, number: int = 0) -> dict[str, Tensor]:
    """All rows of a round as one batch."""
    step.batch = 10_000
    (batch,) = step.sample_round(number, toy_lpo.captions(step.prompts), step.batch)
    return batch


@pytest.mark.parametrize("prediction", first(["epsilon", "v_prediction"], keep=1))
@pytest.mark.parametrize("tune", TUNES)
def test_two_forwards_equal_the_originals_four(tune: Tune, prediction: str) -> None:
    """In loss and in every gradient, where the clamp is active for some rows and not for others."""
    reference = toy_lpo.adapter().unet
    step = toy_lpo.method(tune, prediction=prediction, beta=5.0, threshold=(0.0, 0.0))
    batch = whole(step)
    toy_lpo.move(step.policy, 0.02 if isinstance(tune, Lora) else 0.004)
    loss, report = step.loss(batch)
    loss.backward()
    assert 0 < report["lpo/clipped"] < 1 and len(batch["t"]) == 12
    expected = literal_loss(step.policy.adapter.unet, reference, step, batch)
    weights = list(step.policy.trainable().values())
    gradients = torch.autograd.grad(expected, weights)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = (torch.cat([g.flatten() for g in side]) for side in ([w.grad for w in weights], gradients))
    assert theirs.norm() > 0 and (ours - theirs).norm() < 1e-4 * theirs.norm()


@pytest.mark.parametrize(("tune", "rounding"), [(Lora(rank=2), 0), (Full(), 1e-6)])
def test_nothing_is_preferred_at_the_start(tune: Tune, rounding: float) -> None:
    """Exactly, where the reference is the same module without its adapters; a copy may be rounded differently."""
    step = toy_lpo.method(tune, threshold=(0.0, 0.0))
    loss, report = step.loss(whole(step))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6 + 250 * rounding)
    assert abs(report["lpo/margin"].item()) <= rounding and report["lpo/clipped"].item() == 0


def test_the_gradient_makes_the_winner_likelier() -> None:
    step = toy_lpo.method(Full(), threshold=(0.0, 0.0), beta=10.0)
    batch = whole(step)
    for _ in range(3):
        loss, report = step.loss(batch)
        loss.backward()
        with torch.no_grad():
            for weight in step.policy.trainable().values():
                weight -= 1e-5 * weight.grad
                weight.grad = None
    assert report["lpo/margin"] > 0 and loss < math.log(2) and report["lpo/accuracy"] > 0.5


def test_rows_outside_the_band_are_counted_as_the_loss_clips_them() -> None:
    """The band is [log 0.9, log 1.1] = [-0.105, 0.095], not +-0.1."""
    step = toy_lpo.method()
    for log_ratio, outside in ((0.097, 1), (-0.103, 0), (0.094, 0), (-0.107, 1)):
        moved, still = torch.tensor([log_ratio]), torch.zeros(1)
        for pair in ((moved, still), (still, moved)):
            assert step._report(*pair)["lpo/clipped"].item() == outside


# Rollouts.


def test_the_trajectory_is_a_stochastic_ddim_chain_of_diffusers() -> None:
    """With diffusers' own scheduler, given the noise of the candidate that was gone on with."""
    step = toy_lpo.method(num_steps=5)
    captions, positions = toy_lpo.captions(2), range(7, 9)
    with torch.no_grad():
        text = step.embed(captions)
        t, x, candidates = step.explore(text, positions)
        scheduler = DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
            clip_sample=False, set_alpha_to_one=False,
        )  # fmt: skip
        scheduler.set_timesteps(5)
        assert t.tolist() == scheduler.timesteps.tolist()
        unet, empty = step.policy.adapter.unet, step.policy.adapter.empty_text().expand_as(text)
        current = noise.normal([7, 8], toy_lpo.SHAPE, seed=0, stream="rollout")
        for i in range(5):
            torch.testing.assert_close(x[i], current, atol=2e-4, rtol=1e-4)
            free, conditional = (unet(current, t[i], words).sample for words in (empty, text))
            drawn = noise.normal([7, 8], (3, *toy_lpo.SHAPE), seed=0, stream=f"candidates/{i}")
            output = free + 5.0 * (conditional - free)
            points = [scheduler.step(output, t[i], current, eta=1.0, variance_noise=z).prev_sample
                      for z in drawn.transpose(0, 1)]  # fmt: skip
            torch.testing.assert_close(candidates[i], torch.stack(points), atol=2e-4, rtol=1e-4)
            chosen = noise.integers([7, 8], 3, seed=0, stream=f"choice/{i}")
            current = torch.stack([points[k][row] for row, k in enumerate(chosen.tolist())])


def test_what_follows_is_a_uniform_choice_that_knows_no_score() -> None:
    step = toy_lpo.method(guidance=1.0, num_steps=6, candidates=4)
    captions, positions = toy_lpo.captions(250), range(250)
    with torch.no_grad():
        t, x, candidates = step.explore(step.embed(captions), positions)
        scores = step.score(captions, t, candidates)
    same = (candidates[:-1] == x[1:, None]).flatten(3).all(3)
    assert torch.equal(same.sum(1), torch.ones(5, 250, dtype=torch.long))
    chosen = same.int().argmax(1)
    for rank in (chosen, scores[:-1].argsort(1).argsort(1).gather(1, chosen[:, None])[:, 0]):
        counts = torch.bincount(rank.flatten(), minlength=4)
        chi_squared = ((counts - 312.5) ** 2 / 312.5).sum().item()
        assert chi_squared < 16.3, "less likely than 0.001 for a uniform choice"


@pytest.mark.parametrize("threshold", [(0.0, 0.0), (0.3, 0.9)])
def test_rows_are_what_the_selection_rule_asks_for(threshold: tuple[float, float]) -> None:
    step = toy_lpo.method(threshold=threshold)
    captions, positions = toy_lpo.captions(3), range(3, 6)
    with torch.no_grad():
        rows = step.collect(captions, positions)
        text = step.embed(captions)
        t, x, candidates = step.explore(text, positions)
    sigma = step.policy.adapter.process.sigma(t, (t - 250).clamp(min=0), 1.0).flatten()
    limits = threshold[0] + (threshold[1] - threshold[0]) * (sigma - sigma.min()) / (sigma.max() - sigma.min())
    found = 0
    for i in range(4):
        for b, position in enumerate(positions):
            scores = [100 * z[0].mean().item() + len(captions[b]) for z in candidates[i, :, b]]
            best, worst = max(range(3), key=scores.__getitem__), min(range(3), key=scores.__getitem__)
            two = torch.tensor([scores[best], scores[worst]]).softmax(0)
            here = (rows["prompt"] == position) & (rows["step"] == i)
            assert here.sum().item() == int(two[0] - two[1] > limits[i])
            if here.any():
                expected = {"t": t[i], "x": x[i, b], "text": text[b], "winner": candidates[i, best, b]}
                expected["loser"] = candidates[i, worst, b]
                assert all(torch.equal(rows[name][here][0], value) for name, value in expected.items())
                found += 1
    assert found == len(rows["prompt"]) and (found == 12) is (threshold == (0.0, 0.0))
    assert step.round["rollout/valid"].item() == pytest.approx(found / 12)


@pytest.mark.parametrize(("timestep", "expected"), [("current", [751, 501, 251, 1]), ("next", [501, 251, 1, 0])])
def test_the_reward_is_asked_at_the_t_that_it_wants(timestep: str, expected: list[int]) -> None:
    reward = toy_lpo.Brightness(timestep=timestep)
    step = toy_lpo.method(reward=reward)
    with torch.no_grad():
        step.collect(toy_lpo.captions(2), range(2))
    assert reward.asked.view(4, 3, 2)[:, 0, 0].tolist() == expected
    assert (reward.asked.view(4, 6) == reward.asked.view(4, 6)[:, :1]).all()


def test_a_prompt_makes_the_same_rows_however_many_are_rolled_out_at_once() -> None:
    together, apart = (whole(toy_lpo.method(sample_batch=n, threshold=(0.0, 0.0))) for n in (None, 1))
    assert torch.equal(together["prompt"], apart["prompt"]) and torch.equal(together["step"], apart["step"])
    torch.testing.assert_close(together["x"], apart["x"], atol=1e-4, rtol=1e-4)


# Rounds.


class Seen(Callback):
    """Gradients of every optimiser step as DDP would leave them, and the weights after every round."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: LPO, optimizer: torch.optim.Optimizer) -> None:
        found = {name: p.grad for name, p in module.policy.trainable().items() if p.grad is not None}
        self.gradients.append({name: gradient.clone() for name, gradient in found.items()})
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: L.Trainer, module: LPO) -> None:
        self.weights.append({k: v.detach().clone() for k, v in module.policy.trainable().items()})


class Captions:
    def __len__(self) -> int:
        return 5

    def caption(self, i: int) -> str:
        return f"caption {'x' * i}"


def fit(step: LPO, folder: Path, *more: Callback, micro_batch: int | None = None, epochs: int = 3) -> Seen:
    seen, micro_batch = Seen(), micro_batch or step.batch
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=step.batch // micro_batch,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        callbacks=[seen, *more],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    rounds = Rollouts(Captions(), step, micro_batch=micro_batch, seed=0)
    trainer.fit(step, rounds, ckpt_path=newest(folder / "checkpoints"), weights_only=True)
    return seen


def test_a_step_is_the_mean_over_its_rows_however_it_is_cut(tmp_path: Path) -> None:
    """12 rows in steps of 8: the last has 4, and in micro-batches of 2 half of the accumulation is missing."""
    options = {"threshold": (0.0, 0.0), "batch": 8, "moved": 0.003, "beta": 20.0, "optim": AdamW(lr=0, clip=1e9)}
    step = toy_lpo.method(**options)
    captions = Rollouts(Captions(), step, micro_batch=8, seed=0).captions(0)
    order = [step.sample_round(0, captions, 8)[i] for i in range(2)]
    expected = []
    for part in order:
        rows = [losses.lpo(*_ratios(step, {k: v[i : i + 1] for k, v in part.items()}), beta=20.0, clip=0.1).sum()
                for i in range(len(part["t"]))]  # fmt: skip
        mean = sum(rows) / len(rows)
        expected.append(torch.autograd.grad(mean, list(step.policy.trainable().values())))
    assert [len(part["t"]) for part in order] == [8, 4]
    for micro_batch in (8, 2, 1):
        seen = fit(toy_lpo.method(**options), tmp_path, micro_batch=micro_batch, epochs=1)
        assert len(seen.gradients) == 2
        for found, wanted in zip(seen.gradients, expected, strict=True):
            ours, theirs = (torch.cat([g.flatten() for g in side]) for side in (found.values(), wanted))
            assert theirs.norm() > 0 and (ours - theirs).norm() < 1e-4 * theirs.norm()


def _ratios(step: LPO, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    policy = step.gaussian(batch)
    with step.policy.reference():
        reference = step.gaussian(batch)
    return tuple(policy.log_prob(batch[k]) - reference.log_prob(batch[k]) for k in ("winner", "loser"))


class Silent(toy_lpo.Brightness):
    """Says nothing in its second round."""

    def __call__(self, *arguments: object) -> Tensor:
        return super().__call__(*arguments) * (self.calls != 2)


def test_a_round_without_a_preference_leaves_the_weights_alone(tmp_path: Path) -> None:
    """Bit for bit, although the optimiser has momentum and decays weights by then; the next round learns again."""
    step = toy_lpo.method(Full(), Silent(), optim=AdamW(lr=1e-4, weight_decay=0.1))
    start = {k: v.detach().clone() for k, v in step.policy.trainable().items()}
    first, silent, last = fit(step, tmp_path).weights

    def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one)

    assert not equal(start, first) and equal(first, silent) and not equal(silent, last)


def test_rounds_continue_bit_for_bit_from_a_checkpoint(tmp_path: Path) -> None:
    """Also their learning rate, which falls from round to round."""

    def made() -> LPO:
        return toy_lpo.method(Full(), optim=AdamW(lr=1e-4, schedule="linear"), threshold=(0.0, 0.0), batch=12)

    straight = fit(made(), tmp_path / "straight")
    assert straight.rates == pytest.approx([1e-4, 2e-4 / 3, 1e-4 / 3])
    fit(made(), tmp_path / "cut", Checkpoint(tmp_path / "cut" / "checkpoints"), epochs=1)
    step = made()
    resumed = fit(step, tmp_path / "cut")
    assert step.reward.calls == 2, "each of the two rounds that were left is played once"
    assert resumed.rates == pytest.approx(straight.rates[1:])
    for ours, theirs in zip(resumed.weights, straight.weights[1:], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_run_plays_no_further_round(tmp_path: Path) -> None:
    fit(toy_lpo.method(), tmp_path, Checkpoint(tmp_path / "checkpoints"))
    step = toy_lpo.method()
    assert fit(step, tmp_path).weights == []
    assert step.reward.calls == 0
