"""What both ends of a transfer keep to: what a run holds, what is good, what may replace it.

The far end gets the text of this file through ssh, so it imports the standard library alone.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

INPUTS = ("config.toml", "tokenizer.json", "provenance.json")
# What a run's past consists of; a push carries it so that the far end continues the same record.
RECORD = ("metrics.jsonl", "samples.txt")
RESULTS = ("model.safetensors", "summary.json", "values.json", "job.log")
RESULT_FOLDERS = ("tensorboard", "figures", "notebooks")


class TransferError(RuntimeError):
    """A transfer that could not be done: one line saying what was wrong and what to do."""


def sum_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(staged: Path, manifest: dict[str, str]) -> list[str]:
    """Names of the manifest that are missing under `staged`, are links, or have another sum.

    Raises:
        TransferError: a name that leads out of the folder.
    """
    bad = []
    for name, expected in manifest.items():
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or not parts or "\0" in name:
            raise TransferError(f"the far end names {name!r}, outside the run: nothing was taken")
        path = staged.joinpath(*parts)
        linked = any(place.is_symlink() for place in (path, *path.parents[: len(parts) - 1]))
        if linked or not path.is_file() or sum_of(path) != expected:
            bad.append(name)
    return bad


def keep_only(staged: Path, names: Iterable[str]) -> None:
    """Remove whatever else lies under `staged`: leftovers of an earlier transfer."""
    wanted = {staged.joinpath(*PurePosixPath(name).parts) for name in names}
    for path in sorted(staged.rglob("*"), reverse=True):  # a folder's content before the folder
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # not empty: it holds something wanted
                path.rmdir()
        elif path not in wanted:
            path.unlink()


def is_good(checkpoint: Path) -> bool:
    """Whether a checkpoint folder holds what its own manifest of SHA-256 sums says."""
    try:
        sums = json.loads((checkpoint / "manifest.json").read_text())["manifest"]["files"]
        return bool(sums) and not differing(checkpoint, sums)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TransferError):
        return False


def newest_good_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint of the latest step that is whole, or None."""
    folders = (run_dir / "checkpoints").glob("step-*")
    steps = sorted(path for path in folders if re.fullmatch(r"step-\d+", path.name))
    return next((path for path in reversed(steps) if is_good(path)), None)


def run_files(run_dir: Path, names: Iterable[str], folders: Iterable[str] = ()) -> list[str]:
    """Which of these a run holds, with its newest good checkpoint; names relative to the run."""
    checkpoint = newest_good_checkpoint(run_dir)
    places = [run_dir / name for name in folders] + ([checkpoint] if checkpoint else [])
    found = [run_dir / name for name in names]
    found += [path for place in places for path in place.rglob("*")]
    return [str(path.relative_to(run_dir)) for path in found if path.is_file()]


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, first step first, without a last one that is torn."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def settled(run_dir: Path, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The part of a history that a checkpoint or the final weights stand for.

    What comes after is provisional: resuming would train those steps again.
    """
    if (run_dir / "summary.json").exists():
        return history
    checkpoint = newest_good_checkpoint(run_dir)
    last = int(checkpoint.name.removeprefix("step-")) if checkpoint else -1
    return [line for line in history if line["step"] <= last]


def without_clock(history: list[dict[str, Any]]) -> str:
    """A history as text to compare (NaN equals NaN), without what depends on the clock."""
    return json.dumps([{**line, "timing": None} for line in history], sort_keys=True)


def choose(staged: Path, run_dir: Path, *, replace_inputs: bool) -> None:
    """Delete from `staged`, a verified copy of the other end's run, what must not enter `run_dir`.

    A checkpoint that is present and good stays. When the other run is behind, nothing but
    checkpoints is taken from it. Inputs are replaced by a push to a run that has no checkpoint yet;
    otherwise they must agree.

    Raises:
        TransferError: the two are not one run: other inputs, or metrics that part ways.
    """
    ours, theirs = read_history(run_dir), read_history(staged)
    ahead = not ours or (bool(theirs) and theirs[-1]["step"] >= ours[-1]["step"])
    if ahead:
        longer, shorter = theirs, settled(run_dir, ours)
    else:
        longer, shorter = ours, settled(staged, theirs)
    if without_clock(longer[: len(shorter)]) != without_clock(shorter):
        raise TransferError(
            f"{run_dir.name} went on at both ends and their metrics differ: to keep both, pull "
            "into another folder of the same name"
        )
    fixed = not replace_inputs or bool(settled(run_dir, ours))
    for name in INPUTS:
        present, incoming = run_dir / name, staged / name
        if not (fixed and present.exists() and incoming.exists()):
            continue
        if name != "provenance.json" and present.read_bytes() != incoming.read_bytes():
            raise TransferError(
                f"the two ends hold a different {name} for {run_dir.name}: to use the one at home "
                "push it under another name, to keep the far one pull into another folder"
            )
        incoming.unlink()
    if not ahead:
        for path in [path for path in staged.rglob("*") if path.is_file()]:
            first = path.relative_to(staged).parts[0]
            if first != "checkpoints" and first not in INPUTS:
                path.unlink()
    for incoming in (staged / "checkpoints").glob("step-*"):
        present = run_dir / "checkpoints" / incoming.name
        if is_good(present):
            shutil.rmtree(incoming)
        elif present.exists():
            shutil.rmtree(present)


def place(source: Path, destination: Path) -> None:
    """Rename `source` into place: whole folders where there is none, else file by file.

    The record goes before the checkpoints, and they before the results, so that being cut off in
    between leaves a run from which the same transfer can be made again.
    """
    if source.is_dir() and destination.is_dir():
        late = {"checkpoints": 1, "model.safetensors": 2, "summary.json": 3}
        for child in sorted(source.iterdir(), key=lambda path: (late.get(path.name, 0), path.name)):
            place(child, destination / child.name)
    else:
        destination.parent.mkdir(parents=True, exist_ok=True)
        source.replace(destination)
