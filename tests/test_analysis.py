"""Statistics and the compute multiplier, against scipy, hand calculation and known constants."""

import numpy as np
import pytest
from scipy import stats

from strata.ablations.analysis import (
    LearningCurve,
    compare,
    compute_multiplier,
    cost_to_reach,
    mean_interval,
)


def curve_of(loss_at, flops, flops_per_token=1e6):
    flops = np.asarray(flops, dtype=float)
    return LearningCurve(
        flops=flops,
        tokens=flops / flops_per_token,
        seconds=np.full(len(flops), np.nan),
        bits_per_byte=np.array([loss_at(x) for x in flops]),
    )


def power(factor=1.0):
    """A learning curve that gets `factor` times less out of its compute."""
    return lambda flops: 1.0 + 3.0 * (flops / factor / 1e9) ** -0.3


def test_the_t_interval_is_that_of_scipy():
    values = [1.31, 1.28, 1.36, 1.30]
    ours = mean_interval(values, 0.9)
    low, high = stats.t.interval(0.9, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (ours.estimate, ours.low, ours.high) == pytest.approx((np.mean(values), low, high))
    assert ours.n == 4


def test_one_value_has_no_finite_interval():
    interval = mean_interval([2.0])
    assert (interval.low, interval.high) == (-np.inf, np.inf)


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [[1.0, 2.0]]])
def test_a_mean_of_nothing_or_of_nan_is_refused(values):
    with pytest.raises(ValueError, match=r"expected a list|finite"):
        mean_interval(values)


def test_confidence_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match="confidence"):
        mean_interval([1.0, 2.0], 95)


def test_the_comparison_is_the_paired_test_of_scipy():
    losses = {
        "strata": {0: 1.30, 1: 1.34, 2: 1.28},
        "gelu": {0: 1.32, 1: 1.37, 2: 1.29},
        "gpt3": {2: 1.50, 0: 1.55, 1: 1.56},
    }
    base, gelu, gpt3 = compare(losses, "strata")
    for row, name in ((gelu, "gelu"), (gpt3, "gpt3")):
        theirs = [losses[name][seed] for seed in (0, 1, 2)]
        ours = [losses["strata"][seed] for seed in (0, 1, 2)]
        oracle = stats.ttest_rel(theirs, ours)
        low, high = oracle.confidence_interval(0.95)
        assert row.p_value == pytest.approx(oracle.pvalue)
        assert (row.difference.low, row.difference.high) == pytest.approx((low, high))
    assert base.difference.estimate == 0
    smaller = min(gelu.p_value, gpt3.p_value)
    assert min(gelu.p_adjusted, gpt3.p_adjusted) == pytest.approx(2 * smaller)


def test_a_seed_that_only_one_side_has_is_left_out_of_the_difference():
    row = compare({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.5, 1: 2.5, 7: 100.0}}, "a")[1]
    assert row.seeds == (0, 1)
    assert row.difference.estimate == pytest.approx(0.5)
    assert row.mean.n == 3


def test_one_common_seed_concludes_nothing():
    row = compare({"a": {0: 1.0}, "b": {0: 1.5}}, "a")[1]
    assert row.p_value == 1.0
    assert row.difference.high == np.inf


def test_equal_differences_are_certain_and_no_difference_is_none():
    rows = compare({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.5, 1: 2.5}, "c": {0: 1.0, 1: 2.0}}, "a")
    assert [row.p_value for row in rows[1:]] == [0.0, 1.0]


def test_a_comparison_without_base_or_common_seed_is_refused():
    with pytest.raises(ValueError, match="base 'x' has no runs"):
        compare({"a": {0: 1.0}}, "x")
    with pytest.raises(ValueError, match="share no seed"):
        compare({"a": {0: 1.0}, "b": {1: 1.0}}, "a")


def test_the_cost_between_two_points_is_interpolated_in_its_logarithm():
    curve = curve_of({10.0: 3.0, 1000.0: 1.0}.__getitem__, [10.0, 1000.0])
    assert cost_to_reach(curve, 2.0) == (pytest.approx(100.0), "exact")
    assert cost_to_reach(curve, 1.0) == (pytest.approx(1000.0), "exact")
    assert cost_to_reach(curve, 0.5) == (1000.0, "at least")
    assert cost_to_reach(curve, 3.5) == (10.0, "at most")


