"""Rate, momentum and weight decay over a run, their picture, and a test that looks for a rate."""

import matplotlib.pyplot as plt
import pytest
import torch

from strata.config import Config, TrainingConfig
from strata.model import Transformer
from strata.training import rate_ratio, schedule_at
from strata.training.experiments import plot_range_test, plot_schedules, range_test


def test_cosine_follows_gpt3_from_warm_up_to_a_tenth():
    training = TrainingConfig(
        max_steps=300, warmup_steps=10, schedule="cosine", decay_fraction=0.5, final_rate_ratio=0.1
    )
    assert rate_ratio(1, training) == pytest.approx(0.1)
    assert rate_ratio(10, training) == 1.0
    assert rate_ratio(80, training) == pytest.approx(0.55)  # half way from 10 to 150
    assert rate_ratio(150, training) == pytest.approx(0.1)
    assert rate_ratio(300, training) == pytest.approx(0.1)


def test_wsd_stays_and_then_falls_in_a_line_to_zero():
    training = TrainingConfig(max_steps=100, warmup_steps=0, schedule="wsd", decay_fraction=0.2)
    assert [rate_ratio(step, training) for step in (1, 80, 90, 100)] == [1.0, 1.0, 0.5, 0.0]


def test_linear_falls_from_the_warm_up_to_the_end_whatever_the_decay_fraction():
    training = TrainingConfig(
        max_steps=110, warmup_steps=10, schedule="linear", final_rate_ratio=0.1, decay_fraction=0.3
    )
    assert [rate_ratio(step, training) for step in (5, 10, 60, 110)] == pytest.approx(
        [0.5, 1.0, 0.55, 0.1]
    )


def test_constant_stays():
    training = TrainingConfig(max_steps=9, warmup_steps=2, schedule="constant")
    assert [rate_ratio(step, training) for step in (1, 2, 9)] == [0.5, 1.0, 1.0]


def test_without_further_words_momentum_and_decay_stay_where_they_are():
    config = Config()
    for step in (1, 10, config.training.max_steps):
        settings = schedule_at(step, config)
        assert settings.rate_ratio == rate_ratio(step, config.training)
        assert settings[1:] == (config.optimizer.momentum, 1.0)


def test_momentum_rises_in_a_line_and_stays():
    config = Config().override(
        {"optimizer.momentum_start": 0.85, "training.momentum_warmup_steps": 10}
    )
    momenta = [schedule_at(step, config).momentum for step in (1, 5, 10, 11)]
    assert momenta == pytest.approx([0.86, 0.9, 0.95, 0.95])


@pytest.mark.parametrize("name", ["optimizer.momentum_start", "training.momentum_warmup_steps"])
def test_half_a_momentum_warm_up_is_refused(name):
    with pytest.raises(ValueError, match="expected both or neither"):
        Config().override({name: 0.5 if "start" in name else 5})


def test_weight_decay_follows_the_rate_or_falls_in_a_line():
    config = Config().override(
        {
            "training.max_steps": 100,
            "training.warmup_steps": 0,
            "training.decay_fraction": 0.5,
            "optimizer.decay_schedule": "rate",
        }
    )
    steps = (1, 50, 75, 100)
    assert [schedule_at(s, config).decay_ratio for s in steps] == [1.0, 1.0, 0.5, 0.0]
    config = config.override({"optimizer.decay_schedule": "linear"})
    assert [schedule_at(s, config).decay_ratio for s in steps] == [0.99, 0.5, 0.25, 0.0]


# Experiments ------------------------------------------------------------------------------------


def test_schedules_are_drawn_as_they_are_with_names_and_units():
    configs = {
        name: Config().override({"training.schedule": name, "optimizer.weight_decay": 0.1})
        for name in ("wsd", "cosine")
    }
    fig = plot_schedules(configs)
    assert [axis.get_title() for axis in fig.axes] == ["learning rate", "momentum", "weight decay"]
    assert all(axis.get_xlabel() == "update" for axis in fig.axes)
    for line, config in zip(fig.axes[0].lines, configs.values(), strict=True):
        steps = range(1, config.training.max_steps + 1)
        assert list(line.get_xdata()) == list(steps)
        expected = [0.02 * rate_ratio(step, config.training) for step in steps]
        assert list(line.get_ydata()) == pytest.approx(expected)
    assert [text.get_text() for text in fig.legends[0].texts] == list(configs)
    plt.close(fig)


@pytest.fixture
def batches():
    """Sequences in which each token is the last one's successor, easily learnt."""
    starts = torch.randint(0, 300, (31, 8, 1), generator=torch.Generator().manual_seed(0))
    rows = (starts + torch.arange(33)) % 320
    return [(row[:, :-1], row[:, 1:]) for row in rows]


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_range_test_finds_where_the_loss_falls_and_leaves_nothing_behind(
    name, tiny_config, batches
):
    torch.manual_seed(0)
    model = Transformer(tiny_config.model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    config = tiny_config.override({"optimizer.name": name})
    result = range_test(model, config, batches, low=1e-6, high=1e4, steps=30)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(generator, torch.get_rng_state())

    assert result.rates[0] == pytest.approx(1e-6)
    assert result.rates[1] / result.rates[0] == pytest.approx(10 ** (10 / 29))
    assert result.losses[0] == pytest.approx(result.losses[1], rel=0.01)  # too small to move
    assert min(result.losses) < result.losses[0] - 0.5
    assert 1e-4 < result.suggestion <= result.steepest < 10
    if result.diverged:
        assert result.diverged > result.rates[-1]
        assert result.suggestion <= result.diverged / 10 * 1.001
    fig = plot_range_test(result)
    assert fig.axes[0].get_xscale() == "log"
    assert fig.axes[0].get_ylabel() == "loss (nats per token)"
    plt.close(fig)


def test_a_range_test_says_what_it_needs(tiny_config, batches):
    model = Transformer(tiny_config.model)
    with pytest.raises(ValueError, match=r"expected 0 < low < high"):
        range_test(model, tiny_config, batches, low=1.0, high=0.1)
    with pytest.raises(ValueError, match=r"5 batches: expected steps \+ 1 = 31"):
        range_test(model, tiny_config, batches[:5], low=1e-6, high=1e-5, steps=30)
    with torch.no_grad():
        model.embedding.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="the loss rises at once"):
        range_test(model, tiny_config, batches, steps=30)
