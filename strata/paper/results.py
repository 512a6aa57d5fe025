"""What a notebook leaves in its run: figures in `figures/`, all else in `values.json`.

`use_run` names the run, the `record` functions write at once and whole, so that a notebook that
fails half-way has still recorded its first half, and a cell that runs again replaces what it wrote.
The format of `values.json` is described in `strata/paper/__init__.py`.
"""

import html
import io
import json
import math
import numbers
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from strata.paper import latex
from strata.paper.latex import Plain
from strata.storage import sha256_of, write_whole

REPOSITORY = Path(__file__).resolve().parents[2]  # where the article and its figures are published

Entry = dict[str, Any]  # one result as values.json holds it
Results = dict[str, dict[str, Entry]]  # values, tables and figures, by name
Cell = str | float | Sequence[float] | None  # a sequence is (value, low, high)


@dataclass(frozen=True)
class Source:
    """Where a result comes from: the run that records it or, if it names one, something stored."""

    name: str  # "run nano", or what was stored: "suite micro"
    commits: tuple[str, ...]  # of the code that computed it, each once
    configuration: str  # hash of the configuration, or of the suite's
    date: str  # the day it began, so that what is published twice gives the same files
    dirty: bool = False  # whether files differed from the commit
    file: str = ""  # what was stored, as a path from the repository's root
    sha256: str = ""  # of that file when the result was computed from it

    def __str__(self) -> str:
        changed = " with uncommitted changes" if self.dirty else ""
        place = f" in {self.file}" if self.file else ""
        return (
            f"{self.name}{place}, commit {' '.join(self.commits)}{changed}, "
            f"configuration {self.configuration}, {self.date}"
        )


@dataclass(frozen=True)
class Value:
    """One recorded result, as `read_values` gives it."""

    value: float | str
    low: float | None  # ends of the interval, where one was recorded
    high: float | None
    unit: str
    digits: int  # significant digits of a float; integers are written whole
    text: str  # as people read it, unit included
    chapter: str  # the notebook that recorded it
    source: Source | None = None  # where it comes from, if not from the run


_run: tuple[Path, str] | None = None  # the chapter's run folder, and the chapter's name


def use_run(run_dir: str | Path, chapter: str = "") -> Path:
    """Send what this notebook records to `run_dir`; `chapter` is the notebook's own name."""
    global _run
    path = Path(run_dir)
    path.mkdir(parents=True, exist_ok=True)
    _run = (path, chapter)
    return path


def stored_source(
    file: str | Path,
    name: str,
    commits: Sequence[str],
    configuration: str,
    date: str,
    dirty: bool = False,
) -> Source:
    """The source of results that are computed from a stored file, as that file is now.

    `file` lies in the repository (`paper/runs/micro.jsonl`; a relative path counts from its root).
    Its SHA-256 is kept with each result, so that a result older than its file can be told.

    Raises FileNotFoundError without the file, ValueError where it is outside the repository.
    """
    path = (REPOSITORY / file).resolve()
    if not path.is_relative_to(REPOSITORY):
        raise ValueError(f"{path} lies outside {REPOSITORY}: no reader of the paper would have it")
    return Source(
        name=name,
        commits=tuple(dict.fromkeys(commits)),
        configuration=configuration,
        date=date,
        dirty=dirty,
        file=path.relative_to(REPOSITORY).as_posix(),
        sha256=sha256_of(path),
    )


def record(
    name: str,
    value: float | str | Sequence[float],
    unit: str = "",
    digits: int = 3,
    source: Source | None = None,
) -> None:
    """Keep one result for the paper: a number, a string, or an interval (value, low, high).

    `unit` is written after the number (`"%"` and `"×"` close up, others take a thin space).
    `source` is where the value comes from when that is not the run. Recording a name again
    replaces it.

    Raises RuntimeError before `use_run`; ValueError for a bad name, a value that is not a number
    (NaN included), or an interval whose low end is above its high end.
    """
    _check_name(name)
    cell = _plain(value, f"value {name!r}")
    if cell is None:
        raise ValueError(f"value {name!r} is None; expected a number, a string or an interval")
    middle, low, high = cell if isinstance(cell, tuple) else (cell, None, None)
    _store(
        "values",
        name,
        {
            "value": _to_json(middle),
            "low": _to_json(low),
            "high": _to_json(high),
            "unit": unit,
            "digits": digits,
            "text": latex.value_text(middle, unit, digits),
        },
        source,
    )


def record_table(
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    caption: str = "",
    digits: int = 3,
    source: Source | None = None,
) -> None:
    """Keep one table for the paper. A cell is text, a number, (value, low, high), or None.

    `caption` is what only the run knows and a reader of the table needs (how many seeds, which
    interval); it is set under the table as a note. Numbers of one column get the same number of
    decimals, `digits` significant ones for the smallest.

    Raises RuntimeError before `use_run`, ValueError for rows that are not as long as the header.
    """
    _check_name(name)
    _store(
        "tables",
        name,
        {
            "header": list(header),
            "rows": [[_to_json(cell) for cell in row] for row in _check_rows(header, rows)],
            "caption": caption,
            "digits": digits,
        },
        source,
    )


