"""Scores against numbers worked out by hand from models whose probabilities are known."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from stand_ins import BigramModel, ByteTokenizer

from strata.config import ModelConfig
from strata.evaluation import (
    bits_per_byte,
    compare_results,
    comparison_table,
    evaluate,
    load_items,
    load_results,
    results_table,
    save_results,
    score_continuations,
    score_texts,
    unigram_bits_per_byte,
)
from strata.evaluation.scoring import request_of, windows_of
from strata.model import Transformer
from strata.tokenizer import Tokenizer

TOKENIZER = ByteTokenizer()


def random_model(seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(258, 258, generator=generator, dtype=torch.float64) + 0.01
    return BigramModel(table / table.sum(1, keepdim=True), **kwargs)


def log_likelihood(model, ids):
    """The sum over the pairs, one by one."""
    return sum(float(model.logits[a, b]) for a, b in pairwise(ids))


def test_a_continuation_has_the_sum_of_its_tokens_log_probabilities():
    model = random_model()
    (answer,) = score_continuations(model, TOKENIZER, [("ab", " cd")])
    assert answer.n_tokens == 3
    assert answer.log_likelihood == pytest.approx(log_likelihood(model, b"b cd"), rel=1e-6)


def test_an_empty_context_is_the_start_of_a_document():
    model = random_model()
    (answer,) = score_continuations(model, TOKENIZER, [("", "xy")])
    assert answer.log_likelihood == pytest.approx(log_likelihood(model, [256, *b"xy"]), rel=1e-6)


def test_answers_come_in_the_order_of_the_questions_whatever_the_batches():
    model = random_model()
    pairs = [("a" * (7 * i % 20), "b" * (1 + 5 * i % 9)) for i in range(40)]
    one_by_one = [score_continuations(model, TOKENIZER, [pair])[0] for pair in pairs]
    model.rows.clear()
    together = score_continuations(model, TOKENIZER, pairs, batch_tokens=512)
    assert [a.log_likelihood for a in together] == pytest.approx(
        [a.log_likelihood for a in one_by_one]
    )
    assert len(model.rows) < len(pairs)
    assert all(rows * width <= 512 for rows, width in model.rows)


def test_a_continuation_is_greedy_when_every_token_is_the_first_choice():
    model = BigramModel.that_writes("abcd")
    answers = score_continuations(model, TOKENIZER, [("a", "bcd"), ("a", "bcx"), ("a", "xcd")])
    assert [answer.greedy for answer in answers] == [True, False, False]


def test_blanks_at_the_end_of_a_context_go_over_to_the_continuation():
    assert request_of("ab ", "cd", TOKENIZER, 32) == request_of("ab", " cd", TOKENIZER, 32)


def test_a_context_too_long_loses_its_beginning():
    request = request_of("0123456789" * 5, "xyz", TOKENIZER, context_length=8)
    assert request.tokens == list(b"456789xyz")
    assert request.n_scored == 3


def test_a_continuation_that_cannot_be_scored_is_named():
    with pytest.raises(ValueError, match="nothing to score"):
        request_of("context", "", TOKENIZER, 32)
    with pytest.raises(ValueError, match=r"9 tokens.*holds 8"):
        request_of("", "123456789", TOKENIZER, 8)


@pytest.mark.parametrize(("n_tokens", "stride"), [(5, 8), (8, 8), (9, 8), (30, 8), (30, 3), (1, 1)])
def test_windows_ask_about_every_token_once_and_hold_as_much_past_as_fits(n_tokens, stride):
    tokens = list(range(100, 100 + n_tokens))
    asked = []
    for window in windows_of(tokens, 256, 8, stride):
        assert len(window.tokens) <= 9
        seen = len(window.tokens) - window.n_scored
        assert seen >= 1
        asked += window.tokens[seen:]
        first = window.tokens[seen]
        assert window.tokens[0] == 256 or first - window.tokens[0] >= min(9 - stride, 1)
    assert asked == tokens


def test_bits_per_byte_of_a_uniform_model_are_the_log_of_its_vocabulary():
    documents = ["five!", "", "été " * 40]
    for stride in (0, 5, 32):
        bits = bits_per_byte(BigramModel.uniform(), TOKENIZER, documents, stride=stride)
        assert bits == pytest.approx(math.log2(258), rel=1e-6)


def test_bits_per_byte_agree_with_the_sum_by_hand():
    model = random_model(context_length=8)
    text = "a text longer than the context"
    bits = -log_likelihood(model, [256, *text.encode()]) / math.log(2)
    # a bigram model needs one token of past, which every stride leaves it
    for stride in (0, 1, 3, 8):
        assert bits_per_byte(model, TOKENIZER, [text], stride=stride) == pytest.approx(
            bits / len(text), rel=1e-6
        )


def test_texts_are_scored_apart():
    model = random_model()
    both = score_texts(model, TOKENIZER, ["one", "another"])
    assert both == pytest.approx(
        [score_texts(model, TOKENIZER, [t])[0] for t in ("one", "another")]
    )


def test_bits_per_byte_refuses_nothing_to_read():
    with pytest.raises(ValueError, match="at least one byte"):
        bits_per_byte(BigramModel.uniform(), TOKENIZER, ["", ""])
    with pytest.raises(ValueError, match="stride = 99"):
        bits_per_byte(BigramModel.uniform(), TOKENIZER, ["a"], stride=99)


def test_unigram_bits_per_byte_are_laplaces_rule():
    # counts 3 and 0 over a vocabulary of 3: probabilities 4/6, 1/6, 1/6
    counts, lengths = np.array([3, 0, 0]), np.array([1, 2, 0])
    bits = -(2 * math.log2(4 / 6) + math.log2(1 / 6) + math.log2(1 / 6))
    found = unigram_bits_per_byte(counts, np.array([0, 0, 1, 2], dtype=np.uint32), lengths)
    assert found == pytest.approx(bits / 4)


def test_unigram_bits_per_byte_refuse_tables_of_different_length():
    with pytest.raises(ValueError, match="2 entries, byte_lengths 3"):
        unigram_bits_per_byte(np.ones(2), np.array([0]), np.ones(3))


# --- results -----------------------------------------------------------------------------------


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def data(tmp_path):
    """A folder with two sets of three items each."""
    write_lines(
        tmp_path / "lambada_openai_test.jsonl",
        [{"text": text} for text in ("one two", "some more two", "a three one")],
    )
    write_lines(
        tmp_path / "copa_val.jsonl",
        [
            {"premise": "P.", "choice1": "ab", "choice2": "cd", "question": "cause", "label": 0},
            {"premise": "P.", "choice1": "ab", "choice2": "cd", "question": "effect", "label": 1},
            {"premise": "P.", "choice1": "cd", "choice2": "ab", "question": "cause", "label": 1},
        ],
    )
    return tmp_path


def test_evaluate_scores_a_cloze_by_greedy_match(data):
    model = BigramModel.that_writes("e two")
    result = evaluate(model, TOKENIZER, ["lambada"], data_dir=data, progress=False)["lambada"]
    assert [item.correct for item in result.items] == [True, True, False]
    assert result.score == pytest.approx(2 / 3)
    assert result.interval[0] <= result.score <= result.interval[1]
    assert (result.metric, result.n_items, result.chance) == ("acc_greedy", 3, 0.0)
    by_hand = [log_likelihood(model, text.encode()) for text in ("e two", "e two", "e one")]
    assert [item.log_likelihoods[0] for item in result.items] == pytest.approx(by_hand, rel=1e-6)
    assert result.metrics["perplexity"] == pytest.approx(math.exp(-sum(by_hand) / 3), rel=1e-6)


def test_a_result_says_how_many_examples_stood_before_each_item(data):
    model = BigramModel.uniform(context_length=512)
    for shots in (0, 1):
        found = evaluate(model, TOKENIZER, ["copa"], data_dir=data, shots=shots, progress=False)
        assert found["copa"].shots == shots


def test_weights_that_are_no_numbers_have_no_score(data):
    model = BigramModel.uniform()
    model.logits[:] = math.nan
    with pytest.raises(ValueError, match="task 'copa': the model's log-likelihoods are not finite"):
        evaluate(model, TOKENIZER, ["copa"], data_dir=data, progress=False)


def test_the_task_of_an_item_that_the_context_does_not_hold_is_named(data):
    with pytest.raises(ValueError, match="task 'copa': the continuation '  ab'"):
        evaluate(
            BigramModel.uniform(context_length=2), TOKENIZER, ["copa"], data_dir=data,
            progress=False,
        )  # fmt: skip


class Disagreeing:
    """The first of two processes, of which the other has other items."""

    first, rank, size = True, 0, 2

    def gather(self, value):
        return [value, "what the other asks"]


def test_processes_that_do_not_ask_the_same_are_told(data):
    with pytest.raises(ValueError, match="task 'copa': the processes have different items"):
        evaluate(
            BigramModel.uniform(), TOKENIZER, ["copa"], data_dir=data, progress=False,
            processes=Disagreeing(),
        )  # fmt: skip


def test_evaluate_takes_the_likelier_choice(data):
    model = BigramModel.that_writes("ab")
    result = evaluate(model, TOKENIZER, ["copa"], data_dir=data, progress=False)["copa"]
    assert [item.prediction for item in result.items] == [0, 0, 1]
    assert result.score == pytest.approx(2 / 3)
    assert set(result.metrics) == {"acc", "acc_norm", "acc_bytes", "acc_per_token"}


def test_the_rules_differ_where_length_and_plain_likelihood_pull_apart(tmp_path):
    # uniform: the shorter choice is likelier; per byte both are equal and the first is taken
    write_lines(
        tmp_path / "arc_easy_test.jsonl",
        [{"id": "1", "question": "q", "choices": ["long answer", "short"], "label": 1}],
    )
    result = evaluate(
        BigramModel.uniform(context_length=64), TOKENIZER, ["arc_easy"], data_dir=tmp_path,
        progress=False,
    )["arc_easy"]  # fmt: skip
    assert result.metrics["acc"] == 1.0
    assert result.metrics["acc_per_token"] == 0.0
    # after "Answer:" alone the choices are as likely as after the question
    assert result.metrics["acc_unconditional"] == result.score == 0.0


def test_a_text_is_scored_in_bits_per_byte_of_the_original(tmp_path):
    article = " \n = Title = \n \n Ten @-@ four words , here . \n "
    write_lines(tmp_path / "wikitext2_test.jsonl", [{"text": article}])
    result = evaluate(
        BigramModel.uniform(), TOKENIZER, ["wikitext2"], data_dir=tmp_path, progress=False
    )["wikitext2"]
    plain = "\n= Title =\n\nTen-four words, here.\n"
    bits = len(plain) * math.log2(258)
    assert result.score == pytest.approx(bits / len(article), rel=1e-6)
    # the harness counts what lies between white space, the empty ends too
    assert result.metrics["word_perplexity"] == pytest.approx(2 ** (bits / 12), rel=1e-4)
    assert not result.higher_is_better


def test_the_real_model_and_tokenizer_agree_with_the_whole_table_of_logits():
    merges = [b"th", b" th", b" the", b"he", b"ca", b"cat", b" cat"]
    ranks = {bytes([i]): i for i in range(256)} | {m: 256 + i for i, m in enumerate(merges)}
    tokenizer = Tokenizer.from_ranks(ranks, pattern="gpt2", special_tokens={"<|document|>": 263})
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(vocab_size=300, n_layers=2, n_heads=2, width=32, context_length=16)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    pairs = [("the", " cat"), ("The thin", " the cat"), ("", "cat the"), ("a" * 30, " cat!")]
    for (context, continuation), answer in zip(
        pairs, score_continuations(model, tokenizer, pairs), strict=True
    ):
        ids = [263, *tokenizer.encode(context), *tokenizer.encode(continuation)][-17:]
        n_scored = len(tokenizer.encode(continuation))
        with torch.no_grad():
            table = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)[-n_scored:]
        scored = torch.tensor(ids[-n_scored:])
        assert answer.log_likelihood == pytest.approx(
            float(table.gather(1, scored[:, None]).sum()), rel=1e-3
        )
        assert answer.greedy == bool((table.argmax(-1) == scored).all())


def test_absent_data_skips_the_task_and_says_how_to_get_it(data, capsys):
    results = evaluate(
        BigramModel.uniform(), TOKENIZER, ["piqa", "cloze", "lambada"], data_dir=data,
        progress=False,
    )  # fmt: skip
    assert list(results) == ["lambada"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "piqa_val.jsonl" in said[0]
    assert "held-out" in said[1]


def test_results_survive_the_way_through_a_file(data, tmp_path):
    results = evaluate(
        BigramModel.that_writes("e two"), TOKENIZER, ["lambada", "copa"], data_dir=data,
        progress=False,
    )  # fmt: skip
    save_results(results, tmp_path / "deep" / "results.json")
    assert load_results(tmp_path / "deep" / "results.json") == results


def test_two_models_are_compared_on_the_same_items(data):
    def run(model, **kwargs):
        return evaluate(
            model, TOKENIZER, ["lambada", "copa"], data_dir=data, progress=False, **kwargs
        )

    first, second = run(BigramModel.uniform()), run(BigramModel.that_writes("e two"))
    found = compare_results(first, second)
    assert list(found) == ["lambada", "copa"]
    assert found["lambada"].difference == pytest.approx(2 / 3)
    header, rows = comparison_table(first, second, ("uniform", "bigram"))
    assert header[:3] == ["task", "uniform", "bigram"]
    assert rows[0][:4] == ["LAMBADA", "0.0", "66.7", "+66.7"]
    assert results_table(second)[1][0][:2] == ["LAMBADA", "66.7"]
    with pytest.raises(ValueError, match="different items"):
        compare_results(first, run(BigramModel.uniform(), limit=2))


def test_items_that_lose_their_beginning_are_counted_and_told(data, capsys):
    model = BigramModel.that_writes("ab", context_length=12)
    result = evaluate(model, TOKENIZER, ["copa"], data_dir=data, progress=False)["copa"]
    longest = [
        max(len(a) + len(b) for a, b in item.requests) for item in load_items("copa", data_dir=data)
    ]
    assert result.n_cut == sum(length > 12 for length in longest) > 0
    assert f"copa: {result.n_cut} of 3 items are too long" in capsys.readouterr().err
