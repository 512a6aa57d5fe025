"""The loader: every window once an epoch, the same global batch for any world, exact state."""

import gc
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from strata.data import Loader, TokenShards, build_shards
from strata.data.loader import Permutation, count_windows, read_windows, spread_windows

CONTEXT = 8


class CountingEncoder:
    """A document of n characters becomes ids that count on, so that every token is unique."""

    document_separator = 0
    identity = "counting"

    def __init__(self) -> None:
        self.next_id = 1

    def encode_batch(self, texts: list[str], threads: int | None = None) -> list[np.ndarray]:
        encoded = []
        for text in texts:
            encoded.append(np.arange(self.next_id, self.next_id + len(text), dtype=np.uint32))
            self.next_id += len(text)
        return encoded


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    # 1 + 999 tokens: 111 windows of 9, and 1 left over; five files.
    return build_shards(
        ["x" * 999],
        CountingEncoder(),
        tmp_path_factory.mktemp("shards") / "train",
        corpus_identity="corpus",
        shard_tokens=222,
        progress=False,
    )


def loader(shards: TokenShards, **changes: Any) -> Loader:
    options = {"batch_size": 4, "context_length": CONTEXT, "seed": 7} | changes
    return Loader(shards, **options)


def first_tokens(batch_tokens: torch.Tensor) -> list[int]:
    return [int(row[0]) for row in batch_tokens]


def test_targets_are_the_tokens_shifted_by_one(shards: TokenShards) -> None:
    tokens, targets = loader(shards).next()
    assert tokens.shape == targets.shape == (4, CONTEXT)
    assert tokens.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, tokens + 1)  # ids count on
    assert tokens.is_contiguous()
    assert targets.is_contiguous()


def test_every_window_is_seen_once_an_epoch_in_another_order(shards: TokenShards) -> None:
    stream = loader(shards, batch_size=1)
    assert (stream.n_windows, stream.n_dropped_tokens) == (111, 1)
    orders = []
    for epoch in range(3):
        assert stream.epoch == epoch
        orders.append([first_tokens(stream.next().tokens)[0] for _ in range(111)])
    expected = [9 * window for window in range(111)]
    assert [sorted(order) for order in orders] == [expected] * 3
    assert orders[0] != orders[1] != orders[2] != expected


def test_a_batch_may_straddle_epochs_without_losing_a_window(shards: TokenShards) -> None:
    stream = loader(shards, batch_size=4)
    seen = [start for _ in range(111) for start in first_tokens(stream.next().tokens)]
    assert sorted(seen) == sorted([9 * window for window in range(111)] * 4)
    assert stream.epoch == 4


def test_seed_determines_the_order(shards: TokenShards) -> None:
    assert torch.equal(loader(shards).next().tokens, loader(shards).next().tokens)
    assert not torch.equal(loader(shards).next().tokens, loader(shards, seed=8).next().tokens)


