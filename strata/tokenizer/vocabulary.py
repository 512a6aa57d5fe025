"""A vocabulary as the kernels read it: tables from words to tokens, pairs to tokens, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strata.tokenizer.memory import kernel, load_byte, padded
from strata.tokenizer.merging import LONGEST_SHORT_WORD, NO_MERGE, NONE, add_merge, merge_word
from strata.tokenizer.scanner import hash_bytes, last_bytes


class Vocabulary(NamedTuple):
    """A tokenizer's tables.

    A free row of `table` has 0 in its third column, a free slot of `merges` holds -1. Special
    tokens have bytes, those of their names, but no row in `table`.
    """

    text: NDArray[np.uint8]  # the bytes of token i are text[starts[i] : starts[i + 1]]
    starts: NDArray[np.int32]  # kernels add 0 to have 64 bits
    table: NDArray[np.int64]  # rows of (hash, last eight bytes, length << 32 | id, start in text)
    byte_ids: NDArray[np.int64]  # (256,): the token of each byte
    byte_pairs: NDArray[np.int64]  # (65536,): the token of each two bytes, or NO_MERGE
    merges: NDArray[np.int64]  # (slots,): left id << 42 | right id << 21 | what they become


def build_vocabulary(
    tokens: Sequence[bytes], plain: NDArray[np.bool_]
) -> tuple[Vocabulary, NDArray[np.int64]]:
    """The tables of a vocabulary, and of which two parts each token is made, (n_tokens, 2).

    tokens: the bytes of each id; `plain` says which are learnt tokens and not special.

    Raises ValueError if a token is not a merge of two earlier ones.
    """
    text = padded(b"".join(tokens))
    starts = np.zeros(len(tokens) + 1, dtype=np.int32)
    np.cumsum([len(token) for token in tokens], out=starts[1:])
    lengths = np.where(plain, np.diff(starts), 0).astype(np.int64)
    byte_ids = np.zeros(256, dtype=np.int64)
    for index, token in enumerate(tokens):
        if lengths[index] == 1:
            byte_ids[token[0]] = index

    n_slots = 1 << (2 * len(tokens) - 1).bit_length()
    vocabulary = Vocabulary(
        text=text,
        starts=starts,
        table=np.zeros((n_slots, 4), dtype=np.int64),
        byte_ids=byte_ids,
        byte_pairs=np.full(1 << 16, NO_MERGE, dtype=np.int64),
        merges=np.full(n_slots, NONE, dtype=np.int64),
    )
    fill_table(vocabulary, lengths)
    parts = np.full((len(tokens), 2), NONE, dtype=np.int64)
    room = np.empty(LONGEST_SHORT_WORD, dtype=np.int64)
    ids = np.empty(len(text), dtype=np.uint32)
    unreachable = find_merges(vocabulary, lengths, parts, room, ids)
    if unreachable != NONE:
        raise ValueError(
            f"token {unreachable}, {tokens[unreachable]!r}, is not a merge of two earlier "
            "tokens: these ranks are not those of a byte-pair encoding"
        )
    return vocabulary, parts


@kernel
def fill_table(vocabulary: Vocabulary, lengths: NDArray[np.int64]) -> None:
    """Puts the tokens into `table`.

    The first come nearest to where they are looked for, and the first tokens are the frequent ones.
    """
    table, text = vocabulary.table, vocabulary.text
    mask = len(table) - 1
    for token in range(len(lengths)):
        length, start = lengths[token], vocabulary.starts[token] + 0
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


@kernel
def find_merges(
    vocabulary: Vocabulary,
    lengths: NDArray[np.int64],
    parts: NDArray[np.int64],
    room: NDArray[np.int64],
    ids: NDArray[np.uint32],
) -> int:
    """Finds of which two tokens each token is made, and fills `merges` and `byte_pairs` with that.

    A token is made of the two parts that remain when its bytes are merged with all tokens before
    it. parts: (n_tokens, 2), written, -1 for bytes. Returns the first token that does not come down
    to two parts, or -1.

    room: (LONGEST_SHORT_WORD,), ids: (bytes of all tokens,): to work in.
    """
    merges, byte_ids, byte_pairs = vocabulary.merges, vocabulary.byte_ids, vocabulary.byte_pairs
    for token in range(len(parts)):
        length = lengths[token]
        if length > 1:
            at = vocabulary.starts[token] + 0
            address = vocabulary.text.ctypes.data + at
            n_parts = merge_word(address, length, merges, byte_ids, byte_pairs, room, ids, at)
            if n_parts != 2:
                return token
            parts[token, 0] = ids[at]
            parts[token, 1] = ids[at + 1]
            add_merge(parts[token, 0], parts[token, 1], token, merges)
            if length == 2:
                byte_pairs[load_byte(address) << 8 | load_byte(address + 1)] = token
    return NONE
