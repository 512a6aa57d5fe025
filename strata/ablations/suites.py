"""Suites as files: what is compared, read from TOML.

    name = "mine"                         # letters for a folder's name
    preset = "nano"                       # what the base is, but for
    base = { training.max_steps = 300 }   # these fields
    seeds = [0, 1, 2]                     # every variant is trained with each
    leave_one_out = true                  # the base without each of its ingredients …
    add_one_in = ["gpt3+rotary"]          # … and GPT-3's recipe with each, or with these

    [[variants]]                          # the first is what all others are compared with
    name = "strata"

    [[variants]]
    name = "gpt3"
    from = "gpt3"                         # it starts from GPT-3's recipe; else from the base
    changes = { training.gradient_clip = 0.5 }
    same_compute_as = "strata"            # its number of updates follows
    description = "GPT-3's recipe, clipped sooner."

    [[tunings]]                           # before the runs: values of one field …
    variant = "gpt3"
    field = "optimizer.learning_rate"
    values = [1e-3, 3e-3]
    seed = 1000                           # not among the seeds
    steps = 100                           # shorter than the suite's runs, if given
    also = ["gpt3+*"]                     # who else takes what was chosen

    [[tunings]]                           # … or a search, as `strata tune` makes it
    variant = "strata"
    search = { optimizer.learning_rate = "log:1e-3:1e-1" }
    trials = 16

    [scaling]                             # sizes × computes in FLOP, or × shares of the steps
    recipes = ["strata", "gpt3"]          # the first variant, if not given
    sizes = [{ n_layers = 2, width = 64, n_heads = 2 }, { n_layers = 4, width = 128, n_heads = 4 }]
    flops = [1e12, 1e13]
    min_steps = 50                        # what is shorter or longer is left out, and said
    max_steps = 5000

Those that come with Strata lie in `strata/ablations/suites/` and are read by their names. What the
ingredients are called stands in `strata/ablations/ingredients.py`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strata.ablations.grid import Grid, at_length, run_flops, steps_for
from strata.ablations.ingredients import add_one_in, leave_one_out
from strata.ablations.variants import Changes, Search, Suite, Tuning, Variant
from strata.config import Config
from strata.fields import nearest
from strata.presets import GPT3_RECIPE

Table = Mapping[str, Any]

_SHIPPED = Path(__file__).parent / "suites"


def shipped_suites() -> tuple[str, ...]:
    """The names of the suites that come with Strata."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.toml")))


