"""What a preference between latents rests on: values in float64 of schedule, density, thresholds and selection."""

import math

import pytest
import torch
from torch import Tensor

from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.methods.preferences import select, thresholds

STEPS, STRIDE = 20, 50
TABLE = [
    0.0206, 0.0406, 0.1673, 0.2144, 0.2509, 0.2836, 0.3144, 0.3442, 0.3732, 0.4016,
    0.4293, 0.4565, 0.4829, 0.5087, 0.5336, 0.5576, 0.5807, 0.6029, 0.6241, 0.6444,
]  # fmt: skip
"""The original's standard deviations at t = 1, 51, ... 951 (section 3.2)."""


def at(*t: int) -> Tensor:
    return torch.tensor(t)


def sigmas(process: DDIM) -> Tensor:
    """(20,) at t = 951, 901, ... 1."""
    t = process.times(STEPS)
    return process.sigma(t, process.previous(t, STEPS, eta=1.0), 1.0).flatten()


def gaussian(prediction: str, t: int, x: float, output: float):
    """The step of 50 from x_t."""
    process = DDIM(prediction=prediction)
    one = torch.ones(1, 1, 1, 1)
    return process.step(output * one, at(t), process.previous(at(t), STEPS, eta=1.0), x * one, eta=1.0)


def test_timesteps_and_sigmas() -> None:
    process = DDIM()
    assert process.times(STEPS).tolist() == list(range(951, 0, -50))
    for t, value in {0: 0.99914998, 1: 0.99829602, 51: 0.95052409, 501: 0.27499884, 951: 0.00815500}.items():
        assert process.alphas_cumprod[t].item() == pytest.approx(value, abs=5e-7)
    found = dict(zip(process.times(STEPS).tolist(), sigmas(process).tolist(), strict=True))
    expected = {1: 0.020648, 51: 0.040597, 101: 0.167295, 251: 0.283555}
    expected |= {501: 0.429321, 701: 0.533580, 901: 0.624104, 951: 0.644391}
    assert {t: found[t] for t in expected} == pytest.approx(expected, abs=2e-6)
    assert max(abs(s - table) for s, table in zip(reversed(found.values()), TABLE, strict=True)) < 5e-5


def test_the_last_step_of_a_stochastic_chain_ends_at_level_0_and_not_below() -> None:
    process = DDIM()
    assert process.previous(at(951, 51, 1), STEPS, eta=1.0).tolist() == [901, 1, 0]
    assert process.previous(at(951, 51, 1), STEPS, eta=0.0).tolist() == [901, 1, -49]


@pytest.mark.parametrize(
    ("t", "a", "b"),
    [
        (951, 1.310472, -0.549635),
        (901, 1.283659, -0.508207),
        (501, 1.120973, -0.268818),
        (251, 1.057832, -0.196483),
        (51, 1.024821, -0.220478),
        (1, 1.000428, -0.020714),
    ],
)
def test_coefficients_of_a_transition(t: int, a: float, b: float) -> None:
    means = [gaussian("epsilon", t, x, e).mean.item() for x, e in ((1.0, 0.0), (0.0, 1.0))]
    assert means == pytest.approx([a, b], abs=2e-6)


@pytest.mark.parametrize(
    ("prediction", "t", "mean", "log_prob"),
    [
        ("epsilon", 951, 0.79264486, -0.66512872),
        ("epsilon", 501, 0.62769080, -0.21402469),
        ("epsilon", 51, 0.56753003, -6.22962022),
        ("epsilon", 1, 0.50539224, -10.06497855),
        ("v_prediction", 951, 0.39395048, -0.47953310),
        ("v_prediction", 501, 0.48128343, -0.09131175),
        ("v_prediction", 51, 0.54162857, -3.80025897),
        ("v_prediction", 1, 0.50496030, -9.95842498),
    ],
)
def test_log_densities(prediction: str, t: int, mean: float, log_prob: float) -> None:
    """The small sigmas are differences of abars near 1: float32 leaves 2e-4 at t = 1 and 2e-5 at t = 51."""
    found = gaussian(prediction, t, 0.5, -0.25)
    assert found.mean.item() == pytest.approx(mean, abs=2e-6)
    tolerance = {1: 2e-4, 51: 2e-5}.get(t, 2e-6)
    assert found.log_prob(torch.full((1, 1, 1, 1), 0.4)).item() == pytest.approx(log_prob, abs=tolerance)


