"""Tokens on disk: a corpus split as one long sequence of ids, cut into files.

    <folder>/manifest.json        what is here, with a SHA-256 of every shard
    <folder>/shard-00000.bin …    little-endian uint32 ids, `shard_tokens` of them; the last fewer

The sequence is: separator, first document, separator, second document, … A document may run from
one shard into the next; `TokenShards.window` hides where files end. `build_shards` reads,
tokenises and writes at the same time: the encoder frees Python's lock, so while it works on one
batch of documents with all its threads, the next batch is read and the last one is written.

The documents of a mixture lie corpus after corpus, and the manifest says where each begins and what
share of the training it is to have (`TokenShards.parts`).

A folder is there whole or not at all. It is built under a temporary name, flushed to the disk and
renamed; of two processes that build the same one, the first to finish wins and the other takes what
it finds.
"""

import hashlib
import json
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from strata.data.progress import building
from strata.storage import sha256_of, sync_folder, temporary_beside
from strata.tokenizer.memory import in_batches

SHARDS_FORMAT = "strata-shards-1"
MANIFEST = "manifest.json"
TOKEN_BYTES = 4
# Text handed to the encoder at once: enough for all its threads, little beside a shard.
BATCH_CHARACTERS = 1 << 22
# A temporary folder that nothing was written into for a day belongs to a process that died.
ABANDONED_SECONDS = 24 * 3600.0

Tokens = NDArray[np.uint32]


class Encoder(Protocol):
    """What building shards needs of a tokenizer."""

    @property
    def document_separator(self) -> int:
        """Id that stands before every document."""

    @property
    def identity(self) -> str:
        """Hash over everything that determines the ids."""

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> Sequence[Tokens]:
        """The ids of each text."""


class Shard(NamedTuple):
    """One file of a manifest."""

    name: str
    tokens: int
    sha256: str


class Part(NamedTuple):
    """What one corpus of a mixture has of the sequence; all of it, where there is but one.

    share: rows from it in every `sum(shares)` rows that a model is trained on.
    """

    corpus: str
    share: int
    start: int
    n_tokens: int
    n_documents: int


@dataclass(frozen=True)
class MixedDocuments:
    """The documents of a mixture: of each corpus its name, its share as in `Part`, its texts."""

    corpora: Sequence[tuple[str, int, Iterable[str]]]


