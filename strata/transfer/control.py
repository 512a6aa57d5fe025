"""The job that trains a run at the far end: started, asked, stopped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.transfer.connection import Connection
from strata.transfer.target import Target, find_target


@dataclass(frozen=True)
class Status:
    """A run on the far machine: whether a job trains it, and the last line of its metrics."""

    running: bool
    finished: bool
    pid: int | None
    host: str | None
    max_steps: int
    metrics: dict[str, Any]
    last_log_line: str

    def __str__(self) -> str:
        if self.running:
            what = f"running (process {self.pid} on {self.host})"
        else:
            what = "finished" if self.finished else "not running"
        if self.metrics:
            what += f", step {self.metrics['step']} of {self.max_steps}"
            what += f", loss {self.metrics['loss']:.4f} nats"
        else:
            what += f", no step of {self.max_steps} yet"
        silent = self.finished or not self.last_log_line
        return what if silent else f"{what}; its log ends: {self.last_log_line}"


def run(run_dir: str | Path, target: str | Target) -> Status:
    """Start training a pushed run there, detached: it goes on when this machine is gone.

    Training uses every GPU there, one process each, and continues from the newest good checkpoint.

    Args:
        run_dir: the run at home; only its name matters.
        target: `user@host:folder`, or a `Target`.

    Raises:
        ValueError: the target is not one.
        TransferError: the run was not pushed, a job trains it already, or it could not start.
    """
    there = find_target(target)
    prepare = there.environment == "venv"
    with Connection(there) as far:
        return Status(
            **far.ask("start", name=_name(run_dir), executable=there.python, prepare=prepare)
        )


def status(run_dir: str | Path, target: str | Target) -> Status:
    """What the run there is doing now.

    Raises:
        ValueError: the target is not one.
        TransferError: it could not be asked, or the run is not there.
    """
    with Connection(find_target(target)) as far:
        return Status(**far.ask("look", name=_name(run_dir)))


def _name(run_dir: str | Path) -> str:
    return Path(run_dir).resolve().name