@pytest.mark.parametrize(("t", "expected"), [(951, -0.979489), (501, -0.573389), (51, 1.785128), (1, 2.461181)])
def test_a_fresh_sample_has_the_expected_density(t: int, expected: float) -> None:
    step = gaussian("epsilon", t, 0.5, -0.25)
    noise = torch.randn(1, 4, 200, 200, generator=torch.Generator().manual_seed(0))
    noise = noise / noise.square().mean().sqrt()
    wide = type(step)(step.mean.expand(1, 4, 200, 200), step.std)
    assert wide.log_prob(wide.sample(noise)).item() == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.35, 0.5, {1: 0.3500, 51: 0.3548, 101: 0.3853, 251: 0.4132, 451: 0.4416, 501: 0.4483, 951: 0.5000}),
        (0.45, 0.6, {1: 0.4500, 51: 0.4548, 101: 0.4853, 251: 0.5132, 451: 0.5416, 501: 0.5483, 951: 0.6000}),
    ],
)
def test_thresholds_by_sigma(low: float, high: float, expected: dict[int, float]) -> None:
    """The released code has a table of 20 standard deviations; these follow from the schedule."""
    t = DDIM().times(STEPS)
    found = dict(zip(t.tolist(), thresholds("sigma", low, high, t, sigmas(DDIM())).tolist(), strict=True))
    assert {t: found[t] for t in expected} == pytest.approx(expected, abs=1e-4)


def test_the_other_rules_from_the_originals_table() -> None:
    t, table = DDIM().times(STEPS), torch.tensor(TABLE[::-1])

    def literal(values: list[float]) -> list[float]:
        return [0.35 + 0.15 * (v - min(values)) / (max(values) - min(values)) for v in values]

    def found(rule: str) -> list[float]:
        return thresholds(rule, 0.35, 0.5, t, table).tolist()

    assert found("sigma") == pytest.approx(literal(TABLE[::-1]), abs=1e-6)
    assert found("variance") == pytest.approx(literal([v**2 for v in TABLE[::-1]]), abs=1e-6)
    assert found("linear") == pytest.approx(literal(list(range(951, 0, -50))), abs=1e-6)
    assert found("constant") == pytest.approx([0.5] * 20)
    with pytest.raises(ValueError, match="constant, linear, sigma, variance"):
        found("cubic")


def test_thresholds_of_a_single_step_are_finite() -> None:
    found = thresholds("sigma", 0.35, 0.5, at(1), torch.tensor([0.02]))
    assert torch.isfinite(found).all() and found.item() == pytest.approx(0.35)


@pytest.mark.parametrize(("th", "t", "gap"), [(0.35, 1, 0.731), (0.5, 951, 1.099), (0.45, 1, 0.969), (0.6, 951, 1.386)])
def test_a_threshold_asks_for_that_gap_of_scores(th: float, t: int, gap: float) -> None:
    """Section 3.2: valid where the gap exceeds 2 atanh(th)."""
    assert 2 * math.atanh(th) == pytest.approx(gap, abs=1e-3)
    for more, expected in ((1e-4, True), (-1e-4, False)):
        scores = torch.tensor([[0.0], [2 * math.atanh(th) + more], [0.1]])
        assert select(scores, torch.tensor(th))[2].item() is expected


SCORES = torch.tensor([[1, 2], [2, 2.3], [0.9, 2.1], [1.5, 1.9]])


def test_selection() -> None:
    winner, loser, valid = select(SCORES, torch.tensor(0.5))
    assert winner.tolist() == [1, 1] and loser.tolist() == [2, 3]
    assert valid.tolist() == [True, False]
    for gap, right in ((0.5005, 0), (0.1974, 1)):
        assert select(SCORES, torch.tensor(gap - 1e-4))[2][right]
        assert not select(SCORES, torch.tensor(gap + 1e-4))[2][right]


def test_the_gap_is_that_of_a_softmax_of_two() -> None:
    scores = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    winner, loser, valid = select(scores, torch.tensor(0.6))
    two = torch.stack([scores.gather(0, rows[None])[0] for rows in (winner, loser)]).softmax(0)
    assert torch.equal(valid, two[0] - two[1] > 0.6) and 0 < valid.sum() < 40


def test_equal_scores_are_never_a_preference() -> None:
    assert not select(torch.zeros(4, 3), torch.tensor(0.0))[2].any()


def test_only_differences_count() -> None:
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    moved = scores + torch.linspace(-2, 2, 30)
    for ours, theirs in zip(select(scores, torch.tensor(0.5)), select(moved, torch.tensor(0.5)), strict=True):
        assert torch.equal(ours, theirs)


def test_every_step_has_its_own_threshold() -> None:
    """(K, T, B) scores with (T, 1) thresholds, as a rollout has them."""
    scores = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]).expand(2, 3, 2)
    assert select(scores, torch.tensor([[0.4], [0.47], [0.4]]))[2].tolist() == [
        [True, False],
        [False, False],
        [True, False],
    ]
