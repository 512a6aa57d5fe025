"""Iso-FLOP valleys: known bottoms and exponents come back, and a missing bottom is said."""

import numpy as np
import pytest

from strata.ablations.isoflop import HOFFMANN_ALLOCATIONS, allocation_of, fit_isoflop
from strata.ablations.scaling import CHINCHILLA, CHINCHILLA_REFIT, fit_scaling_law

COMPUTES = (1e15, 4e15, 1.6e16, 6.4e16)


def valleys(a=0.45, noise=0.0, seed=0, sizes=5, shift=0.0):
    """Runs whose loss is a parabola in log N about N_opt = 0.02 C^a."""
    generator = np.random.default_rng(seed)
    flops, parameters = [], []
    for compute in COMPUTES:
        best = np.log(0.02 * compute**a)
        flops += [compute] * sizes
        parameters += list(np.exp(best + shift + np.linspace(-1.0, 1.0, sizes)))
    flops, parameters = np.array(flops), np.array(parameters)
    away = np.log(parameters) - np.log(0.02 * flops**a)
    loss = 30 * flops**-0.08 + 0.06 * away**2 + noise * generator.standard_normal(len(flops))
    return flops, parameters, flops / 6 / parameters, loss


def test_the_bottoms_and_exponents_of_known_valleys_come_back():
    flops, parameters, tokens, loss = valleys()
    again = np.random.default_rng(1).permutation(len(flops))
    fit = fit_isoflop(*(values[again] for values in (flops, parameters, tokens, loss)))
    assert len(fit.valleys) == 4
    assert fit.problems == ()
    for valley, compute in zip(fit.valleys, COMPUTES, strict=True):
        assert valley.parameters == pytest.approx(0.02 * compute**0.45)
        assert valley.tokens == pytest.approx(compute / 6 / valley.parameters)
        assert valley.loss == pytest.approx(30 * compute**-0.08)
        assert float(valley.loss_at(valley.parameters)) == pytest.approx(valley.loss)
        assert (flops[again][list(valley.runs)] == compute).all()
    assert fit.allocation.a.estimate == pytest.approx(0.45)
    assert fit.allocation.b.estimate == pytest.approx(0.55)
    size, length = fit.optimum(1e18)
    assert (size, length) == (pytest.approx(0.02 * 1e18**0.45), pytest.approx(1e18 / 6 / size))


def test_runs_of_a_compute_may_miss_it_by_a_little_and_others_be_among_them():
    flops, *others = valleys()
    flops *= np.exp(np.random.default_rng(2).uniform(-0.01, 0.01, len(flops)))
    runs = [np.append(values, more) for values, more in zip(
        (flops, *others), (3e13, 1e6, 5e6, 4.0), strict=True)]  # fmt: skip
    fit = fit_isoflop(*runs)
    assert [len(valley.runs) for valley in fit.valleys] == [5, 5, 5, 5]
    assert fit.allocation.a.estimate == pytest.approx(0.45, abs=2e-3)


def test_the_intervals_of_the_exponents_cover_the_truth():
    covered, trials = 0, 40
    for seed in range(trials):
        fit = fit_isoflop(*valleys(noise=0.003, seed=seed), bootstrap_samples=60, confidence=0.8)
        covered += fit.allocation.a.low < 0.45 < fit.allocation.a.high
    assert 0.6 < covered / trials < 0.95  # 0.8 ± three standard errors, and the bootstrap's own


def test_a_law_of_chinchillas_form_gives_its_own_exponents():
    flops = np.repeat(np.geomspace(1e18, 1e21, 5), 7)
    best = CHINCHILLA_REFIT.optimum(flops)[0]
    parameters = best * np.tile(np.geomspace(0.5, 2.0, 7), 5)
    tokens = flops / 6 / parameters
    loss = CHINCHILLA_REFIT.loss(parameters, tokens)
    ours = fit_isoflop(flops, parameters, tokens, loss, bootstrap_samples=0).allocation
    theirs = allocation_of(fit_scaling_law(parameters, tokens, loss, bootstrap_samples=0))
    truth = CHINCHILLA_REFIT.beta / (CHINCHILLA_REFIT.alpha + CHINCHILLA_REFIT.beta)
    assert ours.a.estimate == pytest.approx(truth, abs=0.01)
    assert theirs.a.estimate == pytest.approx(truth, abs=1e-3)
    assert theirs.a.estimate + theirs.b.estimate == pytest.approx(1.0)
    assert ours.a.high == theirs.a.high == np.inf


def test_a_valley_without_a_bottom_is_left_out_and_named():
    fit = fit_isoflop(*valleys(shift=1.5))
    assert fit.allocation is None
    assert "1e+15 FLOP: the smallest model is the best" in fit.problems[0]
    assert "0 valleys with a bottom" in fit.problems[-1]
    with pytest.raises(ValueError, match="no line through the valleys"):
        fit.optimum(1e18)
    assert "the largest model is the best" in fit_isoflop(*valleys(shift=-1.5)).problems[0]
    flops, parameters, tokens, loss = valleys()
    hill = fit_isoflop(flops, parameters, tokens, 10 - loss)
    assert "no valley" in hill.problems[0]
    two = fit_isoflop(*valleys(sizes=2))
    assert "2 sizes make no parabola" in two.problems[0]


def test_three_runs_a_valley_leave_nothing_to_judge_the_noise_by():
    fit = fit_isoflop(*valleys(sizes=3))
    assert fit.allocation.a.estimate == pytest.approx(0.45)
    assert fit.allocation.a.high == np.inf


def test_runs_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"tokens has shape \(1,\)"):
        fit_isoflop([1.0, 2.0], [1.0, 2.0], [1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="losses must be positive"):
        fit_isoflop([1.0], [1.0], [1.0], [np.nan])


def test_the_published_exponents_of_the_parametric_fit_are_those_of_its_constants():
    parametric = HOFFMANN_ALLOCATIONS[2]
    ratio = CHINCHILLA.beta / (CHINCHILLA.alpha + CHINCHILLA.beta)  # of rounded constants
    assert parametric.a.estimate == pytest.approx(ratio, abs=0.01)
    for published in HOFFMANN_ALLOCATIONS:
        assert published.a.estimate + published.b.estimate == pytest.approx(1.0)
