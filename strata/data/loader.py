"""Batches: windows of the token sequence in a shuffled order, the same for any number of processes.

The sequence is cut into windows of `context_length + 1` ids that do not overlap; the first
`context_length` are the tokens of an example, the last `context_length` its targets. Documents are
packed: a window may hold the end of one, a separator, and the start of the next. What is left after
the last whole window is not used (`n_dropped_tokens`).

Every epoch visits each window once, in the order of a permutation that seed and epoch determine.
The examples of all epochs form one endless stream, and a call takes the next `batch_size ·
world_size` of it, each rank its own slice. So the global batch does not depend on the number of
processes, a batch may straddle two epochs, and one number, the position in the stream, is the
whole state.
"""

from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from strata.data.shards import TokenShards

FEISTEL_ROUNDS = 6
WORD = (1 << 64) - 1


class Batch(NamedTuple):
    """Examples on the CPU: `targets[:, t]` is the token that follows `tokens[:, t]`."""

    tokens: torch.Tensor  # (batch, time) int64
    targets: torch.Tensor  # (batch, time) int64


class LoaderState(TypedDict):
    """Where a loader stands in its stream, and in which stream."""

    position: int
    seed: int
    context_length: int
    shards: str


class Permutation:
    """A shuffled order of `range(size)` that is computed place by place and never stored.

    A Feistel network (Luby and Rackoff, 1988) is a bijection of the numbers below a power of four,
    whatever its round function. Numbers that fall beyond `size` are sent through it again until
    they do not ("cycle walking", Black and Rogaway, 2002), which leaves a bijection of
    `range(size)`; the power of four is at most four times too large, so that takes few turns.
    """

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        """Order `range(size)` anew for every pair of `seed` and `epoch`."""
        self.size = size
        self._half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
        key = _mix(_mix(seed & WORD) ^ (epoch & WORD))
        self._keys = [_mix(key + turn) for turn in range(FEISTEL_ROUNDS)]

    def __getitem__(self, place: int) -> int:
        """The number that stands at `place`."""
        if not 0 <= place < self.size:
            raise IndexError(f"place {place}: expected 0 to {self.size - 1}")
        number = self._scramble(place)
        while number >= self.size:
            number = self._scramble(number)
        return number

    def _scramble(self, number: int) -> int:
        mask = (1 << self._half_bits) - 1
        left, right = number >> self._half_bits, number & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << self._half_bits | right


def _mix(number: int) -> int:
    """Scatter 64 bits: the output function of SplitMix64 (Steele, Lea and Flood, 2014)."""
    number = (number + 0x9E3779B97F4A7C15) & WORD
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & WORD
    return number ^ (number >> 31)


class Loader:
    """An endless stream of training batches for one of `world_size` processes.

    Attributes:
        n_windows: windows in an epoch.
        n_dropped_tokens: ids at the end that fill no window.
        position: examples that all ranks together have been given so far.
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
    ) -> None:
        """Stand at the start of the first epoch.

        Args:
            shards: the token sequence.
            batch_size: examples that this rank gets in one call.
            context_length: tokens of an example.
            seed: of the order of windows.
            rank: this process, counted from 0.
            world_size: number of processes.

        Raises:
            ValueError: an argument is out of range, or the shards hold fewer windows than one
                global batch.
        """
        for name, value in (
            ("batch_size", batch_size),
            ("context_length", context_length),
            ("world_size", world_size),
        ):
            if value < 1:
                raise ValueError(f"{name} = {value}: expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank = {rank}: expected 0 to {world_size - 1} (world_size - 1)")
        self._shards = shards
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self.n_windows = count_windows(shards, context_length)
        self.n_dropped_tokens = shards.n_tokens - self.n_windows * (context_length + 1)
        if self.n_windows < batch_size * world_size:
            raise ValueError(
                f"the corpus is smaller than one batch: its {shards.n_tokens:,} tokens make "
                f"{self.n_windows} windows of {context_length} + 1, and a batch takes "
                f"{batch_size * world_size} (batch_size {batch_size} × {world_size} processes); "
                "expected a larger corpus, a smaller batch or a shorter context"
            )
        self.position = 0
        self._order = Permutation(self.n_windows, seed, 0)
        self._order_epoch = 0

    @property
    def epoch(self) -> int:
        """Epochs completed, which is the number of the one the next batch begins in."""
        return self.position // self.n_windows

    def next(self, examples: int | None = None) -> Batch:
        """The next batch of this rank; every rank must call it equally often."""
        size = self._batch_size if examples is None else examples
        first = self.position + self._rank * size
        windows = [self._window_at(first + index) for index in range(size)]
        self.position += size * self._world_size
        return read_windows(self._shards, windows, self._context_length)

    def _window_at(self, position: int) -> int:
        epoch, place = divmod(position, self.n_windows)
        if epoch != self._order_epoch:
            self._order, self._order_epoch = Permutation(self.n_windows, self._seed, epoch), epoch
        return self._order[place]

    def state_dict(self) -> LoaderState:
        """All that is needed to go on from here, in any number of processes."""
        return LoaderState(
            position=self.position,
            seed=self._seed,
            context_length=self._context_length,
            shards=self._shards.identity,
        )

    def load_state_dict(self, state: LoaderState) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: it was taken in another stream: other shards, seed or context length.
        """
        own = self.state_dict()
        for name in ("seed", "context_length", "shards"):
            if state[name] != own[name]:
                raise ValueError(
                    f"this loader reads another stream than the one saved: {name} is "
                    f"{own[name]}, expected {state[name]}"
                )
        self.position = state["position"]


def count_windows(shards: TokenShards, context_length: int) -> int:
    """Whole windows of `context_length + 1` ids that the shards hold."""
    return shards.n_tokens // (context_length + 1)


def spread_windows(shards: TokenShards, count: int, context_length: int) -> list[int]:
    """Numbers of `count` windows, or of all if there are fewer, spread evenly: for validation."""
    available = count_windows(shards, context_length)
    count = min(count, available)
    return [index * available // count for index in range(count)]


def read_windows(shards: TokenShards, windows: list[int], context_length: int) -> Batch:
    """The batch of the windows with these numbers, in this order."""
    length = context_length + 1
    ids: NDArray[np.int64] = np.empty((len(windows), length), dtype=np.int64)
    for row, window in enumerate(windows):
        ids[row] = shards.window(window * length, length)
    examples = torch.from_numpy(ids)  # (batch, time + 1)
    return Batch(examples[:, :-1].contiguous(), examples[:, 1:].contiguous())
