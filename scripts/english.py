"""Makes the English corpus of the project's main results from its public sources.

    python scripts/english.py OUTPUT                       19 repositories, 212 MB of text
    python scripts/english.py OUTPUT --only python-peps    some sources, to try it
    python scripts/english.py OUTPUT --check FOLDER        and how near it comes to another copy

It fetches the files that `english.tsv.gz` lists from GitHub with git, each repository at one pinned
commit and without the files that are not wanted, verifies each file's git id, keeps running prose,
drops repeats, and writes into OUTPUT

    train-00000-of-00008.parquet …  validation.parquet     columns text, source, license
    ATTRIBUTION.txt                                        sources, commits, licences, every work

Whole works are held out: a work is for validation when int(sha256("holdout:" + name)[:8], 16) %
1000 < 5. A suite of runs, or one run, uses the corpus by

    --data.corpus "files:OUTPUT/train-*.parquet held-out files:OUTPUT/validation.parquet"

What was fetched stays in the cache and is not fetched again; a run that was cut short goes on. To
take the repositories from elsewhere (a mirror, a folder), tell git, not this script:

    git config --global url.https://mirror.example/.insteadOf https://github.com/

The corpus is made again by the same rules as the one that the results were trained on, by other
code, so it has the same works and split but not the same bytes; `--check` measures how near it
comes. Measured so, of two sources: 3,418 of 3,424 articles of the encyclopedia, 97.2 MB where there
were 96.4; all 193 books, 2,146 of their 2,202 parts, 78.1 MB in either.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from english_corpus import books, peps, textbooks, wikipedia
from english_corpus.comparison import compare
from english_corpus.documents import Filter, held_out, in_order
from english_corpus.fetching import blob_id, fetch
from english_corpus.works import BLOB_DIGITS, BOOKS, PEPS, SOURCES, WIKIPEDIA, Source, Work, works

from strata.storage import cache_dir, temporary_beside, write_whole

TRAIN_FILES = 8
SCHEMA = pa.schema([("text", pa.string()), ("source", pa.string()), ("license", pa.string())])


def main(arguments: list[str] | None = None) -> int:
    """Make the corpus; 1 and one line on stderr when that cannot be."""
    options = parse(arguments)
    try:
        make(options.output, options.cache, options.only, options.eval_dir)
        if options.check:
            print(compare(options.output, options.check))
    except (OSError, ValueError) as problem:
        print(f"english.py: {problem}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    introduction, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "english.py",
        description=introduction,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", type=Path, help="folder of the Parquet files")
    parser.add_argument(
        "--cache", type=Path, default=cache_dir() / "english", help="folder of what is fetched"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="SOURCE",
        choices=[source.name for source in SOURCES],
        help="these sources alone: " + ", ".join(source.name for source in SOURCES),
    )
    parser.add_argument(
        "--check", type=Path, metavar="FOLDER", help="compare with the Parquet files there"
    )
    parser.add_argument(
        "--eval-dir",
        type=Path,
        metavar="FOLDER",
        help="drop paragraphs that share 13 words in a row with any file there",
    )
    return parser.parse_args(arguments)


def make(output: Path, cache: Path, only: list[str] | None, eval_dir: Path | None) -> None:
    """Fetch, clean, filter, split, write, and say how it compares with the list."""
    chosen = [source for source in SOURCES if not only or source.name in only]
    listed = works()
    keep = Filter(evaluation_texts(eval_dir) if eval_dir else ())
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": []}
    print(f"{'source':<42}{'works':>14}{'documents':>14}{'MB of text':>20}")
    for source in chosen:
        wanted = listed[source.name]
        kept, documents, size = 0, 0, 0
        for work, content in zip(wanted, files(source, wanted, cache), strict=True):
            texts = cleaned(work, content, keep)
            side = "validation" if held_out(work.name) else "train"
            about = {"source": source.name, "license": source.license}
            rows[side] += ({"text": text, **about} for text in texts)
            kept += bool(texts)
            documents += len(texts)
            size += sum(len(text.encode()) for text in texts)
        before = (len(wanted), sum(w.documents for w in wanted), sum(w.bytes for w in wanted))
        print(
            f"{source.name:<42}{f'{kept} of {before[0]}':>14}{f'{documents} of {before[1]}':>14}"
            f"{f'{size / 1e6:.2f} of {before[2] / 1e6:.2f}':>20}",
            flush=True,
        )
    for reason, count in keep.dropped.items():
        print(f"  left out: {count:,} {reason}")
    write(output, rows)
    write_whole(output / "ATTRIBUTION.txt", attribution(chosen, listed))
    print(
        f"{output}: {len(rows['train'])} documents to train on, {len(rows['validation'])} held out"
    )
    print(f"whose they are, and the licences: {output / 'ATTRIBUTION.txt'}")


def files(source: Source, wanted: list[Work], cache: Path) -> Iterator[bytes]:
    """The raw file of every work, verified against the list.

    Raises:
        ValueError: a file is not the one the list was made from.
    """
    contents = fetch(source.repository, source.commit, [work.path for work in wanted], cache)
    for work, content in zip(wanted, contents, strict=True):
        found = blob_id(content)[:BLOB_DIGITS]
        if found != work.blob:
            raise ValueError(
                f"{source.repository} at {source.commit[:8]}: {work.path!r} has the git id "
                f"{found}…, the list says {work.blob}…; it is not the text the corpus was made of"
            )
        yield content


def cleaned(work: Work, content: bytes, keep: Filter) -> list[str]:
    """The documents of one work; none if all of it was refused."""
    kinds = {WIKIPEDIA: wikipedia.documents, BOOKS: books.documents, PEPS: peps.documents}
    documents = kinds.get(work.source, textbooks.documents)
    try:
        pieces = documents(content.decode("utf-8-sig"), work.name)
    except (UnicodeDecodeError, SyntaxError) as problem:  # ElementTree.ParseError is the latter
        raise ValueError(f"{work.name}: {problem}") from problem
    texts = (keep.document(piece, addresses=work.source == PEPS) for piece in pieces)
    return [text for text in texts if text is not None]


def evaluation_texts(folder: Path) -> Iterator[str]:
    """Every text in evaluation data (.jsonl, .jsonl.gz, .txt), but BLiMP's, made by a grammar."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.name.endswith((".jsonl", ".jsonl.gz", ".txt")) and not path.name.startswith("blimp")
    ]
    if not found:
        raise FileNotFoundError(f"--eval-dir {folder}: no .jsonl, .jsonl.gz or .txt files there")
    for path in found:
        whole = path.read_bytes()
        text = (gzip.decompress(whole) if path.suffix == ".gz" else whole).decode("utf-8")
        if path.suffix == ".txt":
            yield text
            continue
        for line in text.split("\n"):
            if line:
                yield " ".join(strings_in(json.loads(line)))


