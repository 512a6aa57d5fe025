r"""Byte-pair encoding learnt from text: which pairs of tokens become new tokens, in what order.

The algorithm is that of Sennrich, Haddow and Birch 2016 (section 3.2) on bytes: begin with the
256 bytes as tokens; find the pair of neighbouring tokens that is most frequent within words; make
it a token; replace it everywhere; repeat. Two observations make it fast.

First, text repeats its words, so they are counted before anything else, which is most of the work
and takes all cores (counting.py). Merging looks at each distinct word once and lets it weigh as
much as it occurs often.

Second, a merge changes little. The distinct words lie one after another as *nodes*, one for each
byte; a token is known by its first and its last node. Every node where a token starts knows which
pair starts there, and every pair knows its count and the nodes where it occurred. To merge a pair
is then to walk over its occurrences and to mend what touches them: the pairs to the left and to
the right lose one occurrence, and pairs with the new token gain one. No occurrence of a pair can
appear after its newer token was made, so the list of a pair's nodes is written once, whole, by
the merge that made it; later merges only invalidate some of its entries, and the node itself
tells which.

The most frequent pair comes from a heap whose counts may be out of date. Counts only fall, so a
pair whose count still holds when it is at the top is the right one, and any other is put back
with the count that it has now. Of equally frequent pairs the one with the lowest token ids is
merged first, the rule of karpathy/rustbpe, with which the result agrees merge for merge.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strata.tokenizer.counting import MAX_WORDS, Progress, Words, count_corpus
from strata.tokenizer.memory import Integer, inner, kernel

MERGES_AT_ONCE = 1024
NONE = -1  # no pair starts at this node; no token lies at this node


def train_merges(
    documents: Iterable[str],
    n_merges: int,
    pattern: str,
    progress: Progress | None = None,
    threads: int | None = None,
    max_words: int | None = MAX_WORDS,
) -> list[tuple[int, int]]:
    """The first `n_merges` merges: merge i makes token 256 + i of a pair of earlier tokens.

    threads, max_words: see `count_corpus`; merging itself takes one thread.

    Raises ValueError if the corpus does not allow so many.
    """
    counted = count_corpus(documents, pattern, threads, max_words, progress)
    merges = merge_words(counted.words, n_merges, progress)
    if len(merges) < n_merges:
        raise ValueError(
            f"the corpus ({counted.n_bytes_read:,} bytes, {len(counted.words.counts):,} distinct "
            f"words) allows only {len(merges):,} merges, but the vocabulary asks for "
            f"{n_merges:,}: train on more text, or ask for fewer tokens"
        )
    return merges


class Nodes(NamedTuple):
    """The distinct words, byte by byte, with an empty node before, between and after them."""

    tokens: NDArray[np.int32]  # the token whose first or last byte it is; NONE in an empty node
    weights: NDArray[np.int64]  # how often the word occurs
    pairs: NDArray[np.int32]  # the pair whose left token starts here, or NONE


class Pairs(NamedTuple):
    """The pairs of neighbouring tokens, numbered as they appear. Those merged have a count of 0."""

    keys: NDArray[np.int64]  # left token << 32 | right token
    counts: NDArray[np.int64]  # how often the pair occurs now
    first: NDArray[np.int32]  # it occurred at the nodes places[first : first + n_places],
    n_places: NDArray[np.int32]  # not all of which need still hold it
    places: NDArray[np.int32]


def merge_words(
    words: Words, n_merges: int, progress: Progress | None = None
) -> list[tuple[int, int]]:
    """Merges until there are `n_merges` merges or no pair is left; returns them in order."""
    n_words, n_bytes = len(words.counts), int((words.ends - words.starts).sum())
    n_nodes = n_bytes + n_words + 1
    # A merge takes a node away and makes at most two occurrences of new pairs, which bounds the
    # arrays below. Most of them is never written, and most systems give no memory for that.
    room = 3 * n_nodes
    if room >= 1 << 31:
        raise ValueError(
            f"the corpus has {n_words:,} distinct words of together {n_bytes:,} bytes: expected at "
            f"most {(1 << 31) // 3:,} bytes and words; lower max_words, or train on less text"
        )
    if progress is not None:
        progress("merging", 0, n_merges)
    nodes = Nodes(
        tokens=np.full(n_nodes, NONE, dtype=np.int32),
        weights=np.zeros(n_nodes, dtype=np.int64),
        pairs=np.full(n_nodes, NONE, dtype=np.int32),
    )
    pairs = Pairs(
        keys=np.empty(room, dtype=np.int64),
        counts=np.empty(room, dtype=np.int64),
        first=np.empty(room, dtype=np.int32),
        n_places=np.empty(room, dtype=np.int32),
        places=np.empty(room, dtype=np.int32),
    )
    heap = np.empty((room, 3), dtype=np.int64)  # rows of (count when put in, key, pair)
    lay_out_words(words, nodes)
    n_pairs = find_byte_pairs(nodes, pairs, np.full(65_536, NONE, dtype=np.int32))

    n_places = int(pairs.n_places[:n_pairs].sum())
    most_places = int(pairs.n_places[:n_pairs].max(initial=0))
    most_frequent = int(pairs.counts[:n_pairs].max(initial=0))
    state = np.array([0, n_pairs, n_places, 0, most_frequent + 1], dtype=np.int64)
    merges = np.empty(n_merges, dtype=np.int64)  # the keys of the pairs merged
    lengths = np.ones(256 + n_merges, dtype=np.int32)  # bytes of each token
    partners = np.full((2, 256 + n_merges), NONE, dtype=np.int32)
    changes = np.empty((2 * most_places, 2), dtype=np.int32)
    n_done = 0
    while n_done < n_merges:
        limit = min(n_done + MERGES_AT_ONCE, n_merges)
        merge_pairs(limit, merges, lengths, nodes, pairs, heap, partners, changes, state)
        if progress is not None:
            progress("merging", int(state[0]), n_merges)
        if state[0] < limit:
            break
        n_done = limit
    return [(int(key >> 32), int(key & 0xFFFFFFFF)) for key in merges[: state[0]]]


@kernel
def lay_out_words(words: Words, nodes: Nodes) -> None:
    """Writes the words' bytes as nodes."""
    node = 1
    for word in range(len(words.counts)):
        for place in range(words.starts[word], words.ends[word]):
            nodes.tokens[node] = words.text[place]
            nodes.weights[node] = words.counts[word]
            node += 1
        node += 1


