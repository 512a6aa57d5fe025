"""What both ends of a transfer keep to: what a run holds, what is good, what may replace it.

The far end gets the text of this file through ssh, so it imports the standard library alone.
"""

import contextlib
import hashlib
import json
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
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name


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
    """The lines of metrics.jsonl, first step first, without a last one that is torn."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


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

    A checkpoint that is present and good stays. When the other run is behind, nothing but
    checkpoints is taken from it; when it is not, what was drawn or written about a run is taken
    where it is the younger. Inputs are replaced by a push to a run that has no checkpoint yet;
    otherwise they must agree.

    Raises:
        TransferError: the two are not one run: other inputs, or metrics that part ways.
    """
    ours, theirs = read_history(run_dir), read_history(staged)
    ahead = not ours or (bool(theirs) and theirs[-1]["step"] >= ours[-1]["step"])
    if ahead:
        longer, shorter = theirs, settled(run_dir, ours, sums)
    else:
        longer, shorter = ours, settled(staged, theirs, sums)
    if without_clock(longer[: len(shorter)]) != without_clock(shorter):
        raise TransferError(
            f"{run_dir.name} went on at both ends and their metrics differ: to keep both, pull "
            "into another folder of the same name"
        )
    fixed = not replace_inputs or bool(settled(run_dir, ours, sums))
    for name in INPUTS:
        present, incoming = run_dir / name, staged / name
        if not (fixed and present.exists() and incoming.exists()):
            continue
        if name == "provenance.json":
            if len(json.loads(present.read_text())) >= len(json.loads(incoming.read_text())):
                incoming.unlink()
        elif present.read_bytes() == incoming.read_bytes():
            incoming.unlink()
        else:
            raise TransferError(
                f"the two ends hold a different {name} for {run_dir.name}: to use the one at home "
                "push it under another name, to keep the far one pull into another folder"
            )
    for incoming in [path for path in staged.rglob("*") if path.is_file()]:
        place_in_run = incoming.relative_to(staged)
        first, present = place_in_run.parts[0], run_dir / place_in_run
        if first != "checkpoints" and first not in INPUTS:
            both = first in ABOUT and present.exists()
            younger = both and present.stat().st_mtime_ns >= incoming.stat().st_mtime_ns
            if younger or not ahead:
                incoming.unlink()
    ours_by_step = steps_of(run_dir)
    for step, incoming in steps_of(staged).items():
        if step in ours_by_step:
            ours_is_good = is_good(ours_by_step[step], sums)
            shutil.rmtree(incoming if ours_is_good else ours_by_step[step])


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
