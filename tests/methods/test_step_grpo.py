"""Step-wise GRPO: rows computed independently, the gradient of a first update in closed form, flow models."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from toys import lpo as toy_lpo
from toys import sd3 as toy_sd3

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion.weighting import step_weights, steps
from lpo_platform.methods.optim import AdamW
from lpo_platform.methods.step_grpo import StepGRPO
from lpo_platform.models.policy import Policy
from lpo_platform.models.tuning import Full, Lora

SMALL = {"candidates": 3, "num_steps": 4, "guidance": 1.0, "rounds": 3, "prompts": 3, "batch": 12, "kl": 0.0}


def method(reward: object | None = None, adapter: object | None = None, **options: object) -> StepGRPO:
    policy = Policy(adapter or toy_lpo.adapter(), Lora(rank=2))
    reward = reward or toy_lpo.Brightness()
    return StepGRPO(policy=policy, reward=reward, optim=AdamW(), seed=0, **SMALL | options)


def rows(step: StepGRPO, micro_batch: int = 12) -> list[dict[str, Tensor]]:
    return step.sample_round(0, toy_lpo.captions(3), micro_batch)


def test_a_row_holds_a_step_and_the_advantages_of_its_candidates() -> None:
    step, captions = method(), toy_lpo.captions(3)
    with torch.no_grad():
        t, x, candidates = step.explore(step.embed(captions), range(3))
        scores = step.score(captions, t, candidates).double()
    (batch,) = rows(step)
    assert len(batch["step"]) == 12 and batch["first"].all()
    for row in range(12):
        index, prompt = batch["step"][row], batch["prompt"][row]
        own = scores[index, :, prompt]
        expected = (own - own.mean()) / (own.std(correction=0) + 1e-4)
        torch.testing.assert_close(batch["advantage"][row].double(), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(batch["candidates"][row], candidates[index, :, prompt])
        assert torch.equal(batch["x"][row], x[index, prompt]) and batch["t"][row] == t[index]


def test_steps_whose_candidates_are_alike_are_left_out() -> None:
    class Same(toy_lpo.Brightness):
        def __call__(self, latents: Tensor, t: Tensor, text: dict, prompt: Tensor) -> Tensor:
            return torch.where(t > 500, super().__call__(latents, t, text, prompt), 1.0)

    (batch,) = rows(method(Same()))
    assert sorted(batch["step"].tolist()) == [0, 0, 0, 1, 1, 1]


def test_the_gradient_of_a_first_update() -> None:
    """-(1 / K) sum of A mean(z d mean) / std, with w_t of each step; the ratio is exactly 1."""
    step = method(weighting="noise")
    (batch,) = rows(step)
    loss, report = step.loss(batch)
    loss.backward()
    learning = step.policy.trainable()
    found = torch.cat([weight.grad.flatten() for weight in learning.values()])
    assert report["step_grpo/change"] == 0
    gaussian = step.gaussian(batch)
    z = (batch["candidates"] - batch["mean"][:, None]) / gaussian.std[:, None]
    gain = (batch["advantage"][:, :, None, None, None] * z).mean(1)
    _, slope, std = steps(step.policy.adapter.process, 4, 1.0)
    weights = step_weights("noise", slope, std)[batch["step"]].view(-1, 1, 1, 1)
    expected = -(weights * gain * gaussian.mean / gaussian.std).flatten(1).mean(1).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(expected, list(learning.values()))])
    torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-3)


def test_later_updates_are_compared_with_the_policy_that_sampled() -> None:
    """With what the sampling kept of it, in the place of a forward; and the divergence is from the start."""
    step = method(batch=4, kl=0.3, clip=1e-3)
    batches = rows(step, 4)
    assert [batch["first"].all().item() for batch in batches] == [True, False, False]
    toy_lpo.move(step.policy, 0.05)
    batch = batches[1]
    loss, report = step.loss(batch)
    with torch.no_grad():
        new = step.gaussian(batch)
        with step.policy.reference():
            old = step.gaussian(batch)
    torch.testing.assert_close(batch["mean"], old.mean, atol=1e-5, rtol=1e-4)
    ratio = torch.stack([(new.log_prob(c) - old.log_prob(c)).exp() for c in batch["candidates"].unbind(1)], 1)
    advantage = batch["advantage"]
    terms = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.999, 1.001)).mean(1)
    moved = ((new.mean - old.mean) ** 2 / (2 * new.std**2)).flatten(1).mean(1)
    torch.testing.assert_close(loss.detach(), (terms + 0.3 * moved).mean(), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(report["step_grpo/kl"], moved.mean(), atol=1e-6, rtol=1e-3)
    assert report["step_grpo/change"] > 1e-4


def test_updates_raise_what_the_reward_likes() -> None:
    step = method(adapter=None, clip=0.1)
    (batch,) = rows(step)
    before = step.gaussian(batch).mean.detach()
    for _ in range(20):
        loss, _ = step.loss(batch | {"first": torch.ones(12, dtype=torch.bool)})
        loss.backward()
        with torch.no_grad():
            for weight in step.policy.trainable().values():
                weight -= 1.0 * weight.grad
                weight.grad = None
    after = step.gaussian(batch).mean.detach()
    assert (after - before)[:, 0].mean() > 0


@pytest.mark.parametrize("noise", ["sde", "posterior", "cps"])
def test_on_a_flow_the_step_without_noise_is_left_out(noise: str, tmp_path: Path) -> None:
    model = toy_sd3.load(toy_sd3.folder(tmp_path), noise=noise)
    step = method(adapter=model, eta=0.7, num_steps=5)
    assert step.points == (5 if noise == "sde" else 4)
    batches = rows(step, 15)
    assert set(batches[0]["step"].tolist()) == set(range(step.points))
    loss, _ = step.loss(batches[0])
    loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in step.policy.trainable().values())


def test_a_window() -> None:
    step = method(window=(1, 3))
    (batch,) = rows(step)
    assert set(batch["step"].tolist()) == {1, 2} and len(step.weights) == 2
    with pytest.raises(UserError, match=r"^method\.window=\[1, 9\]: what works: 0 <= first < last <= 4$"):
        method(window=(1, 9))
    with pytest.raises(UserError, match=r"^method\.eta=0: no step draws noise; what works: method\.eta above 0$"):
        method(eta=0)


def test_memory_of_a_row_and_what_a_plan_counts() -> None:
    policy = Policy(toy_lpo.adapter(), Full())
    step = StepGRPO(policy=policy, reward=toy_lpo.Brightness(), optim=AdamW(), seed=0, **SMALL)
    batch = step.example(step.embed(["one"]), 3)
    step.loss(batch)[0].backward()
    assert batch["candidates"].shape == (3, 3, *toy_lpo.SHAPE) and step.updates() == 3 and step.assumed() == []