@kernel
def find_byte_pairs(nodes: Nodes, pairs: Pairs, pair_of_bytes: NDArray[np.int32]) -> int:
    """Finds the pairs of neighbouring bytes, their counts and places. Returns how many there are.

    pair_of_bytes: (65536,) of NONE; written with the pair of each two bytes.
    """
    n_pairs = 0
    for node in range(len(nodes.tokens) - 1):
        left, right = np.int64(nodes.tokens[node]), np.int64(nodes.tokens[node + 1])
        if left != NONE and right != NONE:
            pair = pair_of_bytes[left << 8 | right]
            if pair == NONE:
                pair = n_pairs
                pair_of_bytes[left << 8 | right] = pair
                begin_pair(pairs, pair, left << 32 | right)
                n_pairs += 1
            nodes.pairs[node] = pair
            pairs.counts[pair] += nodes.weights[node]
            pairs.n_places[pair] += 1

    n_places = 0
    for pair in range(n_pairs):
        pairs.first[pair] = n_places
        n_places += pairs.n_places[pair]
        pairs.n_places[pair] = 0
    for node in range(len(nodes.tokens)):
        pair = nodes.pairs[node]
        if pair != NONE:
            pairs.places[pairs.first[pair] + pairs.n_places[pair]] = node
            pairs.n_places[pair] += 1
    return n_pairs


