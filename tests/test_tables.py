"""The table of ingredients: both directions speak one language, against hand-made runs."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize
from stored_runs import write_run

from strata.ablations.analysis import Interval, compare
from strata.ablations.scaling import ScalingLaw, fit_scaling_law
from strata.ablations.summary import final_losses, load_suite
from strata.ablations.tables import ingredient_table, parameters_by_fit
from strata.evaluation.comparison import holm

LAW = ScalingLaw(E=1.0, A=60.0, B=30.0, alpha=0.4, beta=0.3)


@pytest.fixture
def runs(tmp_path):
    recipes = {
        "strata": ({}, 2.0, 0.5),
        "gelu": ({"model.activation": "gelu"}, 2.1, 0.4),
        "tied": ({"model.tie_embeddings": False}, 1.98, 0.6),
        "gpt3": ({"optimizer.name": "adamw"}, 2.5, 0.2),
        "gpt3+relu2": ({"optimizer.name": "adamw", "model.biases": True}, 2.4, 0.3),
        "unasked": ({"optimizer.name": "lion"}, 9.0, 0.1),
    }
    noise = np.random.default_rng(0)
    for seed in range(3):
        for name, (changes, loss, seconds) in recipes.items():
            loss = loss + 0.05 * seed + 0.004 * noise.standard_normal()
            write_run(tmp_path, name, seed, changes, loss=loss, seconds=seconds)
    return load_suite(tmp_path)


def table_of(runs, **options):
    return ingredient_table(runs, full="strata", left_out=["gelu", "tied"], baseline="gpt3",
                            added=["gpt3+relu2"], **options)  # fmt: skip


def test_a_gain_is_positive_in_both_directions_where_the_ingredient_helps(runs):
    gelu, tied, relu2 = table_of(runs)
    assert [row.direction for row in (gelu, tied, relu2)] == ["left out", "left out", "added"]
    assert gelu.gain.estimate == pytest.approx(0.1, abs=0.01)
    assert tied.gain.estimate == pytest.approx(-0.02, abs=0.01)
    assert relu2.gain.estimate == pytest.approx(0.1, abs=0.01)
    assert relu2.comparison.difference.estimate == -relu2.gain.estimate
    for row in (gelu, relu2):
        assert row.gain.low < row.gain.estimate < row.gain.high
        assert row.compute.interval.estimate > 1
        assert row.tokens.interval.estimate > 1
    assert tied.compute.interval.estimate < 1


def test_the_correction_is_that_of_the_whole_table_and_the_variance_that_of_a_direction(runs):
    rows = table_of(runs)
    adjusted = holm([row.comparison.p_value for row in rows])
    assert [row.comparison.p_adjusted for row in rows] == pytest.approx(adjusted)
    assert [row.comparison.degrees_of_freedom for row in rows] == [(3 - 1) * (3 - 1)] * 2 + [2]
    ours = final_losses(runs, ["strata", "gelu", "tied"])
    assert rows[0].comparison.difference == compare(ours, "strata", 0.95, "pooled")[1].difference
    theirs = final_losses(runs, ["gpt3", "gpt3+relu2"])
    assert rows[2].comparison.difference == compare(theirs, "gpt3", 0.95, "pooled")[1].difference
    assert table_of(runs, variance="paired")[0].comparison.degrees_of_freedom == 2


def test_costs_stand_beside_those_of_the_directions_own_base(runs):
    gelu, tied, relu2 = table_of(runs)
    assert gelu.cost.time_ratio.estimate == pytest.approx(0.8)
    assert relu2.cost.time_ratio.estimate == pytest.approx(1.5)
    assert tied.cost.parameters - tied.base_cost.parameters == 300 * 8
    assert relu2.base_cost.variant == "gpt3"


def test_without_a_fit_there_is_no_parameter_multiplier_and_without_runs_no_row(runs):
    assert [row.parameters for row in table_of(runs)] == [None] * 3
    with pytest.raises(ValueError, match="'swish' has no runs"):
        ingredient_table(runs, full="strata", left_out=["swish"])


# ------------------------------------------------------------ a difference as parameters


def fit_of(samples=0, noise=0.0):
    n, d = (g.ravel() for g in np.meshgrid(np.geomspace(1e4, 1e6, 5), np.geomspace(1e5, 1e7, 5)))
    loss = LAW.loss(n, d) * np.exp(noise * np.random.default_rng(0).standard_normal(25))
    return fit_scaling_law(n, d, loss, bootstrap_samples=samples)


def exactly(difference):
    return Interval(difference, difference, difference, 0.95, 3)


@pytest.mark.parametrize(("difference", "direction"), [(0.1, "left out"), (-0.05, "added")])
def test_a_difference_is_the_ratio_of_parameters_that_a_search_finds(difference, direction):
    target = float(LAW.loss(1e5, 1e6)) + difference
    needed = optimize.brentq(lambda n: float(LAW.loss(n, 1e6)) - target, 1e3, 1e7)
    found = parameters_by_fit(fit_of(), 100_000, 1e6, exactly(difference), direction)
    expected = 1e5 / needed if direction == "left out" else needed / 1e5
    assert expected > 1
    assert found.interval.estimate == pytest.approx(expected, rel=1e-3)
    assert (found.bound, found.target) == ("exact", pytest.approx(target, rel=1e-4))


@pytest.mark.parametrize(
    ("difference", "direction", "bound", "ratio"),
    [
        (-0.5, "added", "at least", 10.0),  # more than the largest, 1e6
        (2.0, "added", "at most", 0.1),  # fewer than the smallest, 1e4
        (2.0, "left out", "at least", 10.0),
        (-0.5, "left out", "at most", 0.1),
    ],
)
def test_beyond_the_fitted_sizes_the_answer_is_a_bound(difference, direction, bound, ratio):
    found = parameters_by_fit(fit_of(), 100_000, 1e6, exactly(difference), direction)
    assert (found.bound, found.interval.estimate) == (bound, pytest.approx(ratio))


def test_the_interval_holds_the_doubt_of_the_fit_and_of_the_difference():
    fit = fit_of(samples=40, noise=0.003)
    sharp = parameters_by_fit(fit, 100_000, 1e6, exactly(0.1), "left out").interval
    assert sharp.low < sharp.estimate < sharp.high
    wide = parameters_by_fit(fit, 100_000, 1e6, Interval(0.1, 0.08, 0.12, 0.95, 3), "left out")
    assert wide.interval.low < sharp.low < sharp.high < wide.interval.high
    truth = parameters_by_fit(fit_of(), 100_000, 1e6, exactly(0.1), "left out").interval.estimate
    assert wide.interval.low < truth < wide.interval.high


def test_a_fit_that_determines_nothing_gives_no_parameters():
    undetermined = replace(fit_of(), undetermined=("alpha is hardly determined",))
    assert parameters_by_fit(undetermined, 100_000, 1e6, exactly(0.1), "added") is None
