"""CPO's loss against the probes of specs/cpo.md (P1, P2, P3, P5) and a literal reading of its formula."""

import math

import pytest
import torch

from lpo_platform.losses import cpo, denoising_error, preference_weight

# Lw, Ll, Rw, Rl, m -> s, soft loss, soft gradient, hard loss, hard gradient (beta = 5000)
P1 = [
    (0.120, 0.118, 0.121, 0.120, 0.01, 0.924142, 0.01004142, 0.824142, 0.01108970, 0.924142),
    (0.120, 0.118, 0.120, 0.118, 0.01, 0.500000, 0.00580000, 0.400000, 0.00600000, 0.500000),
    (0.120, 0.100, 0.120, 0.1005, 0.01, 0.777300, 0.02098710, 0.699570, 0.02331900, 0.777300),
]
SOME_TIME = torch.tensor([500])


def tensors(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in values]


@pytest.mark.parametrize("row", P1)
@pytest.mark.parametrize("form", ["soft", "hard"])
def test_p1_values_and_gradients(row: tuple[float, ...], form: str) -> None:
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
    """The formula of specs/cpo.md section 0, one sample, in plain Python."""
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
def test_p2_mask_of_the_last_timestep(form: str, expected: float) -> None:
    four = [torch.tensor(v, dtype=torch.float64, requires_grad=True)
            for v in ([0.12, 0.10, 0.30], [0.118, 0.12, 0.31], [0.121, 0.1, 0.3], [0.12, 0.119, 0.31])]  # fmt: skip
    settings = {"beta": 5000.0, "margin": 0.01, "form": form}
    assert cpo(*four, torch.tensor([500, 0, 10]), **settings).item() == pytest.approx(expected, abs=1e-9)
    nothing = cpo(*four, torch.zeros(3, dtype=torch.long), **settings)
    nothing.backward()
    assert nothing.item() == 0 and not four[0].grad.any()


def test_p3_gradient_is_2500_times_smaller_than_dpos() -> None:
    beta = 5000.0
    generator = torch.Generator().manual_seed(2)
    base = 0.1 + 0.001 * torch.rand(4, 50, generator=generator, dtype=torch.float64)
    ours, dpo = (base[0].clone().requires_grad_(), base[0].clone().requires_grad_())
    cpo(ours, *base[1:], torch.ones(50), beta=beta, margin=0.01, form="hard").backward()
    d, r = dpo - base[1], base[2] - base[3]
    (-torch.nn.functional.logsigmoid(-beta / 2 * (d - r))).mean().backward()
    torch.testing.assert_close(dpo.grad / ours.grad, torch.full((50,), 2500.0, dtype=torch.float64))


def test_p5_same_noise_identity_and_symmetry() -> None:
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
