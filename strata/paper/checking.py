"""`strata paper --check`: what is wrong with the article as it is committed.

Nothing is trained or published for it, and no run is needed. Four looks, in this order:

the text        typed numbers, results that do not exist or are defined by hand, references and
                citations without their other half, entries that nobody cites
the record      `numbers.tex`, tables and appendix are what follows from `provenance.json`; each
                figure is the one whose SHA-256 stands there; no result is older than the stored
                file it was computed from
the stamp       `strata.pdf` and `strata.bbl` were made from the sources that lie here, by content
the typesetting a build in a temporary folder: warnings of LaTeX, boxes that stick out
"""

import contextlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from strata.paper.article import (
    LABEL,
    RECORD,
    Article,
    hand_made_numbers,
    read_article,
    sources,
    typed_numbers,
)
from strata.paper.building import build_pdf, log_warnings
from strata.paper.generated import Record, generated_files, record_of
from strata.paper.publishing import STAMP, read_record
from strata.paper.results import json_bytes, source_of
from strata.storage import sha256_of


@dataclass(frozen=True, order=True)
class Finding:
    """One thing to mend; line 0 is the whole file. The path counts from the repository's root."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


def check(root: str | Path, run_dir: str | Path | None = None) -> tuple[list[Finding], str]:
    """Look at the article in `root/paper`; with a run, also whether its results were published.

    Returns what was found and, where LaTeX is not installed, a sentence on what was not looked at.
    Raises FileNotFoundError without an article or without anything published.
    """
    root = Path(root)
    folder = root / "paper"
    article, record = read_article(folder), read_record(folder)
    found = [*_text(article, folder), *_record(article, record, root), *stale(folder)]
    if run_dir is not None:
        found += _run(record, Path(run_dir))
    typeset, remark = _typesetting(folder)
    return sorted(set(found + typeset)), remark


def _at(file: str, line: int, message: str) -> Finding:
    """A finding in a file that is named from the article's folder."""
    elsewhere = file.startswith(("../", "/", "figures/"))  # the last in the folder of a build
    return Finding(file.removeprefix("../") if elsewhere else f"paper/{file}", line, message)


# --- The text ------------------------------------------------------------------------------------


def _text(article: Article, folder: Path) -> Iterator[Finding]:
    for number in typed_numbers(article):
        advice = r"record it in a notebook, or write \fixed{number}{source}"
        message = f"the number {number.name} is typed in a results section: {advice}"
        yield _at(number.place.file, number.place.line, message)
    for macro in hand_made_numbers(article):
        message = f"\\{macro.name} holds a result but is defined by hand: record it in a notebook"
        yield _at(macro.place.file, macro.place.line, message)
    defined = set(re.findall(r"\\newcommand\{\\(run\w+)\}", _read(folder / "numbers.tex")))
    for macro in article.macros():
        if macro.name not in defined:
            message = f"\\{macro.name} is not defined in numbers.tex"
            yield _at(macro.place.file, macro.place.line, message)
    yield from _references(article, folder)
    yield from _citations(article, folder)


def _references(article: Article, folder: Path) -> Iterator[Finding]:
    labels = Counter(found.name for found in article.labels())
    for file in [folder / "provenance.tex", *(folder / "tables").glob("*.tex")]:
        labels.update(re.findall(LABEL, _read(file)))
    for reference in article.references():
        if reference.name not in labels:
            message = f"a reference to {reference.name}, which no label names"
            yield _at(reference.place.file, reference.place.line, message)
    for label in article.labels():
        if labels[label.name] > 1:
            message = f"the label {label.name} is set {labels[label.name]} times"
            yield _at(label.place.file, label.place.line, message)


def _citations(article: Article, folder: Path) -> Iterator[Finding]:
    entries: dict[str, tuple[str, int]] = {}
    for path in sorted(folder.glob("*.bib")):
        for number, line in enumerate(_read(path).splitlines(), 1):
            if entry := re.match(r"@(?!comment|string|preamble)\w+\s*\{\s*([^,\s]+)", line, re.I):
                if entry[1] in entries:
                    yield _at(path.name, number, f"the entry {entry[1]} is there twice")
                entries[entry[1]] = (path.name, number)
    cited = article.citations()
    for citation in cited:
        if citation.name not in entries:
            message = f"a citation of {citation.name}, which has no entry"
            yield _at(citation.place.file, citation.place.line, message)
    for key in entries.keys() - {citation.name for citation in cited}:
        yield _at(*entries[key], f"nothing cites {key}")


