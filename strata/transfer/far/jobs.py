"""Training at the far end: its environment, the job that trains a run, and what it says."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import socket
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

from strata.transfer.far.folder import living_job, locked, refuse_if_running
from strata.transfer.rules import TransferError, read_history


def prepare(folder: Path, executable: str, environment: str) -> dict[str, Any]:
    return {}


def environment(folder: Path, code: Path, python: str) -> str:
    """The Python of folder/venv, made or brought up to date with the code's locked packages."""
    wanted = hashlib.sha256()
    for name in ("constraints.txt", "pyproject.toml"):
        wanted.update((code / name).read_bytes())
    venv, stamp, log = folder / "venv", folder / "venv" / "strata-ready", folder / "venv.log"
    if not stamp.exists() or stamp.read_text() != wanted.hexdigest():
        installed = str(venv / "bin" / "python")
        with log.open("w") as output:
            for command in (
                [python, "-m", "venv", str(venv)],
                [installed, "-m", "pip", "install", "-c", "constraints.txt", "-e", "."],
            ):
                made = subprocess.run(
                    command, cwd=code, stdout=output, stderr=subprocess.STDOUT, check=False
                )
                if made.returncode:
                    raise TransferError(
                        f"`{shlex.join(command[1:])}` failed there: {last_line(log)} (all of it in "
                        f"{log}; Debian and Ubuntu need the package python3-venv)"
                    )
        stamp.write_text(wanted.hexdigest())
    return str(venv / "bin" / "python")


def last_line(path: Path) -> str:
    """The last line of a text file that is not blank; nothing if there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        text = re.split(r"[\r\n]+", file.read().decode("utf-8", "replace").strip())
    return text[-1].strip()


def choose_processes(training: dict[str, Any], n_gpus: int) -> int:
    """The most processes, one a GPU, among which a batch divides into whole micro-batches.

    Args:
        training: the section of the configuration; `micro_batch_size` 0 is a process's whole share.
    """
    for n in range(n_gpus, 1, -1):
        if training["batch_size"] % (n * max(training["micro_batch_size"], 1)) == 0:
            return n
    return 1


def start(folder: Path, name: str, executable: str, prepare: bool) -> dict[str, Any]:
    """Start training detached, one process a GPU, unless a job already trains.

    The log says so when the batch leaves GPUs over.
    """
    run_dir = folder / "runs" / name
    with locked(folder):
        if not (run_dir / "config.toml").exists() or not (folder / "code").exists():
            raise TransferError(f"{name} is not there yet: push it first")
        refuse_if_running(run_dir)
        code = (folder / "code").resolve()
        if prepare:
            executable = environment(folder, code, executable)
        surroundings = os.environ | {
            "STRATA_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(code),
            "PYTHONUNBUFFERED": "1",
        }
        count = subprocess.run(
            [executable, "-c", "import torch; print(torch.cuda.device_count())"],
            cwd=code, env=surroundings, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if count.returncode:
            reason = (count.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise TransferError(f"{executable} there cannot import torch: {reason}")
        n_gpus = int(count.stdout.split()[-1])
        training = tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))["training"]
        n = choose_processes(training, n_gpus)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
        command = [executable, *(torchrun if n > 1 else []), "-m", "strata.cli", "train"]
        command += ["--run-dir", str(run_dir)]
        with (run_dir / "job.json").open("a+") as pid_file, (run_dir / "job.log").open("a") as log:
            fcntl.flock(pid_file, fcntl.LOCK_EX)
            if n < n_gpus:
                log.write(
                    f"training on {n} of {n_gpus} GPUs: training.batch_size = "
                    f"{training['batch_size']} does not divide among more\n"
                )
                log.flush()  # before the lines of the process that shares the file
            process = subprocess.Popen(
                command, cwd=code, env=surroundings, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(pid_file.fileno(),),
            )  # fmt: skip
            job = {"pid": process.pid, "host": socket.gethostname(), "code": str(code)}
            pid_file.truncate(0)
            pid_file.write(json.dumps(job | {"command": command, "started": time.time()}))
    with contextlib.suppress(subprocess.TimeoutExpired):
        if process.wait(timeout=2):
            raise TransferError(f"training ended at once there: {last_line(run_dir / 'job.log')}")
    return look(folder, name)


def look(folder: Path, name: str) -> dict[str, Any]:
    """The fields of `Status` for a run there."""
    run_dir = folder / "runs" / name
    if not run_dir.exists():
        raise TransferError(f"{name} is not there: push it first")
    job = living_job(run_dir)
    history = read_history(run_dir)
    config = tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
    return {
        "running": job is not None,
        "finished": (run_dir / "summary.json").exists(),
        "pid": (job or {}).get("pid"),
        "host": (job or {}).get("host"),
        "max_steps": config["training"]["max_steps"],
        "metrics": history[-1] if history else {},
        "last_log_line": last_line(run_dir / "job.log"),
    }
