"""In which order rows are read: shuffled epochs of each corpus, and the turns of a mixture.

Nothing here is stored or counted up: which row stands at a position of the endless stream follows
from the position alone, by arithmetic, so that a run goes on from anywhere at no cost.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FEISTEL_ROUNDS = 6
WORD = (1 << 64) - 1

Numbers = TypeVar("Numbers", int, NDArray[Any])


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

    def stretch(self, start: int, stop: int) -> NDArray[np.uint64]:
        """The numbers at the places from `start` to `stop`, at once: (stop - start,)."""
        numbers: NDArray[np.uint64] = self._scramble(np.arange(start, stop, dtype=np.uint64))
        while (beyond := numbers >= self.size).any():
            numbers[beyond] = self._scramble(numbers[beyond])
        return numbers

    def _scramble(self, number: Numbers) -> Numbers:
        mask = (1 << self._half_bits) - 1
        left, right = number >> self._half_bits, number & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << self._half_bits | right


def _mix(number: Numbers) -> Numbers:
    """Scatter 64 bits: the output function of SplitMix64 (Steele, Lea and Flood, 2014)."""
    number = (number + 0x9E3779B97F4A7C15) & WORD
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & WORD
    return number ^ (number >> 31)


def apportion(count: int, shares: Sequence[int]) -> list[int]:
    """How many of the first `count` rows of a mixture come from each of its corpora.

    The first corpus gets its share of them, rounded, the second its share of what is left, and so
    on. One row more is always one more of exactly one corpus. After every `sum(shares)` rows each
    of n corpora has had exactly its share; in between it is at most (n - 1) / 2 rows off.
    """
    counts = []
    total = sum(shares)
    for share in shares:
        counts.append((count * share + total // 2) // total)
        count -= counts[-1]
        total -= share
    return counts


def turns(first: int, count: int, shares: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Whose turn it is from position `first` on: a corpus, and the place in its own stream."""
    if len(shares) == 1:
        yield from ((0, position) for position in range(first, first + count))
        return
    before = apportion(first, shares)
    for position in range(first, first + count):
        after = apportion(position + 1, shares)
        corpus = next(index for index, n_rows in enumerate(after) if n_rows > before[index])
        yield corpus, before[corpus]
        before = after
