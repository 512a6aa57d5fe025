"""Merging a word: from its bytes to its tokens, as byte-pair encoding is defined.

Begin with the bytes; of all neighbours that together are a token, merge the pair whose token was
learnt first; repeat until there is none. A pair of tokens can become only one token, so what is
looked up is a hash table from two ids to one. A short word finds its best pair by passing over all
of them; a long one, which would take quadratic time so, keeps its pairs in a heap.

`merge_steps` in tokenizer.py is the same without the speed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.tokenizer.memory import MIXER, THIRTY_TWO, Integer, Word, inner, load_byte

NONE = -1
ID_BITS = 21
MAX_IDS = 1 << ID_BITS
NO_MERGE = 1 << 30  # greater than any id
LONGEST_SHORT_WORD = 64  # bytes; longer words are merged with a heap


@inner
def merge_word(
    address: int,
    length: int,
    merges: NDArray[np.int64],
    byte_ids: NDArray[np.int64],
    byte_pairs: NDArray[np.int64],
    parts: NDArray[np.int64],
    ids: NDArray[np.uint32],
    at: int,
) -> int:
    """Merges one word and writes its tokens to ids[at:]. Returns how many they are.

    merges, byte_ids, byte_pairs: see `Vocabulary`.
    parts: (LONGEST_SHORT_WORD,), room to work in. It holds, for each part of the word, its id and,
        in the higher bits, the token that it and the part to its right would become. So the least
        entry is the merge to make, and of equal ones the first.
    """
    if length > LONGEST_SHORT_WORD:
        for i in range(length):
            ids[at + i] = byte_ids[load_byte(address + i)]
        return merge_long_word(length, merges, ids, at)

    n_parts = length
    left = load_byte(address)
    for i in range(n_parts - 1):
        right = load_byte(address + i + 1)
        parts[i] = byte_pairs[left << 8 | right] << 32 | byte_ids[left]
        left = right
    parts[n_parts - 1] = NO_MERGE << 32 | byte_ids[left]
    while True:
        best, least = 0, parts[0]
        for i in range(1, n_parts):
            if parts[i] < least:
                best, least = i, parts[i]
        token = least >> 32
        if token == NO_MERGE:
            break
        n_parts -= 1
        for i in range(best + 1, n_parts):
            parts[i] = parts[i + 1]
        parts[best] = NO_MERGE << 32 | token
        if best < n_parts - 1:
            after = parts[best + 1] & 0xFFFFFFFF
            parts[best] = merged_id(token, after, merges) << 32 | token
        if best > 0:
            before = parts[best - 1] & 0xFFFFFFFF
            parts[best - 1] = merged_id(before, token, merges) << 32 | before
    for i in range(n_parts):
        ids[at + i] = parts[i] & 0xFFFFFFFF
    return n_parts


@inner
def merge_long_word(
    length: int, merges: NDArray[np.int64], ids: NDArray[np.uint32], at: int
) -> int:
    """Merges the bytes in ids[at:at + length] in time n log n. Returns how many tokens remain.

    The heap holds rank << 32 | place, so that of equal ranks the leftmost is merged first; an
    entry whose rank is no longer that of its place is out of date and dropped.
    """
    ranks = np.empty(length, dtype=np.int32)  # what the part here and the next would become
    following = np.empty(length, dtype=np.int32)  # where the next part starts
    previous = np.empty(length, dtype=np.int32)
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


@inner
def merge_slot(key: Integer, merges: NDArray[np.int64]) -> np.int64:
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
