"""Generation: the sampling rules by hand, the loop with a model whose text is known."""

import dataclasses

import pytest
import torch
from small_models import GPT3, RECIPES, STRATA, random_model
from stand_ins import BigramModel, ByteTokenizer

from strata.evaluation import (
    Sampling,
    generate,
    generate_batch,
    generate_steps,
    next_token_probabilities,
)
from strata.evaluation.sampling import draw, penalize, sample

TOKENIZER = ByteTokenizer()
PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)


def test_temperature_divides_the_logits():
    logits = torch.tensor([0.0, 1.0, 2.0])
    found = next_token_probabilities(logits, temperature=0.5)
    assert found.tolist() == pytest.approx(torch.softmax(2 * logits.double(), 0).tolist())
    assert next_token_probabilities(logits, temperature=0.0).tolist() == [0.0, 0.0, 1.0]


def test_top_k_keeps_the_k_most_likely_in_proportion():
    found = next_token_probabilities(PROBABILITIES.log(), top_k=2)
    assert found.tolist() == pytest.approx([0.0, 4 / 7, 0.0, 3 / 7])
    every = next_token_probabilities(PROBABILITIES.log(), top_k=9)
    assert every.tolist() == pytest.approx(PROBABILITIES.tolist())


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4), (1, 4)]
)
def test_top_p_keeps_the_smallest_nucleus(top_p, kept):
    found = next_token_probabilities(PROBABILITIES.log(), top_p=top_p)
    nucleus = PROBABILITIES.sort(descending=True).indices[:kept]
    assert sorted(found.nonzero()[:, 0].tolist()) == sorted(nucleus.tolist())
    share = PROBABILITIES[nucleus] / PROBABILITIES[nucleus].sum()
    assert found[nucleus].tolist() == pytest.approx(share.tolist())


