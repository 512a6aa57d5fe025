"""From the run to the paper: the article's numbers, tables and figures, each with its provenance.

`publish` writes into the repository, `draft` into the run. Both first compare what the article asks
for with what the run recorded, and stop with a list of what is missing.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from strata.config import Config
from strata.paper import latex
from strata.paper.latex import build_pdf
from strata.paper.results import Entry, Results, from_json, json_bytes, read_results
from strata.storage import write_whole


def publish(run_dir: str | Path, root: str | Path) -> list[Path]:
    """Publish a run: its figures into `root/figures/`, numbers and tables into `root/paper/`.

    What an earlier run published and this one does not have is removed, so that the paper never
    mixes two runs. Returns the files written.

    Raises ValueError, before anything is written, when `root/paper/strata.tex` uses something
    that the run did not record, and names all of it.
    """
    run, root = Path(run_dir), Path(root)
    results = read_results(run)
    _check_complete(root / "paper" / "strata.tex", run, results)
    stamp = _provenance(run)
    published: dict[str, object] = {}
    written = []
    for name, entry in results["figures"].items():
        for suffix in ("pdf", "png"):
            content = (run / "figures" / f"{name}.{suffix}").read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            published[f"{name}.{suffix}"] = {**entry, **asdict(stamp), "sha256": digest}
            written.append(write_whole(root / "figures" / f"{name}.{suffix}", content))
    record_path = root / "figures" / "provenance.json"
    if record_path.exists():
        for stale in json.loads(record_path.read_text()).keys() - published.keys():
            (root / "figures" / stale).unlink(missing_ok=True)
    written.append(write_whole(record_path, json_bytes(published)))
    return written + _write_numbers_and_tables(results, stamp, root / "paper")


def draft(run_dir: str | Path, source: str | Path | None = None) -> Path | None:
    """Build the paper of a run inside the run, as `run_dir/paper/strata.pdf`.

    `source` is the folder that holds `strata.tex`, its style and its references; by default
    `paper/` of the repository that this package is installed from. No tracked file changes.
    Returns the PDF's path, or None where LaTeX is not installed. Raises as `publish` and
    `build_pdf` do.
    """
    run = Path(run_dir)
    source = Path(source) if source else Path(__file__).resolve().parents[2] / "paper"
    results = read_results(run)
    _check_complete(source / "strata.tex", run, results)
    folder = run / "paper"
    _write_numbers_and_tables(results, _provenance(run), folder)
    for path in [source / "strata.tex", *source.glob("*.sty"), *source.glob("*.bib")]:
        write_whole(folder / path.name, path.read_bytes())
    built = build_pdf(folder, folder / "build")
    return write_whole(folder / "strata.pdf", built.read_bytes()) if built else None


# --- What the text asks for, and what the run has ------------------------------------------------

_DIGIT_WORDS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_RUN_MACROS = ("runName", "runCommit", "runChanges", "runConfiguration", "runDate")


def _macro(name: str) -> str:
    """A record's macro, without its backslash, letters only: `gpt3_loss` → `runGptThreeLoss`."""
    spelled = re.sub(r"\d", lambda digit: f"_{_DIGIT_WORDS[int(digit[0])]}", name)
    return "run" + "".join(part[:1].upper() + part[1:] for part in spelled.split("_"))


def _check_complete(tex_path: Path, run: Path, results: Results) -> None:
    """Stop when the article uses a value, table or figure that the run did not record."""
    if not tex_path.is_file():
        raise FileNotFoundError(f"the article's source {tex_path} does not exist")
    tex = re.sub(r"(?<!\\)%.*", "", tex_path.read_text(encoding="utf-8"))
    wanted = {
        "values": sorted(set(re.findall(r"\\(run[A-Z][A-Za-z]*)", tex))),
        "tables": sorted(set(re.findall(r"\\input\{tables/(\w+)(?:\.tex)?\}", tex))),
        "figures": sorted(
            set(re.findall(r"\\includegraphics(?:\[[^]]*\])?\{(\w+)(?:\.pdf)?\}", tex))
        ),
    }
    have: dict[str, set[str]] = {
        "values": set(_RUN_MACROS) | set(_macros(results["values"])),
        "tables": set(results["tables"]),
        "figures": {
            name for name in results["figures"] if (run / "figures" / f"{name}.pdf").is_file()
        },
    }
    lacking = []
    for kind, names in wanted.items():
        absent = [name for name in names if name not in have[kind]]
        if kind == "values":
            absent = [f"{_guess_name(name)} (\\{name})" for name in absent]
        if absent:
            lacking.append(f"  {kind}: {', '.join(absent)}")
    if lacking:
        raise ValueError(
            f"{tex_path.name} uses what the run {run} did not record:\n" + "\n".join(lacking)
        )


