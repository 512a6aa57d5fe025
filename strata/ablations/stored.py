"""The runs of a suite in one small file: what stands in the repository when the folders do not.

    store_runs("runs/micro/ablations", "paper/runs/micro.jsonl")
    runs = load_stored("paper/runs/micro.jsonl")       # equal to load_suite("runs/micro/ablations")

A line a run, by name and seed, after a first line that says what all of them share:

    {"format": "strata-runs-1", "base": {…a configuration…}, "runs": 41, "choices": […],
     "left_out": {…}}
    {"variant": "gelu", "seed": 0, "changes": {"model.activation": "gelu"}, "provenance": {…},
     "record": {…}, "memory_bytes": …, "tokens": […], "seconds": […], "bits_per_byte": […],
     "digest": "0123456789abcdef"}

`changes` is what the run's configuration has otherwise than the first line's, `record` the run's
own summary, the three lists its validations, `digest` the hash of the line and the configuration
that it changes (files written before there was one lack it). Trials of tunings are runs like any
other; what was chosen from which trials stands under `choices`, as the suites' `choices.json` have
it. Runs that are not finished or diverged are named under `left_out`, so that what was tried is not
forgotten.

Equal runs make equal bytes, wherever their folders lie: nothing is written of a place. Where a
configuration names one, as a corpus on this machine, it is given the name that `places` has for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from strata.ablations.multipliers import LearningCurve
from strata.ablations.summary import RunSummary, load_suite
from strata.config import Config
from strata.storage import write_whole
from strata.training import read_metrics

FORMAT = "strata-runs-1"
# A path from the root of a file system, and not the slashes of https://host/path or tokens/s.
_ABSOLUTE = re.compile(r"file:///|(?<![\w.*?/~\\\]}-])/(?=\w)|\b[A-Za-z]:[\\/](?![\\/])|~[\\/]")


def store_runs(
    folders: str | Path | Sequence[str | Path],
    path: str | Path,
    *,
    places: Mapping[str, str] | None = None,
) -> Path:
    """Write every finished run in one or more suites' folders to one file; returns its path.

    Args:
        folders: of suites, as `load_suite` takes them.
        path: of the file, replaced whole.
        places: folders of this machine and the name each is to have in the file, for example
            {"/home/me/texts": "texts"}.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there is no run, two runs have one name, or a text that would be written
            holds an absolute path. Nothing is written then.
    """
    folders = [folders] if isinstance(folders, str | Path) else list(folders)
    runs = [run for folder in folders for run in load_suite(folder)]
    runs.sort(key=lambda run: (run.variant, run.seed))
    for one, other in pairwise(runs):
        if one.name == other.name:
            raise ValueError(f"{one.folder} and {other.folder} are both {one.name}: store one")
    if not runs:
        raise ValueError(f"no finished run in {', '.join(map(str, folders))}: nothing to store")
    base = runs[0].config
    lines: list[dict[str, Any]] = [
        {
            "format": FORMAT,
            "base": base.to_dict(),
            "choices": [entry for folder in folders for entry in _choices(Path(folder))],
            "left_out": _left_out(folders, runs),
            "runs": len(runs),
        },
        *(run_line(run, base) for run in runs),
    ]
    for number, line in enumerate(lines):
        where = f"{line['variant']}-seed{line['seed']}" if number else "the base"
        lines[number] = without_places(line, places or {}, where)
    for line in lines[1:]:
        line["digest"] = _digest(line, lines[0]["base"])
    text = "".join(json.dumps(line, sort_keys=True, allow_nan=False) + "\n" for line in lines)
    return write_whole(Path(path), text)


def load_stored(path: str | Path) -> list[RunSummary]:
    """The runs of a file that `store_runs` wrote, equal to those of the folders it was made of.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and line, where it is not as it was written: a run is missing,
            stands there twice, or holds something else than its digest or its provenance says.
    """
    first, *rest = _read(Path(path))
    base = Config.from_dict(first["base"])
    runs: dict[str, RunSummary] = {}
    for number, line in enumerate(rest, start=2):
        try:
            _check(line, first["base"])
            run = _run_of(line, base)
            if run.name in runs:
                raise ValueError(f"{run.name} stands in the file twice")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: expected a run ({error})") from error
        runs[run.name] = run
    return list(runs.values())


def stored_left_out(path: str | Path) -> dict[str, str]:
    """Runs of the stored suites that are no result, by name, and how far each came.

    Raises: as `load_stored` does.
    """
    return dict(_read(Path(path))[0]["left_out"])


def stored_choices(path: str | Path) -> list[dict[str, Any]]:
    """What the tunings of the stored suites chose, from which trials.

    Raises: as `load_stored` does.
    """
    return list(_read(Path(path))[0]["choices"])


def run_line(run: RunSummary, base: Config) -> dict[str, Any]:
    """A run as the file holds it, its configuration as a difference from `base`."""
    return {
        "variant": run.variant,
        "seed": run.seed,
        "changes": {name: there for name, (_, there) in base.differences(run.config).items()},
        "provenance": dict(run.provenance),
        "record": dict(run.record),
        "memory_bytes": run.memory_bytes,
        "tokens": run.curve.tokens.tolist(),
        "seconds": run.curve.seconds.tolist(),
        "bits_per_byte": run.curve.bits_per_byte.tolist(),
    }


def _digest(line: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """16 hexadecimal digits over all that a line says of a run, its own digest excepted."""
    held = {key: value for key, value in line.items() if key != "digest"}
    return hashlib.sha256(json.dumps([base, held], sort_keys=True).encode()).hexdigest()[:16]


def _check(line: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Raise ValueError where a line contradicts itself.

    The configuration is not hashed anew: it may name a corpus otherwise than the run did, and lack
    fields that were added since.
    """
    found = _digest(line, base)
    if line.get("digest", found) != found:
        raise ValueError(f"its digest is {line['digest']}, that of what it holds {found}")
    made_of, begun_as = (line[part].get("config_hash") for part in ("record", "provenance"))
    if made_of and begun_as and made_of != begun_as:
        raise ValueError(f"its record is of configuration {made_of}, its provenance of {begun_as}")


