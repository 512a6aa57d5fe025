"""A cluster's queue: what SLURM's own commands say of our jobs, and how they take one in."""

import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

from strata.transfer.rules import TransferError

# One task of one node; what the target says in `sbatch` comes after these, and so goes before them.
OPTIONS = (
    "--nodes=1",
    "--ntasks=1",
    "--signal=B:USR1@300",  # to the script alone, five minutes before the time is up
    "--requeue",
    "--open-mode=append",
    "--output=job.log",
)
# As docs/slurm/train.sbatch, whose every line docs/cluster.md explains.
SCRIPT = """#!/bin/bash
# Made anew by each `strata transfer run`: it trains, and goes on by itself after the time limit and
# after a preemption.
{setup}
cd -- {code} || exit
export STRATA_CACHE={cache} PYTHONPATH={code} PYTHONUNBUFFERED=1

asked=
trap 'asked=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1

srun --ntasks=1 ${{SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}} \\
    --kill-on-bad-exit=0 {command} &
step=$!
wait $step
status=$?
while kill -0 $step 2>/dev/null; do # the signal ended the waiting, not the training
    wait $step
    status=$?
done

[ -f {run}/summary.json ] && exit 0
if [ "$asked" ] || scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
"""

# What squeue said last, and when: a list of runs asks it once.
_said: tuple[float, dict[str, dict[str, str]]] = (-1.0, {})


def find_job(job: dict[str, Any]) -> dict[str, Any] | None:
    """A job that SLURM was given, with its `state` there now; None if it has ended or is another's.

    A queue that does not answer is taken for one in which the job still is, in state UNKNOWN: so
    nothing is started, or thrown away, that it may be using.
    """
    if job.get("scheduler") != "slurm":
        return None
    try:
        found = _queue().get(str(job["id"]))
    except TransferError as error:
        return job | {"state": "UNKNOWN", "reason": str(error)}
    return job | found if found else None


def _queue() -> dict[str, dict[str, str]]:
    """Of each of this user's jobs that has not ended: state, reason for waiting, nodes."""
    global _said
    if time.monotonic() - _said[0] > 1.0:
        fields = "%A|%T|%r|%N"
        lines = _ask("squeue", "--noheader", f"--user={os.getuid()}", f"--format={fields}")
        jobs = {}
        for line in lines.splitlines():
            identifier, state, reason, nodes = line.split("|", 3)
            jobs[identifier] = {"state": state, "host": nodes}
            if state == "PENDING":
                jobs[identifier]["reason"] = reason
        _said = time.monotonic(), jobs
    return _said[1]


def forget() -> None:
    """Ask squeue anew the next time."""
    global _said
    _said = (-1.0, {})


def submit(
    run_dir: Path, code: Path, cache: Path, setup: str, command: list[str], options: list[str]
) -> str:
    """Queue a run, by a script that is kept in its folder, and return the job's number."""
    words = {"code": str(code), "cache": str(cache), "run": str(run_dir)}
    quoted = {name: shlex.quote(word) for name, word in words.items()}
    script = run_dir / "job.sbatch"
    script.touch(mode=0o600)  # `setup` may hold what others should not read
    script.write_text(SCRIPT.format(setup=setup, command=shlex.join(command), **quoted))
    name = f"--job-name=strata-{run_dir.name}"
    # the log's name is relative, since SLURM replaces signs of percent in it
    said = _ask("sbatch", "--parsable", name, *OPTIONS, *options, str(script), cwd=run_dir)
    forget()
    return said.strip().splitlines()[-1].split(";")[0]


def stop_job(job: dict[str, Any]) -> None:
    """Take a job out of the queue, or ask what it trains to save and end."""
    forget()
    identifier = str(job["id"])
    if job["state"] == "PENDING":
        _ask("scancel", "--state=PENDING", identifier)
    else:
        _ask("scontrol", "update", f"JobId={identifier}", "Requeue=0")
        _ask("scancel", "--signal=TERM", identifier)


def _ask(*command: str, cwd: Path | None = None) -> str:
    """What one of SLURM's commands prints.

    Raises:
        TransferError: it is not there, or refuses; says what it said.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True,
            encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise TransferError(
            f"{command[0]} is not found there: name a login node, or let the target's `setup` "
            "find it"
        ) from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise TransferError(f"{command[0]} there says: {' '.join(lines) or 'nothing'}")
    return done.stdout
