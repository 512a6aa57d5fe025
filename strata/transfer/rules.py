"""What both ends of a transfer keep to: what a run holds, what is good, what may replace it.

The far end gets the text of this file through ssh, so it imports the standard library alone.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

INPUTS = ("config.toml", "tokenizer.json", "provenance.json")
# What a run's past consists of; a push carries it so that the far end continues the same record.
RECORD = ("metrics.jsonl", "samples.txt")
WEIGHTS = ("model.safetensors", "summary.json")
# What was drawn of a run and written about it, at either end: the younger stays.
ABOUT = (
    "values.json", "evaluation.json", "overlap.json", "job.log", "tensorboard", "figures",
    "notebooks", "evaluation",
)  # fmt: skip


class TransferError(RuntimeError):
    """A transfer that could not be done: one line saying what was wrong and what to do."""


class Sums:
    """SHA-256 of files, in hexadecimal; what has been read once in a transfer is not read again."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def of(self, path: Path) -> str:
        """The sum of one file. Raises OSError if it cannot be read."""
        key = self._key(path)
        if key not in self._known:
            with path.open("rb") as file:
                self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[key]

    def know(self, path: Path, sum_of_it: str) -> None:
        """Take note of the sum of a file whose content is known, since a verified one became it."""
        self._known[self._key(path)] = sum_of_it

    def _key(self, path: Path) -> tuple[int, ...]:
        status = path.stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def read(self, paths: Iterable[Path]) -> None:
        """Read files side by side, to know their sums; what cannot be read is passed over."""

        def try_one(path: Path) -> None:
            with contextlib.suppress(OSError):
                self.of(path)

        with ThreadPoolExecutor(max_workers=4) as threads:
            list(threads.map(try_one, paths))


def is_inside(name: str) -> bool:
    """Whether a name, with slashes between its parts, leads to a place in the folder it is of."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return inside and str(path) == name and "\0" not in name


def is_of_run(name: str) -> bool:
    """Whether a name inside a run is of what transfers carry, and not of a lock or the like."""
    first, _, rest = name.partition("/")
    if first == "checkpoints":
        return re.fullmatch(r"step-\d+/.+", rest) is not None
    return first in (*INPUTS, *RECORD, *WEIGHTS, *ABOUT)


def visible(text: str) -> str:
    """A text of the other end's without what would give orders to a terminal."""
    return "".join(c if c.isprintable() or c in "\t\n" else f"\\x{ord(c):02x}" for c in text)


def is_good(checkpoint: Path, sums: Sums) -> bool:
    """Whether a checkpoint folder holds what its own manifest of SHA-256 sums says."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["manifest"]["files"]
        return bool(files) and all(
            is_inside(name)
            and not (checkpoint / name).is_symlink()
            and sums.of(checkpoint / name) == expected
            for name, expected in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def steps_of(run_dir: Path) -> dict[int, Path]:
    """The checkpoint folders of a run by step, last step first."""
    found = {
        int(path.name.removeprefix("step-")): path
        for path in (run_dir / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d+", path.name)
    }
    return dict(sorted(found.items(), reverse=True))


def newest_good_checkpoint(run_dir: Path, sums: Sums) -> Path | None:
    """The checkpoint of the latest step that is whole, or None."""
    return next((path for path in steps_of(run_dir).values() if is_good(path, sums)), None)


def files_of(run_dir: Path, names: Iterable[str], folders: Iterable[Path] = ()) -> list[str]:
    """Which of these a run holds, by name, and all that is in the folders; relative to the run."""
    found = [run_dir / name for name in names]
    found += [path for folder in folders for path in folder.rglob("*")]
    return [str(path.relative_to(run_dir)) for path in found if path.is_file()]


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, first step first, without a last one that is torn.

    Raises:
        TransferError: naming a line that is damaged.
    """
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    history = []
    for number, text in enumerate(lines, start=1):
        try:
            history.append(json.loads(text))
            history[-1]["step"] += 0
        except (ValueError, KeyError, TypeError) as error:
            raise TransferError(
                f"{path}, line {number}, is damaged: expected the numbers of a step; cut the file "
                "before that line, and training goes on from the checkpoint before it"
            ) from error
    return history


def settled(run_dir: Path, history: list[dict[str, Any]], sums: Sums) -> list[dict[str, Any]]:
    """The part of a history that a checkpoint or the final weights stand for.

    What comes after is provisional: resuming would train those steps again.
    """
    if (run_dir / "summary.json").exists():
        return history
    checkpoint = newest_good_checkpoint(run_dir, sums)
    last = int(checkpoint.name.removeprefix("step-")) if checkpoint else -1
    return [line for line in history if line["step"] <= last]


