"""CPO's loss against values in float64 and a literal reading of its formula; policy gradients against values computed
by hand and torch's own divergences."""

import math

import pytest
import torch

from lpo_platform.methods.losses import (
    cpo,
    denoising_error,
    gaussian_kl,
    kl_estimate,
    ppo,
    preference_weight,
    score_function,
)

# Lw, Ll, Rw, Rl, m -> s, soft loss, soft gradient, hard loss, hard gradient (beta = 5000)
TABLE = [
    (0.120, 0.118, 0.121, 0.120, 0.01, 0.924142, 0.01004142, 0.824142, 0.01108970, 0.924142),
    (0.120, 0.118, 0.120, 0.118, 0.01, 0.500000, 0.00580000, 0.400000, 0.00600000, 0.500000),
    (0.120, 0.100, 0.120, 0.1005, 0.01, 0.777300, 0.02098710, 0.699570, 0.02331900, 0.777300),
]
SOME_TIME = torch.tensor([500])


def tensors(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in values]


@pytest.mark.parametrize("row", TABLE)
@pytest.mark.parametrize("form", ["soft", "hard"])
def test_values_and_gradients(row: tuple[float, ...], form: str) -> None:
    *errors, margin, s, soft, soft_grad, hard, hard_grad = row
    four = tensors(*errors)
    assert preference_weight(*four, beta=5000).item() == pytest.approx(s, abs=1e-6)
    loss = cpo(*four, SOME_TIME, beta=5000, margin=margin, form=form)
    loss.backward()
    value, gradient = (soft, soft_grad) if form == "soft" else (hard, hard_grad)
    assert loss.item() == pytest.approx(value, abs=1e-8)
    assert four[0].grad.item() == pytest.approx(gradient, abs=1e-6)
    assert four[1].grad.item() == pytest.approx(-gradient, abs=1e-6)
    assert four[2].grad is None and four[3].grad is None


def literal(winner: float, loser: float, ref_winner: float, ref_loser: float, *, beta, margin, form) -> float:
    """The formula of losses.cpo for one sample, in plain Python."""
    d, r = winner - loser, ref_winner - ref_loser
    s = 1 / (1 + math.exp(-beta / 2 * (d - r)))
    if form == "hard":
        return s * max(0.0, d + margin)
    return 0.9 * s * max(0.0, d + margin) + 0.1 * (1 - s) * max(0.0, -d + margin)


@pytest.mark.parametrize("form", ["soft", "hard"])
def test_random_inputs_agree_with_a_literal_reading(form: str) -> None:
    generator = torch.Generator().manual_seed(1)
    four = 0.1 + 0.02 * torch.rand(4, 200, generator=generator, dtype=torch.float64)
    t = torch.randint(0, 3, (200,), generator=generator)
    settings = {"beta": 800.0, "margin": 0.004, "form": form}
    kept = [literal(*four[:, i].tolist(), **settings) for i in range(200) if t[i] > 0]
    assert cpo(*four, t, **settings).item() == pytest.approx(sum(kept) / len(kept), rel=1e-12)


@pytest.mark.parametrize(("form", "expected"), [("soft", 0.005520709), ("hard", 0.005544851)])
def test_mask_of_the_last_timestep(form: str, expected: float) -> None:
    four = [torch.tensor(v, dtype=torch.float64, requires_grad=True)
            for v in ([0.12, 0.10, 0.30], [0.118, 0.12, 0.31], [0.121, 0.1, 0.3], [0.12, 0.119, 0.31])]  # fmt: skip
    settings = {"beta": 5000.0, "margin": 0.01, "form": form}
    assert cpo(*four, torch.tensor([500, 0, 10]), **settings).item() == pytest.approx(expected, abs=1e-9)
    nothing = cpo(*four, torch.zeros(3, dtype=torch.long), **settings)
    nothing.backward()
    assert nothing.item() == 0 and not four[0].grad.any()


def test_gradient_is_2500_times_smaller_than_dpos() -> None:
    beta = 5000.0
    generator = torch.Generator().manual_seed(2)
    base = 0.1 + 0.001 * torch.rand(4, 50, generator=generator, dtype=torch.float64)
    ours, dpo = (base[0].clone().requires_grad_(), base[0].clone().requires_grad_())
    cpo(ours, *base[1:], torch.ones(50), beta=beta, margin=0.01, form="hard").backward()
    d, r = dpo - base[1], base[2] - base[3]
    (-torch.nn.functional.logsigmoid(-beta / 2 * (d - r))).mean().backward()
    torch.testing.assert_close(dpo.grad / ours.grad, torch.full((50,), 2500.0, dtype=torch.float64))


