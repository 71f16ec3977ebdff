"""Losses that came with flow models, against values computed by hand in float64 from their formulas."""

import math

import pytest
import torch
from torch import Tensor

from lpo_platform.diffusion.flow import Flow
from lpo_platform.diffusion.gaussian import Gaussian
from lpo_platform.methods import advantages, losses


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


CLEAN, NOISE = row(0.5, -1, 0.25, 2), row(1, -0.5, 0.3, -0.2)
POLICY, OLD = row(0.4, 0.4, 0.1, -2), row(0.3, 0.5, 0, -1.9)


def nft(optimality: float, beta: float, *, adaptive: bool = True, policy: Tensor = POLICY) -> Tensor:
    target = NOISE - CLEAN
    return losses.nft(policy, OLD, target, one(0.6), one(optimality), beta=beta, adaptive=adaptive)


@pytest.mark.parametrize(
    ("beta", "good", "bad", "total", "plain"),
    [
        (1.0, 0.083333, 0.178421, (0.130877, 0.102351, 0.159404), 0.026625),
        (0.1, 0.138000, 0.146339, (1.421695, 1.396678, 1.446712), 0.031575),
    ],
)
def test_nft(beta: float, good: float, bad: float, total: tuple[float, ...], plain: float) -> None:
    """Both errors, the sum at r = 0.5, 0.8 and 0.2 divided by beta, and the error of the velocity itself at r = 0.8."""
    assert [nft(r, beta).item() * beta for r in (1.0, 0.0)] == pytest.approx([good, bad], abs=1e-6)
    assert [nft(r, beta).item() for r in (0.5, 0.8, 0.2)] == pytest.approx(total, abs=1e-6)
    assert nft(0.8, beta, adaptive=False).item() == pytest.approx(plain, abs=1e-6)


def gradient(policy: Tensor, optimality: float, scale: float) -> list[float]:
    learning = policy.clone().requires_grad_()
    (scale * nft(optimality, 1.0, policy=learning).sum()).backward()
    return learning.grad.flatten().tolist()


def test_the_gradient_of_nft_knows_the_reward_from_the_first_update() -> None:
    """Where policy and trailing policy are one the value does not depend on r, and the gradient does."""
    assert gradient(POLICY, 0.8, 1.0) == pytest.approx([-0.137544, -0.238596, 0.144561, 0.325614], abs=1e-6)
    assert [5 * nft(r, 1.0, policy=OLD).item() for r in (0.2, 0.5, 0.8)] == pytest.approx([0.722727] * 3, abs=1e-5)
    assert gradient(OLD, 0.8, 5.0) == pytest.approx([-1.309091, 0, -0.327273, 1.963636], abs=1e-5)
    assert gradient(OLD, 0.5, 5.0) == pytest.approx([0, 0, 0, 0], abs=1e-7)
    assert gradient(OLD, 0.2, 5.0) == pytest.approx([-x for x in gradient(OLD, 0.8, 5.0)], abs=1e-7)
    divergence = losses.denoising_error(POLICY, row(0.35, 0.45, 0.05, -2.1)).item()
    assert divergence == pytest.approx(0.004375, abs=1e-8)
    assert 5 * nft(0.8, 1.0).item() + 1e-4 * divergence == pytest.approx(0.511755, abs=1e-5)