def _guess_name(macro: str) -> str:
    """The record name a macro most likely stands for: `runGptThreeLoss` → `gpt3_loss`."""
    words = re.findall(r"[A-Z][a-z]*", macro)
    name = "".join(
        str(_DIGIT_WORDS.index(word)) if word in _DIGIT_WORDS else f"_{word.lower()}"
        for word in words
    ).lstrip("_")
    if name.endswith("_interval"):
        return f"{name.removesuffix('_interval')} as (value, low, high)"
    return name


def _macros(values: dict[str, Entry]) -> dict[str, str]:
    """Every macro of the recorded values and its LaTeX text; ValueError for two of one name."""
    macros: dict[str, str] = {}
    for name, entry in values.items():
        made = {_macro(name): entry["text"]}
        if entry["low"] is not None:
            middle, low, high = (from_json(entry[key]) for key in ("value", "low", "high"))
            interval = latex.interval_text(middle, low, high, entry["unit"], entry["digits"])
            made[_macro(name) + "Interval"] = interval
        for macro, text in made.items():
            if macro in macros or macro in _RUN_MACROS:
                raise ValueError(f"value {name!r} needs the macro \\{macro}, which is taken")
            macros[macro] = latex.block(text) if "\n" in text else latex.escape(text)
    return macros


@dataclass(frozen=True)
class Provenance:
    """Where a run's results come from."""

    run: str  # name of its folder
    commit: str
    dirty: bool  # whether files differed from the commit
    configuration: str  # hash of the configuration
    date: str  # the day the run began: a run published twice gives the same files

    def __str__(self) -> str:
        changed = " with uncommitted changes" if self.dirty else ""
        return (
            f"run {self.run}, commit {self.commit}{changed}, "
            f"configuration {self.configuration}, {self.date}"
        )


def _provenance(run: Path) -> Provenance:
    """A run's provenance, from its `provenance.json` and `config.toml`; "unknown" without them."""
    path, config = run / "provenance.json", run / "config.toml"
    stated = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return Provenance(
        run=run.resolve().name,
        commit=stated.get("commit") or "unknown",
        dirty=bool(stated.get("dirty")),
        configuration=Config.load(config).hash() if config.exists() else "unknown",
        date=(stated.get("started") or "unknown")[:10],
    )


def _write_numbers_and_tables(results: Results, stamp: Provenance, folder: Path) -> list[Path]:
    """Write `numbers.tex` and `tables/*.tex` into `folder`, and remove tables of earlier runs."""
    head = f"% Generated by `strata paper`; edits are lost.\n% {stamp}\n"
    macros = {
        "runName": latex.escape(stamp.run),
        "runCommit": latex.escape(stamp.commit[:12]),
        "runChanges": "with uncommitted changes" if stamp.dirty else "without uncommitted changes",
        "runConfiguration": latex.escape(stamp.configuration),
        "runDate": latex.escape(stamp.date),
        **_macros(results["values"]),
    }
    lines = [f"\\newcommand{{\\{macro}}}{{{text}}}\n" for macro, text in sorted(macros.items())]
    tables = {
        f"{name}.tex": latex.table(
            entry["header"],
            [[from_json(cell) for cell in row] for row in entry["rows"]],
            entry["caption"],
            entry["digits"],
        )
        for name, entry in results["tables"].items()
    }
    for old in (folder / "tables").glob("*.tex"):
        if old.name not in tables:
            old.unlink()
    written = [write_whole(folder / "numbers.tex", (head + "".join(lines)).encode())]
    for file, text in tables.items():
        written.append(write_whole(folder / "tables" / file, (head + text).encode()))
    return written
