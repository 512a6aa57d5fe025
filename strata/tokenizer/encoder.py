"""From words to token ids and back: the kernels of `Tokenizer`.

Encoding a word means to begin with its bytes and to merge, again and again, the neighbouring pair
that was learnt first, until no pair of neighbours is a token. Three observations make it fast.

First, most words are tokens: with 86,400 tokens, 97 or 98 of 100 words. For a token as a word the
merging would end at the token itself, so one look into a hash table replaces it. The table is too
large for the processor's nearest caches, so what a word will need from it is asked for some words
ahead.

Second, the words that are not tokens repeat too. What they became is remembered in a small table
where a word overwrites whichever word had its place before.

Third, a pair of tokens can become only one token, so the merges themselves are a hash table from
two ids to one. A short word looks for its best pair by passing over all of them; a long one,
which would take quadratic time so, keeps its pairs in a heap.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strata.tokenizer.memory import (
    Integer,
    Word,
    inner,
    kernel,
    load_byte,
    load_word,
    prefetch,
    same_bytes,
    store_word,
)

NONE = -1
ID_BITS = 21
MAX_IDS = 1 << ID_BITS
NO_MERGE = 1 << 30  # greater than any id
MIXER, THIRTY_TWO = Word(0x9E3779B97F4A7C15), Word(32)
WORDS_AHEAD = 8
EXACT_BYTES = 16  # words up to this length are equal if hash, last eight bytes and length are
LONG_WORD = 64  # bytes, from which on a word is merged with a heap
KNOWN_PLACES = 1 << 15  # how many words are remembered, of at most EXACT_BYTES
KNOWN_IDS = 5  # and the most tokens one may have, so that a row fills 64 bytes


class Vocabulary(NamedTuple):
    """A tokenizer's tables. Lengths are of plain tokens; special and unused ids have 0.

    A free row of `table` has 0 in its third column, a free slot of `merges` holds -1.
    """

    text: NDArray[np.uint8]  # the bytes of token i are text[starts[i] : starts[i + 1]]
    starts: NDArray[np.int64]
    table: NDArray[np.int64]  # rows of (hash, last eight bytes, length << 32 | id, start in text)
    byte_ids: NDArray[np.int64]  # (256,): the token of each byte
    byte_pairs: NDArray[np.int64]  # (65536,): the token of each two bytes, or NO_MERGE
    merges: NDArray[np.int64]  # (slots,): left id << 42 | right id << 21 | what they become


class Workspace(NamedTuple):
    """What one thread needs while it encodes: the words it remembers, and room for one merge."""

    known: NDArray[np.int64]  # rows of (hash, last eight bytes, length << 32 | n, n ids)
    ranks: NDArray[np.int64]  # (LONG_WORD,): what a part and its right neighbour would become


def new_workspace() -> Workspace:
    """A workspace that remembers no words yet."""
    return Workspace(
        known=np.zeros((KNOWN_PLACES, 3 + KNOWN_IDS), dtype=np.int64),
        ranks=np.empty(LONG_WORD, dtype=np.int64),
    )


@kernel
def fill_table(vocabulary: Vocabulary, lengths: NDArray[np.int64], hashes: NDArray[np.int64]) -> None:
    """Puts the tokens, whose hashes these are, into `table`.

    The first come nearest to where they are looked for, and the first tokens are the frequent ones.
    """
    table, text = vocabulary.table, vocabulary.text
    mask = len(table) - 1
    for token in range(len(hashes)):
        length, start = lengths[token], vocabulary.starts[token]
        if length > 0:
            slot = hashes[token] & mask
            while table[slot, 2] != 0:
                slot = (slot + 1) & mask
            table[slot, 0] = hashes[token]
            table[slot, 1] = last_bytes(text.ctypes.data + start, length)
            table[slot, 2] = length << 32 | token
            table[slot, 3] = start


@inner
def last_bytes(address: int, length: int) -> np.int64:
    """The last eight bytes of a word that is longer than that, else 0."""
    return np.int64(load_word(address + length - 8)) if length > 8 else np.int64(0)


@inner
def merge_slot(key: int, merges: NDArray[np.int64]) -> np.int64:
    """Where the search for a pair of tokens begins."""
    mixed = Word(key) * MIXER
    return np.int64(mixed ^ mixed >> THIRTY_TWO) & (len(merges) - 1)


@inner
def merged_id(left: Integer, right: Integer, merges: NDArray[np.int64]) -> int:
    """The token that two tokens become, or NO_MERGE."""
    mask = len(merges) - 1
    key = left << ID_BITS | right
    slot = merge_slot(key, merges)
    while merges[slot] != NONE:
        if merges[slot] >> ID_BITS == key:
            token: int = merges[slot] & (MAX_IDS - 1)
            return token
        slot = (slot + 1) & mask
    return NO_MERGE


@inner
def add_merge(left: Integer, right: Integer, token: int, merges: NDArray[np.int64]) -> None:
    """Lets `left` and `right` become `token` from now on."""
    mask = len(merges) - 1
    key = left << ID_BITS | right
    slot = merge_slot(key, merges)
    while merges[slot] != NONE:
        slot = (slot + 1) & mask
    merges[slot] = key << ID_BITS | token


@kernel
def find_merges(
    vocabulary: Vocabulary,
    lengths: NDArray[np.int64],
    parts: NDArray[np.int64],
    ids: NDArray[np.uint32],
    workspace: Workspace,
) -> int:
    """Finds of which two tokens each token is made, and fills `merges` and `byte_pairs` with that.

    A token is made of the two parts that remain when its bytes are merged with all tokens before
    it. parts: (n_tokens, 2), written, -1 for bytes. Returns the first token that does not come down
    to two parts, or -1.
    """
    for token in range(len(parts)):
        length = lengths[token]
        if length > 1:
            at = vocabulary.starts[token]
            address = vocabulary.text.ctypes.data + at
            n_parts = merge_word(address, length, vocabulary, ids, at, workspace)
            if n_parts != 2:
                return token
            parts[token, 0] = ids[at]
            parts[token, 1] = ids[at + 1]
            add_merge(parts[token, 0], parts[token, 1], token, vocabulary.merges)
            if length == 2:
                vocabulary.byte_pairs[load_byte(address) << 8 | load_byte(address + 1)] = token
    return NONE


@kernel
def encode_words(
    source: NDArray[np.uint8],
    start: int,
    ends: NDArray[np.int64],
    hashes: NDArray[np.int64],
    vocabulary: Vocabulary,
    workspace: Workspace,
    ids: NDArray[np.uint32],
    n_ids: int,
) -> int:
    """Writes the ids of the words that end at `ends` to ids[n_ids:]. Returns the new n_ids."""
    table, known = vocabulary.table, workspace.known
    mask, known_mask = len(table) - 1, len(known) - 1
    text = vocabulary.text.ctypes.data
    for i in range(len(ends)):
        if i + WORDS_AHEAD < len(ends):
            prefetch(table.ctypes.data + 32 * (hashes[i + WORDS_AHEAD] & mask))
        address = source.ctypes.data + start
        length = ends[i] - start
        start = ends[i]
        word_hash, word_end = hashes[i], last_bytes(address, length)
        slot = word_hash & mask
        while table[slot, 2] != 0 and (
            table[slot, 0] != word_hash
            or table[slot, 1] != word_end
            or table[slot, 2] >> 32 != length
            or (length > EXACT_BYTES and not same_bytes(address, text + table[slot, 3], length))
        ):
            slot = (slot + 1) & mask
        if table[slot, 2] != 0:
            ids[n_ids] = table[slot, 2] & 0xFFFFFFFF
            n_ids += 1
            continue

        place = (word_hash >> 20) & known_mask
        if (
            known[place, 0] == word_hash
            and known[place, 1] == word_end
            and known[place, 2] >> 32 == length
            and length <= EXACT_BYTES
        ):
            for j in range(known[place, 2] & 0xFFFFFFFF):
                ids[n_ids] = known[place, 3 + j]
                n_ids += 1
            continue

        count = merge_word(address, length, vocabulary, ids, n_ids, workspace)
        if length <= EXACT_BYTES and count <= KNOWN_IDS:
            known[place, 0] = word_hash
            known[place, 1] = word_end
            known[place, 2] = length << 32 | count
            for j in range(count):
                known[place, 3 + j] = ids[n_ids + j]
        n_ids += count
    return n_ids


@inner
def merge_word(
    address: int,
    length: int,
    vocabulary: Vocabulary,
    ids: NDArray[np.uint32],
    at: int,
    workspace: Workspace,
) -> int:
    """Merges one word, in place in ids[at:at + length]. Returns how many tokens it became."""
    merges, ranks = vocabulary.merges, workspace.ranks
    for i in range(length):
        ids[at + i] = vocabulary.byte_ids[load_byte(address + i)]
    if length >= LONG_WORD:
        return merge_long_word(length, merges, ids, at)

    n_parts = length
    for i in range(n_parts - 1):
        ranks[i] = vocabulary.byte_pairs[load_byte(address + i) << 8 | load_byte(address + i + 1)]
    while n_parts > 1:
        best = 0
        for i in range(1, n_parts - 1):
            if ranks[i] < ranks[best]:
                best = i
        if ranks[best] == NO_MERGE:
            break
        ids[at + best] = ranks[best]
        n_parts -= 1
        for i in range(best + 1, n_parts):
            ids[at + i] = ids[at + i + 1]
            ranks[i - 1] = ranks[i]
        if best < n_parts - 1:
            ranks[best] = merged_id(np.int64(ids[at + best]), np.int64(ids[at + best + 1]), merges)
        if best > 0:
            ranks[best - 1] = merged_id(
                np.int64(ids[at + best - 1]), np.int64(ids[at + best]), merges
            )
    return n_parts


@inner
def merge_long_word(
    length: int, merges: NDArray[np.int64], ids: NDArray[np.uint32], at: int
) -> int:
    """Merges the bytes in ids[at:at + length] in time n log n. Returns how many tokens remain.

    The heap holds rank << 32 | place, so that of equal ranks the leftmost is merged first; an
    entry whose rank is no longer that of its place is out of date and dropped.
    """
    ranks = np.empty(length, dtype=np.int64)  # what the part here and the next would become
    following = np.empty(length, dtype=np.int64)  # where the next part starts
    previous = np.empty(length, dtype=np.int64)
    heap = np.empty(3 * length, dtype=np.int64)
    n_heap = np.int64(0)
    for i in range(length):
        following[i] = i + 1
        previous[i] = i - 1
        ranks[i] = NO_MERGE
        if i + 1 < length:
            ranks[i] = merged_id(np.int64(ids[at + i]), np.int64(ids[at + i + 1]), merges)
        if ranks[i] != NO_MERGE:
            push(heap, n_heap, ranks[i] << 32 | i)
            n_heap += 1

    while n_heap > 0:
        top = heap[0]
        n_heap -= 1
        pop(heap, n_heap)
        place = top & 0xFFFFFFFF
        if ranks[place] != top >> 32:
            continue
        gone = following[place]
        after = following[gone]
        ids[at + place] = ranks[place]
        ranks[gone] = NO_MERGE
        following[place] = after
        ranks[place] = NO_MERGE
        if after < length:
            previous[after] = place
            ranks[place] = merged_id(np.int64(ids[at + place]), np.int64(ids[at + after]), merges)
            if ranks[place] != NO_MERGE:
                push(heap, n_heap, ranks[place] << 32 | place)
                n_heap += 1
        before = previous[place]
        if before >= 0:
            ranks[before] = merged_id(np.int64(ids[at + before]), np.int64(ids[at + place]), merges)
            if ranks[before] != NO_MERGE:
                push(heap, n_heap, ranks[before] << 32 | before)
                n_heap += 1

    n_parts = 0
    place = 0
    while place < length:
        ids[at + n_parts] = ids[at + place]
        n_parts += 1
        place = following[place]
    return n_parts


@inner
def push(heap: NDArray[np.int64], n_heap: Integer, entry: int) -> None:
    """Puts an entry into a binary heap of `n_heap` entries, the least first."""
    place = n_heap
    while place > 0 and entry < heap[(place - 1) >> 1]:
        heap[place] = heap[(place - 1) >> 1]
        place = (place - 1) >> 1
    heap[place] = entry


@inner
def pop(heap: NDArray[np.int64], n_heap: Integer) -> None:
    """Takes the first entry away, which leaves `n_heap` entries."""
    entry = heap[n_heap]
    place = 0
    while 2 * place + 1 < n_heap:
        child = 2 * place + 1
        if child + 1 < n_heap and heap[child + 1] < heap[child]:
            child += 1
        if entry <= heap[child]:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = entry


@kernel
def decoded_length(ids: NDArray[np.int64], vocabulary: Vocabulary) -> int:
    """How many bytes the tokens stand for; -1 - i if ids[i] is no token."""
    starts = vocabulary.starts
    length = 0
    for i in range(len(ids)):
        if ids[i] < 0 or ids[i] >= len(starts) - 1 or starts[ids[i]] == starts[ids[i] + 1]:
            return -1 - i
        length += starts[ids[i] + 1] - starts[ids[i]]
    return length


@kernel
def decode_ids(ids: NDArray[np.int64], vocabulary: Vocabulary, output: NDArray[np.uint8]) -> None:
    """Writes the bytes of the tokens one after another to `output`, which has PADDING to spare.

    Eight bytes at a time: what is written beyond a token's end, the next token overwrites.
    """
    address = output.ctypes.data
    text = vocabulary.text.ctypes.data
    for i in range(len(ids)):
        start, end = vocabulary.starts[ids[i]], vocabulary.starts[ids[i] + 1]
        for at in range(start, end, 8):
            store_word(address + at - start, load_word(text + at))
        address += end - start