def strings_in(record: object) -> Iterator[str]:
    """The strings among a record's values, however deep, in their order."""
    if isinstance(record, str):
        yield record
    elif isinstance(record, dict | list):
        for value in record.values() if isinstance(record, dict) else record:
            yield from strings_in(value)


def write(output: Path, rows: dict[str, list[dict[str, str]]]) -> None:
    """The Parquet files: first all of them under other names, then in place of what was there.

    Only what would be mixed up with them, of another number of files, is removed before that.

    Raises:
        ValueError: nothing is left to write.
    """
    if not rows["train"]:
        raise ValueError("nothing is left to train on after filtering; is --eval-dir right?")
    shards: dict[str, list[dict[str, str]]] = {}
    for side, documents in rows.items():
        ordered = [documents[i] for i in in_order(row["text"] for row in documents)]
        count = min(TRAIN_FILES if side == "train" else 1, len(ordered))
        for number in range(count):
            start, end = (len(ordered) * n // count for n in (number, number + 1))
            name = f"train-{number:05}-of-{count:05}" if side == "train" else side
            shards[f"{name}.parquet"] = ordered[start:end]
    output.mkdir(parents=True, exist_ok=True)
    written: dict[Path, Path] = {}
    try:
        for name, documents in shards.items():
            path = output / name
            written[path] = temporary_beside(path)
            table = pa.Table.from_pylist(documents, SCHEMA)
            pq.write_table(table, written[path], compression="zstd", compression_level=12)
        held = {*output.glob("train-*.parquet"), *output.glob("validation.parquet")}
        for old in held - written.keys():
            old.unlink()
        for path, temporary in written.items():
            temporary.replace(path)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def attribution(chosen: list[Source], listed: dict[str, list[Work]]) -> str:
    """Whose the texts are: every source with its commit and licence, and the names of its works."""
    lines = ["The texts beside this file come from these works.\n"]
    for source in chosen:
        names = (f"  {work.name.partition('/')[2]}\n" for work in listed[source.name])
        lines.append(
            f"\n{source.name} ({source.license})\n{source.attribution}\n"
            f"https://github.com/{source.repository}, commit {source.commit}\n" + "".join(names)
        )
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