def _run_of(line: Mapping[str, Any], base: Config) -> RunSummary:
    tokens, seconds, losses = (
        np.array(line[name], dtype=np.float64) for name in ("tokens", "seconds", "bits_per_byte")
    )
    return RunSummary(
        variant=line["variant"],
        seed=line["seed"],
        config=base.override(line["changes"]),
        provenance=line["provenance"],
        record=line["record"],
        memory_bytes=line["memory_bytes"],
        curve=LearningCurve(
            tokens * float(line["record"]["flops_per_token"]), tokens, seconds, losses
        ),
    )


def _read(path: Path) -> list[dict[str, Any]]:
    """All lines of a file of stored runs."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of stored runs")
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not lines or not isinstance(lines[0], dict) or lines[0].get("format") != FORMAT:
        raise ValueError(f'{path}, line 1: expected a file of stored runs, "format": "{FORMAT}"')
    if lines[0]["runs"] != len(lines) - 1:
        raise ValueError(
            f"{path}: expected {lines[0]['runs']} runs after the first line, found {len(lines) - 1}"
        )
    return lines


def _choices(folder: Path) -> list[dict[str, Any]]:
    path = folder / "choices.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _left_out(folders: Iterable[str | Path], runs: Iterable[RunSummary]) -> dict[str, str]:
    """Folders of runs that are not among `runs`, by name, and how far each came."""
    there = {run.name for run in runs}
    found = {}
    for config in (path for folder in folders for path in Path(folder).glob("*-seed*/config.toml")):
        folder, name = config.parent, config.parent.name
        if name not in there:
            lines = read_metrics(folder)
            stopped = "stopped" if (folder / "stopped.json").is_file() else "not finished"
            ended = "diverged" if (folder / "summary.json").is_file() else stopped
            steps = Config.load(config).training.max_steps
            found[name] = f"{ended}: {lines[-1]['step'] if lines else 0} of {steps} steps"
    return found


def without_places(value: Any, places: Mapping[str, str], where: str) -> Any:
    """A value of JSON with folders of this machine by their names, as `store_runs` takes them.

    Raises:
        ValueError: if another absolute path is in it, saying `where`.
    """
    if isinstance(value, Mapping):
        return {key: without_places(part, places, f"{where}, {key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(part, places, where) for part in value]
    if isinstance(value, str):
        for folder in sorted(places, key=len, reverse=True):  # the innermost first
            whole = re.escape(folder.rstrip("/")) + r"(?![\w.-])"
            value = re.sub(whole, places[folder].replace("\\", r"\\"), value)
        if _ABSOLUTE.search(value):
            raise ValueError(
                f"{where}: {value!r} is a path of this machine, which is not stored; say "
                "in `places` what it is to be called"
            )
    return value