def read_suite(name_or_path: str | Path, overrides: Changes | None = None) -> Suite:
    """The suite of a name or a TOML file, its base changed by `overrides` after its own changes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a name that there is not, and, with the file, the table and the key, for
            whatever the file says that is not understood.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        known = shipped_suites()
        if str(name_or_path) not in known:
            raise ValueError(
                f"no suite {str(name_or_path)!r}: expected one of {', '.join(known)}, or the path "
                f"of a .toml file{nearest(str(name_or_path), known)}"
            )
        path = _SHIPPED / f"{name_or_path}.toml"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a suite as TOML")
    with _said_of(f"{path}"):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    return _suite(table, path, overrides or {})


# ---- What a file may say -------------------------------------------------------------------------


def _list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(kind, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "text": _is_text,
    "a word for a folder's name": lambda value: (
        _is_text(value) and bool(re.fullmatch(r"\w[\w.-]*", value))
    ),
    "a whole number": _is_count,
    "true, false or a list of names": lambda v: isinstance(v, bool) or _list_of(_is_text)(v),
    "a list of texts": _list_of(_is_text),
    "a list of whole numbers": _list_of(_is_count),
    "a list of numbers": _list_of(_is_number),
    "a list of positive numbers": _list_of(lambda value: _is_number(value) and value > 0),
    "a table": _is_table,
    "tables, each under [[…]]": _list_of(_is_table),
    "a list of tables": _list_of(_is_table),
    '"strata" or "gpt3"': lambda value: value in ("strata", "gpt3"),
}

_SUITE = {
    "name": "a word for a folder's name",
    "preset": "text",
    "seeds": "a list of whole numbers",
    "base": "a table",
    "variants": "tables, each under [[…]]",
    "leave_one_out": "true, false or a list of names",
    "add_one_in": "true, false or a list of names",
    "tunings": "tables, each under [[…]]",
    "scaling": "a table",
}
_VARIANT = {
    "name": "text",
    "from": '"strata" or "gpt3"',
    "changes": "a table",
    "same_compute_as": "text",
    "description": "text",
}
_TUNING = {
    "variant": "text",
    "seed": "a whole number",
    "steps": "a whole number",
    "also": "a list of texts",
}
_VALUES = {"field": "text", "values": "a list of numbers"}
_SEARCH = {"search": "a table", "trials": "a whole number"}
_SCALING = {
    "recipes": "a list of texts",
    "sizes": "a list of tables",
    "shares": "a list of positive numbers",
    "flops": "a list of positive numbers",
    "min_steps": "a whole number",
    "max_steps": "a whole number",
}


def _checked(
    table: Table, where: str, kinds: Mapping[str, str], required: tuple[str, ...]
) -> Table:
    """The table, if all its keys are known, its values of their kinds, and none is missing."""
    for key, value in table.items():
        if key not in kinds:
            raise ValueError(
                f"{where}: unknown key {key!r}; expected {', '.join(kinds)}"
                f"{nearest(key, list(kinds))}"
            )
        if not _KINDS[kinds[key]](value):
            raise ValueError(f"{where}: {key} = {value!r}: expected {kinds[key]}")
    for key in required:
        if key not in table:
            raise ValueError(f"{where}: {key} is missing: expected {kinds[key]}")
    return table


@contextmanager
def _said_of(where: str) -> Iterator[None]:
    """Put the place in the file before what is wrong there."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _dotted(table: Table, prefix: str = "") -> dict[str, Any]:
    """Fields by dotted name, which TOML reads as a table in a table unless it is in quotes."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= _dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


# ---- From tables to a suite ----------------------------------------------------------------------


def _suite(table: Table, path: Path, overrides: Changes) -> Suite:
    where = str(path)
    _checked(table, where, _SUITE, ("name", "preset", "seeds", "variants"))
    with _said_of(where):
        base = Config.preset(table["preset"])
    with _said_of(f"{where}, [base]"):
        base = base.override(_dotted(table.get("base", {})))
    base = base.override(overrides)
    variants: list[Variant] = []
    for number, entry in enumerate(table["variants"], 1):
        place = f"{where}, [[variants]] {number}"
        _checked(entry, place, _VARIANT, ("name",))
        with _said_of(place):
            variants.append(_variant(entry, base, variants))
    for key, make in (("leave_one_out", leave_one_out), ("add_one_in", add_one_in)):
        if chosen := table.get(key, False):
            with _said_of(f"{where}, {key}"):
                variants += make(base, () if chosen is True else chosen)
    tunings = [
        _tuning(entry, f"{where}, [[tunings]] {number}")
        for number, entry in enumerate(table.get("tunings", ()), 1)
    ]
    scaling, left_out = _scaling(table.get("scaling"), f"{where}, [scaling]", base, variants)
    with _said_of(where):
        return Suite(
            name=table["name"],
            base=base,
            variants=tuple(variants),
            seeds=tuple(table["seeds"]),
            tunings=tuple(tunings),
            scaling=scaling,
            left_out=left_out,
        )


def _variant(entry: Table, base: Config, before: list[Variant]) -> Variant:
    recipe = GPT3_RECIPE if entry.get("from") == "gpt3" else {}
    changes = {**recipe, **_dotted(entry.get("changes", {}))}
    if other := entry.get("same_compute_as"):
        known = {variant.name: variant for variant in before}
        if other not in known:
            raise ValueError(
                f"same_compute_as = {other!r}: expected a variant that stands before it"
                + (f", of {', '.join(known)}" if known else "")
            )
        spent = run_flops(base.override(known[other].changes))
        config = base.override(changes)
        changes |= at_length(config, max(1, steps_for(config, spent)))
    return Variant(entry["name"], changes, entry.get("description", ""))


def _tuning(entry: Table, where: str) -> Tuning | Search:
    searches = "search" in entry or "trials" in entry
    more = _SEARCH if searches else _VALUES
    _checked(entry, where, _TUNING | more, ("variant", *more))
    common: dict[str, Any] = {key: entry[key] for key in ("seed", "steps") if key in entry}
    common["also"] = tuple(entry.get("also", ()))
    if not searches:
        return Tuning(entry["variant"], entry["field"], tuple(entry["values"]), **common)
    space = _dotted(entry["search"])
    for field, text in space.items():
        if not isinstance(text, str):
            raise ValueError(f'{where}: search.{field} = {text!r}: expected text, as "0.01:0.1"')
    return Search(entry["variant"], space, entry["trials"], **common)


def _scaling(
    table: Table | None, where: str, base: Config, variants: list[Variant]
) -> tuple[tuple[Variant, ...], tuple[str, ...]]:
    if table is None:
        return (), ()
    _checked(table, where, _SCALING, ("sizes",))
    if ("shares" in table) == ("flops" in table):
        raise ValueError(f"{where}: expected either shares of the steps or flops, to say how long")
    known = {variant.name: variant for variant in variants}
    recipes = table.get("recipes", [variants[0].name])
    for name in recipes:
        if name not in known:
            raise ValueError(
                f"{where}: recipes names {name!r}: expected variants, of {', '.join(known)}"
            )
    lengths = {key: table[key] for key in ("shares", "flops", "min_steps", "max_steps")
               if key in table}  # fmt: skip
    with _said_of(where):
        return Grid(table["sizes"], **lengths).runs(base, [known[name] for name in recipes])
