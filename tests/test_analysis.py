"""Means and comparisons, against scipy and hand calculation."""

import numpy as np
import pytest
from scipy import stats

from strata.ablations.analysis import compare, compare_pairs, mean_interval


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


# ------------------------------------------------------------- one variance for all variants


def experiment(effects, seeds, spread, seed_spread, generator):
    """Losses of as many variants as there are effects, with the noise of the two-way model."""
    shifts = generator.normal(0.0, seed_spread, seeds)
    return {
        f"v{number}": {
            seed: 2.0 + effect + shifts[seed] + generator.normal(0.0, spread)
            for seed in range(seeds)
        }
        for number, effect in enumerate(effects)
    }


def test_for_two_variants_the_pooled_comparison_is_the_paired_test_of_scipy():
    losses = experiment([0.0, 0.1], 4, 0.05, 0.3, np.random.default_rng(0))
    row = compare(losses, "v0", 0.9, "pooled")[1]
    oracle = stats.ttest_rel(list(losses["v1"].values()), list(losses["v0"].values()))
    low, high = oracle.confidence_interval(0.9)
    assert row.p_value == pytest.approx(oracle.pvalue)
    assert (row.difference.low, row.difference.high) == pytest.approx((low, high))
    assert row.degrees_of_freedom == 3


def test_the_pooled_variance_is_that_of_the_analysis_of_variance_in_blocks():
    losses = experiment([0.0, 0.1, 0.0, -0.2, 0.05], 3, 0.05, 0.3, np.random.default_rng(1))
    table = np.array([list(runs.values()) for runs in losses.values()])  # (variants, seeds)
    residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    degrees = (5 - 1) * (3 - 1)
    error = np.sqrt(2 / 3 * np.sum(residuals**2) / degrees)
    for row, means in zip(compare(losses, "v0", 0.95, "pooled")[1:], table[1:], strict=True):
        difference = means.mean() - table[0].mean()
        half = stats.t.ppf(0.975, degrees) * error
        assert row.degrees_of_freedom == degrees
        assert row.difference.estimate == pytest.approx(difference)
        assert row.difference.high == pytest.approx(difference + half)
        assert row.p_value == pytest.approx(2 * stats.t.sf(abs(difference) / error, degrees))


def test_a_missing_run_is_estimated_as_yates_did():
    losses = experiment([0.0, 0.1, 0.3], 4, 0.05, 0.3, np.random.default_rng(2))
    table = np.array([list(runs.values()) for runs in losses.values()])  # (3, 4)
    del losses["v2"][3]
    # Yates (1933): with this value in its place the complete table has the same fit
    variant, seed, total = table[2, :3].sum(), table[:2, 3].sum(), table.sum() - table[2, 3]
    table[2, 3] = (3 * variant + 4 * seed - total) / ((3 - 1) * (4 - 1))
    residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    row = compare(losses, "v0", 0.95, "pooled")[2]
    assert row.difference.estimate == pytest.approx(table[2].mean() - table[0].mean())
    assert row.degrees_of_freedom == (3 - 1) * (4 - 1) - 1
    # Montgomery, section 4.1.3: the error of a difference to the variant with the missing run
    variance = np.sum(residuals**2) / row.degrees_of_freedom
    error = np.sqrt(variance * (2 / 4 + 3 / (4 * (4 - 1) * (3 - 1))))
    half = stats.t.ppf(0.975, row.degrees_of_freedom) * error
    assert row.difference.high - row.difference.estimate == pytest.approx(half)
    assert row.seeds == (0, 1, 2)


@pytest.mark.parametrize("variance", ["paired", "pooled"])
def test_the_intervals_cover_and_the_pooled_ones_are_narrower(variance):
    generator = np.random.default_rng(3)
    effects, covered, widths, found = [0.0, 0.0, 0.01, 0.05, 0.0, 0.02], 0, [], 0
    for _ in range(300):
        rows = compare(experiment(effects, 3, 0.01, 0.05, generator), "v0", 0.9, variance)[1:]
        for row, effect in zip(rows, effects[1:], strict=True):
            covered += row.difference.low < effect < row.difference.high
            widths.append(row.difference.high - row.difference.low)
        found += rows[2].p_adjusted < 0.05
    assert covered / len(widths) == pytest.approx(0.9, abs=0.03)
    assert (np.mean(widths) < 0.04) == (variance == "pooled")
    assert (found / 300 > 0.8) == (variance == "pooled")  # of five standard errors, corrected


def test_the_correction_goes_over_all_pairs_that_are_shown():
    losses = experiment([0.0, 0.1, 0.2, 0.3], 3, 0.02, 0.1, np.random.default_rng(4))
    pairs = [("v1", "v0"), ("v2", "v3"), ("v0", "v3")]
    rows = compare_pairs(losses, pairs)
    assert [row.variant for row in rows] == ["v1", "v2", "v0"]
    assert rows[1].difference.estimate == pytest.approx(
        np.mean([losses["v2"][seed] - losses["v3"][seed] for seed in range(3)])
    )
    smallest = min(rows, key=lambda row: row.p_value)
    assert smallest.p_adjusted == pytest.approx(3 * smallest.p_value)
    with pytest.raises(ValueError, match="'absent' has no runs"):
        compare_pairs(losses, [("absent", "v0")])


def test_pooled_runs_of_one_seed_conclude_nothing_and_equal_ones_are_certain():
    row = compare({"a": {0: 1.0}, "b": {0: 1.5}, "c": {0: 2.5}}, "a", variance="pooled")[1]
    assert (row.p_value, row.difference.high, row.degrees_of_freedom) == (1.0, np.inf, 0)
    rows = compare({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.5, 1: 2.5}}, "a", variance="pooled")
    assert rows[1].p_value == 0.0