def test_top_p_counts_within_top_k():
    # of the two most likely, 0.4 and 0.3, the first alone has 4/7
    found = next_token_probabilities(PROBABILITIES.log(), top_k=2, top_p=0.5)
    assert found.tolist() == [0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(("min_p", "kept"), [(0.0, 4), (0.2, 4), (0.3, 3), (0.6, 2), (1.0, 1)])
def test_min_p_keeps_what_is_likely_beside_the_likeliest(min_p, kept):
    found = next_token_probabilities(PROBABILITIES.log(), min_p=min_p)
    assert int((found > 0).sum()) == kept
    assert float(found.sum()) == pytest.approx(1.0)
    # the tokens are compared after the temperature: 0.3² is 0.56 of 0.4²
    squared = next_token_probabilities(PROBABILITIES.log(), temperature=0.5, min_p=0.6)
    assert squared.tolist() == [0.0, 1.0, 0.0, 0.0]


def test_repetition_penalty_makes_held_tokens_less_likely_whatever_the_sign():
    logits = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    found = penalize(logits, [{0, 1}, {2}], 2.0)
    assert found.tolist() == [[1.0, -4.0, 1.0], [2.0, -2.0, 0.5]]
    assert logits[0, 0] == 2.0


def slow_nucleus(probabilities, top_p):
    """By its definition: the likeliest tokens, one after the other, until they reach top_p."""
    kept, total = set(), 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        if total >= top_p:
            break
        kept.add(token)
        total += probabilities[token]
    return kept


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_a_nucleus_is_by_its_definition_whether_a_part_or_all_is_sorted(spread):
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(3, 4_096, generator=generator, dtype=torch.float64)
    found = next_token_probabilities(logits, top_p=0.9)
    for row in range(3):
        wanted = slow_nucleus(logits[row].softmax(0).tolist(), 0.9)
        assert set(found[row].nonzero()[:, 0].tolist()) == wanted
        # and a row does not depend on the others
        alone = next_token_probabilities(logits[row : row + 1], top_p=0.9)[0]
        assert torch.equal(alone, found[row])


def test_draws_follow_the_distribution_and_never_leave_it():
    weights = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    points = torch.rand(4_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(draw(weights.expand(4_000, -1), points.tolist()), minlength=5)
    assert counts[[0, 2, 4]].sum() == 0
    assert counts[3] / 4_000 == pytest.approx(0.75, abs=0.03)
    assert draw(weights.expand(2, -1), [0.0, 1.0]).tolist() == [1, 3]
    logits = weights.log().expand(2, -1)
    assert sample(logits, Sampling(), [0.2, 0.3]).tolist() == [1, 3]
    assert sample(logits, Sampling(temperature=0.0), [0.2, 0.3]).tolist() == [3, 3]


def test_greedy_writes_the_text_of_the_model_up_to_the_documents_end():
    model = BigramModel.that_writes("abcdef ghi")
    assert generate(model, TOKENIZER, "abc", temperature=0.0) == "def ghi"
    assert generate(model, TOKENIZER, None, temperature=0.0) == "abcdef ghi"
    assert generate(model, TOKENIZER, "abc", temperature=0.0, max_new_tokens=2) == "de"
    assert generate(model, TOKENIZER, "abc", max_new_tokens=0) == ""


def test_the_prompt_is_read_in_one_pass_and_each_token_in_one_more():
    model = BigramModel.that_writes("abcdefghij")
    generate(model, TOKENIZER, "abcd", temperature=0.0, max_new_tokens=4)
    assert model.passes == [5, 1, 1, 1]


def test_a_step_gives_the_models_own_probability():
    model = BigramModel.that_writes("abcd", likely=0.75)
    steps = list(generate_steps(model, TOKENIZER, "a", temperature=0.0, max_new_tokens=2))
    # the special token kept for later use is never written: its share goes to the others
    others = 0.25 / 257
    assert [step.probability for step in steps] == pytest.approx([0.75 / (1 - others)] * 2)
    assert [chr(step.token) for step in steps] == ["b", "c"]


def test_characters_of_several_bytes_appear_whole():
    model = BigramModel.that_writes("aé€😀z", context_length=64)
    steps = list(generate_steps(model, TOKENIZER, "a", temperature=0.0))
    texts = [step.text for step in steps]
    assert texts == ["", "é", "é", "é", "é€", "é€", "é€", "é€", "é€😀", "é€😀z", "é€😀z"]
    cut = generate(model, TOKENIZER, "a", temperature=0.0, max_new_tokens=3)
    assert cut == "é�"


def test_a_stop_string_ends_the_text_and_is_not_shown():
    model = BigramModel.that_writes("abcdefgh")
    assert generate(model, TOKENIZER, "a", temperature=0.0, stop=["ef", "fg"]) == "bcd"
    texts = [s.text for s in generate_steps(model, TOKENIZER, "a", temperature=0.0, stop=["def"])]
    assert texts == ["b", "bc", "bc", "bc", "bc"]
    # what only looked like a stop string is shown in the end
    missed = generate(model, TOKENIZER, "a", temperature=0.0, stop=["ghx"])
    assert missed == "bcdefgh"


def test_a_seed_reproduces_and_another_differs():
    model = BigramModel.uniform()
    first = list(generate_steps(model, TOKENIZER, "x", max_new_tokens=20, seed=3))
    assert first == list(generate_steps(model, TOKENIZER, "x", max_new_tokens=20, seed=3))
    assert first != list(generate_steps(model, TOKENIZER, "x", max_new_tokens=20, seed=4))


def test_writing_goes_on_beyond_the_context():
    model = BigramModel.that_writes("abcdefghijklmnopqrstuvwxyz", context_length=8)
    text = generate(model, TOKENIZER, "ab", temperature=0.0, max_new_tokens=64)
    assert text == "cdefghijklmnopqrstuvwxyz"
    # read anew: the later half of the context
    assert model.passes[:9] == [3, 1, 1, 1, 1, 1, 3, 1, 1]


def test_a_prompt_beyond_the_context_is_refused():
    model = BigramModel.that_writes("abcdefghijklmnop", context_length=8)
    assert generate(model, TOKENIZER, "abcdefg", temperature=0.0) == "hijklmnop"
    with pytest.raises(ValueError, match=r"9 tokens .* holds 8"):
        generate(model, TOKENIZER, "abcdefgh")


def test_an_empty_prompt_is_refused_with_what_to_do_instead():
    with pytest.raises(ValueError, match=r"prompt is empty.*prompt=None, --unprompted"):
        generate_batch(BigramModel.uniform(), TOKENIZER, ["a", ""])


@pytest.mark.parametrize(
    ("argument", "value"),
    [("temperature", -1), ("top_k", -1), ("top_p", 0), ("top_p", 1.5), ("max_new_tokens", -1),
     ("stop", "word"), ("stop", [""]), ("min_p", 1.1), ("repetition_penalty", 0.0),
     ("alternatives", 300), ("temperature", float("nan"))],
)  # fmt: skip
def test_an_argument_out_of_range_is_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument} = "):
        generate_steps(BigramModel.uniform(), TOKENIZER, "a", **{argument: value})


def test_a_step_names_the_likeliest_tokens_when_asked():
    model = BigramModel.that_writes("abc", likely=0.75)
    options = {"temperature": 0.0, "max_new_tokens": 1, "repetition_penalty": 9.0}
    (step,) = generate_steps(model, TOKENIZER, "ab", alternatives=2, **options)
    (first, share), (_, rest) = step.alternatives
    assert (chr(first), share) == ("c", step.probability)
    assert rest == pytest.approx((1 - share) / 256, rel=1e-4)
    (step,) = generate_steps(model, TOKENIZER, "ab", **options)
    assert step.alternatives == ()


def test_repetition_penalty_counts_the_prompt_and_what_is_written():
    # after any byte all are equally likely but "a", which the prompt holds
    model = BigramModel.uniform(context_length=64)
    model.logits[:, ord("a")] = -5.0  # the others have ln(1/258) = -5.55
    options = {"temperature": 0.0, "max_new_tokens": 5}
    assert generate(model, TOKENIZER, "a", **options) == "aaaaa"
    unlike = generate(model, TOKENIZER, "a", repetition_penalty=1.5, **options)
    assert unlike == "\x00\x01\x02\x03\x04"

    # a document of the model's own holds nothing yet
    assert len(generate(model, TOKENIZER, None, repetition_penalty=1.5, **options)) == 5


def test_weights_that_are_no_numbers_write_nothing():
    model = BigramModel.uniform()
    model.logits[:] = torch.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="logits are not numbers"):
            generate(model, TOKENIZER, "a", temperature=temperature)


