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
from strata.tokenizer.scanner import Rules, find_words, hash_bytes

NONE = -1
ID_BITS = 21
MAX_IDS = 1 << ID_BITS
NO_MERGE = 1 << 30  # greater than any id
MIXER, THIRTY_TWO = Word(0x9E3779B97F4A7C15), Word(32)
WORDS_AHEAD = 8
EXACT_BYTES = 16  # words up to this length are equal if hash, last eight bytes and length are
LONGEST_SHORT_WORD = 64  # bytes; longer words are merged with a heap
WORDS_AT_ONCE = 512  # few enough to stay in the processor's nearest cache
KNOWN_PLACES = 1 << 16  # how many words are remembered, of at most EXACT_BYTES
SHORT_TEXTS = 1 << 18  # bytes; for longer ones memory is taken each time
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
    """What one thread needs while it encodes: the words it remembers, and room to work in."""

    known: NDArray[np.int64]  # rows of (hash, last eight bytes, length << 32 | n, n ids)
    parts: NDArray[np.int64]  # (LONGEST_SHORT_WORD,)
    ends: NDArray[np.int64]  # (WORDS_AT_ONCE,): where the words end that are encoded next,
    hashes: NDArray[np.int64]  # and their hashes
    ids: NDArray[np.uint32]  # where the ids of short texts are written


def new_workspace() -> Workspace:
    """A workspace that remembers no words yet."""
    return Workspace(
        known=np.zeros((KNOWN_PLACES, 3 + KNOWN_IDS), dtype=np.int64),
        parts=np.empty(LONGEST_SHORT_WORD, dtype=np.int64),
        ends=np.empty(WORDS_AT_ONCE, dtype=np.int64),
        hashes=np.empty(WORDS_AT_ONCE, dtype=np.int64),
        ids=np.empty(SHORT_TEXTS, dtype=np.uint32),
    )


@kernel
def fill_table(vocabulary: Vocabulary, lengths: NDArray[np.int64]) -> None:
    """Puts the tokens into `table`.

    The first come nearest to where they are looked for, and the first tokens are the frequent ones.
    """
    table, text = vocabulary.table, vocabulary.text
    mask = len(table) - 1
    for token in range(len(lengths)):
        length, start = lengths[token], vocabulary.starts[token]
        if length > 0:
            address = text.ctypes.data + start
            word_hash = hash_bytes(address, length)
            slot = word_hash & mask
            while table[slot, 2] != 0:
                slot = (slot + 1) & mask
            table[slot, 0] = word_hash
            table[slot, 1] = last_bytes(address, length)
            table[slot, 2] = length << 32 | token
            table[slot, 3] = start


@inner
def last_bytes(address: int, length: int) -> np.int64:
    """The last eight bytes of a word that is longer than that, else 0."""
    return np.int64(load_word(address + length - 8)) if length > 8 else np.int64(0)


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
def encode_texts(
    source: NDArray[np.uint8],
    stops: NDArray[np.int64],
    rules: Rules,
    classes: NDArray[np.uint8],
    vocabulary: Vocabulary,
    workspace: Workspace,
    ids: NDArray[np.uint32],
    bounds: NDArray[np.int64],
) -> None:
    """Encodes texts that lie one after another and end at `stops`.

    ids: as many as there are bytes, for no token is shorter; text i becomes
    ids[bounds[i]:bounds[i + 1]]. Both are written.
    """
    position = n_ids = bounds[0] = 0
    for i in range(len(stops)):
        while position < stops[i]:
            start = position
            n_words, position = find_words(
                source, start, stops[i], rules, classes, workspace.ends, workspace.hashes
            )
            n_ids = encode_words(source, start, n_words, vocabulary, workspace, ids, n_ids)
        bounds[i + 1] = n_ids


@inner
def encode_words(
    source: NDArray[np.uint8],
    start: int,
    n_words: int,
    vocabulary: Vocabulary,
    workspace: Workspace,
    ids: NDArray[np.uint32],
    n_ids: int,
) -> int:
    """Writes the ids of the words found from `start` on to ids[n_ids:]. Returns the new n_ids."""
    table, known = vocabulary.table, workspace.known
    ends, hashes = workspace.ends, workspace.hashes
    mask, known_mask = len(table) - 1, len(known) - 1
    text = vocabulary.text.ctypes.data
    for i in range(n_words):
        if i + WORDS_AHEAD < n_words:
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
    """Merges one word and writes its tokens to ids[at:]. Returns how many they are.

    For each part, `parts` holds its id and, in the higher bits, the token that it and the part to
    its right would become. So the least entry is the merge to make, and of equal ones the first.
    """
    merges, parts = vocabulary.merges, workspace.parts
    if length > LONGEST_SHORT_WORD:
        for i in range(length):
            ids[at + i] = vocabulary.byte_ids[load_byte(address + i)]
        return merge_long_word(length, merges, ids, at)

    n_parts = length
    left = load_byte(address)
    for i in range(n_parts - 1):
        right = load_byte(address + i + 1)
        parts[i] = vocabulary.byte_pairs[left << 8 | right] << 32 | vocabulary.byte_ids[left]
        left = right
    parts[n_parts - 1] = NO_MERGE << 32 | vocabulary.byte_ids[left]
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
def decoded_length(ids: NDArray[np.uint32], vocabulary: Vocabulary) -> int:
    """How many bytes the tokens stand for; -1 - i if ids[i] is no token."""
    starts = vocabulary.starts
    length = 0
    for i in range(len(ids)):
        token = np.int64(ids[i])
        if token >= len(starts) - 1 or starts[token] == starts[token + 1]:
            return -1 - i
        length += starts[token + 1] - starts[token]
    return length


@kernel
def decode_ids(ids: NDArray[np.uint32], vocabulary: Vocabulary, output: NDArray[np.uint8]) -> None:
    """Writes the bytes of the tokens one after another to `output`, which has PADDING to spare.

    Eight bytes at a time: what is written beyond a token's end, the next token overwrites.
    """
    address = output.ctypes.data
    text = vocabulary.text.ctypes.data
    for i in range(len(ids)):
        token = np.int64(ids[i])
        start, end = vocabulary.starts[token], vocabulary.starts[token + 1]
        for at in range(start, end, 8):
            store_word(address + at - start, load_word(text + at))
        address += end - start