@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_global_batch_is_the_same_for_any_number_of_ranks(
    shards: TokenShards, world_size: int
) -> None:
    alone = loader(shards, batch_size=12)
    ranks = [
        loader(shards, batch_size=12 // world_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for _ in range(20):
        whole = alone.next()
        parts = [rank.next() for rank in ranks]
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


def test_a_restored_state_gives_the_batches_that_would_have_followed(shards: TokenShards) -> None:
    stream = loader(shards)
    for _ in range(50):  # into the second epoch
        stream.next()
    state = stream.state_dict()
    expected = [stream.next() for _ in range(40)]
    restored = loader(shards)
    restored.next()
    restored.load_state_dict(state)
    assert restored.epoch == 1
    for batch in expected:
        assert torch.equal(restored.next().tokens, batch.tokens)


def test_a_state_goes_on_with_another_number_of_ranks(shards: TokenShards) -> None:
    alone = loader(shards, batch_size=4)
    for _ in range(9):
        alone.next()
    pair = [loader(shards, batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    for rank in pair:
        rank.load_state_dict(alone.state_dict())
    whole = alone.next()
    assert torch.equal(torch.cat([rank.next().tokens for rank in pair]), whole.tokens)


def test_the_state_of_another_stream_is_refused(shards: TokenShards) -> None:
    state = loader(shards).state_dict()
    with pytest.raises(ValueError, match="seed is 8, expected 7"):
        loader(shards, seed=8).load_state_dict(state)
    with pytest.raises(ValueError, match="context_length is 5, expected 8"):
        loader(shards, context_length=5).load_state_dict(state)


def test_a_corpus_smaller_than_one_batch_is_refused_before_training(shards: TokenShards) -> None:
    assert loader(shards, batch_size=111).n_windows == 111
    with pytest.raises(ValueError, match=r"smaller than one batch.*111 windows.*takes 112"):
        loader(shards, batch_size=56, rank=0, world_size=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 0), ("context_length", 0), ("world_size", 0), ("rank", 1), ("rank", -1)],
)
def test_arguments_out_of_range_are_refused_by_name(
    shards: TokenShards, name: str, value: int
) -> None:
    with pytest.raises(ValueError, match=f"{name} = {value}: expected"):
        loader(shards, **{name: value})


def test_validation_windows_are_spread_over_the_whole_text(shards: TokenShards) -> None:
    available = count_windows(shards, CONTEXT)
    assert spread_windows(shards, 3, CONTEXT) == [0, available // 3, 2 * available // 3]
    assert spread_windows(shards, 10**6, CONTEXT) == list(range(available))
    assert spread_windows(shards, 3, 1000) == []
    batch = read_windows(shards, [0, 2], CONTEXT)
    assert first_tokens(batch.tokens) == [0, 2 * (CONTEXT + 1)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_a_permutation_holds_every_number_once(size: int) -> None:
    order = Permutation(size, seed=3, epoch=0)
    assert sorted(order[place] for place in range(size)) == list(range(size))
    with pytest.raises(IndexError):
        order[size]


@pytest.mark.parametrize(("size", "start", "stop"), [(1, 0, 1), (5, 1, 5), (1000, 0, 1000)])
def test_a_stretch_of_a_permutation_is_its_numbers_one_by_one(
    size: int, start: int, stop: int
) -> None:
    for seed in (0, 3, 2**64 - 1):
        order = Permutation(size, seed, epoch=2)
        assert order.stretch(start, stop).tolist() == [order[i] for i in range(start, stop)]


def test_a_permutation_looks_like_chance() -> None:
    # Over many seeds each number should stand at each place equally often: with 4,000 seeds and 12
    # places a chi-squared statistic of 11 degrees of freedom a place, 121 in all.
    n_seeds, size = 4000, 12
    counts = np.zeros((size, size))
    for seed in range(n_seeds):
        order = Permutation(size, seed, epoch=seed % 3)
        for place in range(size):
            counts[place, order[place]] += 1
    expected = n_seeds / size
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert 70 < chi_squared < 190  # mean 121, standard deviation 15.6
    # and neighbours in a long order should be unrelated
    order = Permutation(5000, seed=1, epoch=0)
    values = np.array([order[place] for place in range(5000)])
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(values, np.arange(5000))[0, 1]) < 0.05


class Threads:
    """Those that read ahead and were not there before, as other tests' may have been."""

    def __init__(self) -> None:
        self.before = set(threading.enumerate())

    def new(self) -> list[threading.Thread]:
        threads = set(threading.enumerate()) - self.before
        return [thread for thread in threads if thread.name.startswith("prefetch")]

    def wait_for_none(self) -> None:
        deadline = time.monotonic() + 10
        while self.new() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not self.new()


def test_batches_made_ahead_are_those_made_when_asked_for(shards: TokenShards) -> None:
    ahead, plain = loader(shards), loader(shards, prefetch=0)
    for examples in (None, None, 4, 7, 7, 7, None, 1, 60, None):
        batch, expected = ahead.next(examples), plain.next(examples)
        assert len(batch.tokens) == (examples or 4)
        assert torch.equal(batch.tokens, expected.tokens)
        assert torch.equal(batch.targets, expected.targets)
        assert ahead.state_dict() == plain.state_dict()  # nothing that lies ready counts
    assert ahead.position == 4 + 4 + 4 + 7 + 7 + 7 + 4 + 1 + 60 + 4


def test_other_numbers_of_examples_are_shared_out_among_ranks(shards: TokenShards) -> None:
    alone = loader(shards, batch_size=2)
    pair = [loader(shards, batch_size=1, rank=rank, world_size=2) for rank in (0, 1)]
    for examples in (2, 6, 6, 4):
        whole = alone.next(examples)
        parts = [rank.next(examples // 2) for rank in pair]
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    with pytest.raises(ValueError, match="examples = 0: expected at least 1"):
        alone.next(0)


def test_a_position_can_be_set_while_batches_lie_ready(shards: TokenShards) -> None:
    stream = loader(shards)
    stream.next()
    later = stream.next()
    stream.next()
    stream.position = 4
    assert torch.equal(stream.next().tokens, later.tokens)


def test_the_thread_begins_with_the_first_batch_and_ends_with_the_loader(
    shards: TokenShards,
) -> None:
    threads = Threads()
    stream = loader(shards)
    assert not threads.new()
    stream.next()
    assert len(threads.new()) == 1
    stream.close()
    assert not threads.new()
    following = stream.next()  # closed is not the end: it goes on where it stood
    assert torch.equal(following.tokens, first_and_second(shards)[1])
    assert len(threads.new()) == 1
    del stream
    gc.collect()
    threads.wait_for_none()
    loader(shards, prefetch=0).next()
    assert not threads.new()


def first_and_second(shards: TokenShards) -> list[torch.Tensor]:
    stream = loader(shards, prefetch=0)
    return [stream.next().tokens for _ in range(2)]


def test_what_goes_wrong_in_the_thread_is_raised_by_next(
    shards: TokenShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = loader(shards)
    first, second = first_and_second(shards)
    monkeypatch.setattr(TokenShards, "copy_to", None)
    for _ in range(2):
        with pytest.raises(TypeError, match="not callable"):
            stream.next()
    assert stream.position == 0
    monkeypatch.undo()
    assert torch.equal(stream.next().tokens, first)
    assert torch.equal(stream.next().tokens, second)


def test_batches_for_a_gpu_are_pinned_by_a_thread_that_uses_that_gpu(
    shards: TokenShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[tuple[str, torch.device]] = []
    pinned: list[bool] = []
    empty = torch.empty

    def watched_empty(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if shape == ((13, CONTEXT),):  # not what other tests' threads may be reading still
            pinned.append(pin_memory)
        return empty(*shape, **options)

    def watched_device(device: torch.device) -> None:
        chosen.append((threading.current_thread().name, device))

    monkeypatch.setattr(torch, "empty", watched_empty)
    monkeypatch.setattr(torch.cuda, "set_device", watched_device)
    gpu = torch.device("cuda", 1)
    stream = loader(shards, batch_size=13, device=gpu)
    batch = stream.next()
    stream.close()
    assert [(name.startswith("prefetch"), device) for name, device in chosen] == [(True, gpu)]
    assert set(pinned) == {True}
    pinned.clear()
    unpinned = loader(shards, batch_size=13, device=torch.device("cpu"), prefetch=0).next()
    assert pinned == [False, False]
    assert torch.equal(batch.tokens, unpinned.tokens)