@inner
def begin_pair(pairs: Pairs, pair: Integer, key: Integer) -> None:
    """Makes a pair that does not occur yet."""
    pairs.keys[pair] = key
    pairs.counts[pair] = 0
    pairs.n_places[pair] = 0


@kernel
def merge_pairs(
    limit: int,
    merges: NDArray[np.int64],
    lengths: NDArray[np.int32],
    nodes: Nodes,
    pairs: Pairs,
    heap: NDArray[np.int64],
    partners: NDArray[np.int32],
    changes: NDArray[np.int32],
    state: NDArray[np.int64],
) -> None:
    """Merges the most frequent pair again and again, until `limit` merges are done.

    `state` holds what must be kept between calls: the number of merges, of pairs, of their places
    and of rows in the heap, and the least count that a pair must have to be in the heap. Most pairs
    are too rare ever to be merged, so the heap holds only the frequent ones; whenever it is empty,
    that threshold is halved and all pairs are looked through.
    """
    n_merges, n_pairs, n_places = state[0], state[1], state[2]
    n_heap, threshold = state[3], state[4]
    while n_merges < limit:
        if n_heap == 0:
            if threshold <= 1:
                break
            threshold //= 2
            for pair in range(n_pairs):
                if pairs.counts[pair] >= threshold:
                    push(heap, n_heap, pairs.counts[pair], pairs.keys[pair], pair)
                    n_heap += 1
            continue
        count, key, pair = heap[0, 0], heap[0, 1], heap[0, 2]
        n_heap -= 1
        pop(heap, n_heap)
        if pairs.counts[pair] != count:  # out of date
            if pairs.counts[pair] >= threshold:
                push(heap, n_heap, pairs.counts[pair], key, pair)
                n_heap += 1
            continue

        token = 256 + n_merges
        merges[n_merges] = key
        n_merges += 1
        lengths[token] = lengths[key >> 32] + lengths[key & 0xFFFFFFFF]
        n_before = n_pairs
        n_pairs, n_changes = merge_pair(
            pair, token, lengths, nodes, pairs, n_pairs, partners, changes
        )
        n_places = list_places(nodes, pairs, n_before, n_pairs, n_places, changes, n_changes)
        for new in range(n_before, n_pairs):
            partners[0, pairs.keys[new] >> 32] = NONE
            partners[1, pairs.keys[new] & 0xFFFFFFFF] = NONE
            if pairs.counts[new] >= threshold:
                push(heap, n_heap, pairs.counts[new], pairs.keys[new], new)
                n_heap += 1
    state[0], state[1], state[2] = n_merges, n_pairs, n_places
    state[3], state[4] = n_heap, threshold


@inner
def merge_pair(
    pair: int,
    token: int,
    lengths: NDArray[np.int32],
    nodes: Nodes,
    pairs: Pairs,
    n_pairs: int,
    partners: NDArray[np.int32],
    changes: NDArray[np.int32],
) -> tuple[int, int]:
    """Makes `token` of `pair` wherever it occurs. Returns the new n_pairs and n_changes.

    partners: (2, n_tokens), the pairs of the new token with the tokens to its left and its right.
    changes: written with rows of (new pair, node where it starts), in the order of the text.
    """
    left, right = pairs.keys[pair] >> 32, pairs.keys[pair] & 0xFFFFFFFF
    n_changes = 0
    for i in range(pairs.first[pair], pairs.first[pair] + pairs.n_places[pair]):
        node = np.int64(pairs.places[i])
        if nodes.pairs[node] != pair:
            continue  # another merge has taken one of its tokens
        weight = nodes.weights[node]
        middle = node + lengths[left]  # where the right token starts
        after = middle + lengths[right]

        neighbour = np.int64(nodes.tokens[node - 1])
        if neighbour != NONE:
            before = node - lengths[neighbour]
            if partners[0, neighbour] == NONE:
                partners[0, neighbour] = n_pairs
                begin_pair(pairs, n_pairs, neighbour << 32 | token)
                n_pairs += 1
            pairs.counts[nodes.pairs[before]] -= weight
            pairs.counts[partners[0, neighbour]] += weight
            nodes.pairs[before] = partners[0, neighbour]
            changes[n_changes, 0] = partners[0, neighbour]
            changes[n_changes, 1] = before
            n_changes += 1

        neighbour = np.int64(nodes.tokens[after])
        nodes.pairs[node] = NONE
        if neighbour != NONE:
            if partners[1, neighbour] == NONE:
                partners[1, neighbour] = n_pairs
                begin_pair(pairs, n_pairs, token << 32 | neighbour)
                n_pairs += 1
            pairs.counts[nodes.pairs[middle]] -= weight
            pairs.counts[partners[1, neighbour]] += weight
            nodes.pairs[node] = partners[1, neighbour]
            changes[n_changes, 0] = partners[1, neighbour]
            changes[n_changes, 1] = node
            n_changes += 1

        nodes.pairs[middle] = NONE
        nodes.tokens[node] = token
        nodes.tokens[after - 1] = token
    pairs.counts[pair] = 0
    return n_pairs, n_changes