def read_values(run_dir: str | Path) -> dict[str, Value]:
    """The values recorded in a run, by name. Raises FileNotFoundError when it recorded nothing."""
    entries = read_results(Path(run_dir))["values"]
    return {
        name: Value(
            **{key: from_json(part) for key, part in entry.items() if key != "source"},
            source=source_of(entry),
        )
        for name, entry in entries.items()
    }


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "", digits: int = 3
) -> None:
    """Show a table in a notebook, as HTML and nothing else.

    There is no plain-text twin, so a test that compares a notebook's text outputs does not compare
    numbers that differ from machine to machine.
    """
    from IPython.display import display

    rows = _check_rows(header, rows)
    texts, numeric = latex.table_texts(rows, digits)
    aligned = [f' style="text-align:{"right" if right else "left"}"' for right in numeric]
    lines = ["<table>"]
    if caption:
        lines.append(f"<caption>{html.escape(caption)}</caption>")
    for tag, cells in [("th", list(header)), *(("td", row) for row in texts)]:
        parts = [
            f"<{tag}{style}>{html.escape(cell)}</{tag}>"
            for style, cell in zip(aligned, cells, strict=True)
        ]
        lines.append(f"<tr>{''.join(parts)}</tr>")
    display({"text/html": "\n".join([*lines, "</table>"])}, raw=True)  # type: ignore[no-untyped-call]


def save_figure(fig: Figure, name: str, claim: str = "", source: Source | None = None) -> Path:
    """Save a figure in the run as `figures/<name>.pdf` and `.png`; returns the PDF's path.

    The same figure gives the same bytes: neither file holds a date. `claim` is what the figure
    shows, in one sentence; it becomes the PDF's title and is kept beside the figure. `source` is
    where its numbers come from when that is not the run.

    Raises RuntimeError before `use_run`, ValueError for a name that is not `snake_case`.
    """
    run_dir = _check_name(name)
    for suffix, metadata, dots in (
        ("pdf", {"CreationDate": None, "Title": claim or name}, 300),
        ("png", {"Software": None}, 160),
    ):
        buffer = io.BytesIO()
        with mpl.rc_context({"pdf.fonttype": 42}):
            fig.savefig(buffer, format=suffix, metadata=metadata, dpi=dots)
        write_whole(run_dir / "figures" / f"{name}.{suffix}", buffer.getvalue())
    _store("figures", name, {"claim": claim}, source)
    return run_dir / "figures" / f"{name}.pdf"


# --- The run's file ------------------------------------------------------------------------------


def _check_name(name: str) -> Path:
    """The run folder in use, once `name` has been found to be `snake_case`."""
    if _run is None:
        raise RuntimeError("no run to record in: call strata.paper.use_run(run_dir) first")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ValueError(
            f"{name!r} is no name for a result; expected snake_case, such as 'loss_curves'"
        )
    return _run[0]


def _check_rows(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[list[Plain]]:
    if not rows:
        raise ValueError(f"a table with the header {list(header)} has no rows")
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"row {i} has {len(row)} cells, the header {len(header)}: {list(row)}")
    return [[_plain(cell, f"cell of row {i}") for cell in row] for i, row in enumerate(rows)]


def _plain(value: object, what: str) -> Plain:
    """A cell in Python's own types: numpy scalars become int and float, intervals tuples."""
    if value is None or isinstance(value, str):
        return value
    is_flag = isinstance(value, bool)  # True is 1 to Python, and no measurement
    if isinstance(value, numbers.Real) and not is_flag:
        number = int(value) if isinstance(value, numbers.Integral) else float(value)
        if math.isnan(number):
            raise ValueError(f"{what} is not a number (NaN)")
        return number
    if isinstance(value, Sequence) and len(value) == 3:
        parts = [_plain(part, what) for part in value]
        ends = [part for part in parts if isinstance(part, int | float)]
        if len(ends) == 3 and ends[1] <= ends[2]:
            if any(isinstance(end, float) for end in ends):
                ends = [float(end) for end in ends]
            return (ends[0], ends[1], ends[2])
    raise ValueError(
        f"{what} is {value!r}; expected a number, a string, or (value, low, high) with low ≤ high"
    )


def _to_json(cell: Plain) -> object:
    if isinstance(cell, float) and math.isinf(cell):
        return "inf" if cell > 0 else "-inf"
    return [_to_json(part) for part in cell] if isinstance(cell, tuple) else cell


def from_json(part: Any) -> Any:
    if isinstance(part, list):
        return tuple(from_json(item) for item in part)
    return float(part) if part in ("inf", "-inf") else part


def read_results(run: Path) -> Results:
    path = run / "values.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} has recorded no results: {path} does not exist")
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    return results


def source_of(entry: Entry) -> Source | None:
    """The source that an entry names, or None where it is the run's own."""
    if "source" not in entry:
        return None
    return Source(**{**entry["source"], "commits": tuple(entry["source"]["commits"])})


def _store(kind: str, name: str, entry: Entry, source: Source | None) -> None:
    assert _run is not None  # _check_name came first
    run, chapter = _run
    results: Results = {"values": {}, "tables": {}, "figures": {}}
    if (run / "values.json").exists():
        results = read_results(run)
    results[kind][name] = {**entry, "chapter": chapter}
    if source is not None:
        results[kind][name]["source"] = asdict(source)
    write_whole(run / "values.json", json_bytes(results))


def json_bytes(tree: object) -> bytes:
    return (json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
