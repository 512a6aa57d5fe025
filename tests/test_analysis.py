"""Means and comparisons, against scipy and hand calculation."""

import numpy as np
import pytest
from scipy import stats

from strata.ablations.analysis import compare, mean_interval


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
