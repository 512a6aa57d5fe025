"""A push is taken in, and what a pull will fetch is set aside."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from strata.transfer.far.folder import locked, refuse_if_running, switch
from strata.transfer.rules import (
    INPUTS,
    RECORD,
    RESULT_FOLDERS,
    RESULTS,
    TransferError,
    choose,
    differing,
    keep_only,
    run_files,
    sum_of,
)


def begin(folder: Path, name: str, key: str) -> dict[str, Any]:
    """Ready a staging folder for a push of run `name`; it is kept between attempts."""
    if shutil.which("rsync") is None:
        raise TransferError("rsync is missing there: install it (Debian: apt-get install rsync)")
    if (folder / "code").exists() and not (folder / "code").is_symlink():
        raise TransferError(f"{folder}/code is there and no push made it: name another folder")
    with locked(folder):
        refuse_if_running(folder / "runs" / name)
        for part in ("code", "run", "cache"):
            (folder / ".strata" / f"push-{key}" / part).mkdir(parents=True, exist_ok=True)
    return {"folder": str(folder)}


def finish(folder: Path, name: str, key: str, manifest: dict[str, str]) -> dict[str, Any]:
    """Verify what was staged and switch to it; the names to send again, if any were damaged."""
    staged = folder / ".strata" / f"push-{key}"
    with locked(folder):
        refuse_if_running(folder / "runs" / name)
        bad = differing(staged, manifest)
        for damaged in bad:
            (staged / damaged).unlink(missing_ok=True)
        if not bad:
            keep_only(staged, manifest)
            choose(staged / "run", folder / "runs" / name, replace_inputs=True)
            code = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}"
            marker = staged / "marker"
            marker.write_text(json.dumps({"run": name, "code": code}))
            marker.replace(staged / "VERIFIED")  # from here on the push is made, come what may
            switch(folder, staged)
    return {"bad": bad}


def offer(folder: Path, name: str, key: str) -> dict[str, Any]:
    """Set aside what a pull will fetch, as it is at this moment, with its sums."""
    run_dir, aside = folder / "runs" / name, folder / ".strata" / f"pull-{key}"
    if not run_dir.exists():
        raise TransferError(f"{name} is not there: push it first")
    with locked(folder):
        for attempt in (1, 2, 3):
            try:
                shutil.rmtree(aside, ignore_errors=True)
                set_aside(run_dir, aside)
                break
            except FileNotFoundError:  # training has just pruned a checkpoint
                if attempt == 3:
                    raise
        names = [path.relative_to(aside) for path in aside.rglob("*") if path.is_file()]
        return {"source": str(aside), "manifest": {str(n): sum_of(aside / n) for n in names}}


def set_aside(run_dir: Path, aside: Path) -> None:
    """Copy what home may want of a run; checkpoints, which never change, by a second name."""
    aside.mkdir(parents=True)
    for found in run_files(run_dir, INPUTS + RECORD + RESULTS, RESULT_FOLDERS):
        copy = aside / found
        copy.parent.mkdir(parents=True, exist_ok=True)
        if found.startswith("checkpoints/"):
            with contextlib.suppress(OSError):  # the file system may know no second names
                os.link(run_dir / found, copy)
        if not copy.exists():
            shutil.copy2(run_dir / found, copy)
    if (aside / "metrics.jsonl").exists():  # its last line may be half written
        lines = (aside / "metrics.jsonl").read_bytes()
        (aside / "metrics.jsonl").write_bytes(lines[: lines.rfind(b"\n") + 1])


def release(folder: Path, key: str) -> dict[str, Any]:
    """Drop what `offer` set aside."""
    shutil.rmtree(folder / ".strata" / f"pull-{key}", ignore_errors=True)
    return {}
