"""From texts to token ids and back: what `Tokenizer` does it with.

A word's tokens are what merging makes of it (merging.py). Two observations make that rare.

First, most words are tokens: with 86,400 tokens, 97 or 98 of 100 words. For a token as a word the
merging would end at the token itself, so one look into a hash table replaces it. The table is too
large for the processor's nearest caches, so what a word will need from it is asked for some words
ahead.

Second, the words that are not tokens repeat too. What they became is remembered in a small table
where a word overwrites whichever word had its place before.
"""

from __future__ import annotations

from array import array as Array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strata.tokenizer.memory import (
    PADDING,
    inner,
    kernel,
    load_word,
    padded,
    prefetch,
    same_bytes,
    store_word,
    text_bytes,
)
from strata.tokenizer.merging import LONGEST_SHORT_WORD, MAX_IDS, merge_word
from strata.tokenizer.scanner import Rules, character_classes, find_words, last_bytes
from strata.tokenizer.vocabulary import Vocabulary, build_vocabulary

WORDS_AT_ONCE = 512  # few enough to stay in the processor's nearest cache
WORDS_AHEAD = 8
SHORT_TEXTS = 1 << 18  # bytes; for longer ones memory is taken each time
EXACT_BYTES = 16  # words up to this length are equal if hash, last eight bytes and length are
KNOWN_PLACES = 1 << 16  # how many words are remembered, of at most EXACT_BYTES
KNOWN_IDS = 5  # and the most tokens one may have, so that a row fills 64 bytes


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


class Coder:
    """Encodes and decodes for a `Tokenizer`: its tables, and workspaces that threads share.

    tokens: the bytes of each id; `plain` says which are learnt tokens and not special.

    Raises ValueError if a token is not a merge of two earlier ones.
    """

    def __init__(self, tokens: Sequence[bytes], plain: NDArray[np.bool_], rules: Rules) -> None:
        self.vocabulary, self.parts = build_vocabulary(tokens, plain)
        self._rules = rules
        self._workspaces: list[Workspace] = []  # those that no thread uses now

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each of some texts, all encoded by one call of the kernel."""
        encoded = [text_bytes(text) for text in texts]
        stops = np.fromiter(accumulate(map(len, encoded)), np.int64, len(encoded))
        source = padded(b"".join(encoded))
        bounds = np.empty(len(texts) + 1, dtype=np.int64)
        try:
            workspace = self._workspaces.pop()
        except IndexError:
            workspace = new_workspace()
        ids = workspace.ids
        if len(source) > len(ids):
            ids = np.empty(len(source), dtype=np.uint32)
        classes = character_classes()
        encode_texts(source, stops, self._rules, classes, self.vocabulary, workspace, ids, bounds)
        result = [ids[begin:end].copy() for begin, end in pairwise(bounds.tolist())]
        self._workspaces.append(workspace)
        return result

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> memoryview:
        """The bytes of these ids. Raises ValueError if one is no token, or they are no integers."""
        array = as_array(ids)
        length = decoded_length(array, self.vocabulary)
        if length < 0:
            raise no_token(int(array[-1 - length]), -1 - length)
        output = np.empty(length + PADDING, dtype=np.uint8)
        decode_ids(array, self.vocabulary, output)
        return output[:length].data


def as_array(ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint32]:
    """Ids as the kernels want them; raises ValueError if they are no integers or no ids at all."""
    if not isinstance(ids, list | tuple):
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size > 0 and array.dtype.kind not in "iu"):
            raise ValueError(f"ids must be a sequence of integers, not {ids!r:.80}")
        if array.dtype == np.uint32:
            array = np.ascontiguousarray(array).view()
            array.flags.writeable = False  # to Numba, what can be written is of another type
            return array
        ids = array.tolist()
    try:
        unsigned = Array("I", ids)  # takes a fraction of the time of np.array(ids)
    except TypeError:
        raise ValueError(f"ids must be a sequence of integers, not {ids!r:.80}") from None
    except OverflowError:
        wrong = next(i for i, index in enumerate(ids) if not 0 <= index < MAX_IDS)
        raise no_token(ids[wrong], wrong) from None
    return np.frombuffer(memoryview(unsigned).toreadonly(), dtype=np.uint32)


def no_token(index: int, position: int) -> ValueError:
    return ValueError(f"{index} (at position {position}) is no token of this vocabulary")


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
    bounds[0] = 0
    # From `bounds`, since a constant 0 is a type of its own: all would be compiled twice.
    position = n_ids = int(bounds[0])
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
        word_hash, word_end = hashes[i], np.int64(last_bytes(address, length))
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

        count = merge_word(
            address,
            length,
            vocabulary.merges,
            vocabulary.byte_ids,
            vocabulary.byte_pairs,
            workspace.parts,
            ids,
            n_ids,
        )
        if length <= EXACT_BYTES and count <= KNOWN_IDS:
            known[place, 0] = word_hash
            known[place, 1] = word_end
            known[place, 2] = length << 32 | count
            for j in range(count):
                known[place, 3 + j] = ids[n_ids + j]
        n_ids += count
    return n_ids


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
        start = vocabulary.starts[token] + 0
        end = vocabulary.starts[token + 1] + 0
        for at in range(start, end, 8):
            store_word(address + at - start, load_word(text + at))
        address += end - start
