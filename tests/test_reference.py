"""GPT-3's published numbers against each other, and places among them worked out by hand."""

import math

import numpy as np
import pytest

from strata.evaluation.reference import (
    CHECKED,
    GPT3_FEW_SHOT,
    GPT3_LAMBADA_PERPLEXITY,
    GPT3_RESULTS,
    GPT3_SIZES,
    centred,
    in_words,
    place_in_gpt3,
    range_in_words,
)
from strata.evaluation.tasks import TASKS


def test_every_row_has_one_value_a_size_and_a_source():
    for task, scores in GPT3_RESULTS.items():
        assert task in TASKS
        assert len(scores) == len(GPT3_SIZES) == 8
        assert all(0.25 < score < 1.0 for score in scores)
        assert CHECKED[task]
    assert len(GPT3_LAMBADA_PERPLEXITY) == 8
    for task, (examples, scores) in GPT3_FEW_SHOT.items():
        assert task in GPT3_RESULTS
        assert 1 < examples <= 100
        assert len(scores) == 8


def test_scores_of_few_items_are_shares_of_them():
    # Table C.1 counts 100 items of COPA and 500 of OpenBookQA
    for task, count in [("copa", 100), ("openbookqa", 500)]:
        for score in GPT3_RESULTS[task] + GPT3_FEW_SHOT.get(task, (0, ()))[1]:
            assert score * count == pytest.approx(round(score * count)), (task, score)


def test_published_compute_is_six_flops_a_parameter_and_token():
    # Table D.1's rule, with 300 billion tokens; its own rounding is to three digits
    for size in GPT3_SIZES:
        assert size.training_flops == pytest.approx(6 * size.parameters * 300e9, rel=0.004)


def test_published_petaflop_days_follow_from_flops():
    table = [2.60, 7.42, 15.8, 27.5, 55.2, 139, 268, 3640]
    for size, days in zip(GPT3_SIZES, table, strict=True):
        assert size.petaflop_days == pytest.approx(days, rel=0.005)


def test_published_parameters_follow_from_the_shapes():
    # 12 · layers · width² of the body and the token and position embeddings (50,257 and 2,048)
    for size in GPT3_SIZES:
        counted = 12 * size.n_layers * size.width**2 + (50_257 + 2_048) * size.width
        assert counted == pytest.approx(size.parameters, rel=0.015)


def test_a_published_score_is_placed_at_its_own_size():
    for index, size in enumerate(GPT3_SIZES):
        found = place_in_gpt3("hellaswag", GPT3_RESULTS["hellaswag"][index])
        assert found.parameters == pytest.approx(size.parameters)


def test_half_way_between_two_scores_is_the_geometric_mean_of_the_sizes():
    found = place_in_gpt3("lambada", (0.427 + 0.543) / 2)
    assert found.parameters == pytest.approx(math.sqrt(125e6 * 356e6), rel=1e-6)
    assert found.note == "as a GPT-3 of 211M"


def test_where_the_curve_falls_the_first_crossing_counts():
    # OpenBookQA: 46.8, 53.0, 50.4, 55.6: 52 % is reached before 2.7B already
    assert 1_320e6 < place_in_gpt3("openbookqa", 0.52).parameters < 2_650e6


def test_beyond_either_end_is_said_plainly():
    below, above = place_in_gpt3("piqa", 0.55), place_in_gpt3("boolq", 0.68)
    assert below.parameters == 0.0
    assert below.note == "below the smallest GPT-3 (Small, 125M: 64.6%)"
    assert above.parameters == math.inf
    assert above.note == "above every GPT-3 (2.7B: 67.1%)"


def test_an_interval_is_placed_by_its_ends_and_said_in_words():
    # HellaSwag: 33.7, 43.6, …, 78.9
    for interval, words in [
        ((0.337, 0.436), "125M to 356M"),
        ((0.30, 0.337), "at most 125M"),
        ((0.30, 0.436), "at most 356M"),
        ((0.25, 0.30), "below 125M"),
        ((0.709, 0.80), "at least 13B"),
        ((0.80, 0.90), "above every size"),
        ((0.25, 0.90), "any size"),
        ((0.436, 0.436), "356M"),
    ]:
        found = place_in_gpt3("hellaswag", sum(interval) / 2, interval)
        assert range_in_words(*found.interval) == words
        assert found.note.endswith(f"; interval: {words}")


def test_the_places_of_many_draws_have_the_interval_that_the_places_of_its_ends_say():
    # OpenBookQA's curve falls and rises: the order of places is still the order of scores
    draws = np.sort(np.random.default_rng(0).normal(0.51, 0.03, 2_001))
    sizes = [place_in_gpt3("openbookqa", draw).parameters for draw in draws]
    assert sizes == sorted(sizes)
    low, high = draws[50], draws[1_950]
    assert place_in_gpt3("openbookqa", 0.51, (low, high)).interval == (sizes[50], sizes[1_950])


def test_a_score_with_examples_is_placed_among_the_few_shot_scores():
    assert place_in_gpt3("hellaswag", 0.431, shots=5).parameters == pytest.approx(356e6)
    assert place_in_gpt3("hellaswag", 0.436).parameters == pytest.approx(356e6)
    with pytest.raises(ValueError, match="no few-shot GPT-3 result for task 'openbookqa'"):
        place_in_gpt3("openbookqa", 0.5, shots=5)


def test_a_centred_score_runs_from_guessing_to_faultless():
    assert centred(0.25, 0.25) == 0.0
    assert centred(1.0, 0.25) == 1.0
    assert centred(0.4, 0.25) == pytest.approx(0.2)


def test_a_task_that_gpt3_does_not_report_is_refused():
    with pytest.raises(ValueError, match="no GPT-3 result for task 'blimp'"):
        place_in_gpt3("blimp", 0.5)
    with pytest.raises(ValueError, match=r"score = 51"):
        place_in_gpt3("piqa", 51)


def test_parameters_are_written_as_people_write_them():
    assert [in_words(n) for n in (125e6, 999e6, 1.32e9, 2.65e9, 12.85e9, 174.6e9)] == [
        "125M", "999M", "1.3B", "2.6B", "13B", "175B"
    ]  # fmt: skip
