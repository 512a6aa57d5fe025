"""Batches: rows of the token sequence in a shuffled order, the same for any number of processes.

A row has `context_length + 1` ids; the first `context_length` are the tokens of an example, the
last `context_length` its targets. Whether rows are windows of the sequence that do not overlap, or
are packed so that few documents are cut, is `packing` (packing.py).

Every epoch visits each row once, in the order of a permutation that seed and epoch determine
(order.py). In a mixture every corpus has rows and epochs of its own, and the corpora take turns so
that at any moment each has given its share of the examples. All of them form one endless stream,
and a call takes the next `batch_size · world_size` of it, each rank its own slice. So the global
batch does not depend on the number of processes, a batch may straddle two epochs, and one number,
the position in the stream, is the whole state.

A thread makes the next two batches while the model learns from the last one (prefetch.py). They
count as not yet given: the position moves when a batch is handed out.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch

from strata.data.order import Permutation, apportion, turns
from strata.data.packing import BestFitRows, Packing, StreamRows
from strata.data.prefetch import Ahead
from strata.data.shards import Tokens, TokenShards

IGNORED = -100  # a target not to be predicted, as in torch.nn.functional.cross_entropy
PREFETCH = 2  # batches: one would do, the second evens out a read that has to wait for the disk
STRETCH = 1 << 10  # places in the order of an epoch that are computed at once


class Batch(NamedTuple):
    """Examples on the CPU: `targets[:, t]` is the token that follows `tokens[:, t]`.

    A target of -100 is not to be predicted; `packing.py` says where there are any.
    """

    tokens: torch.Tensor  # (batch, time) int64
    targets: torch.Tensor  # (batch, time) int64


class LoaderState(TypedDict):
    """Where a loader stands in its stream, and in which stream."""

    position: int
    seed: int
    context_length: int
    packing: str
    shards: str


class Loader:
    """An endless stream of training batches for one of `world_size` processes.

    Attributes:
        n_windows: rows in an epoch; of a mixture, the rows of all its corpora.
        n_dropped_tokens: ids at the end (of each corpus) that fill no window.
        position: examples that all ranks together have been given so far; to go elsewhere, set it.
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        batch_size: int,
        context_length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        packing: Packing = "stream",
        prefetch: int = PREFETCH,
        device: torch.device | None = None,
    ) -> None:
        """Stand at the start of the first epoch.

        Args:
            shards: the token sequence.
            batch_size: examples that this rank gets in one call.
            context_length: tokens of an example.
            seed: of the order of rows.
            rank: this process, counted from 0.
            world_size: number of processes.
            packing: how rows are made of documents. The first time, best-fit reads all shards and
                keeps its plan in their folder.
            prefetch: batches that a thread makes ahead; 0 makes each when it is asked for.
            device: where the batches will be copied to; for CUDA they lie in pinned memory.

        Raises:
            ValueError: an argument is out of range, or the shards hold fewer rows, of one corpus of
                a mixture perhaps, than one global batch takes.
        """
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("context_length", context_length, 1),
            ("world_size", world_size, 1),
            ("prefetch", prefetch, 0),
        ):
            if value < least:
                raise ValueError(f"{name} = {value}: expected at least {least}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank = {rank}: expected 0 to {world_size - 1} (world_size - 1)")
        pinned_for = device if device is not None and device.type == "cuda" else None
        kind: type[StreamRows | BestFitRows]
        kind = BestFitRows if packing == "best-fit" else StreamRows
        rows = [kind(shards, part, context_length) for part in shards.parts]
        self._shards = shards
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._packing = packing
        self._prefetch = prefetch
        self._n_rows = [of_corpus.n_rows for of_corpus in rows]
        self._shares = [part.share for part in shards.parts]
        self.n_windows = sum(self._n_rows)
        self.n_dropped_tokens = 0
        if packing == "stream":
            self.n_dropped_tokens = shards.n_tokens - self.n_windows * (context_length + 1)
        self._check_size(batch_size * world_size)
        self.position = 0
        self._reader = _Reader(rows, self._shares, context_length, seed, pinned_for is not None)
        self._ahead = Ahead(self._reader.read, pinned_for)

    def _check_size(self, examples: int) -> None:
        needed = apportion(examples, self._shares)
        for part, n_rows, n_needed in zip(self._shards.parts, self._n_rows, needed, strict=True):
            if n_rows < max(1, n_needed):
                name = f"corpus {part.corpus}" if len(self._shares) > 1 else "corpus"
                raise ValueError(
                    f"the {name} is smaller than one batch: its {part.n_tokens:,} tokens make "
                    f"{n_rows} windows of {self._context_length} + 1, and a batch takes {n_needed} "
                    f"(batch_size {self._batch_size} × {self._world_size} processes); expected a "
                    "larger corpus, a smaller batch or a shorter context"
                )

    @property
    def epochs(self) -> list[int]:
        """Epochs that each corpus of a mixture has completed; of one corpus, a list of one."""
        given = apportion(self.position, self._shares)
        return [count // n_rows for count, n_rows in zip(given, self._n_rows, strict=True)]

    @property
    def epoch(self) -> int:
        """Epochs completed, in a mixture by the corpus that has completed fewest."""
        return min(self.epochs)

    def next(self, examples: int | None = None) -> Batch:
        """The next batch of this rank; every rank must call it equally often, and for as many.

        Args:
            examples: how many this rank gets, `batch_size` if it is not given. Batches made ahead
                are as large as the last one; at a change of size they are thrown away.

        Raises:
            ValueError: `examples` is less than 1.
        """
        if examples is None:
            examples = self._batch_size
        if examples < 1:
            raise ValueError(f"examples = {examples}: expected at least 1")
        stride = examples * self._world_size
        first = self.position + self._rank * examples
        if self._prefetch:
            calls = [(first + ahead * stride, examples) for ahead in range(self._prefetch + 1)]
            batch = self._ahead.take(calls)
        else:
            batch = self._reader.read(first, examples)
        self.position += stride
        return batch

    def close(self) -> None:
        """End the thread that reads ahead; it ends as well when the loader is no longer held."""
        self._ahead.close()

    def state_dict(self) -> LoaderState:
        """All that is needed to go on from here, in any number of processes."""
        return LoaderState(
            position=self.position,
            seed=self._seed,
            context_length=self._context_length,
            packing=self._packing,
            shards=self._shards.identity,
        )

    def load_state_dict(self, state: LoaderState) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: it was taken in another stream: other shards, seed, context length or
                packing.
        """
        saved = {"packing": "stream", **state}  # states were once saved without it
        for name, own in self.state_dict().items():
            if name != "position" and saved[name] != own:
                raise ValueError(
                    f"this loader reads another stream than the one saved: {name} is "
                    f"{own}, expected {saved[name]}"
                )
        self.position = state["position"]


class _Epochs:
    """The rows of one corpus without end, shuffled anew in every epoch."""

    def __init__(self, n_rows: int, seed: int) -> None:
        self._n_rows = n_rows
        self._seed = seed
        self._first = 0
        self._rows: list[int] = []  # at the places from `_first` on

    def __getitem__(self, place: int) -> int:
        """The row at `place` of the stream; those that follow are computed with it."""
        if not self._first <= place < self._first + len(self._rows):
            epoch, start = divmod(place, self._n_rows)
            order = Permutation(self._n_rows, self._seed, epoch)
            self._rows = order.stretch(start, min(start + STRETCH, self._n_rows)).tolist()
            self._first = place
        return self._rows[place - self._first]


class _Reader:
    """Reads any stretch of the stream of examples: what a loader's thread works with."""

    def __init__(
        self,
        rows: Sequence[StreamRows | BestFitRows],
        shares: list[int],
        context_length: int,
        seed: int,
        pinned: bool,
    ) -> None:
        self._rows = rows
        self._shares = shares
        self._context_length = context_length
        self._pinned = pinned
        # A seed for each corpus, so that two of one size are not shuffled alike.
        self._epochs = [
            _Epochs(of_corpus.n_rows, seed + (index << 32)) for index, of_corpus in enumerate(rows)
        ]

    def read(self, first: int, examples: int) -> Batch:
        """The `examples` examples from position `first` of the stream on."""
        shape = (examples, self._context_length + 1)
        ids, unknown = np.empty(shape, dtype=np.uint32), np.zeros(shape, dtype=np.bool_)
        for index, (corpus, place) in enumerate(turns(first, examples, self._shares)):
            row = self._epochs[corpus][place]
            self._rows[corpus].read(row, ids[index], unknown[index])
        batch = _as_batch(ids, self._pinned)
        if unknown.any():
            batch.targets[torch.from_numpy(unknown[:, 1:])] = IGNORED
        return batch


def _as_batch(ids: Tokens, pinned: bool = False) -> Batch:
    """Tokens and targets, (batch, time), of rows of ids, (batch, time + 1)."""
    shape = (len(ids), ids.shape[1] - 1)
    tokens, targets = (torch.empty(shape, dtype=torch.int64, pin_memory=pinned) for _ in range(2))
    tokens.numpy()[:] = ids[:, :-1]  # the same memory: widened and put in place in one go
    targets.numpy()[:] = ids[:, 1:]
    return Batch(tokens, targets)


def document_numbers(tokens: torch.Tensor, separator: int) -> torch.Tensor:
    """Which document of its row each token belongs to, for attention that stays within documents.

    A separator stands before each document and belongs to it; what a row begins with, if it is no
    separator, is number 0. (batch, time) -> (batch, time) int32.
    """
    return (tokens == separator).cumsum(dim=-1, dtype=torch.int32)


def count_windows(shards: TokenShards, context_length: int) -> int:
    """Whole windows of `context_length + 1` ids that the shards hold."""
    return shards.n_tokens // (context_length + 1)


def spread_windows(shards: TokenShards, count: int, context_length: int) -> list[int]:
    """Numbers of `count` windows, or of all if there are fewer, spread evenly: for validation.

    From a mixture each corpus gives its share of them, as far as it has so many.
    """
    length = context_length + 1
    windows = []
    counts = apportion(count, [part.share for part in shards.parts])
    for part, wanted in zip(shards.parts, counts, strict=True):
        first = -(-part.start // length)  # that lies whole within the part
        available = max(0, (part.start + part.n_tokens) // length - first)
        taken = min(wanted, available)
        windows += [first + index * available // taken for index in range(taken)]
    return windows


def read_windows(shards: TokenShards, windows: list[int], context_length: int) -> Batch:
    """The batch of the windows with these numbers, in this order."""
    length = context_length + 1
    ids: Tokens = np.empty((len(windows), length), dtype=np.uint32)
    for row, window in enumerate(windows):
        shards.copy_to(ids[row], window * length)
    return _as_batch(ids)
