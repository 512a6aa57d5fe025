"""The scaling-law fit: known constants come back, and too few runs are not pretended enough."""

import warnings

import numpy as np
import pytest
from scipy import optimize, stats

from strata.ablations import scaling
from strata.ablations.power_law import efficient_frontier, fit_power_law
from strata.ablations.scaling import (
    CHINCHILLA,
    CHINCHILLA_REFIT,
    ScalingLaw,
    fit_scaling_law,
)


def runs_of(law, sizes, tokens, noise=0.0, seed=0):
    n, d = (grid.ravel() for grid in np.meshgrid(sizes, tokens))
    errors = np.random.default_rng(seed).standard_normal(n.size)
    return n, d, law.loss(n, d) * np.exp(noise * errors)


@pytest.mark.parametrize(
    ("law", "sizes", "tokens"),
    [
        (CHINCHILLA, np.geomspace(5e7, 1e10, 5), np.geomspace(1e9, 3e11, 5)),
        (CHINCHILLA_REFIT, np.geomspace(5e7, 1e10, 5), np.geomspace(1e9, 3e11, 5)),
        (ScalingLaw(1.1, 90.0, 40.0, 0.4, 0.25), np.geomspace(1e5, 1e6, 3), [2e4, 4e4, 8e4]),
    ],
)
def test_noiseless_runs_give_the_law_back(law, sizes, tokens):
    fit = fit_scaling_law(*runs_of(law, sizes, tokens), bootstrap_samples=0)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(fit.law, name) == pytest.approx(getattr(law, name), rel=1e-4)
    assert fit.problems == ()


def test_noisy_runs_give_intervals_that_hold_the_truth():
    runs = runs_of(CHINCHILLA, np.geomspace(5e7, 1e10, 8), np.geomspace(1e9, 3e11, 8), 0.004)
    fit = fit_scaling_law(*runs, bootstrap_samples=100, confidence=0.99)
    for name in ("alpha", "beta", "E"):
        interval = fit.intervals[name]
        assert interval.low < getattr(CHINCHILLA, name) < interval.high
        assert interval.low < interval.estimate < interval.high
    band = fit.predict(2e10, 5e11, 0.99)
    assert band.low < float(CHINCHILLA.loss(2e10, 5e11)) < band.high
    assert np.abs(fit.residuals).max() < 0.02


def test_one_wild_run_does_not_move_the_fit():
    n, d, loss = runs_of(CHINCHILLA, np.geomspace(5e7, 1e10, 5), np.geomspace(1e9, 3e11, 5))
    loss[7] *= 1.5
    fit = fit_scaling_law(n, d, loss, bootstrap_samples=0)
    assert fit.law.alpha == pytest.approx(0.34, abs=0.01)
    assert fit.law.beta == pytest.approx(0.28, abs=0.01)


def test_the_gradient_is_that_of_finite_differences():
    n, d, loss = runs_of(CHINCHILLA, np.geomspace(1e7, 1e9, 3), np.geomspace(1e9, 1e11, 3))
    logs = np.stack([np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean(), np.log(loss)])
    point = np.array([-0.4, -0.3, 0.5, 0.3, 0.2])
    for delta in (0.05, 10.0):  # residuals beyond the corner of Huber's loss, and before it
        error = optimize.check_grad(
            lambda x, delta=delta: scaling._objective(x, logs, delta)[0],
            lambda x, delta=delta: scaling._objective(x, logs, delta)[1],
            point,
        )
        scale = np.linalg.norm(scaling._objective(point, logs, delta)[1])
        assert error < 1e-5 * scale


def test_too_few_runs_are_said_to_be_too_few():
    fit = fit_scaling_law(*runs_of(CHINCHILLA, [1e8, 1e9], [1e10, 1e11]))
    assert fit.law is None
    assert fit.predict(1e9, 1e11) is None
    assert len(fit.problems) == 3
    assert "4 different pairs" in fit.problems[0]


def test_repeated_seeds_do_not_count_as_more_sizes():
    n, d, loss = runs_of(CHINCHILLA, [1e8, 1e9], [1e10, 1e11])
    assert fit_scaling_law(np.tile(n, 5), np.tile(d, 5), np.tile(loss, 5)).law is None


def test_an_exponent_that_the_runs_do_not_show_is_called_so():
    n, d, _ = runs_of(CHINCHILLA, np.geomspace(1e5, 1e6, 3), np.geomspace(1e5, 1e6, 3))
    loss = 4 * (d / 1e5) ** -0.2 * np.exp(0.01 * np.random.default_rng(0).standard_normal(9))
    fit = fit_scaling_law(n, d, loss, bootstrap_samples=5)
    assert any("alpha" in problem for problem in fit.problems)


def test_a_law_without_bound_comes_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law = scaling._law(np.array([0.0, 0.0, 0.0, 80.0, 0.1]), 12.0, 12.0)
    assert np.isinf(law.A)


@pytest.mark.parametrize("bad", [[1.0, 2.0], [1.0, -1.0, 2.0], [1.0, np.nan, 2.0]])
def test_bad_losses_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected|positive"):
        fit_scaling_law([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], bad)


