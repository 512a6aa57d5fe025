"""Intervals, paired tests and means over tasks against SciPy's, and the tables made of them."""

import math

import numpy as np
import pytest
from scipy import stats

from strata.evaluation import (
    GPT3_RESULTS,
    ItemResult,
    TaskResult,
    chance_of,
    compare_overall,
    compare_results,
    comparison_table,
    gpt3_table,
    holm,
    load_results,
    overall_score,
    place_overall,
    results_table,
)
from strata.evaluation.comparison import (
    bootstrap_interval,
    bootstrap_scores,
    paired_difference,
    permutation_p_value,
    score_interval,
)

ALONE = -1


def alone(n):
    return np.full(n, ALONE)


def result_of(task, correct, n_choices=2, clusters=None, shots=0, **changes):
    """A task's result from right and wrong answers."""
    items = tuple(
        ItemResult(
            index=index,
            fingerprint=f"{task} {index}",
            prediction=int(hit),
            correct=bool(hit),
            log_likelihoods=(0.0,) * n_choices,
            value=float(hit),
            cluster=ALONE if clusters is None else int(clusters[index]),
        )
        for index, hit in enumerate(correct)
    )
    score = float(np.mean(correct))
    fields = {
        "task": task,
        "score": score,
        "interval": score_interval(
            np.array(correct, float),
            np.ones(len(items)),
            np.array([i.cluster for i in items]),
        ),
        "confidence": 0.95,
        "n_items": len(items),
        "metric": "acc",
        "chance": chance_of(items),
        "higher_is_better": True,
        "metrics": {"acc": score},
        "items": items,
        "shots": shots,
    }
    return TaskResult(**fields | changes)


def answers(rate, n, seed=0):
    return (np.random.default_rng(seed).permutation(n) < round(rate * n)).astype(int)


# --- one score ----------------------------------------------------------------------------------


def ratio(values, weights, axis=-1):
    return values.sum(axis=axis) / weights.sum(axis=axis)


def test_the_bootstrap_interval_is_scipys():
    generator = np.random.default_rng(1)
    weights = generator.integers(50, 500, 80).astype(float)
    values = weights * generator.normal(1.2, 0.3, 80)
    expected = stats.bootstrap(
        (values, weights), ratio, paired=True, vectorized=True, n_resamples=20_000,
        method="percentile", rng=generator,
    ).confidence_interval  # fmt: skip
    found = bootstrap_interval(values, weights, alone(80), n_samples=20_000)
    width = expected.high - expected.low
    assert found == pytest.approx(tuple(expected), abs=0.03 * width)


def test_the_interval_of_clusters_is_scipys_of_their_sums():
    generator = np.random.default_rng(2)
    clusters = generator.integers(0, 40, 300)
    values = (generator.random(300) < 0.2 + 0.6 * (clusters % 2)).astype(float)
    sums = np.bincount(clusters, weights=values, minlength=40)
    sizes = np.bincount(clusters, minlength=40).astype(float)
    expected = stats.bootstrap(
        (sums, sizes), ratio, paired=True, vectorized=True, n_resamples=20_000,
        method="percentile", rng=generator,
    ).confidence_interval  # fmt: skip
    found = bootstrap_interval(values, np.ones(300), clusters, n_samples=20_000)
    width = expected.high - expected.low
    assert found == pytest.approx(tuple(expected), abs=0.03 * width)


def test_draws_of_right_and_wrong_are_binomial():
    draws = bootstrap_scores(answers(0.3, 500).astype(float), np.ones(500), alone(500), 20_000)
    counts = np.round(draws * 500).astype(int)
    for share in (0.025, 0.25, 0.5, 0.75, 0.975):
        assert np.quantile(counts, share) == pytest.approx(
            stats.binom.ppf(share, 500, 0.3), abs=1.0
        )


def test_answers_all_alike_have_the_interval_of_the_exact_binomial_test():
    low, high = score_interval(np.zeros(12), np.ones(12), alone(12))
    exact = stats.binomtest(0, 12).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high))


# --- two models ---------------------------------------------------------------------------------


def test_the_p_value_of_right_and_wrong_is_mcnemars_exact_one():
    for better, worse in [(12, 4), (4, 12), (5, 5), (1, 0), (300, 240)]:
        differences = np.array([1.0] * better + [-1.0] * worse + [0.0] * 20)
        expected = stats.binomtest(better, better + worse).pvalue
        found = permutation_p_value(differences, alone(len(differences)))
        assert found == pytest.approx(expected, rel=1e-9)


