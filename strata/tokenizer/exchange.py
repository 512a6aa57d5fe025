"""Tokenizers in the files of tiktoken and of GPT-2, and what all lists of merges have in common.

tiktoken      a line for each token: its bytes in base 64, its id. Pattern and special tokens are
              not in the file.
GPT-2         `encoder.json`, the vocabulary, and `vocab.bpe`, the merges in order.

GPT-2's files, and Hugging Face's (huggingface.py), spell each byte as one visible character
(`printable`) and say which pairs merge, where tiktoken and Strata merge any pair whose union is a
token. The two rules give the same ids if the pair that a token's own bytes come down to is among
its merges, and merges come in the order of the ids (`check_merges`): two neighbours that together
have the bytes of a token have been merged as these bytes alone would be, and so are that pair.
Files for which this does not hold are refused, like all else that would lead to other ids than the
library's own.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from strata.tokenizer.formats import parse, reading, shown, token_ids, write_whole

if TYPE_CHECKING:
    from strata.tokenizer.tokenizer import Tokenizer


# --- tiktoken -------------------------------------------------------------------------------------


def write_tiktoken(tokenizer: Tokenizer, path: Path) -> None:
    """Writes the ranks as `tiktoken.load.load_tiktoken_bpe` reads them: a token in base 64, its id.

    The file has room for neither the pattern nor the special tokens; give them to
    `tiktoken.Encoding` as REGULAR_EXPRESSIONS[tokenizer.pattern] and tokenizer.special_tokens.
    """
    lines = [
        f"{base64.b64encode(token).decode()} {index}\n" for token, index in tokenizer.ranks.items()
    ]
    write_whole(path, "".join(lines))


def read_tiktoken(
    make: type[Tokenizer], path: Path, pattern: str, special_tokens: Mapping[str, int]
) -> Tokenizer:
    """The tokenizer, made by `make`, of a file of ranks.

    Raises FileNotFoundError, or ValueError for anything else than such a file.
    """
    with reading(path, "file of tiktoken ranks"):
        ranks: dict[bytes, int] = {}
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if not line:
                continue
            token, index = read_rank(line, number)
            if token in ranks:
                raise ValueError(f"line {number} holds the token {token!r} for the second time")
            ranks[token] = index
        return make.from_ranks(ranks, pattern, special_tokens)


def read_rank(line: bytes, number: int) -> tuple[bytes, int]:
    """The token and id of one line. Raises ValueError that names the line."""
    match line.split():
        case [token, index] if index.isdigit():
            try:
                return base64.b64decode(token, validate=True), int(index)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    raise ValueError(f"line {number}: expected a token in base 64 and its id, found {shown(line)}")


# --- GPT-2's own files ----------------------------------------------------------------------------

END_OF_TEXT = "<|endoftext|>"  # stands among GPT-2's tokens


def read_gpt2(make: type[Tokenizer], vocab_bpe: Path, encoder_json: Path) -> Tokenizer:
    """The tokenizer, made by `make`, of the two files of GPT-2.

    Raises FileNotFoundError, or ValueError if they are not such files or do not fit together.
    """
    with reading(encoder_json, "vocabulary as GPT-2's encoder.json"):
        vocabulary = token_ids(parse(encoder_json))
        special_tokens = {
            name: vocabulary.pop(name) for name in [END_OF_TEXT] if name in vocabulary
        }
        ranks = {unprintable(name): index for name, index in vocabulary.items()}
    with reading(vocab_bpe, f"list of merges as GPT-2's vocab.bpe that fits {encoder_json.name}"):
        header, *lines = vocab_bpe.read_bytes().decode("utf-8").split("\n")
        if not header.startswith("#version"):
            raise ValueError(f"expected #version in the first line, found {shown(header)}")
        merges = [read_merge(line) for line in lines if line]
        tokenizer = make.from_ranks(ranks, "gpt2", special_tokens)
        check_merges(tokenizer, vocabulary, merges)
        return tokenizer


# --- merges ---------------------------------------------------------------------------------------


def read_merge(entry: object) -> tuple[str, str]:
    """The two tokens of a merge, in either spelling: "a b" or ["a", "b"]."""
    parts = entry.split(" ") if isinstance(entry, str) else entry
    match parts:
        case [str(left), str(right)] if left and right:
            return left, right
    raise ValueError(f"expected a merge of two tokens, found {shown(entry)}")


def check_merges(
    tokenizer: Tokenizer, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> None:
    """Raises ValueError unless merging by this list, in order, is merging by the tokenizer's ranks.

    vocabulary: the ids of the tokens by the names that stand in the list.

    A list may hold more than one pair for a token, as lists made from tiktoken's ranks do; of
    these only one can ever be neighbours.
    """
    pairs: set[tuple[int, int]] = set()
    highest = -1
    for left, right in merges:
        for name in (left, right, left + right):
            if name not in vocabulary:
                raise ValueError(f"the merge of {left!r} and {right!r}: {name!r} is no token")
        merged = vocabulary[left + right]
        if merged < highest:
            raise ValueError(
                f"the merge of {left!r} and {right!r} makes token {merged}, after one that makes "
                f"token {highest}: expected merges in the order of the ids"
            )
        highest = merged
        pairs.add((vocabulary[left], vocabulary[right]))
    for left_id, right_id in tokenizer.merges:
        if (left_id, right_id) not in pairs:
            left_bytes, right_bytes = (
                tokenizer.token_bytes(left_id),
                tokenizer.token_bytes(right_id),
            )
            raise ValueError(f"it has no merge of {left_bytes!r} and {right_bytes!r}")


# --- bytes as visible characters ------------------------------------------------------------------


def printable(token: bytes) -> str:
    """A token with each byte as a visible character, the way GPT-2's vocabulary spells them.

    Printable characters of Latin-1 stand for themselves, the other 68 bytes, in order, for the
    characters from U+0100 on: a space is `Ġ`.
    """
    return "".join(map(PRINTABLE.__getitem__, token))


def unprintable(name: str) -> bytes:
    """The bytes of which `printable` makes this name. Raises ValueError if there are none."""
    try:
        return bytes(map(BYTES.__getitem__, name))
    except KeyError as error:
        raise ValueError(
            f"{error} in the token {shown(name)} stands for no byte, and only byte-level "
            "vocabularies are supported"
        ) from error


def printable_characters() -> list[str]:
    """The character of each byte in `printable`."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]


PRINTABLE = printable_characters()
BYTES = {character: byte for byte, character in enumerate(PRINTABLE)}
