"""Intervals against normal theory, the Frechet distance against scipy's matrix root, the table as text."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from toys.frechet import frechet_distance

from lpo_platform.evaluation.frechet import compare_frechet, moments
from lpo_platform.evaluation.result_table import cautions, many, not_finite, number, passed, table
from lpo_platform.evaluation.significance import bootstrap_interval, bootstrap_p, holm, reconciled, swap_p, swaps
from lpo_platform.evaluation.statistics import (
    alone,
    beside_real,
    compare,
    compare_pooled,
    compare_sets,
    entry,
    mean_interval,
    paired_interval,
    statistic_interval,
    verdict,
)


def metric(low: float, high: float, *, higher: bool = True) -> dict:
    return entry(0.5, 0.5 + (low + high) / 2, (low, high), higher_is_better=higher)


def test_interval_of_a_mean_is_the_normal_one_for_many_items() -> None:
    values = np.random.default_rng(1).exponential(2.0, 4000)
    low, high = mean_interval(values)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_ninety_five_of_a_hundred_intervals_hold_the_true_difference() -> None:
    generator, inside = np.random.default_rng(2), 0
    for seed in range(400):
        before = generator.normal(0, 3, 60)
        after = before + generator.normal(0.2, 0.5, 60)
        low, high = paired_interval(before, after, resamples=1000, seed=seed)
        inside += low <= 0.2 <= high
    assert 367 <= inside <= 393  # binomial(400, .95) has a standard deviation of 4.4


def test_pairing_removes_the_spread_between_items() -> None:
    generator = np.random.default_rng(3)
    before = generator.normal(0, 10, 100)
    low, high = paired_interval(before, before + 0.1 + generator.normal(0, 0.01, 100))
    assert 0.09 < low < high < 0.11


def test_same_seed_same_interval_and_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(size=50)
    whole = mean_interval(values, seed=5)
    assert whole == mean_interval(values, seed=5) != mean_interval(values, seed=6)
    monkeypatch.setattr("lpo_platform.evaluation.significance.CHUNK", 1000)
    assert mean_interval(values, seed=5) == whole


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same items"):
        paired_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="one number per item"):
        mean_interval(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="metrics differ"):
        compare({"a": [1.0]}, {"b": [1.0]}, {"a": True})


def test_win_rate_counts_ties_half_and_knows_the_direction() -> None:
    before, after = [1.0] * 8 + [math.nan], [2.0] * 4 + [1.0] * 2 + [0.0] * 2 + [math.nan]
    for higher, share in ((True, 5 / 8), (False, 3 / 8)):
        assert compare({"m": before}, {"m": after}, {"m": higher})["m"]["wins"][0] == pytest.approx(share)
    assert math.isnan(compare({"m": []}, {"m": []}, {"m": True})["m"]["wins"][0])


def test_compare_has_the_form_of_result_json() -> None:
    generator = np.random.default_rng(5)
    before = {"x/up": generator.normal(size=200), "x/rmse": generator.normal(size=200)}
    after = {"x/up": before["x/up"] + 1, "x/rmse": before["x/rmse"] + generator.normal(0, 1, 200)}
    before["x/up"][0] = after["x/up"][0] = math.nan
    result = compare(before, after, {"x/up": True, "x/rmse": False})
    assert list(result) == ["x/up", "x/rmse"]
    for value in result.values():
        assert list(value) == ["before", "after", "difference", "ci95", "higher_is_better", "p", "items", "wins"]
        assert value["difference"] == pytest.approx(value["after"] - value["before"])
        assert value["ci95"][0] <= value["difference"] <= value["ci95"][1]
    assert result["x/up"]["difference"] == pytest.approx(1.0)
    assert verdict(result["x/up"]) == "better" and verdict(result["x/rmse"]) == "unclear"
    json.dumps(result, allow_nan=False)


def test_five_items_have_no_verdict_and_six_have_one() -> None:
    """However large the difference: of 2^5 swaps the two most extreme are 6.25 %, of 2^6 they are 3.1 %."""
    generator = np.random.default_rng(20)
    counts = lambda n: generator.integers(1, 9, (n, 2)).astype(float)  # noqa: E731
    for n, word in ((1, "too few"), (2, "too few"), (5, "too few"), (6, "better")):
        few = counts(n)
        found = [
            compare({"m": np.arange(n) / 10}, {"m": np.arange(n) / 10 + 5}, {"m": True})["m"],
            compare_pooled(few, few + np.array([90, 0]), lambda s: s[:, 0] / s.sum(1), higher_is_better=True),
            compare_frechet(few, few * 9 + 40, few, resamples=2000),
        ]
        assert [verdict(metric) for metric in found] == [word] * 3
        assert all(math.isnan(metric["p"]) == (n < 6) for metric in found)
        assert ("too few items for a verdict" in table({"m": found[0]})) == (n < 6)
    assert verdict({"ci95": [None, None], "higher_is_better": True}) == "too few"
    assert verdict({"ci95": [0.1, 0.2], "higher_is_better": True, "items": 5}) == "too few"


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_named_and_have_no_verdict(wrong: float) -> None:
    """One item of 200 is enough, on either side and in every kind of metric; the other metrics keep theirs."""
    values = np.random.default_rng(21).uniform(1, 2, (200, 3))
    broken = values + 5
    broken[7, 1] = wrong
    pool = lambda sums: sums[:, 0] / sums.sum(1)  # noqa: E731
    for sides, named in (((values, broken), "after"), ((broken, values), "before")):
        found = {
            **compare(*({"m": side[:, 1], "n": side[:, 0]} for side in sides), {"m": True, "n": True}),
            "pooled": compare_pooled(*sides, pool, higher_is_better=True),
            "distance": compare_frechet(values, *sides),
        }
        rows = np.concatenate(sides)
        found["set"] = compare_sets(lambda i, rows=rows: rows[i].mean(), 200, higher_is_better=True)
        assert [name for name, metric in found.items() if verdict(metric) == "not finite"] == [
            "m", "pooled", "distance", "set",
        ]  # fmt: skip
        assert verdict(found["n"]) in ("better", "worse") and math.isfinite(found["n"]["p"])
        for name in ("m", "pooled", "distance", "set"):
            assert found[name]["not_finite"] == [named] and math.isnan(found[name][named])
            assert math.isnan(found[name]["p"]) and math.isnan(found[name]["ci95"][0])
        shown = table(found, unicode=False)
        assert shown.count("not finite") == 4
        assert f"m has no verdict: a number of the model {named} is" in not_finite(found)[0]
        json.dumps(found["n"], allow_nan=False)


@pytest.mark.parametrize(
    ("low", "high", "higher", "word"),
    [(0.1, 0.2, True, "better"), (0.1, 0.2, False, "worse"), (-0.2, -0.1, True, "worse"),
     (-0.2, -0.1, False, "better"), (-0.1, 0.1, True, "unclear"), (0.0, 0.1, True, "unclear")],
)  # fmt: skip
def test_verdict_needs_an_interval_without_zero(low: float, high: float, higher: bool, word: str) -> None:
    assert verdict(metric(low, high, higher=higher)) == word


def test_frechet_distance_equals_the_root_by_scipy() -> None:
    generator = np.random.default_rng(6)
    a, b = generator.normal(size=(300, 12)), generator.normal(size=(200, 12)) @ generator.normal(size=(12, 12)) + 0.3
    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_in_closed_form() -> None:
    identity = np.eye(3)
    assert frechet_distance([0, 0, 0], identity, [0, 3, 4], identity) == pytest.approx(25.0)
    assert frechet_distance([0, 0, 0], 4 * identity, [0, 0, 0], 9 * identity) == pytest.approx(3.0)
    singular = np.diag([1.0, 0.0, 0.0])
    assert frechet_distance([0, 0, 0], singular, [0, 0, 0], singular) == pytest.approx(0.0, abs=1e-12)


def test_interval_of_a_statistic_agrees_with_that_of_the_mean() -> None:
    values = np.random.default_rng(7).normal(3, 1, 300)
    by_index = statistic_interval(lambda i: float(values[i].mean()), len(values), resamples=4000)
    assert by_index == pytest.approx(mean_interval(values, resamples=4000), abs=0.005)


def test_frechet_comparison_sees_a_change_and_only_a_change() -> None:
    generator = np.random.default_rng(8)
    real, noise = generator.normal(size=(400, 6)), generator.normal(size=(300, 6))
    worse, close = noise * 1.6 + 0.5, noise * 1.05
    changed = compare_frechet(real, worse, close, resamples=200)
    assert verdict(changed) == "better" and changed["ci95"][0] < changed["difference"] < changed["ci95"][1]
    assert changed["before"] == pytest.approx(frechet_distance(*moments(real), *moments(worse)))
    same = compare_frechet(real, close, generator.normal(size=(300, 6)) * 1.05, resamples=200)
    assert verdict(same) == "unclear"


def test_table_is_aligned_and_ascii_where_the_terminal_is() -> None:
    metrics = {
        "canny/f1": metric(0.05, 0.09),
        "text/alignment": metric(-0.01, 0.012),
        "fid": metric(2, 4, higher=False),
    }
    plain, fancy = table(metrics, unicode=False), table(metrics, unicode=True)
    assert plain.isascii() and "\u2191 better" in fancy and "\u2191 worse" in fancy
    lines = plain.splitlines()
    assert lines[0].split("  ")[0] == "metric" and "difference [95 % interval]" in lines[0]
    assert "unclear (interval contains 0)" in lines[3] and lines[2].endswith("better") and lines[4].endswith("worse")
    assert len({line.index("[") for line in (lines[0], lines[2])}) == 2
    assert len({line.rindex("better") for line in lines if line.endswith("better")}) == 1
    assert "+0.070 [+0.050, +0.090]" in lines[2]


def test_numbers_for_people() -> None:
    assert number(-0.00001, 3, sign=True) == "0.000" and number(None, 2) == "n/a" and number(math.inf, 2) == "n/a"
    assert number(1.2345, 2, sign=True) == "+1.23"


def flips(values: np.ndarray, resamples: int) -> float:
    signs = np.concatenate(list(swaps(len(values), resamples=resamples, seed=0)))
    return swap_p(values.mean(), signs @ values / len(values))


def test_swapped_sides_agree_with_every_sign_and_with_scipy() -> None:
    """Of n differences that all point one way, 2 of 2^n signs are as extreme."""
    assert flips(np.array([1.0, 2.0, 0.5, 3.0, 1.5]), 200_000) == pytest.approx(2 / 32, abs=0.002)
    for shift in (0.0, 0.3):
        values = np.random.default_rng(11).normal(shift, 1, 40)
        expected = scipy.stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=50_000, rng=np.random.default_rng(1)
        ).pvalue
        assert flips(values, 50_000) == pytest.approx(expected, abs=0.01)
    assert flips(np.full(50, 0.1), 10_000) == pytest.approx(1 / 10_001) and flips(np.zeros(9), 100) == 1


def test_swapping_a_set_statistic_is_swapping_its_items() -> None:
    """Of a mean, all three kinds of metric are the same difference, and p-values of the same test."""
    generator = np.random.default_rng(22)
    before = generator.normal(size=30)
    after = before + generator.normal(0.25, 0.6, 30)
    rows, options = np.concatenate([before, after]), {"higher_is_better": True, "resamples": 4000}
    counts = [np.stack([side, np.ones(30)], 1) for side in (before, after)]
    found = [
        compare({"m": before}, {"m": after}, {"m": True})["m"],
        compare_sets(lambda i: rows[i].mean(), 30, **options),
        compare_pooled(*counts, lambda sums: sums[:, 0] / sums[:, 1], **options),
    ]
    for metric in found[1:]:
        assert metric["difference"] == pytest.approx(found[0]["difference"])
        assert metric["p"] == pytest.approx(found[0]["p"], abs=0.012)
        assert metric["ci95"] == pytest.approx(found[0]["ci95"], abs=0.02)


def test_the_interval_of_few_items_is_as_wide_as_students() -> None:
    """At 6 items of a nearly normal resample, and at 100 the percentiles of the resamples themselves."""
    values = np.random.default_rng(23).normal(size=200_000)
    few, many_items = bootstrap_interval(values, 6), bootstrap_interval(values, 100)
    half = math.sqrt(6 / 5) * scipy.stats.t.ppf(0.975, 5)
    assert few == pytest.approx((-half, half), rel=0.03)
    assert many_items == tuple(np.quantile(values, [0.025, 0.975]))


@pytest.mark.parametrize("count", [6, 30, 100, 1000])
def test_the_bootstrap_p_value_is_the_level_at_which_its_interval_leaves_0(count: int) -> None:
    values = np.random.default_rng(24).normal(2.0, 1, 100_000)
    p = bootstrap_p(values, count)
    for level, excluded in ((1 - 1.03 * p, True), (1 - 0.97 * p, False)):
        assert (bootstrap_interval(values, count, level=level)[0] > 0) == excluded
    assert bootstrap_p(-values, count) == pytest.approx(p) and bootstrap_p(values - 2, count) > 0.9


def test_interval_and_p_value_never_disagree() -> None:
    """Over random intervals and p-values, and over comparisons whose difference is just about clear."""
    generator = np.random.default_rng(25)
    for _ in range(300):
        low, p = generator.normal(), generator.choice([0.05, generator.random() / 5])
        (low, high), p = reconciled((low, low + generator.random()), p)
        assert (low > 0 or high < 0) == (p < 0.05)
    for n in (6, 9, 15, 40, 120):
        for _ in range(30):
            before = generator.normal(size=n)
            after = before + generator.normal(2.1 / math.sqrt(n), 1, n)
            metric = compare({"m": before}, {"m": after}, {"m": True}, resamples=500)["m"]
            assert (verdict(metric) != "unclear") == (metric["p"] < 0.05)
    # the case that was "better" beside p = .49
    assert verdict(compare({"m": [1, 1]}, {"m": [2, 2]}, {"m": True})["m"]) == "too few"


def test_holm_by_hand() -> None:
    """k = 4: .01 x 4, .03 x 3, then .04 x 2, which may not be below .09, and .05 x 1 likewise."""
    found = holm({"a": 0.03, "b": 0.01, "none": math.nan, "c": 0.05, "d": 0.04})
    assert [found[n] for n in "bacd"] == pytest.approx([0.04, 0.09, 0.09, 0.09]) and math.isnan(found["none"])
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_the_line_under_a_table_counts_the_comparisons() -> None:
    metrics = {"up": {"p": 0.0001}, "maybe": {"p": 0.04}, "old": {}, "flat": {"p": None}}
    said = many(metrics)
    assert said.startswith("2 metrics at 95 %: about one in 20 would leave 0 by chance.")
    assert "clear are up (p < 0.001), maybe (p = 0.040)." in said
    assert "none is clear" in many({"a": {"p": 0.04}, "b": {"p": 0.6}}) and many({"a": {"p": 0.01}}) == ""


def test_wins_are_a_share_with_an_interval() -> None:
    """63 of 100 items got better: the interval of the share is that of a binomial, by its normal approximation."""
    after = np.where(np.arange(100) < 63, 1.0, -1.0)
    share, low, high = compare({"a": np.zeros(100)}, {"a": after}, {"a": True})["a"]["wins"]
    assert share == 0.63 and (low, high) == pytest.approx((0.63 - 0.0946, 0.63 + 0.0946), abs=0.012)
    assert "63 % [5" in table(compare({"a": np.zeros(100)}, {"a": after}, {"a": True}), unicode=False)


def test_p_of_a_set_statistic_goes_with_its_interval() -> None:
    generator = np.random.default_rng(12)
    counts = generator.integers(0, 9, (80, 2)).astype(float)
    pool = lambda sums: sums[:, 0] / sums.sum(1)  # noqa: E731
    better = compare_pooled(counts, counts + np.array([4, 0]), pool, higher_is_better=True)
    same = compare_pooled(counts, counts[::-1], pool, higher_is_better=True)
    assert better["ci95"][0] > 0 and better["p"] < 0.01 and same["p"] > 0.5


@pytest.mark.parametrize(
    ("before", "after", "real", "said"),
    [(0.12, 0.21, 0.17, "rose past"), (0.18, 0.25, 0.17, "rose further away from"), (0.12, 0.16, 0.17, None),
     (0.25, 0.18, 0.17, None), (0.25, 0.12, 0.17, "fell past"), (0.15, 0.12, 0.17, "fell further away from"),
     (0.2, 0.2, 0.17, None)],
)  # fmt: skip
def test_a_guard_that_passes_the_real_value_is_named(before: float, after: float, real: float, said: str) -> None:
    """And one that moves away from it; one that comes nearer, or does not move, is not."""
    noise = np.random.default_rng(14).normal(0, 0.01, (3, 200))
    sides = [before + noise[0], after + noise[0] + noise[1] * (before != after), real + noise[2]]
    metrics = compare({"guard/area": sides[0]}, {"guard/area": sides[1]}, {"guard/area": None})
    plain = table(metrics, unicode=False)
    metrics["guard/area"] |= beside_real(sides[2], sides[1])
    assert passed(metrics) == cautions(metrics) and bool(passed(metrics)) == (said is not None)
    if said:
        assert passed(metrics)[0].startswith(f"guard/area {said} the real pictures, from 0.")
    head, _, row = table(metrics, unicode=False).splitlines()
    assert head.split()[:4] == ["metric", "before", "after", "real"]
    assert float(row.split()[3]) == pytest.approx(sides[2].mean(), abs=1e-3)
    assert " real" not in plain


def test_one_model_alone_has_values_and_no_verdict() -> None:
    values = np.random.default_rng(13).normal(3, 1, 100)
    metrics = alone(compare({"a": values}, {"a": values}, {"a": True}), {"a": values})
    assert metrics["a"]["own_ci95"] == pytest.approx(list(mean_interval(values))) and "wins" not in metrics["a"]
    assert math.isnan(metrics["a"]["before"]) and verdict(metrics["a"]) == "too few"
    shown = table(metrics, unicode=False)
    assert "n/a" not in shown and "unclear" not in shown and shown.startswith("metric  value  [95 % interval]")
