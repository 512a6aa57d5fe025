"""Where documents come from: one `Corpus`, whatever the text is stored in.

    "installed"                        the packages on this machine (installed.py)
    "files:GLOB[,GLOB…]"               text, JSON lines, Parquet; local or any fsspec URL (files.py)
    "hub:OWNER/NAME[@REVISION][:GLOB]" Parquet on the Hugging Face hub, streamed (hub.py)
    "0.7 installed + 0.3 files:…"      a mixture of those, each after its weight (mixture.py)
    "files:… held-out files:…"         one of the three to train on, and one to validate on

**Split.** A document belongs to the validation split when the first 64 bits of the SHA-256 of its
text, read as a number, lie under a threshold. So a document keeps its split when others come or
go, and two copies of one text can never lie on both sides. Where documents are parts of works (the
chapters of a book), works are what has to be held out: then the two splits are corpora of their
own, and a text that both have is left out of the training.

**Identity.** A hash over the hashes of all documents in their order, and over the split. Finding it
takes a pass over the text (which checks all of it, before any training), so what was found is kept
in the cache under a fingerprint that costs nothing: names, sizes and times of the files. A hub
corpus may be larger than any disk; its commit already pins every byte, so its identity is made
from the commit and the names of its files, and its text is checked as it streams by.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from strata.data import files, installed
from strata.data.identity import (
    HASH_RANGE,
    Split,
    Totals,
    check_split,
    count_document,
    empty_totals,
    hash_lines,
    hash_value,
    new_hasher,
    path_of_record,
    split_of,
    text_digest,
    write_record,
)
from strata.data.mixture import interleave, parse_mixture, whole_shares
from strata.data.progress import building

HELD_OUT = " held-out "


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
                a mixture of them; or one of them, ` held-out ` and another, which is all validated
                on, while all of the first is trained on.
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
        train, held_out, validation = spec.partition(HELD_OUT)
        if held_out:
            return _open_works(train.strip(), validation.strip(), text_column, progress)
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
        check_split(split)
        return self._read(split)

    def summary(self, split: Split | None = None) -> list[SourceSummary]:
        """Documents and UTF-8 bytes of each source, largest first, of one split or of both.

        A hub corpus is streamed through to count it.
        """
        if split is not None:
            check_split(split)
        if self.parts:
            rows = [row for _, corpus in self.parts for row in corpus.summary(split)]
        else:
            rows = self._count_sources(split)
        return sorted(rows, key=lambda row: (-row.bytes, row.source))

    def _count_sources(self, split: Split | None) -> list[SourceSummary]:
        if self._totals is None:
            self._totals = empty_totals()
            for name in self._totals:
                for text in self._read(check_split(name)):
                    count_document(self._totals, name, self.spec, len(text.encode()))
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
    if HELD_OUT in spec:
        return HELD_OUT.join(absolute_spec(part.strip()) for part in spec.split(HELD_OUT))
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


# The three kinds of corpus, and what is made of them. Each `_open_…` finds the identity and says
# how to read a split. Without a threshold nothing is held out: all is the training split.


def _open_one(spec: str, text_column: str, threshold: int | None, progress: bool) -> Corpus:
    kind, _, place = spec.partition(":")
    if spec == "installed":
        return _open_installed(threshold, progress)
    if kind == "files" and place:
        return _open_files(spec, text_column, threshold, progress)
    if kind == "hub" and place:
        return _open_hub(spec, text_column, threshold)
    raise ValueError(
        f'no corpus is called "{spec}": expected "installed", "files:GLOB[,GLOB…]", '
        '"hub:OWNER/NAME[@REVISION][:GLOB]", a mixture as in "0.7 installed + 0.3 files:GLOB", or '
        'two as in "files:GLOB held-out files:GLOB"'
    )


def _open_works(train: str, validation: str, text_column: str, progress: bool) -> Corpus:
    corpora = {
        "train": _open_one(train, text_column, None, progress),
        "validation": _open_one(validation, text_column, None, progress),
    }

    def read(split: Split) -> Iterator[str]:
        if split == "validation":
            yield from corpora["validation"].documents("train")
            return
        held_out = {text_digest(text) for text in corpora["validation"].documents("train")}
        for text in corpora["train"].documents("train"):
            if text_digest(text) not in held_out:
                yield text

    return Corpus(
        HELD_OUT.join(corpus.spec for corpus in corpora.values()),
        hash_lines(["held-out", *(corpus.identity for corpus in corpora.values())]),
        read,
        0,
        skipped={reason: n for corpus in corpora.values() for reason, n in corpus.skipped.items()},
        estimate={name: corpus.expected_bytes("train") for name, corpus in corpora.items()},
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
        hash_lines(["mixture", *(f"{share} {corpus.identity}" for share, corpus in parts)]),
        read,
        highest,
        skipped={reason: count for part in corpora for reason, count in part.skipped.items()},
        parts=parts,
    )


def _open_installed(threshold: int | None, progress: bool) -> Corpus:
    found = installed.list_files()
    record_path = path_of_record(["installed", *found])
    if record_path.exists():
        record = json.loads(record_path.read_text("utf-8"))
        entries = [installed.Entry(*entry) for entry in record["entries"]]
        index = installed.Index(entries, record["skipped"])
    else:
        total = sum(file.size for file in found)
        with building("reading installed sources", total, progress=progress) as advance:
            index = installed.read_index(found, advance)
        write_record(record_path, index._asdict())

    # Entries are sorted by hash, so the first has the smallest.
    smallest = hash_value(index.entries[0].digest)
    threshold = 0 if threshold is None else max(threshold, smallest + 1)
    totals = empty_totals()
    for entry in index.entries:
        count_document(totals, split_of(entry.digest, threshold), entry.source, entry.size)

    def read(split: Split) -> Iterator[str]:
        for entry in index.entries:
            if split_of(entry.digest, threshold) == split:
                yield installed.read_entry(entry)

    digests = (entry.digest for entry in index.entries)
    identity = hash_lines([*digests, threshold])
    return Corpus("installed", identity, read, threshold, totals, skipped=index.skipped)


def _open_files(spec: str, text_column: str, threshold: int | None, progress: bool) -> Corpus:
    found = files.find_files(spec.removeprefix("files:"))
    record_path = path_of_record(["files", text_column, threshold, *found])
    if record_path.exists():
        record: FilesRecord = json.loads(record_path.read_text("utf-8"))
    else:
        record = _examine_files(spec, found, text_column, threshold, progress)
        write_record(record_path, record)
    threshold = record["threshold"]

    def read(split: Split) -> Iterator[str]:
        for file in found:
            for text in files.read_documents(file, text_column):
                if split_of(text_digest(text), threshold) == split:
                    yield text

    return Corpus(spec, record["identity"], read, threshold, record["totals"])


def _examine_files(
    spec: str,
    found: list[files.SourceFile],
    text_column: str,
    threshold: int | None,
    progress: bool,
) -> FilesRecord:
    """Read every record once: a bad one is found now, and hashes give identity and split."""
    hasher = new_hasher()
    totals = empty_totals()
    smallest: int | None = None
    total = sum(file.size for file in found)
    with building(f"reading {spec}", total, progress=progress) as advance:
        for file in found:
            for text in files.read_documents(file, text_column):
                digest = text_digest(text)
                hasher.update(f"\n{digest}".encode())
                split = split_of(digest, threshold or 0)
                count_document(totals, split, file.source, len(text.encode()))
                value = hash_value(digest)
                smallest = value if smallest is None else min(smallest, value)
            advance(file.size)
    if smallest is None:
        raise ValueError(
            f'the corpus "{spec}" is empty: expected documents, and every record of its '
            f"{len(found)} file(s) is without text"
        )
    if threshold is None:
        threshold = 0
    elif not totals["validation"]:  # few documents: read again, holding out the smallest hash
        return _examine_files(spec, found, text_column, smallest + 1, progress)
    if not totals["train"]:
        raise ValueError(
            f'the corpus "{spec}" leaves nothing to train on: expected at least two different '
            f"documents, and all that its {len(found)} file(s) hold is held out for validation"
        )
    hasher.update(f"\n{threshold}".encode())
    return {"identity": hasher.hexdigest(), "threshold": threshold, "totals": totals}


def _open_hub(spec: str, text_column: str, threshold: int | None) -> Corpus:
    from strata.data import hub  # whose library takes a while to load

    limit = threshold or 0
    place = hub.parse(spec.removeprefix("hub:"))
    commit = hub.resolve_commit(place)
    record_path = path_of_record(["hub", place.repository, commit, place.glob, text_column])
    if record_path.exists():
        record = json.loads(record_path.read_text("utf-8"))
        found = [hub.HubFile(*file) for file in record["files"]]
        text_bytes: int = record["text_bytes"]
    else:
        found = hub.list_files(place, commit)
        text_bytes = hub.estimate_text_bytes(found, text_column)
        write_record(record_path, {"files": found, "text_bytes": text_bytes})

    def read(split: Split) -> Iterator[str]:
        for file in found:
            for text in hub.read_documents(file, text_column):
                if split_of(text_digest(text), limit) == split:
                    yield text

    pinned = f"hub:{place.repository}@{commit}" + (f":{place.glob}" if place.glob else "")
    identity = hash_lines(["hub", place.repository, commit, text_column, *found, limit])
    held_out = limit * text_bytes // HASH_RANGE
    estimate = {"train": text_bytes - held_out, "validation": held_out}
    return Corpus(pinned, identity, read, limit, estimate=estimate)
