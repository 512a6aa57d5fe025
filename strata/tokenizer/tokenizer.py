"""`Tokenizer`: text to token ids and back, by byte-level byte-pair encoding.

A tokenizer is three things: a pattern that cuts text into words (scanner.py), the tokens in the
order in which they were learnt (trainer.py), and a few special tokens that no text can produce.
Ids 0 to 255 of a tokenizer trained here are the bytes by value, then come the merges in order,
and the special tokens are last. A shorter vocabulary is therefore the beginning of a longer one
(`truncate`).

Everything else here is derived from those three: tables for the kernels that encode and decode
(encoder.py), and files, our own (formats.py) and others' (exchange.py, huggingface.py).
"""

from __future__ import annotations

import hashlib
import os
from array import array as Array
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from strata.tokenizer import encoder, exchange, formats, huggingface, special
from strata.tokenizer.memory import PADDING, padded, text_bytes
from strata.tokenizer.scanner import RULES, character_classes, check_pattern
from strata.tokenizer.special import SEPARATORS, SPECIAL_TOKENS
from strata.tokenizer.trainer import Progress, train_merges

BATCH_CHARACTERS = 1 << 17  # short texts are encoded together until they have as many


class Tables:
    """A vocabulary as the kernels of encoder.py read it, and of which parts each token is made.

    tokens: the bytes of each id; `plain` says which are learnt tokens and not special.

    Raises ValueError if a token is not a merge of two earlier ones.
    """

    def __init__(self, tokens: Sequence[bytes], plain: NDArray[np.bool_]) -> None:
        text = padded(b"".join(tokens))
        starts = np.zeros(len(tokens) + 1, dtype=np.int64)
        np.cumsum([len(token) for token in tokens], out=starts[1:])
        lengths = np.where(plain, np.diff(starts), 0)
        byte_ids = np.zeros(256, dtype=np.int64)
        for index, token in enumerate(tokens):
            if lengths[index] == 1:
                byte_ids[token[0]] = index

        n_slots = 1 << (2 * len(tokens) - 1).bit_length()
        self.vocabulary = encoder.Vocabulary(
            text=text,
            starts=starts,
            table=np.zeros((n_slots, 4), dtype=np.int64),
            byte_ids=byte_ids,
            byte_pairs=np.full(1 << 16, encoder.NO_MERGE, dtype=np.int64),
            merges=np.full(n_slots, encoder.NONE, dtype=np.int64),
        )
        encoder.fill_table(self.vocabulary, lengths)
        self.parts = np.full((len(tokens), 2), encoder.NONE, dtype=np.int64)
        ids = np.empty(len(text), dtype=np.uint32)
        unreachable = encoder.find_merges(
            self.vocabulary, lengths, self.parts, ids, encoder.new_workspace()
        )
        if unreachable != encoder.NONE:
            raise ValueError(
                f"token {unreachable}, {tokens[unreachable]!r}, is not a merge of two earlier "
                "tokens: these ranks are not those of a byte-pair encoding"
            )