class TokenShards:
    """A tokenised corpus split, memory-mapped.

    Attributes:
        folder: where it lies.
        n_tokens: ids in the sequence, separators included.
        n_documents: documents, which is also the number of separators.
        n_bytes: UTF-8 bytes of the text that the ids stand for.
        corpus_identity, tokenizer_identity: what the ids were made from.
        identity: SHA-256 (hex) over all ids in order, however they are cut into files, and of a
            mixture over the shares and sizes of its parts.
        parts: the corpora of a mixture in their order; else one part that is all.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the shards in `folder`; sizes are checked now, contents by `verify`.

        Raises:
            FileNotFoundError: the manifest or a shard is missing.
            ValueError: the manifest is not one this version reads, or a shard has another size
                than the manifest says.
        """
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.exists():
            raise FileNotFoundError(f"no token shards at {self.folder}: expected {path}")
        try:
            manifest = json.loads(path.read_text("utf-8"))
            found_format = manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no manifest of token shards: {error}") from error
        if found_format != SHARDS_FORMAT:
            raise ValueError(
                f'{path}: format "{found_format}", expected "{SHARDS_FORMAT}"; delete the folder '
                "and it is built anew"
            )
        self.n_tokens: int = manifest["n_tokens"]
        self.n_documents: int = manifest["n_documents"]
        self.n_bytes: int = manifest["n_bytes"]
        self.corpus_identity: str = manifest["corpus_identity"]
        self.tokenizer_identity: str = manifest["tokenizer_identity"]
        self._shards = [Shard(**shard) for shard in manifest["shards"]]
        self.identity: str = manifest["identity"]
        self.parts = [Part(**part) for part in manifest.get("parts", ())]
        self.parts = self.parts or [Part("", 1, 0, self.n_tokens, self.n_documents)]
        for shard in self._shards:
            self._check_size(shard)
        self._starts = list(accumulate((shard.tokens for shard in self._shards), initial=0))
        # Seen as plain arrays, of which NumPy takes slices in a fraction of the time.
        self._maps: list[Tokens] = [
            np.memmap(self.folder / shard.name, dtype="<u4", mode="r").view(np.ndarray)
            for shard in self._shards
        ]

    def _check_size(self, shard: Shard) -> None:
        path = self.folder / shard.name
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing though {MANIFEST} names it; delete {self.folder} and it is "
                "built anew"
            )
        size = path.stat().st_size
        if size != shard.tokens * TOKEN_BYTES:
            raise ValueError(
                f"{path} has {size:,} bytes, expected {shard.tokens * TOKEN_BYTES:,}: it was cut "
                f"short or altered; delete {self.folder} and it is built anew"
            )

    def __len__(self) -> int:
        """Number of tokens."""
        return self.n_tokens

    def window(self, start: int, length: int) -> Tokens:
        """A copy of the `length` ids from position `start` on: (length,) uint32.

        Raises:
            IndexError: the window does not lie within the sequence.
        """
        if start < 0 or length < 0 or start + length > self.n_tokens:
            raise IndexError(
                f"tokens {start:,} to {start + length:,} of {self.folder}: expected a window "
                f"within its {self.n_tokens:,} tokens"
            )
        window: Tokens = np.empty(length, dtype=np.uint32)
        self.copy_to(window, start)
        return window

    def copy_to(self, target: Tokens, start: int) -> None:
        """Fill `target`, (length,), with the ids from `start` on, all of which must be there."""
        filled, length = 0, len(target)
        index = bisect_right(self._starts, start) - 1
        while filled < length:
            offset = start + filled - self._starts[index]
            piece = self._maps[index][offset : offset + length - filled]
            target[filled : filled + len(piece)] = piece
            filled += len(piece)
            index += 1

    def verify(self) -> None:
        """Read every shard and compare it with its hash.

        Raises:
            ValueError: a shard's content is not what was written; the message names the file.
        """
        for shard in self._shards:
            found = sha256_of(self.folder / shard.name)
            if found != shard.sha256:
                raise ValueError(
                    f"{self.folder / shard.name} was altered: its SHA-256 is {found}, expected "
                    f"{shard.sha256}; delete {self.folder} and it is built anew"
                )