def test_the_p_value_of_unequal_differences_is_scipys_permutation_test():
    generator = np.random.default_rng(3)
    differences = generator.normal(0.25, 1.0, 40)
    expected = stats.permutation_test(
        (differences, np.zeros(40)), lambda a, b, axis=-1: (a - b).mean(axis=axis),
        permutation_type="samples", n_resamples=20_000, vectorized=True, rng=generator,
    ).pvalue  # fmt: skip
    assert permutation_p_value(differences, alone(40), 20_000) == pytest.approx(expected, abs=0.01)


def test_clusters_change_sign_together():
    # 20 clusters of 5 alike are 20 tosses of a coin, not 100
    differences = np.repeat(np.array([1.0] * 14 + [-1.0] * 6), 5)
    found = permutation_p_value(differences, np.repeat(np.arange(20), 5))
    assert found == pytest.approx(stats.binomtest(14, 20).pvalue)
    assert permutation_p_value(differences, alone(100)) < found / 50


def test_the_interval_of_a_paired_difference_is_scipys():
    generator = np.random.default_rng(4)
    hard = generator.random(400)
    first, second = (hard < 0.5).astype(float), (hard < 0.57).astype(float)
    expected = stats.bootstrap(
        (second - first,), np.mean, n_resamples=20_000, method="percentile", rng=generator
    ).confidence_interval
    found = paired_difference(first, second, np.ones(400), alone(400), n_samples=20_000)
    assert found.interval == pytest.approx(tuple(expected), abs=0.003)


def test_a_false_difference_is_found_as_often_as_the_level_says():
    # two models alike: of 400 comparisons about 5 % fall below 5 %
    generator = np.random.default_rng(5)
    p_values = []
    for _ in range(400):
        differences = generator.choice([-2.0, -1.0, 0.0, 1.0, 2.0], 60)
        p_values.append(permutation_p_value(differences, alone(60), 500))
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.09


def test_holm_by_hand():
    # Sorted: 0.01·4, 0.02·3, 0.03·2, 0.04·1 = 0.04, 0.06, 0.06, 0.04, and never decreasing.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.2, 1.2])


def test_results_of_different_items_or_rules_are_not_compared():
    first = {"piqa": result_of("piqa", [1, 0, 1])}
    for compare in (compare_results, compare_overall):
        with pytest.raises(ValueError, match=r"different items \(3 and 2\)"):
            compare(first, {"piqa": result_of("piqa", [1, 0])})
        with pytest.raises(ValueError, match="scored by acc, the other by acc_norm"):
            compare(first, {"piqa": result_of("piqa", [1, 0, 1], metric="acc_norm")})


@pytest.mark.parametrize("content", ["", "[]", '{"piqa": {}}', '{"piqa": 1}'])
def test_a_file_that_holds_no_results_is_named(tmp_path, content):
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"evaluation\.json is not what strata evaluate writes"):
        load_results(path)


# --- several tasks ------------------------------------------------------------------------------


def test_guessing_is_one_over_each_items_own_choices():
    three, five = result_of("arc_easy", [1], 3).items, result_of("arc_easy", [1], 5).items
    assert chance_of(three + five) == pytest.approx((1 / 3 + 1 / 5) / 2)
    assert chance_of(result_of("lambada", [1, 0], 1).items) == 0.0


def test_the_overall_score_is_the_mean_of_centred_ones_and_leaves_texts_out():
    results = {
        "piqa": result_of("piqa", answers(0.7, 100)),  # (0.7 - 0.5) / 0.5 = 0.4
        "hellaswag": result_of("hellaswag", answers(0.4, 1_000), 4),  # (0.4 - 0.25) / 0.75 = 0.2
        "wikitext2": result_of("wikitext2", [1], 1, higher_is_better=False),
    }
    found = overall_score(results)
    assert found.score == pytest.approx(0.3)
    assert found.tasks == ("piqa", "hellaswag")
    assert found.n_items == 1_100
    # variances of centred scores add up: those of the proportions, stretched by 1 / (1 - chance)
    error = 0.5 * math.hypot(math.sqrt(0.21 / 100) / 0.5, math.sqrt(0.24 / 1_000) / 0.75)
    assert found.interval == pytest.approx((0.3 - 1.96 * error, 0.3 + 1.96 * error), abs=0.01)
    assert overall_score({"wikitext2": results["wikitext2"]}) is None


