"""The configuration is checked, lossless, and knows GPT-3's published sizes."""

import pytest

from strata.config import Config, ModelConfig
from strata.model import count_parameters


@pytest.mark.parametrize("name", Config.presets())
def test_every_preset_survives_a_round_trip_through_toml(name, tmp_path):
    config = Config.preset(name)
    config.save(tmp_path / "config.toml")
    assert Config.load(tmp_path / "config.toml") == config


@pytest.mark.parametrize(
    ("name", "millions"),
    # "n_params (M)" of Table D.1 in Brown et al. (2020), which rounds to three digits
    [
        ("gpt3-small", 125),
        ("gpt3-medium", 356),
        ("gpt3-large", 760),
        ("gpt3-xl", 1_320),
        ("gpt3-2.7b", 2_650),
        ("gpt3-6.7b", 6_660),
        ("gpt3-13b", 12_850),
        ("gpt3-175b", 174_600),
    ],
)
def test_gpt3_presets_have_the_published_parameter_counts(name, millions):
    total = count_parameters(Config.preset(name).model)["total"]
    assert total == pytest.approx(millions * 1e6, rel=0.004)


@pytest.mark.parametrize(
    ("strata", "gpt3"),
    [
        ("small", "gpt3-small"),
        ("medium", "gpt3-medium"),
        ("large", "gpt3-large"),
        ("xl", "gpt3-xl"),
    ],
)
def test_each_strata_size_is_smaller_than_its_gpt3_namesake_and_sees_fewer_tokens(strata, gpt3):
    ours, theirs = Config.preset(strata), Config.preset(gpt3)
    assert count_parameters(ours.model)["total"] < count_parameters(theirs.model)["total"]

    def tokens(config):
        training = config.training
        return training.max_steps * training.batch_size * config.model.context_length

    assert tokens(ours) < 0.1 * tokens(theirs)
    assert tokens(theirs) == pytest.approx(300e9, rel=0.001)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.n_layers": 0}, r"model\.n_layers = 0: expected a whole number of at least 1"),
        ({"model.n_layers": 2.5}, r"model\.n_layers = 2\.5: expected a whole number"),
        ({"model.biases": 1}, r"model\.biases = 1: expected true or false"),
        ({"model.norm": "batch"}, r"model\.norm = 'batch': expected one of 'rmsnorm', 'layernorm'"),
        ({"model.width": 250, "model.n_heads": 4}, r"model\.width = 250: expected a multiple"),
        ({"optimizer.learning_rate": 0}, r"optimizer\.learning_rate = 0: .* greater than 0"),
        ({"training.gradient_clip": float("nan")}, r"training\.gradient_clip = nan: .* finite"),
        ({"training.micro_batch_size": 5}, r"training\.micro_batch_size = 5: expected a divisor"),
        ({"training.warmup_steps": 10**6}, r"training\.warmup_steps = 1000000: expected at most"),
        ({"evaluation.tasks": "cloze"}, r"evaluation\.tasks = 'cloze': expected a list of names"),
        ({"model.vocab_size": 90_000}, r"model\.vocab_size = 90000: expected at most"),
        ({"model.n_layer": 2}, r"unknown field 'model\.n_layer'; did you mean 'model\.n_layers'"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(changes, message):
    with pytest.raises(ValueError, match=message):
        Config.preset("nano").override(changes)


def test_an_unknown_preset_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'gpt3-small'"):
        Config.preset("gpt3_small")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nn_layer = 2\n", r"unknown field model\.n_layer; did you mean 'n_layers'"),
        ("[modle]\n", r"unknown section \[modle\]; did you mean 'model'"),
        ("model = 3\n", r"model = 3: expected a section"),
        ("[model\n", "Expected"),
    ],
)
def test_a_bad_file_is_named_in_the_error(text, message, tmp_path):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Config.load(tmp_path / "bad.toml")
    assert "bad.toml" in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        Config.load("nowhere.toml")


def test_override_leaves_the_original_alone_and_widens_whole_numbers():
    config = Config.preset("nano")
    changed = config.override({"optimizer.weight_decay": 1, "model.n_layers": 6})
    assert changed.optimizer.weight_decay == 1.0
    assert isinstance(changed.optimizer.weight_decay, float)
    assert config.model.n_layers == ModelConfig().n_layers
    assert set(config.differences(changed)) == {"optimizer.weight_decay", "model.n_layers"}


def test_the_hash_follows_what_determines_the_weights_and_nothing_else():
    config = Config.preset("nano")
    assert config.hash() == Config.preset("nano").hash()
    assert config.hash() != config.override({"training.seed": 1}).hash()
    assert config.hash() == config.override({"training.checkpoint_every": 7}).hash()
    assert config.hash() == config.override({"training.evaluate_every": 7}).hash()
    assert config.hash() == config.override({"evaluation.limit": 7}).hash()
