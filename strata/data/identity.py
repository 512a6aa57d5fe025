"""What names a document, a corpus and its splits: hashes, and counts by source."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from strata.storage import cache_dir, write_whole

Split = Literal["train", "validation"]

# Goes up whenever the same files would give other documents, another order or another split.
CORPUS_VERSION = 1
HASH_RANGE = 1 << 64

# Documents and bytes of every source, by split: {"train": {"numpy": [512, 8_000_000]}, …}.
Totals = dict[str, dict[str, list[int]]]


def check_split(split: str) -> Split:
    """The split of that name; ValueError if there is none."""
    if split == "train":
        return "train"
    if split == "validation":
        return "validation"
    raise ValueError(f'split "{split}": expected "train" or "validation"')


def text_digest(text: str) -> str:
    """A document's SHA-256 (hex)."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_value(digest: str) -> int:
    """The first 64 bits of a digest."""
    return int(digest[:16], 16)


def split_of(digest: str, threshold: int) -> Split:
    """Where a document belongs: held out if its first 64 bits lie under the threshold."""
    return "validation" if hash_value(digest) < threshold else "train"


def new_hasher() -> "hashlib._Hash":
    """What an identity begins with."""
    return hashlib.sha256(f"strata corpus {CORPUS_VERSION}".encode())


def hash_lines(lines: Iterable[object]) -> str:
    """One SHA-256 (hex) over several things as they are written."""
    hasher = new_hasher()
    for line in lines:
        hasher.update(f"\n{line}".encode())
    return hasher.hexdigest()


def path_of_record(fingerprint: Iterable[object]) -> Path:
    """Where the cache keeps what was found out about files of this fingerprint."""
    return cache_dir() / "corpora" / f"{hash_lines(fingerprint)[:32]}.json"


def write_record(path: Path, record: object) -> None:
    """Keep it as JSON."""
    write_whole(path, json.dumps(record))


def empty_totals() -> Totals:
    """Nothing counted yet."""
    return {"train": {}, "validation": {}}


def count_document(totals: Totals, split: str, source: str, n_bytes: int) -> None:
    """Add one document of `n_bytes` to its split and source."""
    count = totals[split].setdefault(source, [0, 0])
    count[0] += 1
    count[1] += n_bytes