def test_a_curve_that_rises_again_counts_from_its_first_passage():
    losses = dict(zip([1.0, 10.0, 100.0], [3.0, 1.0, 2.0], strict=True))
    cost, bound = cost_to_reach(curve_of(losses.__getitem__, list(losses)), 2.0)
    assert (cost, bound) == (pytest.approx(10**0.5), "exact")


@pytest.mark.parametrize("factor", [1.0, 2.5, 7.0])
def test_curves_shifted_by_a_factor_in_compute_have_that_multiplier(factor):
    flops = np.geomspace(1e9, 1e12, 60)
    ours = {0: curve_of(power(), flops), 1: curve_of(power(), flops)}
    theirs = {0: curve_of(power(factor), flops), 1: curve_of(power(factor), flops)}
    result = compute_multiplier(ours, theirs)
    assert result.interval.estimate == pytest.approx(factor, rel=2e-3)
    assert result.bound == "exact"
    assert result.target == pytest.approx(float(power(factor)(1e12)))
    slower = compute_multiplier(theirs, ours)
    assert slower.interval.estimate == pytest.approx(1 / factor, rel=2e-3)


def test_tokens_and_compute_differ_where_a_token_costs_more():
    flops = np.geomspace(1e9, 1e12, 60)
    ours = {0: curve_of(power(), flops, flops_per_token=2e6)}
    theirs = {0: curve_of(power(3.0), flops, flops_per_token=1e6)}
    assert compute_multiplier(ours, theirs).by_seed[0] == pytest.approx(3, rel=2e-3)
    assert compute_multiplier(ours, theirs, axis="tokens").by_seed[0] == pytest.approx(6, rel=2e-3)


def test_a_target_that_the_baseline_never_reached_gives_a_lower_bound():
    flops = np.geomspace(1e9, 1e12, 60)
    ours = {0: curve_of(power(), flops)}
    theirs = {0: curve_of(power(4.0), flops)}
    result = compute_multiplier(ours, theirs, target=float(ours[0].bits_per_byte[-1]))
    assert result.bound == "at least"
    assert result.interval.estimate == pytest.approx(1.0, rel=1e-6)
    reverse = compute_multiplier(theirs, ours, target=float(ours[0].bits_per_byte[-1]))
    assert reverse.bound == "at most"
    with pytest.raises(ValueError, match="outside both"):
        compute_multiplier(ours, theirs, target=0.1)


def test_the_interval_of_the_multiplier_is_over_seeds_on_a_logarithmic_scale():
    flops = np.geomspace(1e9, 1e12, 400)
    factors = {0: 2.0, 1: 2.5, 2: 3.5, 9: 4.0}
    ours = {seed: curve_of(power(), flops) for seed in factors}
    theirs = {seed: curve_of(power(factor), flops) for seed, factor in factors.items()}
    result = compute_multiplier(ours, theirs)
    logs = np.log(list(factors.values()))
    low, high = stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs))
    expected = np.exp([logs.mean(), low, high])
    interval = result.interval
    assert (interval.estimate, interval.low, interval.high) == pytest.approx(expected, rel=1e-3)
    bootstrap = compute_multiplier(ours, theirs, method="bootstrap").interval
    assert interval.low < bootstrap.low < interval.estimate < bootstrap.high < interval.high


def test_a_multiplier_without_common_seeds_or_clock_is_refused():
    curve = curve_of(power(), np.geomspace(1e9, 1e12, 5))
    with pytest.raises(ValueError, match="no common seed"):
        compute_multiplier({0: curve}, {1: curve})
    with pytest.raises(ValueError, match="no seconds"):
        compute_multiplier({0: curve}, {0: curve}, axis="seconds")


def test_a_learning_curve_must_go_forward():
    with pytest.raises(ValueError, match="strictly increasing"):
        curve_of(power(), [2e9, 1e9])
    with pytest.raises(ValueError, match="differ in length"):
        LearningCurve(np.ones(1), np.ones(2), np.ones(1), np.ones(1))