def test_the_overall_difference_is_paired_and_its_p_value_scipys():
    generator = np.random.default_rng(6)
    hard = {"piqa": generator.random(150), "hellaswag": generator.random(250)}
    choices = {"piqa": 2, "hellaswag": 4}
    first, second = (
        {n: result_of(n, (h < rate).astype(int), choices[n]) for n, h in hard.items()}
        for rate in (0.50, 0.54)
    )
    # the second gets a few wrong that the first has right
    flipped = [dict(first), dict(second)]
    for name in hard:
        values = np.array([item.value for item in second[name].items])
        values[np.argsort(hard[name])[:4]] = 0.0
        flipped[1][name] = result_of(name, values.astype(int), choices[name])
    found = compare_overall(*flipped)
    one, other = (overall_score(run) for run in flipped)
    assert (found.first, found.second) == pytest.approx((one.score, other.score))
    assert found.difference == pytest.approx(other.score - one.score)
    # the same statistic by hand: each item's share of the mean of the centred scores
    shares = np.concatenate(
        [
            (np.array([b.value - a.value for a, b in zip(x.items, y.items, strict=True)]))
            / (2 * x.n_items * (1 - x.chance))
            for x, y in zip(flipped[0].values(), flipped[1].values(), strict=True)
        ]
    )
    assert found.difference == pytest.approx(shares.sum())
    expected = stats.permutation_test(
        (shares, np.zeros(400)), lambda a, b, axis=-1: (a - b).sum(axis=axis),
        permutation_type="samples", n_resamples=10_000, vectorized=True, rng=generator,
    ).pvalue  # fmt: skip
    assert found.p_value == pytest.approx(expected, abs=0.02)
    # the interval is as wide as the paired errors say
    variances = [np.var(part) * len(part) for part in np.split(shares, [150])]
    width = 2 * 1.96 * math.sqrt(sum(variances))
    assert found.interval[1] - found.interval[0] == pytest.approx(width, rel=0.1)


def test_a_model_with_gpt3s_own_scores_has_gpt3s_own_size_overall():
    # 2.7B's scores; COPA's and OpenBookQA's curves fall there and rise
    tasks = {"piqa": (2, 0.756), "hellaswag": (4, 0.628), "lambada": (1, 0.671)}
    results = {
        name: result_of(name, answers(score, 1_000), choices)
        for name, (choices, score) in tasks.items()
    }
    assert all(result.score == GPT3_RESULTS[name][4] for name, result in results.items())
    results["blimp"] = result_of("blimp", answers(0.9, 50))  # not in GPT-3's table
    overall, place = place_overall(results)
    assert overall.tasks == ("piqa", "hellaswag", "lambada")
    assert place.parameters == pytest.approx(2_650e6)
    low, high = place.interval
    assert 1_320e6 < low < 2_650e6 < high < 12_850e6
    assert place_overall({"blimp": results["blimp"]}) is None


# --- tables -------------------------------------------------------------------------------------


def test_a_table_of_results_has_guessing_centred_scores_and_their_mean():
    results = {
        "piqa": result_of("piqa", answers(0.7, 100), shots=5),
        "hellaswag": result_of("hellaswag", answers(0.4, 1_000), 4),
        "wikitext2": result_of("wikitext2", [1], 1, higher_is_better=False),
    }
    header, rows = results_table(results)
    assert header == ["task", "score", "interval", "guessing", "centred", "items"]
    assert rows[0][:2] + rows[0][3:] == ["PIQA, 5-shot", "70.0", "50.0", "40.0", "100"]
    assert rows[1][3:] == ["25.0", "20.0", "1000"]
    assert rows[2][3:] == ["–", "–", "1"]
    assert rows[3][:2] + rows[3][3:] == ["mean, centred", "30.0", "0.0", "30.0", "1100"]
    assert all(len(row) == len(header) for row in rows)


def test_a_table_of_two_models_corrects_its_p_values_for_the_number_of_tasks():
    right, wrong = [1] * 12, [0] * 6 + [1] * 6
    first = {n: result_of(n, wrong) for n in ("piqa", "copa")}
    second = {n: result_of(n, right) for n in ("piqa", "copa")}
    header, rows = comparison_table(first, second, ("a", "b"))
    assert header[:7] == ["task", "a", "b", "difference", "interval", "p", "p (Holm)"]
    exact = 2 / 2**6
    assert rows[0][:4] == ["PIQA", "50.0", "100.0", "+50.0"]
    assert [row[5] for row in rows[:2]] == [f"{exact:.3f}"] * 2
    assert [row[6] for row in rows[:2]] == [f"{2 * exact:.3f}"] * 2
    assert rows[2][:4] == ["mean, centred", "0.0", "100.0", "+100.0"]
    assert rows[2][5] == "< 0.001"
    assert all(len(row) == len(header) for row in rows)
    assert len(comparison_table({"piqa": first["piqa"]}, second)[1]) == 1