@inner
def list_places(
    nodes: Nodes,
    pairs: Pairs,
    begin: int,
    end: int,
    n_places: int,
    changes: NDArray[np.int32],
    n_changes: int,
) -> int:
    """Gives the pairs from `begin` to `end` the lists of their places. Returns the new n_places.

    A node may have changed twice, in words like `aaaa`: only its last pair counts.
    """
    for i in range(n_changes):
        if nodes.pairs[changes[i, 1]] == changes[i, 0]:
            pairs.n_places[changes[i, 0]] += 1
    for pair in range(begin, end):
        pairs.first[pair] = n_places
        n_places += pairs.n_places[pair]
        pairs.n_places[pair] = 0
    for i in range(n_changes):
        pair = changes[i, 0]
        if nodes.pairs[changes[i, 1]] == pair:
            pairs.places[pairs.first[pair] + pairs.n_places[pair]] = changes[i, 1]
            pairs.n_places[pair] += 1
    return n_places


@inner
def comes_first(count_a: int, key_a: int, count_b: int, key_b: int) -> bool:
    """Whether pair a is merged before pair b: more frequent, or as frequent with lower ids."""
    return count_a > count_b or (count_a == count_b and key_a < key_b)


@inner
def put(heap: NDArray[np.int64], place: int, count: int, key: int, pair: int) -> None:
    """Writes one row of the heap."""
    heap[place, 0] = count
    heap[place, 1] = key
    heap[place, 2] = pair


@inner
def push(heap: NDArray[np.int64], n_heap: int, count: int, key: int, pair: int) -> None:
    """Puts a row into a binary heap of `n_heap` rows (count, key, pair)."""
    place = n_heap
    while place > 0:
        parent = (place - 1) >> 1
        if comes_first(heap[parent, 0], heap[parent, 1], count, key):
            break
        put(heap, place, heap[parent, 0], heap[parent, 1], heap[parent, 2])
        place = parent
    put(heap, place, count, key, pair)


@inner
def pop(heap: NDArray[np.int64], n_heap: int) -> None:
    """Takes the first row away, which leaves `n_heap` rows."""
    count, key, pair = heap[n_heap, 0], heap[n_heap, 1], heap[n_heap, 2]
    place = 0
    while 2 * place + 1 < n_heap:
        child = 2 * place + 1
        if child + 1 < n_heap and comes_first(
            heap[child + 1, 0], heap[child + 1, 1], heap[child, 0], heap[child, 1]
        ):
            child += 1
        if comes_first(count, key, heap[child, 0], heap[child, 1]):
            break
        put(heap, place, heap[child, 0], heap[child, 1], heap[child, 2])
        place = child
    put(heap, place, count, key, pair)
