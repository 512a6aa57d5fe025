"""Best-fit packing: rows as bin packing has them, no id lost, no target that cannot be known."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.data import (
    Loader,
    PackingSummary,
    TokenShards,
    build_shards,
    document_numbers,
    measure_packing,
    packing,
)
from strata.data.loader import IGNORED
from strata.data.packing import best_fit, plan_rows

SEPARATOR = 0
CONTEXT = 8
LENGTH = CONTEXT + 1


class CountingEncoder:
    """A document of n characters becomes n ids that count on over all documents."""

    document_separator = SEPARATOR
    identity = "counting"

    def __init__(self) -> None:
        self.next_id = 1

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
        encoded = []
        for text in texts:
            encoded.append(np.arange(self.next_id, self.next_id + len(text), dtype=np.uint32))
            self.next_id += len(text)
        return encoded


def build(folder: Path, lengths: Sequence[int], encoder: object = None) -> TokenShards:
    return build_shards(
        ["x" * length for length in lengths],
        encoder or CountingEncoder(),
        folder,
        corpus_identity="corpus",
        shard_tokens=100,
        progress=False,
    )


LENGTHS = [0, 1, 7, 8, 9, 17, 18, 25, 26, 3, 3, 5, 40, 2, 6, 11, 12, 13, 4, 4, 19, 1, 1, 30]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return build(tmp_path_factory.mktemp("shards") / "train", LENGTHS)


def read_all(shards: TokenShards) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets of every row, in a loader's order."""
    loader = Loader(shards, batch_size=1, context_length=CONTEXT, seed=3, packing="best-fit")
    batch = loader.next(loader.n_windows)
    loader.close()
    return batch.tokens.numpy(), batch.targets.numpy()


