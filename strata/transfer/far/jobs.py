"""The job that trains a run at the far end: started, looked at, stopped, and what it prints."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strata.transfer.far.folder import (
    living_job,
    locked,
    read_about,
    refuse_if_running,
    who_trains,
)
from strata.transfer.far.slurm import stop_job, submit
from strata.transfer.rules import TransferError

# How much of the end of metrics.jsonl is read for the last step, and for the last validation.
RECENT_BYTES, SEARCHED_BYTES = 1 << 16, 1 << 22
# Over how many steps the time of one is averaged.
RECENT_LINES = 50
LOG_BYTES = 1 << 16
# In which a job that cannot even begin ends.
FIRST_SECONDS = 2.0
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def start(
    folder: Path,
    name: str,
    executable: str,
    scheduler: str = "none",
    sbatch: list[str] | None = None,
    setup: str = "",
) -> dict[str, Any]:
    """Start training with a Python that `prepare` named, detached, unless a job already trains.

    Args:
        scheduler: "none" starts it here and now; "slurm" queues it, with the options `sbatch`.
        setup: what the shell of a queued job runs first; the one that runs here has had it.
    """
    run_dir = folder / "runs" / name
    with locked(folder):
        if not (run_dir / "config.toml").exists() or not (folder / "code").exists():
            raise TransferError(f"{name} is not there yet: push it first")
        refuse_if_running(run_dir)
        if (run_dir / "summary.json").exists():
            return look(folder, name)
        code, cache = (folder / "code").resolve(), folder / "cache"
        command = [executable, "-m", "strata.transfer.job", str(run_dir)]
        job = {"code": str(code), "python": executable, "started": time.time()}
        (run_dir / "job-end.json").unlink(missing_ok=True)
        if scheduler == "slurm":
            job["scheduler"] = scheduler
            job["id"] = submit(run_dir, code, cache, setup, command, sbatch or [])
            (run_dir / "job.json").write_text(json.dumps(job))
            return look(folder, name)
        surroundings = os.environ | {
            "STRATA_CACHE": str(cache),
            "PYTHONPATH": str(code),
            "PYTHONUNBUFFERED": "1",
        }
        with (run_dir / "job.json").open("a+") as about, (run_dir / "job.log").open("a") as log:
            fcntl.flock(about, fcntl.LOCK_EX)
            about.truncate(0)
            process = subprocess.Popen(
                command, cwd=code, env=surroundings, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(about.fileno(),),
            )  # fmt: skip
            job |= {"pid": process.pid, "host": socket.gethostname()}
            about.write(json.dumps(job))
    with contextlib.suppress(subprocess.TimeoutExpired):
        if process.wait(timeout=FIRST_SECONDS):
            raise TransferError(f"training ended at once there: {last_line(run_dir / 'job.log')}")
    return look(folder, name)


def look(folder: Path, name: str) -> dict[str, Any]:
    """The fields of `Status` for a run there; what is damaged is named and hides nothing else."""
    run_dir = folder / "runs" / name
    if not run_dir.is_dir():
        raise TransferError(f"{name} is not there: push it first")
    job = who_trains(run_dir)
    ended = read_about(run_dir / "job-end.json")
    if job is not None:
        state = "queued" if job.get("state") == "PENDING" else "running"
    elif (run_dir / "summary.json").exists():
        state = "finished"
    elif ended:
        state = "stopped" if ended.get("status") in STOPPED else "failed"
    else:
        state = "killed" if read_about(run_dir / "job.json") else "ready"
    problems: list[str] = []
    max_steps = None
    try:
        config = tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
        max_steps = config["training"]["max_steps"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"its config.toml is damaged ({type(error).__name__})")
    steps = re.compile(r"step-(\d+)")
    found = [steps.fullmatch(path.name) for path in (run_dir / "checkpoints").glob("step-*")]
    job = job or {}
    return {
        "name": name,
        "state": state,
        "reason": job.get("reason"),
        "exit_status": None if job else ended.get("status"),
        "pid": job.get("pid"),
        "host": job.get("host"),
        "job": job.get("id"),
        "max_steps": max_steps,
        "checkpoint": max((int(match[1]) for match in found if match), default=None),
        **recent_metrics(run_dir / "metrics.jsonl", max_steps, problems),
        "last_log_line": last_line(run_dir / "job.log"),
        "problem": "; ".join(problems),
    }


def recent_metrics(path: Path, max_steps: int | None, problems: list[str]) -> dict[str, Any]:
    """What the end of metrics.jsonl says, however long it is."""
    recent: list[dict[str, Any]] = []
    held_out, damaged = None, 0
    size = path.stat().st_size if path.exists() else 0
    for number, text in enumerate(lines_from_the_end(path, min(size, SEARCHED_BYTES)), start=1):
        line = numbers_of(text)
        if line is None:
            damaged = damaged or number
            continue
        if len(recent) < RECENT_LINES:
            recent.append(line)
        held_out = line.get("validation_bits_per_byte")
        if held_out is not None:
            break
    if damaged:
        problems.append(f"metrics.jsonl is damaged, in line {damaged} from its end")
    last = recent[0] if recent else {}
    left = None
    if recent and max_steps is not None:
        parts = ("seconds", "validation_seconds", "checkpoint_seconds")
        spent = sum(line.get(part, 0.0) for line in recent for part in parts)
        left = (max_steps - last["step"]) * spent / len(recent)
    wanted = ("step", "loss", "tokens_per_second", "memory_bytes")
    return {name: last.get(name) for name in wanted} | {
        "seconds_left": left,
        "bits_per_byte": held_out,
    }


def numbers_of(text: bytes) -> dict[str, Any] | None:
    """The numbers in a line of metrics.jsonl, those of the clock among them; None if damaged."""
    try:
        line = json.loads(text)
        line |= line.get("timing") or {}
        line = {name: value for name, value in line.items() if isinstance(value, int | float)}
    except (ValueError, TypeError, AttributeError):
        return None
    return line if {"step", "loss"} <= line.keys() else None


def lines_from_the_end(path: Path, n_bytes: int) -> Iterator[bytes]:
    """The whole lines in the last bytes of a file, the last first; read in pieces."""
    if not n_bytes:
        return
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        first, rest = max(0, end - n_bytes), b""
        torn = True  # what follows the last newline is not a line yet
        while end > first:
            begin = max(first, end - RECENT_BYTES)
            file.seek(begin)
            pieces = (file.read(end - begin) + rest).split(b"\n")
            rest, end = pieces[0], begin
            whole = pieces[1:]
            if torn and whole:
                whole.pop()
                torn = False
            yield from reversed(whole)
        if not first and not torn:
            yield rest


def last_line(path: Path) -> str:
    """The last line of a text file that is not blank; nothing if there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        text = re.split(r"[\r\n]+", file.read().decode("utf-8", "replace").strip())
    return text[-1].strip()


