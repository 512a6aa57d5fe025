"""Finding sequences of words of some texts again in others, exactly and at the speed of reading.

What counts as equal ignores case, punctuation and white space: a text is its **plain words**,
lower-case letters and digits with all else left out, cut where white space stood ("Don't stop-it!"
is `dont stopit`). The n-grams of the texts that are looked for are hashed into one table; then any
amount of other text streams by once. A document's words are hashed as they are read, a window of n
words slides over them, and each window's hash is looked up:

    P[i] = P[i-1] · B + hash(word i),  hash of words i … i+n-1 = P[i+n] - P[i] · Bⁿ   (mod 2⁶⁴)

(Karp and Rabin 1987). Almost everywhere one bit of a small map says that nothing looked for begins
here with these words, as many as the shortest n-gram has. What the table knows is compared with the
n-gram itself, byte by byte, so that equal hashes of different words decide nothing. What is held in
memory are the table, whose size the texts looked for determine, and one document.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strata.tokenizer.memory import (
    MIXER,
    THIRTY_TWO,
    Word,
    inner,
    kernel,
    load_byte,
    padded,
    text_bytes,
)
from strata.tokenizer.scanner import (
    LETTER,
    NEWLINE,
    NUMBER,
    SPACE,
    character_at,
    character_classes,
)

# A longer document is read in pieces of about so many bytes, that end at white space.
PIECE = 1 << 20
_BLANK = re.compile(rb"\s")
# FNV-1a's, for the bytes of a word; and the base of the polynomial over words, odd and random.
_OFFSET, _PRIME = Word(0xCBF29CE484222325), Word(0x100000001B3)
_BASE = Word(0xD1342543DE82EF95)
_ONE, _SIX, _LOW_SIX = Word(1), Word(6), Word(63)
# The map has about so many bits an n-gram.
_BITS_PER_KEY = 24

Words = NDArray[np.uint64]
Indices = NDArray[np.int64]


class PlainWords:
    """The plain words of one text.

    plain: the words as bytes, each followed by a space.
    starts: (words,) where a word's first letter stands in the text's bytes.
    begins, ends: (words,) where the word stands in `plain`.
    prefix: (words + 1,) the polynomial over the words before each.
    """

    def __init__(self, data: bytes) -> None:
        most = len(data) // 2 + 1
        self.plain = np.empty(len(data) + 1, dtype=np.uint8)
        self.starts, self.begins, self.ends = (np.empty(most, dtype=np.int64) for _ in range(3))
        self.prefix = np.empty(most + 1, dtype=np.uint64)
        self.n_words = _read_words(
            padded(data), len(data), character_classes(),
            self.plain, self.starts, self.begins, self.ends, self.prefix,
        )  # fmt: skip

    def ngram(self, word: int, size: int) -> bytes:
        """The words from this one on, parted by spaces; fewer than `size` at the text's end."""
        last = min(word + size, self.n_words) - 1
        return self.plain[self.begins[word] : self.ends[last]].tobytes()


def count_words(texts: Sequence[str]) -> Indices:
    """How many plain words each text has, (texts,)."""
    return np.diff(_read_together(texts)[1])


