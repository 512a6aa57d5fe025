"""How near two copies of the corpus are, whose texts were cleaned by different code.

Texts have no names in a Parquet file, and a book may be cut elsewhere; so what is compared is, for
every source, the set of all runs of 13 words. Containment of A in B is the share of A's runs that B
has too; 1.0 both ways means the same words in the same order up to punctuation and paragraphs.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from english_corpus.documents import held_by, sequences

NEAR = 0.95


def compare(made: Path, other: Path) -> str:
    """A table, a line a source that both folders have.

    Raises:
        FileNotFoundError: a folder holds no Parquet files.
    """
    ours, theirs = by_source(made), by_source(other)
    lines = [
        f"{'source':<42}{'documents':>12}{'there':>8}{'there, in ours':>16}{'ours, in theirs':>17}"
        f"{'same work':>11}"
    ]
    for source in sorted(ours.keys() & theirs.keys()):
        a, b = ([sequences(text) for text in side[source]] for side in (ours, theirs))
        all_a, all_b = np.unique(np.concatenate(a)), np.unique(np.concatenate(b))
        if not len(all_a) or not len(all_b):
            continue
        near = sum(held_by(one, all_a).mean() >= NEAR for one in b if len(one))
        lines.append(
            f"{source:<42}{len(a):>12,}{len(b):>8,}{held_by(all_b, all_a).mean():>16.4f}"
            f"{held_by(all_a, all_b).mean():>17.4f}{near / len(b):>11.3f}"
        )
    lines.append(f"same work: share of the documents there of which we hold {NEAR:.0%} or more")
    return "\n".join(lines)


def by_source(folder: Path) -> dict[str, list[str]]:
    """The texts of every source in a folder of Parquet files."""
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no Parquet files to compare with")
    found: dict[str, list[str]] = {}
    for path in paths:
        for text, source in rows(path):
            found.setdefault(source, []).append(text)
    return found


def rows(path: Path) -> Iterator[tuple[str, str]]:
    """Text and source of every document of one file."""
    for batch in pq.ParquetFile(path).iter_batches(columns=["text", "source"]):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
