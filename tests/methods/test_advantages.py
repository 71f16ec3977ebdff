"""Advantages: values computed by hand, and what must hold for any rewards."""

import pytest
import torch

from lpo_platform.methods.advantages import Tracker, clip, standardise, standardise_groups

A, B = 11, 2**62 + 3  # keys are 63-bit integers


def approx(*values: float) -> object:
    return pytest.approx(list(values), abs=1e-6)


def test_over_the_round() -> None:
    expected = approx(-0.7628938, -0.4472136, -0.1315334, 0.1841468, 2.0782279, -0.9207339)
    assert standardise(torch.tensor([1, 2, 3, 4, 10, 0.5])).tolist() == expected


def test_tracker() -> None:
    keys, tracker = torch.tensor([A, B, A, B]), Tracker(4, 3)
    first = tracker(torch.tensor([1.0, 10.0, 3.0, 20.0]), keys)
    assert first.tolist() == approx(-1.0090091, 0.2018018, -0.7399400, 1.5471472)
    # second round: a has 1, 3, 2, 6 and b its newest four of 10, 20, 12, 18, 15
    second = tracker(torch.tensor([2.0, 6.0, 12.0, 18.0, 15.0]), torch.tensor([A, A, B, B, B]))
    of_a, of_b = (torch.tensor(v).double() for v in ([1.0, 3.0, 2.0, 6.0], [20.0, 12.0, 18.0, 15.0]))
    values = [(v - past.mean()) / past.std(correction=0) for past, news in ((of_a, (2, 6)), (of_b, (12, 18, 15)))
              for v in news]  # fmt: skip
    assert second.tolist() == approx(*(v.item() for v in values))


def test_integer_rewards_are_not_truncated() -> None:
    advantages = Tracker(16, 2)(torch.tensor([1, 2, 4]), torch.tensor([A, A, A]))
    assert advantages.tolist() == approx(-1.069044, -0.267261, 1.336305)
    for found in (standardise(torch.tensor([1, 2, 4])), standardise_groups(torch.tensor([1, 2, 4]), torch.zeros(3))):
        assert found.tolist() == pytest.approx([-1.069044, -0.267261, 1.336305], abs=2e-4)


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        ("group", (-0.9257772, -0.4628886, 1.3886659, -1.0187033, -0.3395678, 1.3582711)),
        ("batch", (-1.0076413, -0.5038206, 1.5114619, -0.1511462, -0.0503821, 0.2015283)),
    ],
)
def test_groups(spread: str, expected: tuple[float, ...]) -> None:
    """The specification prints .2015253 as the last number, with which the group would not sum to 0."""
    rewards, groups = torch.tensor([1, 2, 6, 0.2, 0.4, 0.9]), torch.tensor([A] * 3 + [B] * 3)
    assert standardise_groups(rewards, groups, spread=spread).tolist() == approx(*expected)
    mixed = torch.tensor([3, 0, 5, 1, 4, 2])
    assert standardise_groups(rewards[mixed], groups[mixed], spread=spread).tolist() == approx(
        *(expected[i] for i in mixed)
    )


def test_a_group_sums_to_zero_whatever_its_level() -> None:
    """Rewards of 1e4 and a spread of 1: in float32 alone the mean would be off by the third digit."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(0, 9, (500,), generator=generator)
    rewards = 1e4 * groups + torch.randn(500, generator=generator)
    for spread in ("group", "batch"):
        advantages = standardise_groups(rewards, groups, spread=spread).double()
        sums = torch.zeros(9, dtype=torch.float64).index_add_(0, groups, advantages)
        assert sums.abs().max() < 1e-5
    scaled = standardise_groups(rewards, groups).double()
    squares = torch.zeros(9, dtype=torch.float64).index_add_(0, groups, scaled**2)
    torch.testing.assert_close(squares / torch.bincount(groups, minlength=9), torch.ones(9).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
def test_equal_rewards_have_no_advantage(value: float) -> None:
    """Not the rounding error of the mean divided by 1e-8."""
    rewards, keys = torch.full((7,), value), torch.tensor([A] * 6 + [B])
    assert not standardise(rewards).any()
    assert not standardise_groups(rewards, keys).any()
    assert not Tracker(8, 2)(rewards, keys).any() and not Tracker(8, 8)(rewards, keys).any()
    alone = standardise_groups(torch.tensor([5.0, 5.0, 9.0]), torch.tensor([A, A, B]))
    assert alone.tolist() == [0, 0, 0]


def test_tracker_continues_from_its_state_and_forgets_the_oldest() -> None:
    generator = torch.Generator().manual_seed(1)
    rounds = [(torch.rand(12, generator=generator), torch.randint(0, 3, (12,), generator=generator)) for _ in range(4)]
    straight, cut = Tracker(6, 3), Tracker(6, 3)
    wanted = [straight(*each) for each in rounds]
    for each in rounds[:2]:
        cut(*each)
    resumed = Tracker(6, 3)
    resumed.load_state_dict(cut.state_dict())
    assert all(torch.equal(resumed(*each), advantages) for each, advantages in zip(rounds[2:], wanted[2:], strict=True))
    rewards, keys = (torch.cat(column) for column in zip(*rounds, strict=True))
    assert straight.state_dict() == {k: rewards[keys == k][-6:].double().tolist() for k in range(3)}


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="minimum <= size"):
        Tracker(4, 5)
    with pytest.raises(ValueError, match="group or batch"):
        standardise_groups(torch.ones(2), torch.zeros(2), spread="rows")


def test_clip() -> None:
    assert clip(torch.tensor([-7.0, -5, 0.5, 9]), 5.0).tolist() == [-5, -5, 0.5, 5]