class NGramFinder:
    """Looks for the n-grams of some texts in others.

    found: (texts,) the first n-gram of each text that was found, its plain words parted by spaces;
        None as long as there is none.
    """

    def __init__(self, texts: Sequence[str], sizes: Sequence[int]) -> None:
        """Take up the n-grams of texts; `sizes` says how many words each text's have, 1 or more."""
        self.found: list[str | None] = [None] * len(texts)
        self._words, borders = _read_together(texts)
        self._sizes = np.array(sizes, dtype=np.int64)
        if not len(texts) == len(self._sizes) > 0 or self._sizes.min() < 1:
            raise ValueError(
                f"{len(texts)} texts and {len(self._sizes)} sizes of n-grams: expected at least "
                "one text, and a size of at least 1 for each"
            )
        # every n-gram: where it begins, and whose it is
        counts = np.maximum(0, np.diff(borders) - self._sizes + 1)
        owners = np.repeat(np.arange(len(texts)), counts)
        firsts = np.arange(len(owners)) + (borders[:-1] - np.cumsum(counts) + counts)[owners]
        self._window_sizes = np.unique(self._sizes)
        powers = [pow(int(_BASE), int(size), 1 << 64) for size in self._window_sizes]
        self._powers = np.array(powers, dtype=np.uint64)
        which = np.searchsorted(self._window_sizes, self._sizes)[owners]
        keys, openings = (
            _window_keys(self._words.prefix, firsts, self._window_sizes[size], self._powers[size])
            for size in (which, np.zeros_like(which))
        )
        order = np.argsort(keys, kind="stable")
        self._owners, self._firsts = owners[order], firsts[order]
        # n-grams of one key stand together: those of key k from _bounds[k] to _bounds[k + 1]
        self._keys, first = np.unique(keys[order], return_index=True)
        self._bounds = np.append(first, len(order))
        self._settled = np.zeros(len(self._keys), dtype=np.bool_)  # nothing is left to find there
        self._slots = np.full(1 << (2 * len(self._keys)).bit_length(), -1, dtype=np.int64)
        _enter(self._keys, self._slots)
        bits = max(6, (_BITS_PER_KEY * len(self._keys)).bit_length())
        self._map = np.zeros(1 << (bits - 6), dtype=np.uint64)
        self._map_shift = Word(64 - bits)
        for marked in (self._keys, openings):
            _mark(marked, self._map, self._map_shift)

    def read(self, document: str) -> int:
        """Look for what is not found yet in a document; words of two documents never join.

        Returns the document's bytes.
        """
        data = text_bytes(document.lower())
        start = stop = 0
        while stop < len(data):
            # the next piece begins as many words earlier as a window that lies in both needs
            blank = _BLANK.search(data, max(start + PIECE, stop + 1))
            stop = blank.start() if blank else len(data)
            words = PlainWords(data[start:stop])
            self._read_piece(words)
            kept = min(words.n_words, int(self._window_sizes[-1]) - 1)
            start = start + int(words.starts[words.n_words - kept]) if kept else stop
        return len(data)

    def _read_piece(self, words: PlainWords) -> None:
        most = words.n_words * len(self._window_sizes)
        hit_words, hit_keys = (np.empty(most, dtype=np.int64) for _ in range(2))
        n_hits = _look_up(
            words.prefix, words.n_words, self._window_sizes, self._powers,
            self._map, self._map_shift, self._slots, self._keys, self._settled,
            hit_words, hit_keys,
        )  # fmt: skip
        for word, key in zip(hit_words[:n_hits].tolist(), hit_keys[:n_hits].tolist(), strict=True):
            if not self._settled[key]:
                self._settled[key] = self._compare(words, word, key)

    def _compare(self, words: PlainWords, word: int, key: int) -> bool:
        """Whether all texts that have an n-gram of this key are found, this one among them."""
        settled = True
        for entry in range(self._bounds[key], self._bounds[key + 1]):
            owner = self._owners[entry]
            if self.found[owner] is None:
                size = int(self._sizes[owner])
                sought = self._words.ngram(int(self._firsts[entry]), size)
                if words.ngram(word, size) == sought:
                    self.found[owner] = sought.decode()
                else:
                    settled = False
        return settled


def _read_together(texts: Sequence[str]) -> tuple[PlainWords, Indices]:
    """The words of all texts, and (texts + 1,) which of them is the first of each text."""
    parts = [text_bytes(text.lower()) for text in texts]
    words = PlainWords(b"\n".join(parts))
    begins = np.cumsum([0, *(len(part) + 1 for part in parts)])
    return words, np.searchsorted(words.starts[: words.n_words], begins).astype(np.int64)