def without_clock(history: list[dict[str, Any]]) -> str:
    """A history as text to compare (NaN equals NaN), without what depends on the clock."""
    return json.dumps([{**line, "timing": None} for line in history], sort_keys=True)


def choose(staged: Path, run_dir: Path, sums: Sums, *, replace_inputs: bool) -> None:
    """Delete from `staged`, a verified copy of the other end's run, what must not enter `run_dir`.

    A checkpoint that is present and good stays, and none enters that is not. When the other run is
    behind, nothing but checkpoints is taken from it; when it is as far, only what is younger; when
    it is ahead, all but what was drawn or written about the run and is older. Inputs are replaced
    by a push to a run that has no checkpoint yet; otherwise they must agree.

    Raises:
        TransferError: the two are not one run: other inputs, or metrics that part ways.
    """
    ours, theirs = read_history(run_dir), read_history(staged)
    ours_settled, theirs_settled = settled(run_dir, ours, sums), settled(staged, theirs, sums)
    ahead = not ours or (bool(theirs) and theirs[-1]["step"] >= ours[-1]["step"])
    longer, shorter = (theirs, ours_settled) if ahead else (ours, theirs_settled)
    if without_clock(longer[: len(shorter)]) != without_clock(shorter):
        raise TransferError(
            f"{run_dir.name} went on at both ends and their metrics differ: to keep both, pull "
            "into another folder of the same name"
        )
    if _replace_inputs(staged, run_dir, replace_inputs and not ours_settled):
        ahead, ours_settled = True, []
    as_far = bool(ours) and len(ours) == len(theirs) and len(ours_settled) >= len(theirs_settled)
    if not (staged / "summary.json").exists():
        (staged / "model.safetensors").unlink(missing_ok=True)  # one is not without the other
    for incoming in [path for path in staged.rglob("*") if path.is_file()]:
        place_in_run = incoming.relative_to(staged)
        first, present = place_in_run.parts[0], run_dir / place_in_run
        if first != "checkpoints" and first not in INPUTS:
            by_age = (first in ABOUT or as_far) and present.exists()
            younger = by_age and present.stat().st_mtime_ns >= incoming.stat().st_mtime_ns
            if younger or not ahead:
                incoming.unlink()
    ours_by_step = steps_of(run_dir)
    for step, incoming in steps_of(staged).items():
        if not is_good(incoming, sums):
            shutil.rmtree(incoming)
        elif step in ours_by_step:
            ours_is_good = is_good(ours_by_step[step], sums)
            shutil.rmtree(incoming if ours_is_good else ours_by_step[step])


def _replace_inputs(staged: Path, run_dir: Path, replace: bool) -> bool:
    """Hold the inputs of both against each other; whether those of `staged` are to replace ours.

    With them goes the record there, which is of other training.

    Raises:
        TransferError: they differ, and must not.
    """
    differing = []
    for name in INPUTS:
        present, incoming = run_dir / name, staged / name
        if not (present.exists() and incoming.exists()):
            continue
        if name == "provenance.json":
            here, there = json.loads(present.read_text()), json.loads(incoming.read_text())
            same = all(here[key] == there[key] for key in ("corpus", "tokenizer"))
            take = same and len(there) > len(here)  # begun elsewhere, and completed by training
        else:
            same, take = present.read_bytes() == incoming.read_bytes(), False
        if not same:
            differing.append(name)
        elif not take:
            incoming.unlink()
    if differing and not replace:
        raise TransferError(
            f"the two ends hold a different {differing[0]} for {run_dir.name}: to use the one at "
            "home push it under another name, to keep the far one pull into another folder"
        )
    for name in RECORD if differing else ():
        (run_dir / name).unlink(missing_ok=True)
    return bool(differing)


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
        if source.is_file():
            with source.open("rb") as file:
                os.fsync(file.fileno())  # it may replace one that is safe on the disk
        try:
            source.replace(destination)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _move_to_disk(source, destination)


def _move_to_disk(source: Path, destination: Path) -> None:
    """As `source.replace(destination)`, where a link leads to another disk."""
    beside = destination.with_name(f".{destination.name}.arriving")
    if source.is_dir():
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(source, beside)
        beside.replace(destination)
        shutil.rmtree(source)
    else:
        shutil.copy2(source, beside)
        beside.replace(destination)
        source.unlink()