class Tokenizer:
    """A byte-level BPE tokenizer.

    ranks: the id of every token by its bytes; of two pairs of neighbours the one whose union has
        the lower id is merged first. All 256 single bytes must be there.
    pattern: "strata", "gpt2" or "cl100k"; see scanner.py.
    special_tokens: ids of tokens that stand for no text, by name.

    Raises ValueError for an unknown pattern, a missing byte, or an id given twice.
    """

    def __init__(
        self, ranks: Mapping[bytes, int], pattern: str, special_tokens: Mapping[str, int]
    ) -> None:
        self.pattern = check_pattern(pattern)
        self.ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
        self.special_tokens = dict(sorted(special_tokens.items(), key=lambda item: item[1]))
        self._check()
        self.vocab_size = 1 + max([*self.ranks.values(), *self.special_tokens.values()])

        self._bytes = [b""] * self.vocab_size  # of each id; of a special token, its name
        for token, index in self.ranks.items():
            self._bytes[index] = token
        n_bytes = np.array([len(token) for token in self._bytes], dtype=np.int32)
        for name, index in self.special_tokens.items():
            self._bytes[index] = name.encode()
        self.byte_lengths: NDArray[np.int32] = n_bytes
        """How many bytes of text each id stands for, (vocab_size,); 0 for special tokens."""
        self.byte_lengths.flags.writeable = False
        self._workspaces: list[encoder.Workspace] = []  # those that no thread uses now

    def _check(self) -> None:
        missing = [byte for byte in range(256) if bytes([byte]) not in self.ranks]
        if missing:
            raise ValueError(f"the ranks lack {len(missing)} of the 256 bytes, first {missing[0]}")
        ids = [*self.ranks.values(), *self.special_tokens.values()]
        if min(ids) < 0 or max(ids) >= encoder.MAX_IDS:
            raise ValueError(f"token ids must lie between 0 and {encoder.MAX_IDS - 1}")
        if len(set(ids)) < len(ids):
            twice = next(a for a, b in pairwise(sorted(ids)) if a == b)
            raise ValueError(f"two tokens have the id {twice}")
        if b"" in self.ranks or "" in self.special_tokens:
            raise ValueError("a token must not be empty")

    # --- making one ---------------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        documents: Iterable[str],
        vocab_size: int,
        pattern: str = "strata",
        special_tokens: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Tokenizer:
        """Learns a vocabulary of exactly `vocab_size` tokens, bytes and special tokens included.

        special_tokens: their names; None means SPECIAL_TOKENS.
        progress: called now and then as progress(stage, done, total) with the stage "reading"
            (bytes; the total is not known and given as 0) or "merging" (merges).

        Raises ValueError if the corpus cannot fill the vocabulary.
        """
        names = SPECIAL_TOKENS if special_tokens is None else tuple(special_tokens)
        n_merges = vocab_size - 256 - len(names)
        if n_merges < 0:
            raise ValueError(
                f"vocab_size={vocab_size} is too small: 256 bytes and {len(names)} special tokens "
                f"make {256 + len(names)}"
            )
        tokens = [bytes([byte]) for byte in range(256)]
        for left, right in train_merges(documents, n_merges, pattern, progress):
            tokens.append(tokens[left] + tokens[right])
        ranks = {token: index for index, token in enumerate(tokens)}
        return cls(ranks, pattern, {name: len(tokens) + i for i, name in enumerate(names)})

    @classmethod
    def from_ranks(
        cls,
        ranks: Mapping[bytes, int],
        pattern: str = "strata",
        special_tokens: Mapping[str, int] | None = None,
    ) -> Tokenizer:
        """Any byte-level BPE with one of the three patterns, such as a published vocabulary.

        Raises ValueError if the ranks are not those of a byte-pair encoding.
        """
        tokenizer = cls(ranks, pattern, special_tokens or {})
        _ = tokenizer._tables
        return tokenizer

    def truncate(self, vocab_size: int) -> Tokenizer:
        """The same tokenizer with fewer merges; the special tokens stay and remain the last ids.

        Raises ValueError if `vocab_size` is larger than it is now or has no room for the bytes.
        """
        n_ranks = vocab_size - len(self.special_tokens)
        if vocab_size > self.vocab_size:
            raise ValueError(
                f"cannot truncate to {vocab_size} tokens: the tokenizer has {self.vocab_size}"
            )
        if n_ranks < 256:
            raise ValueError(
                f"cannot truncate to {vocab_size} tokens: 256 bytes and "
                f"{len(self.special_tokens)} special tokens must remain"
            )
        ranks = {token: index for token, index in self.ranks.items() if index < n_ranks}
        specials = {name: n_ranks + i for i, name in enumerate(self.special_tokens)}
        return Tokenizer(ranks, self.pattern, specials)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads what `save` wrote. Raises FileNotFoundError, or ValueError for a damaged file."""
        return formats.read_json(cls, Path(path))

    @classmethod
    def from_tiktoken(
        cls,
        path: str | os.PathLike[str],
        pattern: str,
        special_tokens: Mapping[str, int] | None = None,
    ) -> Tokenizer:
        """Reads a file of ranks as tiktoken has them; it holds no pattern and no special tokens.

        Raises FileNotFoundError, or ValueError if the file holds no byte-pair encoding.
        """
        return exchange.read_tiktoken(cls, Path(path), check_pattern(pattern), special_tokens or {})

    @classmethod
    def from_huggingface(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads a `tokenizer.json` that holds a byte-level BPE with one of the three patterns.

        Its added tokens become special tokens: `tokenizers` recognises them in any text, Strata
        where they are allowed. What else that library adds to the ids (add_special_tokens) is not.

        Raises FileNotFoundError, or ValueError that says what in the file is not supported.
        """
        return huggingface.read_huggingface(cls, Path(path))

    @classmethod
    def from_gpt2(
        cls, vocab_bpe: str | os.PathLike[str], encoder_json: str | os.PathLike[str]
    ) -> Tokenizer:
        """Reads the two files in which GPT-2's vocabulary was published.

        Raises FileNotFoundError, or ValueError if they are not such files or do not fit together.
        """
        return exchange.read_gpt2(cls, Path(vocab_bpe), Path(encoder_json))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer as JSON: readable, versioned, with a checksum."""
        formats.write_json(self, Path(path))

    def to_tiktoken(self, path: str | os.PathLike[str]) -> None:
        """Writes the ranks as a file that `tiktoken.load.load_tiktoken_bpe` reads."""
        exchange.write_tiktoken(self, Path(path))

    def to_huggingface(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json` that `tokenizers.Tokenizer.from_file` reads."""
        huggingface.write_huggingface(self, Path(path))

    # --- what it knows ------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, pattern={self.pattern!r})"

    @property
    def document_separator(self) -> int:
        """The id of the token that begins a document. Raises ValueError if there is none."""
        for name in SEPARATORS:
            if name in self.special_tokens:
                return self.special_tokens[name]
        raise ValueError(f"this tokenizer has none of the special tokens {', '.join(SEPARATORS)}")

    @cached_property
    def identity(self) -> str:
        """The SHA-256 (hex) of pattern, ranks and special tokens: equal for equal tokenizers."""
        digest = hashlib.sha256(f"strata tokenizer 1\n{self.pattern}\n".encode())
        for token, index in self.ranks.items():
            digest.update(b"%d %s\n" % (index, token.hex().encode()))
        for name, index in self.special_tokens.items():
            digest.update(b"special %d %s\n" % (index, name.encode().hex().encode()))
        return digest.hexdigest()

    def token_bytes(self, index: int) -> bytes:
        """The bytes that an id stands for; of a special token, its name."""
        if not 0 <= index < self.vocab_size or not self._bytes[index]:
            raise ValueError(f"{index} is no token of this vocabulary of {self.vocab_size}")
        return self._bytes[index]

    @cached_property
    def merges(self) -> list[tuple[int, int]]:
        """The pair of ids that each token longer than a byte is made of, in order of rank."""
        pairs = self._tables.parts[list(self.ranks.values())]  # (n_ranks, 2)
        return [(int(left), int(right)) for left, right in pairs if left >= 0]

    @cached_property
    def _tables(self) -> Tables:
        return Tables(self._bytes, self.byte_lengths > 0)

    # --- encoding -----------------------------------------------------------------------------

    def encode(
        self,
        text: str,
        allowed_special: special.Names = frozenset(),
        disallowed_special: special.Names = frozenset(),
    ) -> list[int]:
        """The ids of `text`.

        allowed_special: names of the special tokens that are recognised in the text, or "all".
            By default none is, and the text of their names is encoded like any other.
        disallowed_special: names that the text must not hold; "all" means all not allowed.

        Raises ValueError if it holds one of those, or if a name is none of the tokenizer's.
        """
        known = self.special_tokens
        allowed, disallowed = special.chosen(known, allowed_special, disallowed_special)
        special.refuse(text, disallowed)
        ids: list[int] = []
        for piece, is_special in special.pieces(text, allowed):
            if is_special:
                ids.append(known[piece])
            else:
                ids += as_list(self.encode_array(piece))
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """The ids of `text`, none of them special, as an array (n_tokens,)."""
        return self._encode([text])[0]

    def encode_batch(
        self, texts: Iterable[str], threads: int | None = None
    ) -> list[NDArray[np.uint32]]:
        """The ids of each text; in this many threads at once, by default one for each core.

        The threads run beside each other: the kernels do without the interpreter's lock.
        """
        batches: list[list[str]] = [[]]
        n_characters = 0
        for text in texts:
            if n_characters >= BATCH_CHARACTERS:
                batches.append([])
                n_characters = 0
            batches[-1].append(text)
            n_characters += len(text)
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            return [ids for batch in pool.map(self._encode, batches) for ids in batch]

    def _encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each of some texts, all encoded by one call of the kernel."""
        try:
            workspace = self._workspaces.pop()
        except IndexError:
            workspace = encoder.new_workspace()
        encoded = [text_bytes(text) for text in texts]
        stops = np.cumsum([len(data) for data in encoded], dtype=np.int64)
        source = padded(b"".join(encoded))
        n_bytes = len(source) - PADDING
        ids = workspace.ids
        if n_bytes > len(ids):
            ids = np.empty(n_bytes, dtype=np.uint32)
        bounds = np.empty(len(texts) + 1, dtype=np.int64)
        vocabulary, rules = self._tables.vocabulary, RULES[self.pattern]
        encoder.encode_texts(
            source, stops, rules, character_classes(), vocabulary, workspace, ids, bounds
        )
        result = [ids[begin:end].copy() for begin, end in pairwise(bounds.tolist())]
        self._workspaces.append(workspace)
        return result

    # --- decoding -----------------------------------------------------------------------------

    def decode(
        self,
        ids: Sequence[int] | NDArray[np.integer],
        errors: Literal["strict", "replace"] = "replace",
    ) -> str:
        """The text of these ids; special tokens appear by name.

        errors: any sequence of ids has bytes, but not all bytes are UTF-8. "replace" puts U+FFFD
            where they are not, "strict" raises UnicodeDecodeError (a ValueError).

        Raises ValueError for an id that is no token.
        """
        if errors not in ("strict", "replace"):
            raise ValueError(f"errors={errors!r} is neither 'strict' nor 'replace'")
        return str(self._decode(ids), "utf-8", errors)

    def decode_bytes(self, ids: Sequence[int] | NDArray[np.integer]) -> bytes:
        """The bytes of these ids, exactly. Raises ValueError for an id that is no token."""
        return bytes(self._decode(ids))

    def _decode(self, ids: Sequence[int] | NDArray[np.integer]) -> memoryview:
        array = self._checked(ids)
        vocabulary = self._tables.vocabulary
        length = encoder.decoded_length(array, vocabulary)
        if length < 0:
            raise self._no_token(int(array[-1 - length]), -1 - length)
        output = np.empty(length + PADDING, dtype=np.uint8)
        encoder.decode_ids(array, vocabulary, output)
        return output[:length].data

    def _checked(self, ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint32]:
        """The ids as the kernels want them; raises ValueError if they are no whole numbers."""
        if isinstance(ids, np.ndarray) or not isinstance(ids, Sequence):
            array = np.asarray(ids)
            if array.dtype == np.uint32 and array.ndim == 1:
                return np.ascontiguousarray(array)
            if array.ndim != 1 or (array.size > 0 and array.dtype.kind not in "iu"):
                raise ValueError(f"ids must be a sequence of integers, not {ids!r:.80}")
            ids = array.tolist()
        try:
            return np.frombuffer(Array("I", ids), dtype=np.uint32)  # faster than np.array(ids)
        except TypeError:
            raise ValueError(f"ids must be a sequence of integers, not {ids!r:.80}") from None
        except OverflowError:
            bad = next(i for i, index in enumerate(ids) if not 0 <= index < self.vocab_size)
            raise self._no_token(ids[bad], bad) from None

    def _no_token(self, index: int, position: int) -> ValueError:
        return ValueError(
            f"{index} (at position {position}) is no token of this vocabulary of {self.vocab_size}"
        )


def as_list(ids: NDArray[np.uint32]) -> list[int]:
    """The ids as Python's integers, twice as fast as `ids.tolist()`."""
    numbers: list[int] = ids.astype(np.int64).tolist()
    return numbers


def merge_steps(word: str, ranks: Mapping[bytes, int]) -> list[list[bytes]]:
    """The parts of one word after each merge, beginning with its bytes: encoding made visible.

    This is the definition that the kernels are a fast form of: of all neighbours whose union is a
    token, those merge whose token has the lowest id, the leftmost first.
    """
    parts = [bytes([byte]) for byte in word.encode()]
    steps = [parts]
    while True:
        possible = [
            (ranks[left + right], place)
            for place, (left, right) in enumerate(pairwise(parts))
            if left + right in ranks
        ]
        if not possible:
            return steps
        _, place = min(possible)
        parts = [*parts[:place], parts[place] + parts[place + 1], *parts[place + 2 :]]
        steps.append(parts)