def build_shards(
    documents: Iterable[str] | MixedDocuments,
    tokenizer: Encoder,
    folder: str | Path,
    *,
    corpus_identity: str,
    name: str = "the corpus",
    shard_tokens: int = 1 << 25,
    threads: int | None = None,
    total_bytes: int | None = None,
    progress: bool = True,
) -> TokenShards:
    """Tokenise `documents` into `folder` and open it; if it is there already, only open it.

    Args:
        documents: texts in the order in which they are to stand.
        tokenizer: encodes them; its separator precedes each.
        folder: the final name; its parent is made.
        corpus_identity: noted in the manifest.
        name: what messages call the documents.
        shard_tokens: ids in one shard file.
        threads: threads of the encoder; None lets it take all cores.
        total_bytes: UTF-8 bytes to come, for the time left; None shows the rate alone.
        progress: show a progress bar and a line.

    Raises:
        ValueError: there are no documents, or a corpus of a mixture has none, or `shard_tokens` is
            not positive; and what reading `documents` raises. Nothing is left behind then.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        return TokenShards(folder)
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens = {shard_tokens}: expected at least 1")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    unfinished = temporary_beside(folder)
    unfinished.mkdir()
    try:
        writer = _ShardWriter(unfinished, shard_tokens)
        if isinstance(documents, MixedDocuments):
            corpora = documents.corpora
        else:
            corpora = [(name, 1, documents)]
        with building(f"tokenising {name}", total_bytes, progress=progress) as advance:
            for corpus, share, of_corpus in corpora:
                for texts, encoded in _encode_ahead(of_corpus, tokenizer, threads):
                    n_bytes = sum(len(text.encode()) for text in texts)
                    writer.add(tokenizer.document_separator, encoded, n_bytes)
                    advance(n_bytes)
                if not writer.end_part(corpus, share).n_documents:
                    raise ValueError(
                        f"{corpus} has no documents to tokenise: expected at least one"
                    )
            writer.finish(corpus_identity, tokenizer.identity)
        _rename_whole(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return TokenShards(folder)


class _ShardWriter:
    """Collects ids until a shard is full, then writes it, and at the end the manifest."""

    def __init__(self, folder: Path, shard_tokens: int) -> None:
        self.folder = folder
        self.shard_tokens = shard_tokens
        self.shards: list[Shard] = []
        self.sequence_hash = hashlib.sha256()
        self.parts: list[Part] = []
        self.pending: list[Tokens] = []
        self.n_pending = self.n_tokens = self.n_documents = self.n_bytes = 0

    def add(self, separator: int, encoded: Sequence[Tokens], n_bytes: int) -> None:
        mark: Tokens = np.array([separator], dtype=np.uint32)
        for tokens in encoded:
            self.pending += [mark, tokens]
            self.n_pending += 1 + len(tokens)
            self.n_tokens += 1 + len(tokens)
        self.n_documents += len(encoded)
        self.n_bytes += n_bytes
        if self.n_pending >= self.shard_tokens:
            sequence: Tokens = np.concatenate(self.pending)
            whole = len(sequence) // self.shard_tokens * self.shard_tokens
            for start in range(0, whole, self.shard_tokens):
                self._write(sequence[start : start + self.shard_tokens])
            self.pending = [sequence[whole:]]
            self.n_pending = len(sequence) - whole

    def _write(self, tokens: Tokens) -> None:
        name = f"shard-{len(self.shards):05d}.bin"
        content = tokens.astype("<u4", copy=False).tobytes()
        with (self.folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.sequence_hash.update(content)
        self.shards.append(Shard(name, len(tokens), hashlib.sha256(content).hexdigest()))

    def end_part(self, corpus: str, share: int) -> Part:
        """What was added since the part before belongs to one corpus."""
        start = sum(part.n_tokens for part in self.parts)
        n_documents = self.n_documents - sum(part.n_documents for part in self.parts)
        self.parts.append(Part(corpus, share, start, self.n_tokens - start, n_documents))
        return self.parts[-1]

    def finish(self, corpus_identity: str, tokenizer_identity: str) -> None:
        if self.n_pending:
            self._write(np.concatenate(self.pending))
        mixture = {}
        if len(self.parts) > 1:
            mixture["parts"] = [part._asdict() for part in self.parts]
            shares = [(part.share, part.n_tokens) for part in self.parts]
            self.sequence_hash.update(repr(shares).encode())
        manifest = {
            "format": SHARDS_FORMAT,
            "identity": self.sequence_hash.hexdigest(),
            "corpus_identity": corpus_identity,
            "tokenizer_identity": tokenizer_identity,
            "n_tokens": self.n_tokens,
            "n_documents": self.n_documents,
            "n_bytes": self.n_bytes,
            "shards": [shard._asdict() for shard in self.shards],
            **mixture,
        }
        with (self.folder / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)


def _encode_ahead(
    documents: Iterable[str], tokenizer: Encoder, threads: int | None
) -> Iterator[tuple[list[str], Sequence[Tokens]]]:
    """Batches of documents with their ids, in order, always with one more batch being encoded."""
    with ThreadPoolExecutor(max_workers=1) as encoder:
        waiting: tuple[list[str], Future[Sequence[Tokens]]] | None = None
        for texts in in_batches(documents, BATCH_CHARACTERS):
            coming = texts, encoder.submit(tokenizer.encode_batch, texts, threads)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _rename_whole(finished: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was quicker."""
    try:
        finished.rename(folder)
    except OSError:
        if not (folder / MANIFEST).exists():
            raise
    else:
        sync_folder(folder.parent)


def _remove_abandoned(folder: Path) -> None:
    now = time.time()
    for left in folder.parent.glob(f".{folder.name}.*"):
        try:
            abandoned = now - left.stat().st_mtime > ABANDONED_SECONDS
        except FileNotFoundError:  # its owner has just finished
            continue
        if abandoned:
            shutil.rmtree(left, ignore_errors=True)
