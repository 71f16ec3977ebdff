"""The policy: what learns, what the reference is, and CPO's step against the plain schedule of ten forwards."""

import pytest
import torch
from toys import size as toy_size
from toys.policy import adapter, batch, control_policy, method, plain_cpo

from lpo_platform.methods.control import Control as Supervised
from lpo_platform.methods.cpo import CPO
from lpo_platform.methods.losses import denoising_error
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.tuning import Control, Full, Lora


def test_only_the_chosen_weights_learn() -> None:
    policy = control_policy()
    assert all(name.startswith("learning.control.") for name in policy.trainable())
    assert not policy.trains_unet and not any(p.requires_grad for p in policy.adapter.unet.parameters())
    parts = adapter()
    full = Policy(parts, Full())
    assert len(full.trainable()) == len(list(parts.unet.parameters()))
    parts = adapter()
    lora = Policy(parts, Lora(rank=2))
    assert lora.trainable() and all("lora_" in name for name in lora.trainable())


@pytest.mark.parametrize("tune", [Control(), Full(), Lora(rank=2)])
def test_reference_is_the_start_whatever_is_trained(tune) -> None:
    parts = adapter()
    control = toy_size.controlnet(parts.unet)
    policy = Policy(parts, tune, control)
    x, t, text, image = toy_size.inputs()
    condition = Condition(text, image)
    with torch.no_grad():
        start = policy.predict(x, t, condition)
        policy.freeze_reference()
        for weight in policy.trainable().values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        assert not torch.allclose(policy.predict(x, t, condition), start)
        with policy.reference():
            torch.testing.assert_close(policy.predict(x, t, condition), start)
    trained = policy.predict(x, t, condition)
    with policy.reference():
        assert not policy.predict(x, t, condition).requires_grad
    torch.testing.assert_close(policy.predict(x, t, condition), trained)
    assert all(weight.requires_grad for weight in policy.trainable().values())


def test_guidance_is_the_two_passes_of_the_formula() -> None:
    policy = control_policy()
    x, t, text, image = toy_size.inputs()
    empty = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        conditional = policy.predict(x, t, Condition(text, image))
        free = policy.predict(x, t, Condition(empty.expand(2, -1, -1), image))
        guided = policy.predict(x, t, Condition(text, image), guidance=7.5, empty=empty)
    torch.testing.assert_close(guided, free + 7.5 * (conditional - free), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_guidance_of_at_most_one_is_none(guidance: float) -> None:
    """As in diffusers' pipelines: the cards of distilled models ask for 0."""
    policy = control_policy()
    x, t, text, image = toy_size.inputs()
    with torch.no_grad():
        plain = policy.predict(x, t, Condition(text, image))
        assert torch.equal(policy.predict(x, t, Condition(text, image), guidance=guidance), plain)


@pytest.mark.parametrize("form", ["soft", "hard"])
def test_cpo_step_equals_the_plain_schedule(form: str) -> None:
    """In loss and in every gradient, after the policy has moved away from the reference."""
    policy, data = control_policy(), batch()
    step = method(policy, form=form, beta=5000.0, margin=0.01, pretrain_weight=0.3)
    reference = policy.frozen[0]
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    expected = plain_cpo(policy, reference, step, data)
    gradients = torch.autograd.grad(expected, list(policy.trainable().values()))
    loss, report = step.loss(data)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for weight, gradient in zip(policy.trainable().values(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-6, rtol=1e-4)
    assert abs(report["cpo/weight"] - 0.5) > 1e-3


def test_cpo_starts_undecided() -> None:
    """theta = phi: s = 0.5 for every pair, and swapping winner and loser negates d."""
    policy, data = control_policy(), batch()
    step = method(policy, beta=5000.0)
    _, report = step.loss(data)
    assert report["cpo/weight"].item() == pytest.approx(0.5, abs=2e-3)
    _, swapped = step.loss(data | {"control": data["loser"], "loser": data["control"]})
    torch.testing.assert_close(report["cpo/difference"], -swapped["cpo/difference"], atol=1e-6, rtol=0)


def test_equal_conditions_have_no_difference() -> None:
    policy, data = control_policy(), batch()
    _, report = method(policy).loss(data | {"loser": data["control"]})
    assert report["cpo/difference"].item() == pytest.approx(0, abs=1e-6)


def test_shared_timestep_has_the_winners_error_as_pretraining() -> None:
    policy, data = control_policy(), batch()
    step = method(policy, share_timestep=True, beta=10.0)
    loss, report = step.loss(data)
    e, t = step.normal(data, "pair"), step.times(data, "pair")
    x = policy.adapter.process.add_noise(step.latents(data), e, t)
    expected = denoising_error(policy.predict(x, t, Condition(data["text"], data["control"])), e).mean()
    torch.testing.assert_close(report["cpo/pretraining"], expected.detach())
    torch.testing.assert_close(loss.detach(), report["cpo/preference"] + step.pretrain_weight * expected.detach())


@pytest.mark.parametrize("kind", [CPO, Supervised])
def test_a_sample_has_its_noise_whatever_the_batch(kind: type) -> None:
    """Micro-batches of 1 add up to the batch of 3: the gradient does not depend on how the batch is cut."""
    policy, data = control_policy(), batch()
    step = method(policy, kind)
    weights = list(policy.trainable().values())
    whole = torch.autograd.grad(step.loss(data)[0], weights)
    parts = [torch.autograd.grad(step.loss({k: v[i : i + 1] for k, v in data.items()})[0], weights) for i in range(3)]
    assert (step.times(data, "pair") > 0).all()  # otherwise the masked mean would weigh the parts differently
    for total, *rest in zip(whole, *parts, strict=True):
        torch.testing.assert_close(total, sum(rest) / 3, atol=1e-6, rtol=1e-3)


def test_checkpoints_hold_what_learns_and_nothing_else() -> None:
    step = method(control_policy())
    checkpoint = {"state_dict": step.state_dict()}
    step.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == {f"policy.{name}" for name in step.policy.trainable()}