def test_same_noise_identity_and_symmetry() -> None:
    generator = torch.Generator().manual_seed(3)
    winner, loser, noise = torch.randn(3, 8, 4, 16, 16, generator=generator)
    d = denoising_error(winner, noise) - denoising_error(loser, noise)
    identity = ((winner - loser) * (winner + loser - 2 * noise)).flatten(1).mean(1)
    torch.testing.assert_close(d, identity, atol=1e-6, rtol=0)
    swapped = denoising_error(loser, noise) - denoising_error(winner, noise)
    assert torch.equal(d, -swapped)
    equal = denoising_error(winner, noise)
    soft = cpo(equal, equal, equal, equal, torch.ones(8), beta=5000, margin=0.01, form="soft")
    assert soft.item() == pytest.approx(0.5 * 0.01)


def test_unknown_form_names_the_forms() -> None:
    with pytest.raises(ValueError, match="soft, hard"):
        cpo(*tensors(1, 1, 1, 1), SOME_TIME, beta=1, margin=0, form="medium")


def test_ppo_terms() -> None:
    log_ratio = torch.tensor([0.30005, 0.2998, 0.3, 0.3002], dtype=torch.float64) - 0.3
    advantage = torch.tensor([1.5, -2, 7, -0.5], dtype=torch.float64).clamp(-5, 5)
    terms = ppo(log_ratio, advantage, clip=1e-4)
    assert terms.tolist() == pytest.approx([-1.500075, 1.9998, -5, 0.5001], abs=1e-6)
    assert terms.mean().item() == pytest.approx(-1.0000437, abs=1e-6)
    assert kl_estimate("k2", log_ratio).mean().item() == pytest.approx(1.03125e-8, rel=1e-6)
    assert ((log_ratio.exp() - 1).abs() > 1e-4).float().mean().item() == 0.5


@pytest.mark.parametrize(
    ("advantage", "ratio", "gradient"), [(1, 1.0002, 0), (1, 0.9998, -0.9998), (-1, 0.9998, 0), (-1, 1.0002, 1.0002)]
)
def test_ppo_gradients(advantage: float, ratio: float, gradient: float) -> None:
    log_ratio = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    ppo(log_ratio, torch.tensor([advantage], dtype=torch.float64), clip=1e-4).sum().backward()
    assert log_ratio.grad.item() == pytest.approx(gradient, abs=1e-9)


def test_before_the_first_update_ppo_is_the_score_function() -> None:
    """Ratio 1, in value the advantage and in gradient exactly -A."""
    advantage = torch.linspace(-3, 3, 7, dtype=torch.float64)
    log_prob = torch.randn(7, generator=torch.Generator().manual_seed(4), dtype=torch.float64).requires_grad_()
    first = ppo(log_prob - log_prob.detach(), advantage, clip=1e-4)
    (clipped,) = torch.autograd.grad(first.sum(), log_prob)
    (plain,) = torch.autograd.grad(score_function(log_prob, advantage).sum(), log_prob)
    assert torch.equal(clipped, plain) and torch.equal(plain, -advantage) and torch.equal(first.detach(), -advantage)


def test_kl_estimates_of_samples_agree_with_torch() -> None:
    """k1 and k3 have no bias; k2's is of third order; k3 never falls below 0 and varies least."""
    q, p = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.1, 1.05)
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    log_ratio = p.log_prob(x) - q.log_prob(x)
    exact = torch.distributions.kl_divergence(q, p).item()
    for form, tolerance in (("k1", 6e-4), ("k2", 6e-4), ("k3", 2e-4)):
        assert kl_estimate(form, log_ratio).mean().item() == pytest.approx(exact, abs=tolerance)
    k3 = kl_estimate("k3", log_ratio)
    assert k3.min() >= 0 and k3.std() < 0.25 * kl_estimate("k1", log_ratio).std()
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate("k4", log_ratio)


def test_gaussian_kl_is_torchs_averaged_over_elements() -> None:
    mean, reference = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    std = torch.tensor([0.02, 0.3, 2.0], dtype=torch.float64).view(3, 1, 1, 1)
    two = (torch.distributions.Normal(m, std.expand_as(m)) for m in (mean, reference))
    expected = torch.distributions.kl_divergence(*two).flatten(1).mean(1)
    torch.testing.assert_close(gaussian_kl(mean, reference, std), expected)