def rooms_of_plain_best_fit(sizes: list[int], capacity: int) -> list[int]:
    """Room left in every row when pieces are placed one at a time, as the definition has it."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= size]
        if not fitting:
            rooms.append(capacity)
            fitting = [len(rooms) - 1]
        rooms[min(fitting, key=lambda row: rooms[row])] -= size
    return rooms


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(
        st.just(capacity), st.lists(st.integers(1, capacity), min_size=1, max_size=120)
    )
))  # fmt: skip
def test_pieces_lie_as_best_fit_decreasing_puts_them(case: tuple[int, list[int]]) -> None:
    capacity, sizes = case
    row_of, n_rows = best_fit(np.array(sizes), capacity)
    filled = np.bincount(row_of, weights=sizes, minlength=n_rows).astype(int)
    assert sorted(capacity - filled) == sorted(rooms_of_plain_best_fit(sizes, capacity))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(2, 20))
def test_a_plan_holds_every_id_once_and_cuts_long_documents_alone(
    lengths: list[int], row_length: int
) -> None:
    starts = np.cumsum([0, *lengths[:-1]])
    plan = plan_rows(starts, np.array(lengths), row_length)
    covered = np.zeros(sum(lengths), int)
    for start, length in zip(plan.starts, abs(plan.lengths), strict=True):
        covered[start : start + length] += 1
    assert (covered == 1).all()
    assert plan.n_cut == sum(length > row_length for length in lengths)
    assert len(plan.starts) == sum(-(-length // row_length) for length in lengths)
    sizes = abs(plan.lengths) + (plan.lengths < 0)
    for first, after in zip(plan.first_pieces[:-1], plan.first_pieces[1:], strict=True):
        assert 0 < sizes[first:after].sum() <= row_length
    # a separator is put before what begins within a document, unless it fills a row
    rest = ~np.isin(plan.starts, starts) & (abs(plan.lengths) < row_length)
    assert ((plan.lengths < 0) == rest).all()


def test_a_million_documents_are_planned_in_seconds() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 1_000_000).astype(np.int64) + 1
    started = time.perf_counter()
    plan = plan_rows(np.cumsum(lengths) - lengths, lengths, 2_049)
    assert time.perf_counter() - started < 10
    n_rows = len(plan.first_pieces) - 1
    assert 1 - lengths.sum() / (n_rows * 2_049) < 0.01


def test_rows_hold_every_id_once_and_begin_with_a_separator_or_go_on(shards: TokenShards) -> None:
    tokens, targets = read_all(shards)
    # the last id of a row is a target alone; where that is not to be predicted it is padding
    last = np.where(targets[:, -1] == IGNORED, SEPARATOR, targets[:, -1])
    ids = np.concatenate([tokens, last[:, None]], axis=1)
    assert Counter(ids[ids != SEPARATOR].tolist()) == Counter(range(1, sum(LENGTHS) + 1))
    for row in ids:
        if row[0] != SEPARATOR:  # it goes on from another row and is full of one document
            assert (np.diff(row) == 1).all()


def test_targets_are_what_follows_in_the_document_or_its_end(shards: TokenShards) -> None:
    ends = set(np.cumsum(LENGTHS).tolist())  # last id of every document
    firsts = {end + 1 for end in ends} | {1}
    tokens, targets = read_all(shards)
    n_unknown = 0
    for token, target in zip(tokens.ravel().tolist(), targets.ravel().tolist(), strict=True):
        if target == IGNORED:
            n_unknown += 1
        elif target == SEPARATOR:
            assert token in ends or token == SEPARATOR  # LENGTHS has an empty document
        elif token == SEPARATOR:
            assert target in firsts
        else:
            assert target == token + 1
            assert token not in ends
    # as many as there are places without text: padding, and a rest's first id for its separator
    assert n_unknown == len(tokens) * LENGTH - shards.n_tokens


def test_no_document_shares_its_number_with_another(shards: TokenShards) -> None:
    starts = np.cumsum([1, *LENGTHS])
    tokens, _ = read_all(shards)
    numbers = document_numbers(torch.from_numpy(tokens), SEPARATOR)
    assert numbers.dtype == torch.int32
    for row, of_row in zip(tokens, numbers.numpy(), strict=True):
        documents = np.searchsorted(starts, row, side="right")
        text = row != SEPARATOR
        for number in np.unique(of_row[text]):
            assert len(set(documents[text & (of_row == number)])) == 1


def test_document_numbers_count_separators_along_each_row() -> None:
    tokens = torch.tensor([[5, 6, 0, 7, 0, 0, 8], [0, 5, 6, 7, 8, 9, 0]])
    expected = [[0, 0, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 1, 2]]
    assert document_numbers(tokens, 0).tolist() == expected


def test_what_packing_costs_is_measured(shards: TokenShards) -> None:
    stream = measure_packing(shards, CONTEXT, "stream")
    sequence = shards.window(0, shards.n_tokens)
    document = np.cumsum(sequence == SEPARATOR)
    n_windows = len(sequence) // LENGTH
    windows_of = {
        number: {place // LENGTH for place in np.flatnonzero(document == number)}
        for number in range(1, len(LENGTHS) + 1)
    }
    n_cut = sum(len(w) > 1 or max(w) >= n_windows for w in windows_of.values())
    assert stream == PackingSummary(
        n_windows, 0.0, pytest.approx(len(sequence) % LENGTH / len(sequence)), n_cut / len(LENGTHS)
    )
    packed = measure_packing(shards, CONTEXT, "best-fit")
    tokens, _ = read_all(shards)
    assert packed == PackingSummary(
        len(tokens),
        pytest.approx(1 - len(sequence) / (len(tokens) * LENGTH)),
        0.0,
        sum(length + 1 > LENGTH for length in LENGTHS) / len(LENGTHS),
    )
    assert packed.cut < stream.cut


def test_the_plan_is_kept_and_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = build(tmp_path / "train", LENGTHS)
    first = read_all(shards)
    (kept,) = (tmp_path / "train").glob("best-fit-*")
    monkeypatch.setattr(packing, "_document_bounds", None)
    again = read_all(TokenShards(shards.folder))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    content = kept.read_bytes()[:-8]
    kept.unlink()  # so that what maps the old file keeps it
    kept.write_bytes(content)
    with pytest.raises(ValueError, match="cut short or altered; delete it"):
        read_all(shards)


def test_a_separator_within_a_document_is_refused(tmp_path: Path) -> None:
    class Careless(CountingEncoder):
        def encode_batch(
            self, texts: Sequence[str], threads: int | None = None
        ) -> list[np.ndarray]:
            return [np.zeros(len(text), np.uint32) for text in texts]

    shards = build(tmp_path / "train", [3, 4], Careless())
    with pytest.raises(ValueError, match="9 separators, expected one before each of its 2"):
        Loader(shards, batch_size=1, context_length=4, seed=0, packing="best-fit")


def test_a_loader_gives_each_packed_row_once_an_epoch(shards: TokenShards) -> None:
    tokens, _ = read_all(shards)
    loader = Loader(shards, batch_size=1, context_length=CONTEXT, seed=3, packing="best-fit")
    assert (loader.n_windows, loader.n_dropped_tokens) == (len(tokens), 0)
    for epoch in (0, 1):
        assert loader.epoch == epoch
        seen = [tuple(loader.next().tokens[0].tolist()) for _ in range(len(tokens))]
        assert Counter(seen) == Counter(map(tuple, tokens.tolist()))


def test_the_state_of_another_packing_is_refused(shards: TokenShards) -> None:
    options = {"batch_size": 1, "context_length": CONTEXT, "seed": 3}
    stream = Loader(shards, **options)
    packed = Loader(shards, **options, packing="best-fit")
    with pytest.raises(ValueError, match="packing is best-fit, expected stream"):
        packed.load_state_dict(stream.state_dict())
    packed.next()
    state = packed.state_dict()
    expected = packed.next()
    packed.load_state_dict(state)
    assert torch.equal(packed.next().tokens, expected.tokens)
