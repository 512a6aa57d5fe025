"""Counting the words of a corpus: all that training keeps of the text.

Text repeats its words. 100 MB of source code have some 200,000 distinct words, of together 2 MB, so
the trainer counts how often each word occurs and never needs the text again: memory grows with the
number of distinct words.

All cores count. Documents are put together, in order, into *batches* of about the same size. Each
batch is counted by itself, into a table of its own, by whichever thread is free; the thread that
reads adds the tables to the total, one after another in the order of the batches. What the total
holds, and even the order of its words, is thus the same for every number of threads and whichever
of them is done first. Only a few batches are in memory at a time.

Should there be more distinct words than memory has room for, the rarest are dropped, and how much
text they stood for is reported. They matter least: a merge is worth what it occurs often.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strata.tokenizer.memory import (
    PADDING,
    in_batches,
    kernel,
    load_byte,
    padded,
    same_bytes,
    text_bytes,
    thread_count,
)
from strata.tokenizer.scanner import (
    RULES,
    Rules,
    character_classes,
    check_pattern,
    find_words_of_documents,
)

Progress = Callable[[str, int, int], None]  # (stage, done, total); a total of 0 is not known

# Large enough that most words of a batch are repetitions, which cost the reading thread nothing.
CHARACTERS_AT_ONCE = 1 << 22  # of a batch, which ends with the document that reaches so many
WORDS_AT_ONCE = 16_384  # of a batch: what a kernel is given to find and to count
MAX_WORDS = 10_000_000  # distinct ones: 3 to 4 GB in training. 300 MB of English and code have 0.6m
KEPT = 0.75  # of max_words when words are dropped, so that it is seldom done

HASH, LENGTH, START, COUNT = range(4)  # the columns of a table


class Words(NamedTuple):
    """Distinct words, in the order in which they first occurred."""

    text: NDArray[np.uint8]  # word i is text[starts[i] : ends[i]]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    hashes: NDArray[np.int64]
    counts: NDArray[np.int64]  # how often each occurs


class WordTable:
    """A hash table that counts words. It grows with the distinct words.

    A row of `table` holds a word's hash, its length in bytes (0: a free row), where its bytes start
    in `text`, and how often it occurred; `rows[i]` is the row of the i-th word.
    """

    def __init__(self) -> None:
        self._begin(1 << 17)

    def _begin(self, n_slots: int) -> None:
        self.table = np.zeros((n_slots, 4), dtype=np.int64)
        self.rows = np.empty(n_slots // 4 * 3, dtype=np.int64)
        self.text = np.zeros(1 << 20, dtype=np.uint8)
        self.n_words = 0
        self.n_bytes = 0  # of the distinct words

    def clear(self) -> None:
        """Forgets all words and keeps the memory."""
        self.table[self.rows[: self.n_words], LENGTH] = 0
        self.n_words = self.n_bytes = 0

    def words(self) -> Words:
        """The words counted so far."""
        text = self.text[: self.n_bytes + PADDING]
        text.flags.writeable = False
        rows = self.rows[: self.n_words]
        hashes, lengths, starts, counts = (self.table[rows, column] for column in range(4))
        return Words(text, starts, starts + lengths, hashes, counts)

    def add(self, words: Words) -> None:
        """Counts words, each as often as its count says. They need not be distinct."""
        n_bytes = int((words.ends - words.starts).sum())
        self._reserve(len(words.counts), n_bytes)
        self.n_words, self.n_bytes = count_words(
            *words, self.table, self.rows, self.text, self.n_words, self.n_bytes
        )

    def _reserve(self, n_words: int, n_bytes: int) -> None:
        """Makes room for this many words and bytes more, should all the words be new."""
        n_slots = len(self.table)
        while self.n_words + n_words > n_slots // 4 * 3:
            n_slots *= 2
        if n_slots > len(self.table):
            words = self.words()
            self._begin(n_slots)
            self.add(words)
        needed = self.n_bytes + n_bytes + PADDING
        if needed > len(self.text):
            larger = np.zeros(max(needed, len(self.text) * 3 // 2), dtype=np.uint8)
            larger[: self.n_bytes] = self.text[: self.n_bytes]
            self.text = larger

    def keep_most_frequent(self, n_words: int) -> Words:
        """Drops the rarest words, of equally rare ones the latest come. Returns those dropped."""
        words = self.words()
        ranking = np.argsort(-words.counts, kind="stable")
        kept, dropped = np.sort(ranking[:n_words]), np.sort(ranking[n_words:])
        self._begin(len(self.table))
        self.add(select(words, kept))
        return select(words, dropped)


def select(words: Words, indices: NDArray[np.int64]) -> Words:
    """Some of the words."""
    return Words(words.text, *(column[indices] for column in words[1:]))


class Dropped(NamedTuple):
    """What is missing from the counts."""

    n_words: int = 0  # distinct ones; a word that came again and was dropped again counts again
    n_occurrences: int = 0
    n_bytes: int = 0  # of all occurrences

    def plus(self, words: Words) -> Dropped:
        lengths = words.ends - words.starts
        return Dropped(
            self.n_words + len(words.counts),
            self.n_occurrences + int(words.counts.sum()),
            self.n_bytes + int(words.counts @ lengths),
        )


class WordCounts(NamedTuple):
    """How often each distinct word of a corpus occurs."""

    words: Words
    n_bytes_read: int
    dropped: Dropped


def count_corpus(
    documents: Iterable[str],
    pattern: str,
    threads: int | None = None,
    max_words: int | None = MAX_WORDS,
    progress: Progress | None = None,
) -> WordCounts:
    """Counts the words of all documents, reading them as they are needed.

    threads: how many count, beside the one that reads; 1 counts where it reads, None means as many
        as there are cores. The result is the same for all.
    max_words: when there are more distinct words, the rarest are dropped until three quarters of it
        are left; None keeps all. A RuntimeWarning says how much was dropped.
    progress: called as progress("reading", bytes counted, 0) at the start and after each batch.

    Raises ValueError for an unknown pattern, and if `threads` or `max_words` is less than 1.
    """
    if max_words is not None and max_words < 1:
        raise ValueError(f"max_words={max_words}: expected a number of at least 1, or None")
    rules = RULES[check_pattern(pattern)]
    idle: list[WordTable] = []  # tables that can be used again

    def count(batch: list[str]) -> tuple[WordTable, int]:
        try:
            table = idle.pop()
            table.clear()
        except IndexError:
            table = WordTable()
        return table, count_batch(batch, rules, table)

    if progress is not None:
        progress("reading", 0, 0)
    total = WordTable()
    n_bytes_read = 0
    dropped = Dropped()
    batches = in_batches(documents, CHARACTERS_AT_ONCE)
    with closing(in_order(count, batches, thread_count(threads))) as counted:
        for table, n_bytes in counted:
            total.add(table.words())
            idle.append(table)
            if max_words is not None and total.n_words > max_words:
                dropped = dropped.plus(total.keep_most_frequent(ceil(max_words * KEPT)))
            n_bytes_read += n_bytes
            if progress is not None:
                progress("reading", n_bytes_read, 0)
    if dropped.n_words:
        warnings.warn(
            f"the corpus has more than max_words={max_words:,} distinct words: rare ones were "
            f"dropped while counting, {dropped.n_words:,} words of {dropped.n_occurrences:,} "
            f"occurrences, which are {dropped.n_bytes / n_bytes_read:.2%} of its bytes. Merges "
            "learnt from the rest may differ; raise max_words if there is memory for it",
            RuntimeWarning,
            stacklevel=4,  # the call of Tokenizer.train
        )
    return WordCounts(total.words(), n_bytes_read, dropped)


def in_order(
    count: Callable[[list[str]], tuple[WordTable, int]], batches: Iterable[list[str]], threads: int
) -> Generator[tuple[WordTable, int], None, None]:
    """`count` of each batch, in order, by so many threads; at most threads + 1 ahead of use."""
    if threads == 1:
        yield from map(count, batches)
        return
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[tuple[WordTable, int]]] = deque()
    try:
        for batch in batches:
            pending.append(pool.submit(count, batch))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # after an error, an interruption too: what has not begun never does
        pool.shutdown(cancel_futures=True)


def count_batch(documents: list[str], rules: Rules, table: WordTable) -> int:
    """Counts the words of some documents. Returns how many bytes these have.

    The documents lie one after another in memory, and so do their words: each starts where the
    one before it ends.
    """
    encoded = [text_bytes(document) for document in documents]
    stops = np.cumsum([len(data) for data in encoded])
    source = padded(b"".join(encoded))
    classes = character_classes()
    bounds = np.zeros(WORDS_AT_ONCE + 1, dtype=np.int64)
    hashes = np.empty(WORDS_AT_ONCE, dtype=np.int64)
    once = np.ones(WORDS_AT_ONCE, dtype=np.int64)
    position = document = 0
    while position < stops[-1]:
        bounds[0] = position
        n_words, position, document = find_words_of_documents(
            source, position, stops, document, rules, classes, bounds[1:], hashes
        )
        ends = bounds[1 : n_words + 1]
        table.add(Words(source, bounds[:n_words], ends, hashes[:n_words], once[:n_words]))
    return position


@kernel
def count_words(
    source: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    hashes: NDArray[np.int64],
    counts: NDArray[np.int64],
    table: NDArray[np.int64],
    rows: NDArray[np.int64],
    text: NDArray[np.uint8],
    n_words: int,
    n_bytes: int,
) -> tuple[int, int]:
    """Counts words of `source`, new ones included. Returns the new n_words and n_bytes."""
    mask = len(table) - 1
    for i in range(len(starts)):
        address = source.ctypes.data + starts[i]
        length = ends[i] - starts[i]
        row = hashes[i] & mask
        while table[row, LENGTH] != 0:
            if (
                table[row, HASH] == hashes[i]
                and table[row, LENGTH] == length
                and same_bytes(address, text.ctypes.data + table[row, START], length)
            ):
                table[row, COUNT] += counts[i]
                break
            row = (row + 1) & mask
        else:
            table[row, HASH] = hashes[i]
            table[row, LENGTH] = length
            table[row, START] = n_bytes
            table[row, COUNT] = counts[i]
            rows[n_words] = row
            for offset in range(length):
                text[n_bytes + offset] = load_byte(address + offset)
            n_words += 1
            n_bytes += length
    return n_words, n_bytes