def test_a_table_beside_gpt3_says_the_size_and_its_interval():
    results = {
        "hellaswag": result_of("hellaswag", answers(0.337, 1_000), 4),
        "piqa": result_of("piqa", answers(0.55, 2_000)),
        "blimp": result_of("blimp", answers(0.8, 100)),
        "openbookqa": result_of("openbookqa", answers(0.5, 100), 4, shots=5),
    }
    header, rows = gpt3_table(results)
    assert header[3:5] == ["GPT-3 125M", "GPT-3 175B"]
    assert [row[0] for row in rows] == ["HellaSwag", "PIQA", "mean, centred"]
    assert rows[0][3:6] == ["33.7", "78.9", "125M"]
    assert rows[0][6].startswith("at most ")
    assert rows[1][5:] == ["below 125M", "below 125M"]
    assert rows[2][5:] == ["below 125M", "below 125M"]
    assert gpt3_table({"blimp": results["blimp"]})[1] == []


# --- by hand -------------------------------------------------------------------------------------


def test_the_bootstrap_interval_of_a_proportion_is_the_binomial_one():
    # 200 items, 60 % right: the standard error is sqrt(0.6 * 0.4 / 200)
    values = np.array([1.0] * 120 + [0.0] * 80)
    low, high = bootstrap_interval(values, np.ones(200), np.full(200, ALONE), n_samples=10_000)
    error = math.sqrt(0.6 * 0.4 / 200)
    assert low == pytest.approx(0.6 - 1.96 * error, abs=0.01)
    assert high == pytest.approx(0.6 + 1.96 * error, abs=0.01)
    assert (low, high) == bootstrap_interval(
        values, np.ones(200), np.full(200, ALONE), n_samples=10_000
    )


def test_items_of_one_cluster_count_as_one_draw():
    # 50 clusters of 4 equal items are 50 independent items, not 200
    values = np.repeat(np.array([1.0, 0.0] * 25), 4)
    clustered = bootstrap_interval(values, np.ones(200), np.repeat(np.arange(50), 4))
    single = bootstrap_interval(values[::4], np.ones(50), np.full(50, ALONE))
    assert clustered == pytest.approx(single)
    apart = bootstrap_interval(values, np.ones(200), np.full(200, ALONE))
    assert clustered[1] - clustered[0] == pytest.approx(2 * (apart[1] - apart[0]), rel=0.15)


def test_answers_that_are_all_wrong_leave_the_exact_doubt():
    # (1 - p)^20 = 0.025: with 20 wrong answers p may be as high as 16.8 %
    low, high = score_interval(np.zeros(20), np.ones(20), np.full(20, ALONE))
    assert (low, high) == (0.0, pytest.approx(0.1684, abs=1e-4))
    assert (1 - high) ** 20 == pytest.approx(0.025)
    low, high = score_interval(np.ones(40), np.ones(40), np.repeat(np.arange(20), 2))
    assert (low, high) == (pytest.approx(1 - 0.1684, abs=1e-4), 1.0)


def test_the_permutation_test_of_right_and_wrong_is_mcnemars():
    # 12 items for the second model, 4 for the first, the rest alike; the exact test sums the
    # binomial tails of 16 tosses
    differences = np.array([1.0] * 12 + [-1.0] * 4 + [0.0] * 100)
    exact = 2 * sum(math.comb(16, k) for k in range(12, 17)) / 2**16
    found = permutation_p_value(differences, np.full(116, ALONE), n_samples=100_000)
    assert found == pytest.approx(exact, abs=0.004)
    assert permutation_p_value(np.zeros(5), np.full(5, ALONE)) == 1.0


def test_pairing_narrows_the_interval_of_a_difference():
    generator = np.random.default_rng(0)
    hard = generator.random(300)
    first = (hard < 0.50).astype(float)
    second = (hard < 0.56).astype(float)
    found = paired_difference(first, second, np.ones(300), np.full(300, ALONE))
    assert found.difference == pytest.approx(second.mean() - first.mean())
    assert found.interval[0] > 0
    assert found.p_value < 0.01
