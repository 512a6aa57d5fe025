"""The corpus's list: from which repository at which commit each work comes, and under what licence.

`scripts/english.tsv.gz` has a line a work: its source, its name, the first 16 digits of the git id
of its file, its side of the split, and how many documents and bytes of text the corpus the project
trains on made of it. That corpus chose whole works in the SHA-256 order of their names until a
budget was full (100 million characters of encyclopaedia, 78 of books, 5 of proposals before
cleaning; every module of the textbooks), and left out what its filters refused; the list is what
came of that, so nothing has to be chosen again.
"""

import csv
import gzip
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).parents[1] / "english.tsv.gz"
BLOB_DIGITS = 16


class Source(NamedTuple):
    """One public repository, at one commit."""

    name: str
    repository: str
    commit: str
    license: str
    attribution: str


class Work(NamedTuple):
    """An article, a book, a module or a proposal, as the list has it."""

    source: str
    name: str
    path: str  # in the repository
    blob: str  # how the git id of the file begins
    split: str
    documents: int
    bytes: int


WIKIPEDIA, BOOKS, PEPS = "wikipedia", "classic-books", "python-peps"
# OpenStax gave most of these books another licence (CC-BY-NC-SA-4.0) on 2026-04-23; every commit
# here is the last before 2026-04-01, in which all say CC-BY-4.0.
TEXTBOOKS = {
    "american-government": "2774bbcaf35fb276d27365cdfb4215a0bef7be16",
    "anatomy-physiology": "fdfa6e21ac3bc372dc2802a9952df124a619fdcc",
    "astronomy": "4aedbad89cb6b91004a2fd0cba74c813d78bbd1d",
    "chemistry-bundle": "0243cd5879b93936ad8bc70ca181480403c331ec",
    "college-physics-bundle": "5182c46ee4854d84e3e35ea34e5ed0bef461b19b",
    "introduction-anthropology": "418eedd9bef21ec1a6fa1b472c0d82c084e35c70",
    "introduction-business": "ee0a2eb2e51dc2df6bc034edd4dc4b47757970c1",
    "introduction-philosophy": "a108740c4a8c121b67a164ec5a397d1a7f246987",
    "introduction-political-science": "da3ba0d26f42caded8c4df531ff0703d42813465",
    "introduction-sociology": "cb424bc47ff1be02df7cff71d7e8d9ead113ba3c",
    "microbiology": "f1d8d4e9941417f25610a239045c35488d56cf22",
    "principles-economics-bundle": "cd31beb103fffbc09cc81ebfe117d8c40cc12d1a",
    "psychology": "e91efc4674c71be3c9b13b16766078dfafa06ebb",
    "university-physics-bundle": "b375d3f61093460d280a21dddee51e7b6c9ce3b2",
    "us-history": "ec99b9ad7e897c7f38339f0a32cde8d6f193d741",
    "world-history": "b2ddac6d5ab41847257c1484ee9271576d1a053e",
}
SOURCES = [
    Source(
        WIKIPEDIA,
        "cabosanlucas/document_similarity_using_tfidf",
        "566d578638605d937cd1282dbf1975eb825896ef",
        "CC-BY-SA-3.0",
        "English Wikipedia, as of December 2017, by its contributors: each article's history at "
        "en.wikipedia.org names them. Share-alike: what is made of these texts stays under this "
        "licence. The repository itself states none.",
    ),
    Source(
        BOOKS,
        "mlschmitt/classic-books-markdown",
        "944882722e9a96fa6cf2739dc2ea757e101f412f",
        "Public domain (US)",
        "Books of 1929 and before, in the public domain of the United States; whether they are "
        "elsewhere, and when translations were made, was not checked.",
    ),
    Source(
        PEPS,
        "python/peps",
        "ba4deeb7969588d937da609008d05bb83a47b1ab",
        "Public domain / CC0-1.0",
        "Python Enhancement Proposals whose text puts itself in the public domain or under CC0.",
    ),
    *(
        Source(
            f"openstax/{book}",
            f"openstax/osbooks-{book}",
            commit,
            "CC-BY-4.0",
            f"OpenStax, Rice University: {book.removesuffix('-bundle').replace('-', ' ').title()}. "
            "Free at openstax.org; changed here: only running text was kept.",
        )
        for book, commit in TEXTBOOKS.items()
    ),
]


def works(path: Path = LIST) -> dict[str, list[Work]]:
    """The works of every source, in the list's order."""
    found: dict[str, list[Work]] = {}
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            source, name = row["source"], row["work"]
            work = Work(
                source,
                name,
                path_of(name),
                row["blob"],
                row["split"],
                int(row["documents"]),
                int(row["bytes"]),
            )
            found.setdefault(source, []).append(work)
    return found


def path_of(name: str) -> str:
    """Where a work of this name lies in its repository."""
    kind, _, rest = name.partition("/")
    if kind == "wiki":
        return f"data/{rest}.txt"
    return rest.partition("/")[2] if kind == "openstax" else rest