# --- The record ----------------------------------------------------------------------------------


def _record(article: Article, record: Record, root: Path) -> Iterator[Finding]:
    for file, text in generated_files(record, article).items():
        written = _read(root / "paper" / file)
        if written != text:
            lines = zip(written.splitlines(), text.splitlines(), strict=False)
            same = 0
            for one, other in lines:
                if one != other:
                    break
                same += 1
            message = f"is not what follows from {RECORD} and the text (strata paper writes it)"
            yield _at(file, same + 1, message)
    for name, entry in record["figures"].items():
        for suffix, digest in entry["sha256"].items():
            path = root / "figures" / f"{name}.{suffix}"
            if not path.is_file():
                yield _at(f"../figures/{path.name}", 0, f"is missing, and stands in {RECORD}")
            elif sha256_of(path) != digest:
                yield _at(f"../figures/{path.name}", 0, f"is not the figure of {RECORD} (SHA-256)")
    for figure in article.figures():
        if figure.name not in record["figures"]:
            message = f"the figure {figure.name} does not stand in {RECORD}"
            yield _at(figure.place.file, figure.place.line, message)
    for table in article.tables():
        if table.name not in record["tables"]:
            message = f"the table {table.name} does not stand in {RECORD}"
            yield _at(table.place.file, table.place.line, message)
    for kind in ("values", "tables", "figures"):
        for name, entry in record[kind].items():
            source = source_of(entry)
            if source and source.file and _digest(root / source.file) != source.sha256:
                message = f"{kind[:-1]} {name} is older than what it comes from, {source.file}"
                yield _at(RECORD, 0, message)


def _run(record: Record, run: Path) -> Iterator[Finding]:
    """What a run has recorded since, or otherwise than, what was published."""
    newer: Record = json.loads(json_bytes(record_of(run)))  # as it would be read back
    if newer["run"] != record["run"]:
        yield _at(RECORD, 0, f"what is published does not come from {run}, as it is now")
    for kind in ("values", "tables", "figures"):
        for name in sorted(newer[kind].keys() | record[kind].keys()):
            if newer[kind].get(name) != record[kind].get(name):
                yield _at(RECORD, 0, f"{kind[:-1]} {name} is not that of {run}")


# --- The stamp -----------------------------------------------------------------------------------


def stale(folder: Path) -> Iterator[Finding]:
    """What in the article's folder has changed since its PDF and bibliography were made."""
    stamped = {
        line.split("  ", 1)[1]: line.split("  ", 1)[0]
        for line in _read(folder / STAMP).splitlines()
        if "  " in line
    }
    if not stamped:
        yield _at("strata.pdf", 0, f"has no {STAMP} beside it: build it again (strata paper)")
        return
    for file in ("strata.pdf", "strata.bbl"):
        if not stamped.get(file) or _digest(folder / file) != stamped[file]:
            yield _at(file, 0, f"is not the one of {STAMP}: build it again (strata paper)")
    made_from = sources(folder)
    for file in made_from:
        if stamped.get(file) != _digest(folder / file):
            yield _at("strata.pdf", 0, f"is older than {file}: build it again (strata paper)")
    for file in stamped.keys() - {*made_from, "strata.pdf", "strata.bbl"}:
        yield _at("strata.pdf", 0, f"was made from {file} too, which the article no longer uses")


# --- The typesetting -----------------------------------------------------------------------------


def _typesetting(folder: Path) -> tuple[list[Finding], str]:
    with tempfile.TemporaryDirectory() as place:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                built = build_pdf(folder, place)
        except RuntimeError as error:
            return [_error(line) for line in str(error).splitlines()[1:]], ""
        if built is None:
            reason = said.getvalue().splitlines()[0]
            return [], f"boxes and LaTeX's warnings were not looked at. {reason}"
        log = built.with_suffix(".log").read_text(errors="replace")
        return [_at(at.file, at.line, message) for at, message in log_warnings(log)], ""


def _error(line: str) -> Finding:
    """A line of LaTeX's errors, which name their file and line first, as a finding."""
    named = re.match(r"(?:\./)?([\w./-]+):(\d+): (.*)", line)
    return _at(named[1], int(named[2]), named[3]) if named else _at("strata.tex", 0, line)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _digest(path: Path) -> str:
    return sha256_of(path) if path.is_file() else "missing"
