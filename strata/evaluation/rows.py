"""Rows that branch: requests that begin alike are laid side by side, their beginning once.

    requests → sorted → families that share a beginning → rows of families → batches of rows

Four endings of one context, or sentences that differ in their last words, have most of their tokens
in common. Sorted, they stand next to each other, and each adds to a row only what it does not share
with the one before. What a token then sees is its own text alone (`strata.model.masks.Tree`), so
that the shared beginning is computed once and its keys and values are read by all that continue it.

The plan depends on the requests alone: whoever goes on with an interrupted evaluation, or shares
it out among processes, computes the same batches and gets the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strata.data.packing import best_fit
from strata.model.masks import FLEX_BLOCK

Integers = NDArray[np.int64]

# Tokens of a row, unless requests are longer. Attention's price grows with it, and the room that
# is left over at the end of rows shrinks.
ROW_LENGTH = 512
# Requests that share less than this part of their tokens are no family: read twice, the little that
# they share lets them be packed more tightly.
LEAST_SHARED = 0.1


class Request(NamedTuple):
    """Token ids of which the last `n_scored` are asked about, given those before them."""

    tokens: list[int]
    n_scored: int


class Batch(NamedTuple):
    """What one forward pass reads, and what is asked of it.

    tokens, depths, ends: (rows, time); see `strata.model.masks.Tree`.
    places, targets: (questions,) as `Transformer.score_branches` takes them.
    numbers: the requests that are answered.
    questions: for each of them, which of the questions it adds up.
    """

    tokens: Integers
    depths: Integers
    ends: Integers
    places: Integers
    targets: Integers
    numbers: list[int]
    questions: list[Integers]


def plan_batches(requests: Sequence[Request], batch_tokens: int) -> list[list[list[int]]]:
    """Batches of rows of requests, each named by its number; the longest rows first.

    Args:
        requests: each has two tokens at least, of which at least the first is not asked about.
        batch_tokens: tokens in one batch, padding counted; a longer row goes alone.
    """
    families, sizes = _families(requests)
    row_of, n_rows = np.empty(len(families), dtype=np.int64), 0
    alone = sizes > ROW_LENGTH
    if not alone.all():
        row_of[~alone], n_rows = best_fit(sizes[~alone], ROW_LENGTH)
    row_of[alone] = n_rows + np.arange(alone.sum())
    rows: list[list[int]] = [[] for _ in range(n_rows + int(alone.sum()))]
    lengths = np.bincount(row_of, weights=sizes, minlength=len(rows))
    for family, row in zip(families, row_of.tolist(), strict=True):
        rows[row] += family
    # the longest first: what does not fit into memory fails at once
    longest_first = np.argsort(-lengths, kind="stable").tolist()
    batches = []
    start = 0
    while start < len(rows):
        length = _padded(int(lengths[longest_first[start]]))
        stop = start + max(1, batch_tokens // length)
        batches.append([rows[row] for row in longest_first[start:stop]])
        start = stop
    return batches


def lay_out(requests: Sequence[Request], rows: Sequence[Sequence[int]]) -> Batch:
    """The batch of some rows of a plan."""
    laid = [_lay_out_row([requests[number] for number in numbers]) for numbers in rows]
    time = _padded(max(len(row.tokens) for row in laid))
    # padding: a token that sees itself alone
    tokens = np.zeros((len(rows), time), dtype=np.int64)
    depths = np.zeros_like(tokens)
    ends = np.broadcast_to(np.arange(1, time + 1), tokens.shape).copy()
    places, targets, questions = [], [], []
    n_questions = 0
    for number, row in enumerate(laid):
        length = len(row.tokens)
        tokens[number, :length], depths[number, :length] = row.tokens, row.depths
        ends[number, :length] = row.ends
        asked = np.array(row.asked, dtype=np.int64)  # (questions, 2), ascending
        places.append(number * time + asked[:, 0])
        targets.append(asked[:, 1])
        questions += [n_questions + of_request for of_request in row.questions]
        n_questions += len(asked)
    return Batch(
        tokens,
        depths,
        ends,
        np.concatenate(places),
        np.concatenate(targets),
        [number for numbers in rows for number in numbers],
        questions,
    )


def _families(requests: Sequence[Request]) -> tuple[list[list[int]], Integers]:
    """Requests that share a beginning, in the order of their tokens, and how many tokens they
    take together: what is only asked about need not be read."""
    families: list[list[int]] = []
    sizes: list[int] = []
    before: list[int] = []
    for number in sorted(range(len(requests)), key=lambda number: requests[number].tokens):
        read = requests[number].tokens[:-1]
        shared = _shared(before, read)
        more = len(read) - shared
        most = max(ROW_LENGTH, 2 * len(read))  # so that long requests have families too
        if shared > LEAST_SHARED * len(read) and sizes[-1] + more <= most:
            families[-1].append(number)
            sizes[-1] += more
        else:
            families.append([number])
            sizes.append(len(read))
        before = read
    return families, np.array(sizes, dtype=np.int64)


class _Row(NamedTuple):
    """One row's tokens, depths and ends, what is asked, (place, target), and by which requests."""

    tokens: list[int]
    depths: list[int]
    ends: list[int]
    asked: list[tuple[int, int]]
    questions: list[Integers]


def _lay_out_row(requests: Sequence[Request]) -> _Row:
    tokens: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    path: list[int] = []  # the places of the tokens of the request before
    asked: list[list[tuple[int, int]]] = []
    for ids, n_scored in requests:
        shared = _shared([tokens[place] for place in path], ids[:-1])
        for place in path[shared:]:
            ends[place] = len(tokens)
        del path[shared:]
        for depth, token in enumerate(ids[shared:-1], start=shared):
            path.append(len(tokens))
            tokens.append(token)
            depths.append(depth)
            ends.append(0)
        first = len(ids) - n_scored
        asked.append(list(zip(path[first - 1 :], ids[first:], strict=True)))
    for place in path:
        ends[place] = len(tokens)
    # requests that go on alike for a while ask the same there
    distinct = sorted({question for of_request in asked for question in of_request})
    number_of = {question: number for number, question in enumerate(distinct)}
    questions = [np.array([number_of[question] for question in row]) for row in asked]
    return _Row(tokens, depths, ends, distinct, questions)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens the two begin with alike."""
    pairs: Iterator[tuple[int, int]] = zip(first, second, strict=False)
    alike = min(len(first), len(second))
    return next((number for number, (a, b) in enumerate(pairs) if a != b), alike)


def _padded(length: int) -> int:
    """The next multiple of FlexAttention's blocks: a few shapes, for which kernels are compiled."""
    return -(-length // FLEX_BLOCK) * FLEX_BLOCK
