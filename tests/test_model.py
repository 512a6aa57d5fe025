"""The transformer against hand calculation, float64 and PyTorch's own parts."""

import math

import pytest
import torch
from small_models import GPT3, RECIPES, SIZE, STRATA, random_model, random_tokens

from strata.config import Config
from strata.model import Transformer, bits_per_byte, count_parameters, flops_per_token
from strata.model.attention import rotate, rotation
from strata.model.loss import score_targets, soft_cap


def test_parameters_of_the_gpt3_recipe_match_a_count_by_hand():
    width, layers, vocab, context = 32, 2, 300, 16
    attention = 4 * (width * width + width)
    feed_forward = 2 * 4 * width * width + 4 * width + width
    norms = 2 * 2 * width
    body = layers * (attention + feed_forward + norms) + 2 * width
    counts = count_parameters(GPT3)
    assert counts["embedding"] == (vocab + context) * width
    assert counts["body"] == body
    assert counts["head"] == 0
    assert counts["total"] == counts["body"] + counts["embedding"]


def test_parameters_of_the_strata_recipe_match_a_count_by_hand():
    counts = count_parameters(STRATA)
    assert counts["body"] == 2 * 12 * 32 * 32 + 2 * 2  # matrices, and two scalars a layer
    untied = Config.preset("nano").override({**SIZE, "model.tie_embeddings": False}).model
    assert count_parameters(untied)["head"] == 300 * 32


def test_flops_match_what_pytorch_counts_for_the_products():
    """Six operations a weight and token, and attention, against PyTorch's flop counter."""
    from torch.utils.flop_counter import FlopCounterMode

    model = random_model(STRATA)
    tokens = random_tokens(1, 16)
    unfused = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), unfused:
        model(tokens)
    assert 3 * counter.get_total_flops() == flops_per_token(STRATA) * 16


@RECIPES
def test_a_position_sees_nothing_that_comes_after_it(config):
    model, tokens = random_model(config), random_tokens(1, 16)
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 300
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@RECIPES
@pytest.mark.parametrize("pieces", [[16], [7, 1, 1, 7], [1] * 16])
def test_the_cached_model_equals_the_uncached_one(config, pieces):
    model, tokens = random_model(config).double(), random_tokens(2, 16)
    cache = model.new_cache(2)
    with torch.no_grad():
        whole = model(tokens)
        parts = [model(part, cache=cache) for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


@RECIPES
def test_last_only_gives_the_last_row_of_all_logits(config):
    model, tokens = random_model(config), random_tokens(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, last_only=True), model(tokens)[:, -1:])


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match=r"17 tokens: expected at most model\.context_length = 16"):
        random_model(STRATA)(random_tokens(1, 17))


def test_rotation_makes_comparisons_depend_on_distance_alone():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 8, generator=generator, dtype=torch.float64)

    def score(i: int, j: int) -> float:
        a = rotate(query.view(1, 1, 1, 8), rotation(torch.tensor([i]), 8, 10_000.0))
        b = rotate(key.view(1, 1, 1, 8), rotation(torch.tensor([j]), 8, 10_000.0))
        return (a * b).sum().item()

    assert score(5, 3) == pytest.approx(score(105, 103), abs=1e-4)
    assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-3)


def test_rotation_is_multiplication_by_a_complex_number_of_unit_length():
    x = torch.randn(1, 1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, rotation(torch.arange(4), 6, 100.0))
    pairs = torch.complex(x[..., :3], x[..., 3:])
    angles = torch.arange(4)[:, None] * 100.0 ** (-torch.arange(3) / 3)
    expected = pairs * torch.polar(torch.ones(4, 3), angles.float())
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), -1).double())


def test_attention_weights_reproduce_what_the_layer_computes():
    model, tokens = random_model(STRATA), random_tokens(1, 16)
    pattern = model.attention_pattern(tokens, layer=0, head=1)
    assert pattern.shape == (16, 16)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(16))
    assert torch.equal(pattern.triu(1), torch.zeros(16, 16))

    block = model.blocks[0]
    x, turn = model._embed(tokens, torch.arange(tokens.shape[1]))
    x = block.attention_norm(model._mix(0, x, x))
    _, _, values = block.attention.queries_keys_values(x, turn)
    by_hand = block.attention.weights(x, turn) @ values
    by_hand = block.attention.project(by_hand.transpose(1, 2).flatten(2))
    torch.testing.assert_close(block.attention(x, turn, None), by_hand)


def test_scores_equal_the_log_probabilities_of_all_logits():
    model, tokens = random_model(STRATA), random_tokens(2, 16)
    targets = tokens.roll(-1, dims=1)
    targets[:, -3:] = -100
    nats, correct = model.score(tokens, targets)
    log_probabilities = model(tokens).log_softmax(-1)
    expected = -log_probabilities.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    expected[:, -3:] = 0
    torch.testing.assert_close(nats, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(correct, (log_probabilities.argmax(-1) == targets) & (targets != -100))
    assert score_targets(torch.ones(1, 2), torch.eye(2), *torch.tensor([[0], [0]]), 0)[1].item()


@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_targets_are_scored_alike_over_pieces_of_a_large_vocabulary(cap):
    # more tokens and more places than a CPU holds the logits of at once, none a multiple of it
    generator = torch.Generator().manual_seed(0)
    hidden = 3 * torch.randn(700, 8, generator=generator)
    weight = torch.randn(2_500, 8, generator=generator)
    places = torch.arange(700).repeat_interleave(2)
    logits = soft_cap(hidden @ weight.T, cap).double()
    best = logits.argmax(-1)
    targets = torch.randint(2_500, (1_400,), generator=generator)
    targets[::2] = best  # in every piece some are the likeliest
    assert len((best // 1_024).unique()) == 3
    nats, correct = score_targets(hidden, weight, places, targets, cap)
    expected = -logits.log_softmax(-1)[places, targets]
    torch.testing.assert_close(nats, expected.float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(correct, targets == best[places])


def test_an_untrained_strata_model_is_as_unsure_as_can_be():
    torch.manual_seed(0)
    config = Config.preset("nano").override({**SIZE, "model.tie_embeddings": False}).model
    loss = Transformer(config).loss(random_tokens(2, 16), random_tokens(2, 16))
    assert loss.item() == pytest.approx(math.log(300), rel=1e-5)


def test_bits_per_byte_of_a_uniform_model_of_bytes_is_eight():
    assert bits_per_byte(math.log(256) * 1_000, 1_000) == pytest.approx(8.0)


def test_a_run_without_final_weights_is_named(tmp_path):
    Config.preset("nano").save(tmp_path / "config.toml")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        Transformer.load(tmp_path)