@kernel
def _read_words(
    text: NDArray[np.uint8],
    length: int,
    classes: NDArray[np.uint8],
    plain: NDArray[np.uint8],
    starts: Indices,
    begins: Indices,
    ends: Indices,
    prefix: Words,
) -> int:
    """Fills a `PlainWords` from the lower-case text[:length]; returns the number of words."""
    base = text.ctypes.data
    position, stop = base, base + length
    n_words, size, begin = 0, 0, 0  # size: bytes of `plain`; begin: of its last word
    prefix[0] = Word(0)
    state = _OFFSET
    while position < stop:
        character, width = character_at(position)
        kind = classes[character]
        if kind in (LETTER, NUMBER):
            if size == begin:
                starts[n_words] = position - base
            for offset in range(width):
                byte = load_byte(position + offset)
                plain[size] = byte
                state = (state ^ Word(byte)) * _PRIME
                size += 1
        position += width
        # white space ends a word, and so does the end of the text
        if size > begin and (kind in (SPACE, NEWLINE) or position >= stop):
            begins[n_words], ends[n_words] = begin, size
            prefix[n_words + 1] = prefix[n_words] * _BASE + _mixed(state)
            n_words += 1
            plain[size] = 0x20
            size += 1
            begin = size
            state = _OFFSET
    return n_words


@kernel
def _window_keys(prefix: Words, firsts: Indices, sizes: Indices, powers: Words) -> Words:
    """The key of every n-gram, given its first word, its size and the base's power of that."""
    keys = np.empty(len(firsts), dtype=np.uint64)
    for index in range(len(firsts)):
        first = firsts[index]
        keys[index] = _key(prefix[first], prefix[first + sizes[index]], sizes[index], powers[index])
    return keys


@inner
def _key(before: Word, after: Word, size: int, power: Word) -> Word:
    """The hash of a window, from the polynomial before its first word and after its last."""
    return _mixed(after - before * power + Word(size))


@inner
def _mixed(state: Word) -> Word:
    """The 64 bits, made to depend on each other."""
    state = (state ^ (state >> THIRTY_TWO)) * MIXER
    return state ^ (state >> THIRTY_TWO)


@kernel
def _enter(keys: Words, slots: Indices) -> None:
    """Enters different keys, as their indices, into an open-addressing table."""
    mask = len(slots) - 1
    for index in range(len(keys)):
        slot = np.int64(keys[index] & Word(mask))
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = index


@kernel
def _mark(keys: Words, bits: Words, shift: Word) -> None:
    """Sets the bit of every key in the map."""
    for key in keys:
        bit = key >> shift
        bits[np.int64(bit >> _SIX)] |= _ONE << (bit & _LOW_SIX)


@inner
def _is_marked(key: Word, bits: Words, shift: Word) -> bool:
    bit = key >> shift
    return bool((bits[np.int64(bit >> _SIX)] >> (bit & _LOW_SIX)) & _ONE)


@kernel
def _look_up(
    prefix: Words,
    n_words: int,
    sizes: Indices,
    powers: Words,
    bits: Words,
    shift: Word,
    slots: Indices,
    keys: Words,
    settled: NDArray[np.bool_],
    hit_words: Indices,
    hit_keys: Indices,
) -> int:
    """Writes first word and key of every window that the table knows; returns how many.

    `sizes` ascend. A window is looked up only where its opening, the window of the shortest size,
    is marked in the map, and it itself too.
    """
    mask = len(slots) - 1
    n_hits = 0
    for word in range(n_words - sizes[0] + 1):
        key = _key(prefix[word], prefix[word + sizes[0]], sizes[0], powers[0])
        if not _is_marked(key, bits, shift):
            continue
        for which in range(len(sizes)):
            after = word + sizes[which]
            if after > n_words:
                break
            key = _key(prefix[word], prefix[after], sizes[which], powers[which])
            if not _is_marked(key, bits, shift):
                continue
            slot = np.int64(key & Word(mask))
            while slots[slot] >= 0 and keys[slots[slot]] != key:
                slot = (slot + 1) & mask
            if slots[slot] >= 0 and not settled[slots[slot]]:
                hit_words[n_hits] = word
                hit_keys[n_hits] = slots[slot]
                n_hits += 1
    return n_hits
