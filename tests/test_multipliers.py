"""The compute and the parameter multiplier, against hand calculation and curves of known shift."""

import numpy as np
import pytest
from scipy import stats

from strata.ablations.multipliers import (
    LearningCurve,
    SizeCurve,
    compute_multiplier,
    cost_to_reach,
    parameter_multiplier,
    size_to_reach,
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


def test_the_cost_between_two_points_is_interpolated_in_its_logarithm():
    curve = curve_of({10.0: 3.0, 1000.0: 1.0}.__getitem__, [10.0, 1000.0])
    assert cost_to_reach(curve, 2.0) == (pytest.approx(100.0), "exact")
    assert cost_to_reach(curve, 1.0) == (pytest.approx(1000.0), "exact")
    assert cost_to_reach(curve, 0.5) == (1000.0, "at least")
    assert cost_to_reach(curve, 3.5) == (10.0, "at most")
    assert cost_to_reach(curve, 3.0) == (10.0, "at most")


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


# ------------------------------------------------------------------------- over sizes


def sizes_of(factor=1.0, sizes=(1e5, 2e5, 4e5, 8e5, 1.6e6), tokens=1e6, count="parameters"):
    """A recipe that gets `factor` times less out of its parameters; straight in their logarithm."""
    sizes = np.asarray(sizes)
    return SizeCurve(sizes, 5.0 - 0.2 * np.log(sizes / factor), tokens, count)


@pytest.mark.parametrize("factor", [1.0, 1.7, 3.0])
def test_recipes_shifted_by_a_factor_in_size_have_that_parameter_multiplier(factor):
    ours, theirs = {0: sizes_of()}, {0: sizes_of(factor)}
    found = parameter_multiplier(ours, theirs)
    assert found.by_seed[0] == pytest.approx(factor)
    assert (found.bound, found.axis) == ("exact", "parameters")
    assert found.target == pytest.approx(theirs[0].bits_per_byte[-1])
    assert parameter_multiplier(theirs, ours).by_seed[0] == pytest.approx(1 / factor)


def test_the_interval_of_the_parameter_multiplier_is_students_on_its_logarithm():
    factors = {0: 1.8, 1: 2.0, 2: 2.4}
    found = parameter_multiplier(
        {seed: sizes_of() for seed in factors},
        {seed: sizes_of(factor) for seed, factor in factors.items()},
    )
    logs = np.log(list(factors.values()))
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    interval = found.interval
    assert (interval.low, interval.high) == pytest.approx((np.exp(low), np.exp(high)))


def test_a_baseline_that_no_size_brings_to_the_loss_gives_a_lower_bound():
    ours, theirs = {0: sizes_of()}, {0: sizes_of(4.0)}
    target = float(ours[0].bits_per_byte[3])  # 8e5 parameters; the baseline would need 3.2e6
    found = parameter_multiplier(ours, theirs, target=target)
    assert (found.bound, found.by_seed[0]) == ("at least", pytest.approx(1.6e6 / 8e5))
    below = float(theirs[0].bits_per_byte[0]) + 0.1  # all of ours are better than that
    with pytest.raises(ValueError, match="outside both"):
        parameter_multiplier(ours, theirs, target=below)
    found = parameter_multiplier(ours, theirs, target=float(theirs[0].bits_per_byte[1]))
    assert (found.bound, found.by_seed[0]) == ("at least", pytest.approx(2.0))


def test_a_recipe_of_one_size_does_not_say_how_few_parameters_would_have_done():
    one = SizeCurve(np.array([1.6e6]), sizes_of(3.0).bits_per_byte[-1:], 1e6)
    assert size_to_reach(one, float(one.bits_per_byte[0])) == (1.6e6, "at most")
    found = parameter_multiplier({0: sizes_of()}, {0: one})
    assert (found.bound, found.by_seed[0]) == ("at most", pytest.approx(3.0))
    assert parameter_multiplier({0: one}, {0: sizes_of()}).bound == "at least"


def test_a_larger_model_that_came_out_worse_is_taken_for_noise():
    curve = SizeCurve(np.array([1e5, 2e5, 4e5, 8e5]), np.array([3.0, 2.5, 2.7, 2.2]), 1e6)
    assert curve.falling.tolist() == pytest.approx([3.0, 2.6, 2.6, 2.2])
    size, bound = size_to_reach(curve, 2.4)
    assert (size, bound) == (pytest.approx(4e5 * 2**0.5), "exact")


def test_sizes_of_different_tokens_or_counts_are_not_compared():
    with pytest.raises(ValueError, match=r"equal tokens.*1000000.0 and 2000000.0"):
        parameter_multiplier({0: sizes_of()}, {0: sizes_of(tokens=2e6)})
    with pytest.raises(ValueError, match="equal count"):
        parameter_multiplier({0: sizes_of()}, {0: sizes_of(count="body_parameters")})
    with pytest.raises(ValueError, match="strictly increasing"):
        sizes_of(sizes=(2e5, 1e5))
    with pytest.raises(ValueError, match="losses"):
        SizeCurve(np.ones(1), np.ones(2), 1.0)


def test_curves_are_equal_when_their_numbers_are():
    flops = np.geomspace(1e9, 1e12, 5)
    assert curve_of(power(), flops) == curve_of(power(), flops)
    assert curve_of(power(), flops) != curve_of(power(2.0), flops)
