"""Costs, against what an optimizer really keeps and clocks that were set by hand."""

import numpy as np
import pytest
import torch
from scipy import stats
from stored_runs import BASE, write_run

from strata.ablations.costs import seconds_per_token, training_state_bytes, variant_costs
from strata.ablations.multipliers import LearningCurve
from strata.ablations.summary import load_suite
from strata.model import Transformer
from strata.training import build_optimizer


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer.normalise_rows": False, "model.tie_embeddings": False},
        {"optimizer.name": "adamw", "model.biases": True, "model.positions": "learned"},
        {"optimizer.name": "lion"},
        {"optimizer.name": "sgd"},
        {"optimizer.name": "adafactor"},
    ],
)
def test_the_training_state_is_what_is_allocated_after_an_update(changes):
    config = BASE.override(changes)
    model = Transformer(config.model)
    optimizer = build_optimizer(model, config.optimizer)
    tokens = torch.randint(0, 300, (2, 8))
    model.loss(tokens, tokens).backward()
    optimizer.step()
    tensors = [*model.parameters(), *(weight.grad for weight in model.parameters())]
    tensors += [value for kept in optimizer.state.values() for value in kept.values()]
    allocated = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert training_state_bytes(config) == allocated


def test_what_an_optimizer_of_pytorch_keeps_is_not_guessed():
    assert training_state_bytes(BASE.override({"optimizer.name": "RMSprop"})) is None


def test_a_stretch_in_which_the_machine_was_busy_does_not_count():
    tokens = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    seconds = np.cumsum([90.0, 1.0, 1.2, 50.0, 1.1])  # it compiled first, and was busy once
    curve = LearningCurve(tokens, tokens, seconds, np.ones(5))
    assert seconds_per_token(curve) == pytest.approx(0.115)
    once = LearningCurve(tokens[:1], tokens[:1], seconds[:1], np.ones(1))
    assert seconds_per_token(once) == 9.0


def test_times_are_compared_seed_by_seed(tmp_path):
    for seed, (ours, theirs) in enumerate([(0.5, 1.0), (0.6, 1.5), (0.4, 0.7)]):
        write_run(tmp_path, "strata", seed, seconds=ours)
        write_run(tmp_path, "gpt3", seed, {"model.tie_embeddings": False}, seconds=theirs)
    write_run(tmp_path, "other", 7)
    found = variant_costs(load_suite(tmp_path), "strata")
    logs = np.log([2.0, 2.5, 1.75])
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    ratio = found["gpt3"].time_ratio
    expected = np.exp([logs.mean(), low, high])
    assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx(expected)
    assert found["strata"].time_ratio.high == 1.0
    assert found["other"].time_ratio is None
    assert found["strata"].seconds_per_token.estimate == pytest.approx(0.5 / 16)
    assert found["strata"].peak_bytes == 1004
    assert found["gpt3"].parameters - found["strata"].parameters == 300 * 8  # a head of its own
    assert found["gpt3"].body_parameters == found["strata"].body_parameters


def test_a_variant_of_two_sizes_and_an_absent_base_are_refused(tmp_path):
    write_run(tmp_path, "strata", 0)
    write_run(tmp_path, "strata", 1, {"model.width": 16})
    with pytest.raises(ValueError, match="different sizes"):
        variant_costs(load_suite(tmp_path), "strata")
    with pytest.raises(ValueError, match="base 'gpt3' has no runs"):
        variant_costs(load_suite(tmp_path), "gpt3")