def stop(folder: Path, name: str) -> dict[str, Any]:
    """Ask the job to save and end; whether it has, `look` says. Asking again does no harm."""
    run_dir = folder / "runs" / name
    status = look(folder, name)
    job = living_job(run_dir) or {}
    if status["state"] not in ("running", "queued"):
        return status
    if "id" in job:
        stop_job(job)
        if job["state"] == "PENDING":
            end = {"status": 128 + signal.SIGTERM, "ended": time.time()}
            (run_dir / "job-end.json").write_text(json.dumps(end))
        return look(folder, name)
    pid, host = status["pid"], status["host"]
    if pid is None:
        raise TransferError(f"which process trains {name} there is not known: end it there")
    if host != socket.gethostname():
        raise TransferError(
            f"{name} is trained on {host}, which a signal from {socket.gethostname()} does not "
            f"reach: there, kill -TERM {pid}"
        )
    with contextlib.suppress(ProcessLookupError):  # it has ended, or its processes are about to
        os.kill(pid, signal.SIGTERM)
    return look(folder, name)


def read_log(folder: Path, name: str, offset: int) -> dict[str, Any]:
    """A piece of what the job prints.

    Args:
        offset: where it begins, in bytes; so many last lines if it is negative.

    Returns:
        `text`, in which bytes that are not UTF-8 stand as surrogates, and `offset` after it.
    """
    path = folder / "runs" / name / "job.log"
    if not path.parent.is_dir():
        raise TransferError(f"{name} is not there: push it first")
    if not path.exists():
        return {"text": "", "offset": 0}
    size = path.stat().st_size
    with path.open("rb") as file:
        if offset < 0:
            file.seek(max(0, size - LOG_BYTES))
            piece = b"".join(file.read(LOG_BYTES).splitlines(keepends=True)[offset:])
            return {"text": piece.decode("utf-8", "surrogateescape"), "offset": file.tell()}
        file.seek(offset if offset <= size else 0)  # shorter than before: another log
        piece = file.read(LOG_BYTES)
        return {"text": piece.decode("utf-8", "surrogateescape"), "offset": file.tell()}


def list_runs(folder: Path) -> dict[str, Any]:
    """The fields of `Status` of every run there, by name."""
    if not (folder / "runs").is_dir():
        raise TransferError(f"no run was ever pushed to {folder}: look at the target's folder")
    places = sorted(path for path in (folder / "runs").glob("*") if path.is_dir())
    return {"runs": [look(folder, path.name) for path in places]}
