"""Where documents come from: one `Corpus`, whatever the text is stored in.

    "installed"                        the packages on this machine (installed.py)
    "files:GLOB[,GLOB…]"               text, JSON lines, Parquet; local or any fsspec URL (files.py)
    "hub:OWNER/NAME[@REVISION][:GLOB]" Parquet on the Hugging Face hub, streamed (hub.py)
    "0.7 installed + 0.3 files:…"      a mixture of those, each after its weight (mixture.py)

**Split.** A document belongs to the validation split when the first 64 bits of the SHA-256 of its
text, read as a number, lie under a threshold. So a document keeps its split when others come or
go, and two copies of one text can never lie on both sides.

**Identity.** A hash over the hashes of all documents in their order, and over the split. Finding it
takes a pass over the text (which checks all of it, before any training), so what was found is kept
in the cache under a fingerprint that costs nothing: names, sizes and times of the files. A hub
corpus may be larger than any disk; its commit already pins every byte, so its identity is made
from the commit and the names of its files, and its text is checked as it streams by.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from strata.data import files, installed
from strata.data.mixture import interleave, parse_mixture, whole_shares
from strata.data.progress import building
from strata.storage import cache_dir, write_whole

Split = Literal["train", "validation"]

# Goes up whenever the same files would give other documents, another order or another split.
CORPUS_VERSION = 1
HASH_RANGE = 1 << 64

# Documents and bytes of every source, by split: {"train": {"numpy": [512, 8_000_000]}, …}.
Totals = dict[str, dict[str, list[int]]]


class FilesRecord(TypedDict):
    """What the cache keeps about a corpus of files once every record was read."""

    identity: str
    threshold: int
    totals: Totals


class SourceSummary(NamedTuple):
    """How much text one source gives."""

    source: str
    documents: int
    bytes: int


class Corpus:
    """A fixed collection of documents in a fixed order, split into train and validation.

    Attributes:
        spec: what the corpus was opened with; of a hub corpus, with its commit filled in.
        identity: SHA-256 (hex), equal for equal documents in equal order and split.
        threshold: hashes of documents held out lie under it.
        skipped: files of the corpus "installed" that were left out, counted by reason.
        parts: of a mixture, its corpora and their shares in whole numbers; else empty.
    """

    def __init__(
        self,
        spec: str,
        identity: str,
        read: Callable[[Split], Iterator[str]],
        threshold: int,
        totals: Totals | None = None,
        *,
        skipped: dict[str, int] | None = None,
        estimate: dict[str, int] | None = None,
        parts: "Sequence[tuple[int, Corpus]]" = (),
    ) -> None:
        """Join what was found out about a corpus; to open one, call `Corpus.open`."""
        self.spec = spec
        self.identity = identity
        self.threshold = threshold
        self.skipped = skipped or {}
        self.parts = parts
        self._read = read
        self._totals = totals
        self._estimate = estimate or {}

    @classmethod
    def open(
        cls,
        spec: str,
        *,
        text_column: str = "text",
        validation_fraction: float = 0.01,
        progress: bool = False,
    ) -> "Corpus":
        """Open the corpus that `spec` names; the first time, read and check all of it.

        Args:
            spec: `"installed"`, `"files:GLOB[,GLOB…]"` or `"hub:OWNER/NAME[@REVISION][:GLOB]"`;
                or a mixture of them.
            text_column: the column of Parquet files, or key of JSON lines, that holds the text.
            validation_fraction: share of the documents held out, 0 to 0.5; of a corpus that is
                read whole (any but the hub's) at least one document always is.
            progress: show a progress bar and a line when a corpus is read for the first time.

        Raises:
            FileNotFoundError: a file, a glob or a hub repository has nothing there.
            ValueError: the spec is none of the three, or a corpus of a mixture has no weight; a
                record is malformed, has no such column or is not UTF-8 (the message names file and
                record); there are fewer than two different documents.
            ConnectionError: the hub cannot be reached.
        """
        if not 0.0 <= validation_fraction <= 0.5:
            raise ValueError(
                f"validation_fraction = {validation_fraction}: expected a number from 0 to 0.5"
            )
        threshold = int(validation_fraction * HASH_RANGE)
        if mixture := parse_mixture(spec):
            return _open_mixture(mixture, text_column, threshold, progress)
        return _open_one(spec, text_column, threshold, progress)

    def documents(self, split: Split) -> Iterator[str]:
        """The texts of one split, in the order of the corpus, read as they are asked for.

        Those of a mixture come in turn, so that its corpora keep to their shares as long as each
        has documents left.

        Raises:
            ValueError: `split` is neither "train" nor "validation"; while a hub corpus streams
                by, also what `open` raises for a bad record.
        """
        _check_split(split)
        return self._read(split)

    def summary(self, split: Split | None = None) -> list[SourceSummary]:
        """Documents and UTF-8 bytes of each source, largest first, of one split or of both.

        A hub corpus is streamed through to count it.
        """
        if split is not None:
            _check_split(split)
        if self.parts:
            rows = [row for _, corpus in self.parts for row in corpus.summary(split)]
        else:
            rows = self._count_sources(split)
        return sorted(rows, key=lambda row: (-row.bytes, row.source))

    def _count_sources(self, split: Split | None) -> list[SourceSummary]:
        if self._totals is None:
            self._totals = _empty_totals()
            for name in self._totals:
                for text in self._read(_check_split(name)):
                    _count(self._totals, name, self.spec, len(text.encode()))
        together: dict[str, list[int]] = {}
        for name in self._totals if split is None else (split,):
            for source, (n_documents, n_bytes) in self._totals[name].items():
                count = together.setdefault(source, [0, 0])
                count[0] += n_documents
                count[1] += n_bytes
        return [SourceSummary(source, *count) for source, count in together.items()]

    def expected_bytes(self, split: Split) -> int:
        """UTF-8 bytes of a split's text: counted, or of a hub corpus not yet counted, estimated."""
        if self.parts:
            return sum(corpus.expected_bytes(split) for _, corpus in self.parts)
        if self._totals is None:
            return self._estimate[split]
        return sum(row.bytes for row in self.summary(split))


def absolute_spec(spec: str) -> str:
    """`spec` with the relative paths of `files:` made absolute, URLs and other kinds as they are.

    So that it means the same in another process, which may have another working folder.
    """
    if mixture := parse_mixture(spec):
        return " + ".join(f"{weight} {absolute_spec(corpus)}" for weight, corpus in mixture)
    kind, _, globs = spec.partition(":")
    if kind != "files":
        return spec
    parts = [part.strip() for part in globs.split(",")]
    remote = ("://", "::")  # fsspec's protocols, and its chains of them
    return "files:" + ",".join(
        str(Path.cwd() / Path(part).expanduser())
        if part and not any(sign in part for sign in remote)
        else part
        for part in parts
    )


# The three kinds of corpus, and mixtures of them. Each `_open_…` finds the identity and says how to
# read a split.


def _open_one(spec: str, text_column: str, threshold: int, progress: bool) -> Corpus:
    kind, _, place = spec.partition(":")
    if spec == "installed":
        return _open_installed(threshold, progress)
    if kind == "files" and place:
        return _open_files(spec, text_column, threshold, progress)
    if kind == "hub" and place:
        return _open_hub(spec, text_column, threshold)
    raise ValueError(
        f'no corpus is called "{spec}": expected "installed", "files:GLOB[,GLOB…]", '
        '"hub:OWNER/NAME[@REVISION][:GLOB]", or a mixture as in "0.7 installed + 0.3 files:GLOB"'
    )


def _open_mixture(
    mixture: list[tuple[str, str]], text_column: str, threshold: int, progress: bool
) -> Corpus:
    corpora = [_open_one(spec, text_column, threshold, progress) for _, spec in mixture]
    # A small corpus may have raised it, to hold out one document. All have to split alike, or one
    # could hold out a text that another gives to train on.
    highest = max(corpus.threshold for corpus in corpora)
    corpora = [
        corpus
        if corpus.threshold == highest
        else _open_one(corpus.spec, text_column, highest, progress)
        for corpus in corpora
    ]
    weights = [weight for weight, _ in mixture]
    parts = list(zip(whole_shares(weights), corpora, strict=True))

    def read(split: Split) -> Iterator[str]:
        return interleave([(share, corpus.documents(split)) for share, corpus in parts])

    return Corpus(
        " + ".join(f"{weight} {part.spec}" for weight, part in zip(weights, corpora, strict=True)),
        _hash_lines(["mixture", *(f"{share} {corpus.identity}" for share, corpus in parts)]),
        read,
        highest,
        skipped={reason: count for part in corpora for reason, count in part.skipped.items()},
        parts=parts,
    )


def _open_installed(threshold: int, progress: bool) -> Corpus:
    found = installed.list_files()
    record_path = _record_path(["installed", *found])
    if record_path.exists():
        record = json.loads(record_path.read_text("utf-8"))
        entries = [installed.Entry(*entry) for entry in record["entries"]]
        index = installed.Index(entries, record["skipped"])
    else:
        total = sum(file.size for file in found)
        with building("reading installed sources", total, progress=progress) as advance:
            index = installed.read_index(found, advance)
        _write_record(record_path, index._asdict())

    # Entries are sorted by hash, so the first has the smallest.
    threshold = max(threshold, _hash_value(index.entries[0].digest) + 1)
    totals = _empty_totals()
    for entry in index.entries:
        _count(totals, _split_of(entry.digest, threshold), entry.source, entry.size)

    def read(split: Split) -> Iterator[str]:
        for entry in index.entries:
            if _split_of(entry.digest, threshold) == split:
                yield installed.read_entry(entry)

    digests = (entry.digest for entry in index.entries)
    identity = _hash_lines([*digests, threshold])
    return Corpus("installed", identity, read, threshold, totals, skipped=index.skipped)


def _open_files(spec: str, text_column: str, threshold: int, progress: bool) -> Corpus:
    found = files.find_files(spec.removeprefix("files:"))
    record_path = _record_path(["files", text_column, threshold, *found])
    if record_path.exists():
        record: FilesRecord = json.loads(record_path.read_text("utf-8"))
    else:
        record = _examine_files(spec, found, text_column, threshold, progress)
        _write_record(record_path, record)
    threshold = record["threshold"]

    def read(split: Split) -> Iterator[str]:
        for file in found:
            for text in files.read_documents(file, text_column):
                if _split_of(_digest(text), threshold) == split:
                    yield text

    return Corpus(spec, record["identity"], read, threshold, record["totals"])


def _examine_files(
    spec: str, found: list[files.SourceFile], text_column: str, threshold: int, progress: bool
) -> FilesRecord:
    """Read every record once: a bad one is found now, and hashes give identity and split."""
    hasher = hashlib.sha256(f"strata corpus {CORPUS_VERSION}".encode())
    totals = _empty_totals()
    smallest: int | None = None
    total = sum(file.size for file in found)
    with building(f"reading {spec}", total, progress=progress) as advance:
        for file in found:
            for text in files.read_documents(file, text_column):
                digest = _digest(text)
                hasher.update(f"\n{digest}".encode())
                _count(totals, _split_of(digest, threshold), file.source, len(text.encode()))
                value = _hash_value(digest)
                smallest = value if smallest is None else min(smallest, value)
            advance(file.size)
    if smallest is None:
        raise ValueError(
            f'the corpus "{spec}" is empty: expected at least two documents, and every record of '
            f"its {len(found)} file(s) is without text"
        )
    if not totals["validation"]:  # few documents: read again, holding out the smallest hash
        return _examine_files(spec, found, text_column, smallest + 1, progress)
    if not totals["train"]:
        raise ValueError(
            f'the corpus "{spec}" leaves nothing to train on: expected at least two different '
            f"documents, and all that its {len(found)} file(s) hold is held out for validation"
        )
    hasher.update(f"\n{threshold}".encode())
    return {"identity": hasher.hexdigest(), "threshold": threshold, "totals": totals}


def _open_hub(spec: str, text_column: str, threshold: int) -> Corpus:
    from strata.data import hub  # whose library takes a while to load

    place = hub.parse(spec.removeprefix("hub:"))
    commit = hub.resolve_commit(place)
    record_path = _record_path(["hub", place.repository, commit, place.glob, text_column])
    if record_path.exists():
        record = json.loads(record_path.read_text("utf-8"))
        found = [hub.HubFile(*file) for file in record["files"]]
        text_bytes: int = record["text_bytes"]
    else:
        found = hub.list_files(place, commit)
        text_bytes = hub.estimate_text_bytes(found, text_column)
        _write_record(record_path, {"files": found, "text_bytes": text_bytes})

    def read(split: Split) -> Iterator[str]:
        for file in found:
            for text in hub.read_documents(file, text_column):
                if _split_of(_digest(text), threshold) == split:
                    yield text

    pinned = f"hub:{place.repository}@{commit}" + (f":{place.glob}" if place.glob else "")
    identity = _hash_lines(["hub", place.repository, commit, text_column, *found, threshold])
    held_out = threshold * text_bytes // HASH_RANGE
    estimate = {"train": text_bytes - held_out, "validation": held_out}
    return Corpus(pinned, identity, read, threshold, estimate=estimate)


# Hashes, counts and the progress bar that the three share.


def _check_split(split: str) -> Split:
    if split == "train":
        return "train"
    if split == "validation":
        return "validation"
    raise ValueError(f'split "{split}": expected "train" or "validation"')


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_value(digest: str) -> int:
    return int(digest[:16], 16)


def _split_of(digest: str, threshold: int) -> Split:
    return "validation" if _hash_value(digest) < threshold else "train"


def _hash_lines(lines: Iterable[object]) -> str:
    hasher = hashlib.sha256(f"strata corpus {CORPUS_VERSION}".encode())
    for line in lines:
        hasher.update(f"\n{line}".encode())
    return hasher.hexdigest()


def _record_path(fingerprint: Iterable[object]) -> Path:
    return cache_dir() / "corpora" / f"{_hash_lines(fingerprint)[:32]}.json"


def _write_record(path: Path, record: object) -> None:
    write_whole(path, json.dumps(record))


def _empty_totals() -> Totals:
    return {"train": {}, "validation": {}}


def _count(totals: Totals, split: str, source: str, n_bytes: int) -> None:
    count = totals[split].setdefault(source, [0, 0])
    count[0] += 1
    count[1] += n_bytes