def test_optimality() -> None:
    rewards, groups = torch.tensor([1.0, 2, 3, 6, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    found = advantages.standardise_groups(rewards, groups, spread="batch")
    high, low = [-1.078662, -0.539331, 0, 1.617992], [-0.269665, -0.269665, 0.269665, 0.269665]
    assert found.tolist() == pytest.approx(high + low, abs=1e-6)
    assert rewards.std(correction=0).item() == pytest.approx(1.854050, abs=1e-6)


THURSTONE = [
    (0.5, 0.1, 0.046441, 0.095107),
    (0.5, 0.5, 0.173426, 0.380932),
    (0.5, 0.9, 0.220385, 0.497909),
    (-0.5, 0.5, 0.437170, 1.149555),
    (0.0, 0.5, 0.292893, 0.693145),
]


@pytest.mark.parametrize(("gap", "share", "fidelity", "nll"), THURSTONE)
def test_thurstone(gap: float, share: float, fidelity: float, nll: float) -> None:
    scores, labels = torch.tensor([[gap, 0.0]]), torch.tensor([[[0.5, 1.0], [0.0, 0.5]]])
    for form, expected in (("fidelity", fidelity), ("nll", nll)):
        found = losses.thurstone(scores, labels, torch.tensor([share]), form=form)
        assert found.item() == pytest.approx(expected, abs=2e-6)
    swapped = losses.thurstone(scores.flip(1), labels.mT, torch.tensor([share]), form="fidelity")
    assert swapped.item() == pytest.approx(fidelity, abs=2e-6)
    with pytest.raises(ValueError, match="form='pair': must be fidelity or nll"):
        losses.thurstone(scores, labels, torch.tensor([share]), form="pair")


@pytest.mark.parametrize("label", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("form", ["pair", "fidelity", "nll"])
def test_every_label_leads_somewhere(form: str, label: float) -> None:
    """Labels are 0 and 1 where people were sure. The slope is that of a difference quotient."""

    def loss(gap: torch.Tensor) -> torch.Tensor:
        labels = torch.tensor([[[0.5, label], [1 - label, 0.5]]])
        scores = torch.stack([gap, torch.zeros(())])[None]
        if form == "pair":
            return losses.pair_preference(scores, labels).sum()
        return losses.thurstone(scores, labels, torch.tensor([0.4]), form=form).sum()

    gap = torch.tensor(0.3, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(gap), gap)
    quotient = (loss(gap + 0.01) - loss(gap - 0.01)) / 0.02
    assert slope.item() == pytest.approx(quotient.item(), abs=1e-3) and abs(slope.item()) > 0.01


def test_a_tie_costs_nothing_at_equal_scores() -> None:
    scores, labels = torch.zeros(1, 2), torch.full((1, 2, 2), 0.5)
    for form in ("fidelity", "nll"):
        found = losses.thurstone(scores, labels, torch.tensor([0.4]), form=form)
        assert found.item() == pytest.approx(0, abs=3e-6)
    for gap, expected in ((0.5, 0.474077), (-0.5, 0.974077)):
        sure = torch.tensor([[[0.5, 1.0], [0.0, 0.5]]])
        assert losses.pair_preference(torch.tensor([[gap, 0.0]]), sure).item() == pytest.approx(expected, abs=1e-6)


def test_flow_dpo() -> None:
    """Errors of velocities in Diffusion-DPO's formula."""
    four = [one(value) for value in (0.42, 0.45, 0.43, 0.44)]
    assert losses.diffusion_dpo(*four, beta=100).item() == pytest.approx(0.313262, abs=1e-6)
    flow, t = Flow(), torch.tensor([300.0])
    shape = lambda values: torch.tensor(values).view(1, 4, 1, 1)  # noqa: E731
    noise, pictures = shape([1, -0.5, 0.3, -0.2]), ([0.5, -1, 0.25, 2], [0, 1, -0.5, 0.75])
    outputs = ([0.4, 0.4, 0.1, -2], [0.9, -1.4, 0.9, -0.8]), ([0.3, 0.5, 0, -1.9], [1, -1.5, 0.7, -0.9])
    errors = [
        losses.denoising_error(shape(output), flow.target(shape(clean), noise, t))
        for side in outputs
        for output, clean in zip(side, pictures, strict=True)
    ]
    assert torch.cat(errors).tolist() == pytest.approx([0.015625, 0.013125, 0.033125, 0.003125], abs=1e-6)
    assert losses.diffusion_dpo(*errors, beta=100).item() == pytest.approx(0.225413, abs=1e-5)


SCORES = torch.tensor([1.2, 0.7, 1.9, 0.4], dtype=torch.float64)
ADVANTAGE = [0.264089, -0.616207, 1.496503, -1.144385]


def test_advantages_and_loss_of_step_wise_grpo() -> None:
    advantage = advantages.standardise_groups(SCORES, torch.zeros(4, dtype=torch.long))
    assert advantage.tolist() == pytest.approx(ADVANTAGE, abs=1e-6)
    terms = losses.ppo(torch.tensor([0.05, -0.03, 0.2, -0.15]), advantage, clip=0.1)
    assert terms.tolist() == pytest.approx([-0.277629, 0.597995, -1.646153, 1.029946], abs=1e-5)
    assert terms.mean().item() == pytest.approx(-0.073960, abs=1e-6)
    moved = losses.gaussian_kl(row(0.02), row(0.0), one(0.3)).item()
    assert terms.mean().item() + 0.1 * moved == pytest.approx(-0.073738, abs=1e-6)


def test_one_forward_serves_all_candidates() -> None:
    """Four candidates of one step, from 0.75 to 0.6 with the noise of Flow-GRPO; and LPO's pair of the last two."""
    shape = lambda values: torch.tensor(values).view(1, 4, 1, 1)  # noqa: E731
    flow, t, ahead, x = Flow(), torch.tensor([750.0]), torch.tensor([600.0]), shape([0.5, -0.2, 0.1, 0.9])
    old = flow.step(shape([-0.25, 0.4, 0.1, -0.6]), t, ahead, x, eta=0.7)
    new = flow.step(shape([-0.2, 0.35, 0.15, -0.7]), t, ahead, x, eta=0.7)
    z = torch.tensor([[1, -1, 0.5, 0], [-0.5, 0.5, 1, -1], [0.2, 0.2, -0.2, -0.2], [0, 1.5, -1, 0.3]])
    z = z.view(4, 1, 4, 1, 1)
    ratios = torch.cat([new.log_prob(drawn) - old.log_prob(drawn) for drawn in old.sample(z)])
    assert ratios.tolist() == pytest.approx([-0.012774, -0.010289, -0.001340, 0.015065], abs=1e-6)
    moved = new.mean - old.mean
    identity = (z * moved).flatten(1).mean(1) / old.std.item() - moved.square().mean() / (2 * old.std.item() ** 2)
    torch.testing.assert_close(ratios, identity, atol=1e-6, rtol=0)
    advantage = torch.tensor(ADVANTAGE)
    for clip, expected in ((1e-4, 0.005666), (0.1, 0.004105)):
        assert losses.ppo(ratios, advantage, clip=clip).mean().item() == pytest.approx(expected, abs=1e-6)
    assert losses.gaussian_kl(new.mean, old.mean, new.std).item() == pytest.approx(0.00034599, abs=1e-7)
    for beta, expected in ((500, 8.202850), (20, 0.870595)):
        assert losses.lpo(ratios[2:3], ratios[3:4], beta=beta, clip=0.1).item() == pytest.approx(expected, abs=1e-3)


def test_log_probabilities_of_what_was_drawn_need_no_forward() -> None:
    gaussian = Gaussian(torch.randn(2, 3, 2, 2), torch.full((2, 1, 1, 1), 0.3))
    z = torch.randn(2, 3, 2, 2)
    expected = -0.5 * z.square().flatten(1).mean(1) - math.log(0.3) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(gaussian.log_prob(gaussian.sample(z)), expected, atol=1e-5, rtol=0)
