"""Rate, momentum and weight decay over a run."""

import pytest

from strata.config import Config, TrainingConfig
from strata.training import rate_ratio, schedule_at


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