def test_prompts_are_read_at_once_and_written_as_if_alone():
    prompts = ["x", "xyz", "x", None, "a longer one"]
    options = {"max_new_tokens": 30, "seed": 5, "top_k": 80, "stop": ["q"]}
    model = BigramModel.uniform(context_length=20)
    texts = generate_batch(model, TOKENIZER, prompts, **options)
    assert model.passes[:2] == [13, 1]
    alone = [generate(model, TOKENIZER, prompt, **options) for prompt in prompts]
    assert [texts[i] == alone[i] for i in range(5)] == [True, True, False, True, True]
    assert texts == generate_batch(model, TOKENIZER, prompts, batch_size=2, **options)
    assert generate_batch(model, TOKENIZER, []) == []
    with pytest.raises(ValueError, match="generate takes one"):
        generate_batch(model, TOKENIZER, "x")
    with pytest.raises(ValueError, match="batch_size = 0"):
        generate_batch(model, TOKENIZER, ["x"], batch_size=0)


def test_a_row_that_has_ended_is_read_no_more():
    model = BigramModel.that_writes("abcdefghij")
    rows = []
    call = model.__call__
    model_class = type("Counting", (), {"__call__": lambda self, tokens, **k: (
        rows.append(len(tokens)), call(tokens, **k))[1],
        "__getattr__": lambda self, name: getattr(model, name)})  # fmt: skip
    prompts = ["abcdefgh", "abc", "a"]
    texts = generate_batch(model_class(), TOKENIZER, prompts, max_new_tokens=16, temperature=0.0)
    assert texts == ["ij", "defghij", "bcdefghij"]
    assert rows == [3, 3, 3, 2, 2, 2, 2, 2, 1, 1]


# --- with the real model -----------------------------------------------------------------------

WINDOWED = {"n_layers": 3, "window_length": 5, "full_attention_every": 2}
CONFIGS = [
    dataclasses.replace(config, context_length=24, **windows)
    for config in (STRATA, GPT3)
    for windows in ({}, WINDOWED)
]
EVERY = pytest.mark.parametrize("config", CONFIGS, ids=["strata", "strata-w", "gpt3", "gpt3-w"])
PROMPTS = ["prompt", "a", "a longer prompt here", None]


