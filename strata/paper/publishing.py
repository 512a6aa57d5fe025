"""From the run to the paper: the article's numbers, tables and figures, each with its provenance.

`publish` writes what a run recorded into the repository, `republish` writes it again from what is
stored there, `draft` writes it into the run. All three first compare what the article asks for with
what there is, and stop with a list of what is missing. `build_article` makes the PDF of what was
published, and the stamp by which `strata paper --check` knows what it was made from.
"""

import json
from pathlib import Path

from strata.paper.article import RECORD, Article, Found, read_article, sources
from strata.paper.building import build_pdf
from strata.paper.generated import (
    RUN_MACROS,
    Record,
    generated_files,
    guess_name,
    macros_of,
    record_of,
)
from strata.paper.results import REPOSITORY, json_bytes
from strata.storage import sha256_of, write_whole

STAMP = "strata.sha256"


def publish(run_dir: str | Path, root: str | Path) -> list[Path]:
    """Publish a run: its figures into `root/figures/`, all else into `root/paper/`.

    What an earlier run published and this one does not have is removed, so that the paper never
    mixes two runs. Returns the files written.

    Raises ValueError, before anything is written, when `root/paper/strata.tex` uses something
    that the run did not record, and names all of it.
    """
    run, root = Path(run_dir), Path(root)
    record, article = record_of(run), read_article(root / "paper")
    _check_complete(article, record, f"the run {run} did not record")
    written = []
    for name in record["figures"]:
        for suffix in ("pdf", "png"):
            content = (run / "figures" / f"{name}.{suffix}").read_bytes()
            written.append(write_whole(root / "figures" / f"{name}.{suffix}", content))
    path = root / "paper" / RECORD
    if path.exists():
        for stale in read_record(root / "paper")["figures"].keys() - record["figures"].keys():
            for suffix in ("pdf", "png"):
                (root / "figures" / f"{stale}.{suffix}").unlink(missing_ok=True)
    return written + _write(record, article, root / "paper")


def republish(root: str | Path) -> list[Path]:
    """Write the numbers, tables and appendix again, from what a run has published before.

    Raises FileNotFoundError where nothing was published, and ValueError as `publish` does.
    """
    folder = Path(root) / "paper"
    record, article = read_record(folder), read_article(folder)
    _check_complete(article, record, f"{folder / RECORD} does not hold")
    return _write(record, article, folder)


def draft(run_dir: str | Path, source: str | Path | None = None) -> Path | None:
    """Build the paper of a run inside the run, as `run_dir/paper/strata.pdf`.

    `source` is the folder that holds `strata.tex`, its style and its references; by default
    `paper/` of the repository that this package is installed from. No tracked file changes.
    Returns the PDF's path, or None where LaTeX is not installed. Raises as `publish` and
    `build_pdf` do.
    """
    run = Path(run_dir)
    source = Path(source) if source else REPOSITORY / "paper"
    record, article = record_of(run), read_article(source)
    _check_complete(article, record, f"the run {run} did not record")
    folder = run / "paper"
    _write(record, article, folder)
    for name in [*article.files, *(path.name for path in source.glob("*.bib"))]:
        write_whole(folder / name, (source / name).read_bytes())
    built = build_pdf(folder, folder / "build")
    return write_whole(folder / "strata.pdf", built.read_bytes()) if built else None


def build_article(root: str | Path) -> Path | None:
    """Build the published article: `root/paper/strata.pdf`, its bibliography and its stamp.

    `strata.sha256` lists what the PDF was made from, the PDF and `strata.bbl` with their SHA-256,
    as `sha256sum --check` reads it. Returns the PDF's path, or None where LaTeX is not installed.
    Raises as `build_pdf` does.
    """
    folder = Path(root) / "paper"
    built = build_pdf(folder, Path(root) / "build" / "paper")
    if built is None:
        return None
    for suffix in ("bbl", "pdf"):
        write_whole(folder / f"strata.{suffix}", built.with_suffix(f".{suffix}").read_bytes())
    files = [*sources(folder), "strata.bbl", "strata.pdf"]
    lines = [f"{sha256_of(folder / file)}  {file}\n" for file in sorted(files)]
    write_whole(folder / STAMP, "".join(lines))
    return folder / "strata.pdf"


def read_record(folder: Path) -> Record:
    """The record of what was published in the article's folder."""
    path = folder / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: publish a run first (strata paper RUN)")
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def _check_complete(article: Article, record: Record, lacks: str) -> None:
    """Stop when the article uses a value, table or figure that is not there."""
    have = {
        "values": {*RUN_MACROS, *macros_of(record["values"])},
        "tables": set(record["tables"]),
        "figures": set(record["figures"]),
    }
    wanted: dict[str, list[Found]] = {
        "values": article.macros(),
        "tables": article.tables(),
        "figures": article.figures(),
    }
    lacking = []
    for kind, uses in wanted.items():
        absent = sorted({found.name for found in uses} - have[kind])
        if kind == "values":
            absent = [f"{guess_name(name)} (\\{name})" for name in absent]
        if absent:
            lacking.append(f"  {kind}: {', '.join(absent)}")
    if lacking:
        raise ValueError(f"strata.tex uses what {lacks}:\n" + "\n".join(lacking))


def _write(record: Record, article: Article, folder: Path) -> list[Path]:
    """Write the record and all that follows from it, and remove tables of earlier runs."""
    files = generated_files(record, article)
    for old in (folder / "tables").glob("*.tex"):
        if f"tables/{old.name}" not in files:
            old.unlink()
    written = [write_whole(folder / RECORD, json_bytes(record))]
    return written + [write_whole(folder / file, text) for file, text in files.items()]
