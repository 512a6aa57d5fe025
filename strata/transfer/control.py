"""The job that trains a run at the far end: started, asked, stopped, listened to."""

import codecs
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from strata.data.progress import duration
from strata.transfer.connection import Connection, LineCut
from strata.transfer.rules import visible
from strata.transfer.target import Target, find_target

# Between two questions to the far end, and until it is asked to stop once more.
PAUSE, PATIENCE = 1.0, 15.0
# Between two attempts to reach a machine again, at most.
LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class Status:
    """A run on the far machine.

    state: "ready" (pushed and never started), "queued", "running", "finished", "stopped" (by a
        signal, saved), "failed", or "killed" (the job ended without a word).
    reason: what a queued job waits for, or why the queue was not asked.
    exit_status: with which the job ended.
    pid, host, job: the process and its machine, or the number in the queue and its nodes.
    checkpoint: the step of the newest, from which the run goes on.
    step, loss: of the last line of its metrics; nats.
    bits_per_byte: of held-out text, when that was measured last.
    tokens_per_second, memory_bytes, seconds_left: of the last step; at most in use so far, of a
        GPU; at the rate of the last steps.
    problem: what is damaged there.
    """

    name: str
    state: str
    reason: str | None
    exit_status: int | None
    pid: int | None
    host: str | None
    job: str | None
    max_steps: int | None
    checkpoint: int | None
    step: int | None
    loss: float | None
    tokens_per_second: float | None
    memory_bytes: int | None
    seconds_left: float | None
    bits_per_byte: float | None
    last_log_line: str
    problem: str

    @property
    def running(self) -> bool:
        """Whether a job trains the run, or waits for its turn."""
        return self.state in ("running", "queued")

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    def __str__(self) -> str:
        parts = [f"{self.name}: {self._what()}"]
        total = "?" if self.max_steps is None else f"{self.max_steps:,}"
        if self.step is None:
            parts.append(f"no step of {total} yet")
        else:
            parts += [f"step {self.step:,} of {total}", self.numbers()]
        if self.state == "running" and self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        if self.problem:
            parts.append(self.problem)
        if self.state in ("failed", "killed") and self.last_log_line:
            parts.append(f"its log ends: {self.last_log_line}")
        return visible(", ".join(parts))

    def _what(self) -> str:
        where = f" on {self.host}" if self.host else ""
        waits = f", {self.reason}" if self.reason else ""
        if self.state == "queued":
            return f"queued as job {self.job}{waits}"
        if self.state == "running":
            who = f"job {self.job}" if self.job else f"process {self.pid}"
            return f"running ({who}{where}{waits})"
        if self.state == "failed":
            return f"failed with status {self.exit_status}"
        return {"ready": "not started", "killed": "killed"}.get(self.state, self.state)

    def numbers(self) -> str:
        """Loss, rate and memory, as far as they are known."""
        known = [] if self.loss is None else [f"loss {self.loss:.4f} nats"]
        if self.bits_per_byte is not None:
            known.append(f"{self.bits_per_byte:.3f} bits/byte held out")
        if self.tokens_per_second is not None:
            known.append(f"{self.tokens_per_second:,.0f} tok/s")
        if self.memory_bytes:
            known.append(f"{self.memory_bytes / 1e9:.1f} GB of memory")
        return ", ".join(known)


def run(run_dir: str | Path, target: str | Target) -> Status:
    """Start training a pushed run there, detached: it goes on when this machine is gone.

    Training uses every GPU there, one process each, and continues from the newest good checkpoint.

    Args:
        run_dir: the run at home; only its name matters.
        target: `user@host:folder`, a name of targets.toml, or a `Target`.

    Raises:
        ValueError: the target is not one.
        TransferError: the run was not pushed, a job trains it already, or it could not start.
    """
    there = find_target(target)
    with Connection(there) as far:
        ready = far.ask("prepare", executable=there.python, environment=there.environment)
        return Status(
            **far.ask(
                "start",
                name=name_of(run_dir),
                executable=ready["python"],
                scheduler=there.scheduler,
                sbatch=list(there.sbatch),
                setup=there.setup,
            )
        )


def status(run_dir: str | Path, target: str | Target) -> Status:
    """What the run there is doing now.

    Raises:
        ValueError: the target is not one.
        TransferError: it could not be asked, or the run is not there.
    """
    with Connection(find_target(target)) as far:
        return Status(**far.ask("look", name=name_of(run_dir)))


def stop(run_dir: str | Path, target: str | Target) -> Status:
    """Ask the job there to save and end, and wait until it has; a queued one is cancelled.

    Raises:
        ValueError: the target is not one.
        TransferError: it could not be asked, or cannot be signalled from there.
    """
    name = name_of(run_dir)
    with Connection(find_target(target)) as far:
        while True:
            found = Status(**far.ask("stop", name=name))
            asked = time.monotonic()
            while found.running and time.monotonic() - asked < PATIENCE:
                time.sleep(PAUSE)
                found = Status(**far.ask("look", name=name))
            if not found.running:
                return found


def list_runs(target: str | Target) -> list[Status]:
    """All runs of the target's folder, by name.

    Raises:
        ValueError: the target is not one.
        TransferError: it could not be asked.
    """
    with Connection(find_target(target)) as far:
        return [Status(**found) for found in far.ask("list_runs")["runs"]]


def logs(
    run_dir: str | Path, target: str | Target, *, lines: int = 50, follow: bool = False
) -> Iterator[str]:
    """What the job there has printed, line by line: the last lines, and with `follow` what comes.

    Following ends with the job; a line that is cut is taken up again.

    Raises:
        ValueError: the target is not one.
        TransferError: it could not be asked, or the run is not there.
    """
    name, there = name_of(run_dir), find_target(target)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    begun, offset = "", -max(1, lines)
    with Caller(there) as far:
        while True:
            goes_on = follow and Status(**far.ask("look", name=name)).running
            piece = far.ask("read_log", name=name, offset=offset)
            offset = piece["offset"]
            begun += decoder.decode(piece["text"].encode("utf-8", "surrogateescape"))
            *whole, begun = re.split(r"\r\n|[\r\n]", begun)
            yield from map(visible, whole)
            if not piece["text"]:
                if not goes_on:
                    break
                time.sleep(PAUSE)
    if begun:
        yield visible(begun)


class Caller:
    """Asks the far end, and calls it again for as long as it takes when the line is cut.

    `with Caller(target) as far:`, as with a `Connection`.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._far: Connection | None = None
        self._reached = False

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """As `Connection.ask`, of operations that may be asked twice.

        Raises:
            LineCut: the machine was never reached.
            TransferError: the far end says what is wrong there.
        """
        pause = 0.0
        while True:
            try:
                if self._far is None:
                    self._far = Connection(self._target).__enter__()
                reply = self._far.ask(operation, **arguments)
            except LineCut as cut:
                self._hang_up()
                if not self._reached:
                    raise
                if not pause:
                    print(f"{cut}; trying until it answers, Ctrl-C ends this", file=sys.stderr)
                pause = min(LONGEST_PAUSE, 2 * pause or 1.0)
                time.sleep(pause)
            else:
                if pause:
                    print(f"{self._target.host}: the line is back", file=sys.stderr)
                self._reached = True
                return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hang_up()

    def _hang_up(self) -> None:
        if self._far is not None:
            self._far.__exit__(None, None, None)
            self._far = None


def name_of(run_dir: str | Path) -> str:
    """The run's name there."""
    return Path(run_dir).resolve().name
