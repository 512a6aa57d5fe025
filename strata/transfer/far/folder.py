"""The target folder: one transfer at a time, whole pushes alone, and who trains in it now."""

import contextlib
import fcntl
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strata.transfer.far.slurm import find_job
from strata.transfer.rules import TransferError, place


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One transfer at a time in a target folder; finishes a push that was cut while switching."""
    (folder / ".strata").mkdir(parents=True, exist_ok=True)
    with (folder / ".strata" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for verified in (folder / ".strata").glob("push-*/VERIFIED"):
            name = read_about(verified).get("run")
            if name is None:
                verified.unlink()  # the disk lost it: that push was not made
                continue
            try:
                with untrained(folder / "runs" / name):
                    switch(folder, verified.parent)
            except TransferError:
                pass  # whoever trains it by hand had better finish first
            except OSError as error:
                raise TransferError(
                    f"a push of {name} was cut there and cannot be finished ({error}): mend that, "
                    f"or remove {verified.parent}"
                ) from error
        yield


@contextlib.contextmanager
def untrained(run_dir: Path) -> Iterator[None]:
    """Keep everybody from training a run for as long as the block lasts.

    Raises:
        TransferError: somebody trains it now.
    """
    refuse_if_running(run_dir)
    made = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "writer.lock").open("a") as lock:  # of strata/training/lock.py
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            refuse_if_running(run_dir)
            raise TransferError(f"{run_dir.name} has just begun to be trained there") from None
        try:
            yield
        finally:
            if made and [path.name for path in run_dir.iterdir()] == ["writer.lock"]:
                shutil.rmtree(run_dir)


def switch(folder: Path, staged: Path) -> None:
    """Rename a verified push into place; when cut off, calling it again does the rest."""
    marker = json.loads((staged / "VERIFIED").read_text())
    code = folder / ".strata" / "code" / marker["code"]
    # first, since a file under its sum would be a second name of one that is written to from now on
    shutil.rmtree(staged / "incoming", ignore_errors=True)
    for part, final in (("cache", "cache"), ("run", f"runs/{marker['run']}"), ("code", code)):
        if (staged / "tree" / part).exists():
            place(staged / "tree" / part, folder / final)
    link = folder / ".strata" / "code.new"
    link.unlink(missing_ok=True)
    link.symlink_to(code.relative_to(folder))
    link.replace(folder / "code")
    (staged / "VERIFIED").unlink()
    shutil.rmtree(staged)
    others = [one for one in (folder / "runs").iterdir() if one.name != marker["run"]]
    jobs = [who_trains(run_dir) for run_dir in others]
    if any(job is not None and "code" not in job for job in jobs):
        return  # by hand, from code that is not known
    in_use = {str(code)} | {job["code"] for job in jobs if job}  # a job keeps what it began with
    for old in code.parent.iterdir():
        if str(old) not in in_use:
            shutil.rmtree(old)


def who_trains(run_dir: Path) -> dict[str, Any] | None:
    """What is known of the job that trains a run now, or of somebody who does by hand."""
    by_hand = run_dir / "writer.lock", run_dir / "writer.json"  # of strata/training/lock.py
    return living_job(run_dir) or read_if_locked(*by_hand)


def living_job(run_dir: Path) -> dict[str, Any] | None:
    """What job.json says of the job that trains a run, or None if it does not live.

    The job holds a lock on the file as long as it lives: a stale file, or another process that got
    the same number, is never taken for it. Of a job in a cluster's queue SLURM is asked.
    """
    about = run_dir / "job.json"
    return read_if_locked(about, about) or find_job(read_about(about))


def read_if_locked(lock: Path, about: Path) -> dict[str, Any] | None:
    """What `about` says of the process that holds `lock`, or None if there is none."""
    with contextlib.suppress(FileNotFoundError), lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return {"pid": None, "host": None} | read_about(about)
    return None


def read_about(path: Path) -> dict[str, Any]:
    """What a small file says; nothing where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def refuse_if_running(run_dir: Path) -> None:
    """Raise TransferError if a job, or somebody by hand, trains the run now."""
    job = who_trains(run_dir)
    if job is None:
        return
    if "id" in job:
        who = f"job {job['id']} of its queue, {job['state']}"
    else:
        who = f"process {job['pid']} on {job['host']}"
    raise TransferError(
        f"a job is training {run_dir.name} there ({who}): wait for its end, or stop it: "
        f"strata transfer stop {shlex.quote(run_dir.name)} TARGET"
    )