def test_the_optimum_is_where_a_search_finds_it():
    flops = 5.76e23
    n, d = CHINCHILLA_REFIT.optimum(flops)
    assert 6 * n * d == pytest.approx(flops)
    search = optimize.minimize_scalar(
        lambda log_n: float(CHINCHILLA_REFIT.loss(np.exp(log_n), flops / 6 / np.exp(log_n))),
        bounds=(15, 35),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert n == pytest.approx(np.exp(search.x), rel=1e-4)


def test_the_refit_recommends_about_twenty_tokens_a_parameter_at_chinchillas_compute():
    n, d = CHINCHILLA_REFIT.optimum(5.76e23)  # Besiroglu et al. (2024), section 4
    assert 15 < d / n < 30


def test_a_power_law_comes_back_with_scipys_interval():
    flops = np.geomspace(1e9, 1e13, 6)
    noise = 0.01 * np.random.default_rng(3).standard_normal(6)
    losses = 40 * flops**-0.1 * np.exp(noise)
    law = fit_power_law(flops, losses)
    oracle = stats.linregress(np.log(flops), np.log(losses))
    half = stats.t.ppf(0.975, 4) * oracle.stderr
    assert law.exponent.estimate == pytest.approx(-oracle.slope)
    assert law.exponent.high == pytest.approx(-oracle.slope + half)
    assert law.coefficient == pytest.approx(np.exp(oracle.intercept))
    near, far = law.predict(1e11), law.predict(1e15)
    assert near.low < 40 * 1e11**-0.1 < near.high
    assert far.high / far.low > near.high / near.low


def test_two_points_make_a_line_without_an_interval():
    law = fit_power_law([1e9, 1e10], [2.0, 1.0])
    assert law.exponent.estimate == pytest.approx(np.log10(2))
    assert law.exponent.high == np.inf
    assert law.predict(1e11).high == np.inf
    with pytest.raises(ValueError, match="two different computes"):
        fit_power_law([1e9, 1e9], [2.0, 1.0])


def test_the_frontier_keeps_what_no_cheaper_run_beats():
    flops = [4.0, 1.0, 2.0, 2.0, 3.0]
    losses = [1.0, 3.0, 2.5, 2.0, 2.2]
    assert efficient_frontier(flops, losses).tolist() == [1, 3, 0]


def test_a_band_follows_any_curve_and_is_the_prediction_at_a_point():
    runs = runs_of(CHINCHILLA, np.geomspace(5e7, 1e10, 6), np.geomspace(1e9, 3e11, 6), 0.004)
    fit = fit_scaling_law(*runs, bootstrap_samples=40)
    sizes = np.geomspace(1e8, 1e12, 5)
    band = fit.band(lambda law: law.loss(sizes, 1e11), 0.9)
    assert (band.low < band.estimate).all()
    assert (band.estimate < band.high).all()
    point = fit.predict(sizes[2], 1e11, 0.9)
    assert (point.low, point.high) == (band.low[2], band.high[2])
    flops = np.geomspace(1e20, 1e24, 3)
    frontier = fit.band(lambda law: law.loss(*law.optimum(flops)))
    truth = CHINCHILLA.loss(*CHINCHILLA.optimum(flops))
    assert frontier.estimate == pytest.approx(truth, rel=0.01)
    whole = fit_scaling_law(*runs, bootstrap_samples=0).band(lambda law: law.loss(sizes, 1e11))
    assert (whole.high == np.inf).all()


def test_the_prediction_of_a_run_covers_new_runs_as_often_as_it_says():
    sizes, tokens = np.geomspace(1e6, 3e7, 5), np.geomspace(1e7, 1e9, 4)
    target = (1e8, 3e9)
    inside, band_alone, covered = 0, 0, 0
    for seed in range(30):
        fit = fit_scaling_law(
            *runs_of(CHINCHILLA, sizes, tokens, 0.005, seed), bootstrap_samples=30
        )
        noise = np.random.default_rng(1_000 + seed).standard_normal()
        new = float(CHINCHILLA.loss(*target)) * np.exp(0.005 * noise)
        run, mean = fit.predict_run(*target, 0.8), fit.predict(*target, 0.8)
        inside += run.low < new < run.high
        band_alone += mean.low < new < mean.high
        covered += mean.low < float(CHINCHILLA.loss(*target)) < mean.high
        assert run.high - run.low > mean.high - mean.low
    assert inside > band_alone
    assert min(inside, covered) / 30 > 0.58  # 0.8 less three standard errors


def test_the_spread_of_the_runs_about_the_law_is_their_noise():
    runs = runs_of(CHINCHILLA, np.geomspace(5e7, 1e10, 9), np.geomspace(1e9, 3e11, 9), 0.004)
    fit = fit_scaling_law(*runs, bootstrap_samples=0)
    assert fit.spread == pytest.approx(0.004, rel=0.2)
    assert fit.predict_run(1e9, 1e10).high == np.inf
