"""Rows that branch give what each request gives alone, and read shared beginnings once."""

import dataclasses
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import GPT3, STRATA, random_model

from strata.evaluation.rows import ROW_LENGTH, Request, lay_out, plan_batches
from strata.evaluation.scoring import answer_requests, score_requests
from strata.model.masks import Tree

WINDOWED = dataclasses.replace(STRATA, n_layers=3, window_length=5)


def random_requests(count, longest=17, seed=0):
    """Requests over few tokens, so that many begin alike."""
    generator = random.Random(seed)
    requests = []
    for _ in range(count):
        ids = [9, *(generator.randrange(3) for _ in range(generator.randrange(1, longest)))]
        requests.append(Request(ids[:longest], generator.randrange(1, len(ids[:longest]))))
    return requests


def answer_alone(model, request):
    """Log-likelihood and greediness from all logits of the request's own row."""
    with torch.no_grad():
        table = model(torch.tensor([request.tokens[:-1]]))[0].double().log_softmax(-1)
    first = len(request.tokens) - request.n_scored
    asked = [(place - 1, request.tokens[place]) for place in range(first, len(request.tokens))]
    return (
        sum(float(table[row, token]) for row, token in asked),
        all(int(table[row].argmax()) == token for row, token in asked),
    )


@pytest.mark.parametrize("config", [STRATA, GPT3, WINDOWED], ids=["strata", "gpt3", "windowed"])
def test_a_request_gets_the_answer_that_it_gets_alone(config):
    model, requests = random_model(config), random_requests(200)
    for request, answer in zip(requests, score_requests(model, requests), strict=True):
        log_likelihood, greedy = answer_alone(model, request)
        assert answer.log_likelihood == pytest.approx(log_likelihood, abs=2e-5)
        assert answer.greedy == greedy
        assert answer.n_tokens == request.n_scored


def test_bfloat16_changes_an_answer_by_its_rounding_alone():
    model, requests = random_model(STRATA), random_requests(40)
    with torch.autocast("cpu", torch.bfloat16):
        answers = score_requests(model, requests)
    for request, answer in zip(requests, answers, strict=True):
        expected, _ = answer_alone(model, request)
        assert answer.log_likelihood == pytest.approx(expected, rel=0.03, abs=0.1)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_each_token_sees_the_text_that_it_continues(texts):
    requests = [Request([7, *text], len(text)) for text in texts]
    answered = []
    for rows in plan_batches(requests, 1_024):
        batch = lay_out(requests, rows)
        n_columns = batch.tokens.shape[1]
        flat = batch.tokens.flatten()
        for number, questions in zip(batch.numbers, batch.questions, strict=True):
            answered.append(number)
            for depth, question in enumerate(questions, start=1):
                place, target = batch.places[question], batch.targets[question]
                row, column = divmod(int(place), n_columns)
                past = [
                    int(flat[row * n_columns + key])
                    for key in range(column + 1)
                    if column < batch.ends[row, key]
                ]
                assert past == requests[number].tokens[:depth]
                assert target == requests[number].tokens[depth]
                assert batch.depths[row, column] == depth - 1
    assert sorted(answered) == list(range(len(requests)))


def test_a_shared_beginning_is_read_once():
    context = [1, *range(100, 200)]
    requests = [Request([*context, ending, ending, ending], 3) for ending in range(4)]
    (rows,) = plan_batches(requests, 8_192)
    batch = lay_out(requests, rows)
    # the context, and of each ending the two tokens that are read
    assert int((batch.tokens != 0).sum()) == len(context) + 3 * 2  # ending 0 looks like padding
    assert len(batch.places) == 4 * 3
    # the first tokens of all four are asked of one place
    assert (batch.places == len(context) - 1).sum() == 4


def test_endings_of_a_context_longer_than_a_row_share_it_too():
    context = list(range(1, 2 * ROW_LENGTH))
    requests = [Request([*context, ending, ending], 2) for ending in (7, 8)]
    ((row,),) = plan_batches(requests, 64)
    assert sorted(row) == [0, 1]
    assert lay_out(requests, [row]).tokens.shape[1] < 1.2 * len(context)


def test_batches_keep_to_their_size_and_waste_little():
    generator = random.Random(1)
    requests = [
        Request([1, *(generator.randrange(9_999) for _ in range(generator.randrange(40, 200)))], 1)
        for _ in range(400)
    ]
    shapes = [lay_out(requests, rows).tokens.shape for rows in plan_batches(requests, 4_096)]
    assert all(rows * columns <= 4_096 for rows, columns in shapes)
    read = sum(len(request.tokens) - 1 for request in requests)
    assert sum(rows * columns for rows, columns in shapes) < 1.05 * read


class Two:
    """One of two processes, whose share is to be seen without the other."""

    def __init__(self, rank):
        self.rank, self.size = rank, 2

    def gather(self, value):
        raise AssertionError("answering needs no communication")


def test_two_processes_share_the_requests_and_make_as_many_passes():
    model, requests = random_model(STRATA), random_requests(500, longest=16)
    alone = score_requests(model, requests, batch_tokens=128)
    passes, shares = [], []
    for rank in range(2):
        calls = []
        score = model.score_branches
        model.score_branches = lambda *a, score=score, calls=calls: calls.append(0) or score(*a)
        share = {}
        for batch in answer_requests(model, requests, batch_tokens=128, processes=Two(rank)):
            share.update(batch)
        model.score_branches = score
        passes.append(len(calls))
        shares.append(share)
    assert passes[0] == passes[1]
    assert not shares[0].keys() & shares[1].keys()
    together = shares[0] | shares[1]
    assert [together[number] for number in range(len(requests))] == alone  # to the last bit


def test_a_tree_of_one_branch_is_a_plain_row():
    model = random_model(STRATA)
    tokens = torch.randint(0, 300, (2, 12))
    time = torch.arange(12).expand(2, 12)
    tree = Tree(time, torch.full_like(time, 12))
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(tokens, tree=tree), model.hidden(tokens))
