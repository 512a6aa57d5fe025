"""What a fit says beyond its runs: against a search, marked as extrapolation, or refused."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize

from strata.ablations.extrapolation import GPT3_TOKENS, reach, reach_gpt3
from strata.ablations.scaling import CHINCHILLA, CHINCHILLA_REFIT, ScalingLaw, fit_scaling_law
from strata.evaluation.reference import GPT3_SIZES

MACHINE = {"flops_per_second": 1e15, "utilisation": 0.4}


def fit_of(law, noise=0.0, samples=0, sizes=(5e7, 1e10), tokens=(1e9, 3e11)):
    n, d = (g.ravel() for g in np.meshgrid(np.geomspace(*sizes, 5), np.geomspace(*tokens, 5)))
    loss = law.loss(n, d) * np.exp(noise * np.random.default_rng(0).standard_normal(25))
    return fit_scaling_law(n, d, loss, bootstrap_samples=samples)


@pytest.fixture(scope="module")
def noisy():
    return fit_of(CHINCHILLA_REFIT, noise=0.002, samples=40)


def test_what_a_loss_takes_is_what_a_search_finds():
    target = 2.2
    found = reach(fit_of(CHINCHILLA_REFIT), target, **MACHINE)

    def flops(log_n):  # of the tokens that this size needs for the loss
        n = np.exp(log_n)
        left = target - CHINCHILLA_REFIT.E - CHINCHILLA_REFIT.A / n**CHINCHILLA_REFIT.alpha
        return 6 * n * (CHINCHILLA_REFIT.B / left) ** (1 / CHINCHILLA_REFIT.beta)

    search = optimize.minimize_scalar(flops, bounds=(21, 30), method="bounded")
    assert found.flops.estimate == pytest.approx(search.fun, rel=1e-3)
    assert found.parameters.estimate == pytest.approx(np.exp(search.x), rel=1e-2)
    n, d = found.parameters.estimate, found.tokens.estimate
    assert float(CHINCHILLA_REFIT.loss(n, d)) == pytest.approx(target, rel=1e-4)
    assert found.gpu_hours.estimate == pytest.approx(search.fun / 0.4e15 / 3600, rel=1e-3)
    assert (found.parameters.low, found.parameters.high) == (0.0, np.inf)  # no bootstrap


def test_an_answer_inside_the_runs_is_none_and_one_beyond_says_how_far():
    fit = fit_of(CHINCHILLA_REFIT)
    inside = reach(fit, float(CHINCHILLA_REFIT.loss(1e9, 2e10)), **MACHINE)
    assert (inside.extrapolated, inside.decades_beyond) == (False, 0.0)
    assert inside.refusal == ""
    n, d = CHINCHILLA_REFIT.optimum(1e25)
    beyond = reach(fit, float(CHINCHILLA_REFIT.loss(n, d)), **MACHINE)
    assert beyond.extrapolated
    expected = max(np.log10(n / 1e10), np.log10(d / 3e11), np.log10(n * d / 3e21))
    assert beyond.decades_beyond == pytest.approx(expected, abs=0.01)


def test_the_intervals_hold_the_truth_and_widen_with_the_distance(noisy):
    widths = []
    for compute in (1e21, 1e25):
        target = float(CHINCHILLA_REFIT.loss(*CHINCHILLA_REFIT.optimum(compute)))
        found = reach(noisy, target, **MACHINE)
        assert found.flops.low < compute < found.flops.high
        widths.append(found.flops.high / found.flops.low)
    assert widths[1] > 2 * widths[0]


def test_a_loss_near_the_limit_may_need_infinitely_much(noisy):
    lowest = sorted(law.E for law in noisy.samples)
    found = reach(noisy, (noisy.law.E + lowest[-1]) / 2, **MACHINE)
    assert found.flops.high == np.inf
    assert np.isfinite(found.flops.estimate)


def test_what_the_fit_does_not_bear_is_refused_with_the_reason(noisy):
    below = reach(noisy, 0.9 * noisy.law.E, **MACHINE)
    assert "irreducible loss" in below.refusal
    assert below.flops is below.gpu_hours is None
    few = reach(fit_of(CHINCHILLA, sizes=(1e9, 1e9)), 2.0, **MACHINE)
    assert "cannot show a bend" in few.refusal
    no_bend = replace(noisy, undetermined=("alpha is hardly determined",))
    assert reach(no_bend, 2.2, **MACHINE).refusal == "alpha is hardly determined"
    doubt = replace(noisy, problems=("the irreducible loss E is not determined",))
    assert reach(doubt, 2.2, **MACHINE).cautions == doubt.problems


def test_gpt3s_loss_equivalent_is_that_of_the_baselines_own_fit(noisy):
    worse = ScalingLaw(CHINCHILLA_REFIT.E, 900.0, 4000.0, 0.3478, 0.3658)
    baseline = fit_of(worse, noise=0.002, samples=40)
    found = reach_gpt3(noisy, baseline, **MACHINE)
    assert list(found) == [size.name for size in GPT3_SIZES]
    for size in GPT3_SIZES:
        answer = found[size.name]
        truth = float(worse.loss(size.parameters, GPT3_TOKENS))
        assert answer.target.low < truth < answer.target.high
        n, d = CHINCHILLA_REFIT.cheapest(truth)
        assert answer.flops.low < 6 * n * d < answer.flops.high
    assert found["Small"].decades_beyond < found["175B"].decades_beyond
    assert found["175B"].decades_beyond > np.log10(174.6e9 / 1e10) - 1e-9
    refused = reach_gpt3(noisy, fit_of(worse, sizes=(1e9, 1e9)), **MACHINE)["XL"]
    assert "the baseline's fit does not bear it" in refused.refusal


def test_the_two_bootstraps_are_combined_as_independent_ones(noisy):
    turned = replace(noisy, samples=noisy.samples[::-1])
    one, other = (reach_gpt3(noisy, baseline, **MACHINE) for baseline in (noisy, turned))
    assert one == other


@pytest.mark.parametrize("wrong", [{"flops_per_second": 0.0}, {"utilisation": 40.0}])
def test_a_machine_that_is_none_is_refused(noisy, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        reach(noisy, 2.2, **{**MACHINE, **wrong})