class Tokenizer300(ByteTokenizer):
    """300 ids, the fewest that a configuration takes; those beyond the first special are unused."""

    vocab_size = 300
    special_tokens = {"<|document|>": 256, **{f"<|reserved_{i}|>": i for i in range(257, 300)}}  # noqa: RUF012


def uncached_probabilities(model, tokens):
    """Of the next token, from everything read anew."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens]))[0, -1]
    logits[257:] = -torch.inf
    return logits.softmax(0)


@EVERY
def test_the_model_laid_out_for_few_rows_is_the_same_model(config):
    model = random_model(config)
    before = [weight.stride() for weight in model.parameters()]
    twin = model.for_few_rows()
    tokens = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.allclose(twin(tokens), model(tokens), atol=1e-5)
    assert [weight.stride() for weight in model.parameters()] == before
    for name, weight in twin.named_parameters():
        assert weight.dim() != 2 or weight.t().is_contiguous(), name
    assert (twin.head_weight is twin.embedding.weight) == config.tie_embeddings


@EVERY
def test_generation_equals_reading_everything_anew_at_every_step(config):
    model = random_model(config)
    for prompt in PROMPTS:
        tokens = [256, *(prompt or "").encode()]
        for step in generate_steps(
            model, Tokenizer300(), prompt, temperature=0.0, max_new_tokens=25 - len(tokens)
        ):
            shares = uncached_probabilities(model, tokens)
            assert step.token == int(shares.argmax())
            assert step.probability == pytest.approx(float(shares[step.token]), rel=1e-4)
            tokens.append(step.token)


@EVERY
def test_the_cache_equals_reading_anew_in_rows_of_unequal_lengths(config):
    model = random_model(config)
    torch.manual_seed(1)
    tokens = torch.randint(0, 256, (3, 20))
    lengths, more = [3, 11, 7], 6
    with torch.inference_mode():
        cache = model.new_cache(3, 17)
        given = model(tokens[:, :11], cache=cache, last_only=True, lengths=lengths)
        found = [given]
        for columns in ([0], [1, 2], [3], [4], [5]):  # two at once, too
            following = [[tokens[row, lengths[row] + at] for at in columns] for row in range(3)]
            found.append(model(torch.tensor(following), cache=cache))
        for row in range(3):
            whole = model(tokens[row : row + 1, : lengths[row] + more])
            wanted = whole[0, lengths[row] - 1 :]
            assert torch.allclose(torch.cat(found, dim=1)[row], wanted, atol=1e-4)
        with pytest.raises(ValueError, match=r"18 tokens.*capacity = 17"):
            model(tokens[:, :1], cache=cache)


@EVERY
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_real_prompts_of_unequal_lengths_are_continued_as_if_alone(config, temperature):
    # beyond the context of 24, and through document ends
    model, tokenizer = random_model(config), Tokenizer300()
    options = {"max_new_tokens": 60, "temperature": temperature, "top_p": 0.99, "min_p": 1e-3}
    texts = generate_batch(model, tokenizer, PROMPTS, **options)
    assert texts == [generate(model, tokenizer, prompt, **options) for prompt in PROMPTS]
    assert max(map(len, texts)) > 30


@RECIPES
def test_models_in_bfloat16_and_under_autocast_write_too(config):
    model, tokenizer = random_model(config), Tokenizer300()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.new_cache().keys.dtype == torch.bfloat16
        texts = generate_batch(model, tokenizer, PROMPTS[:2], max_new_tokens=8, temperature=0.0)
        (step,) = generate_steps(model, tokenizer, "a", max_new_tokens=1, temperature=0.0)
    assert len(texts) == 2
    share = float(uncached_probabilities(model, [256, *b"a"])[step.token])
    assert step.probability == pytest.approx(share, rel=0.2)
    held = model.to(torch.bfloat16)
    texts = generate_batch(held, tokenizer, PROMPTS[:2], max_new_tokens=8, top_p=0.9)
    assert len(texts) == 2
