"""The instant of a hit, chosen from outside: by the names and sizes in the run's folder alone.

    step    at any moment while it trains
    save    while `checkpoints/.step-*.partial` is there, after part of the time that a save takes
    log     as soon as `metrics.jsonl` has grown, after 0 to 2 ms
    start   between the start of the process and its first step
    end     while the final weights, the last sample and the summary are written
    stop    at any moment while it trains: no kill, but SIGTERM, at which it saves and ends
    ask     some time after SIGUSR1, at which it saves and goes on

All but a start and an end wait until one more checkpoint is there than when the job started, so
that a run gets on however often it is hit.
"""

import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from strata.config import Config

Aim = Literal["step", "save", "log", "start", "end", "stop", "ask"]
# How often each is drawn.
AIMS: dict[Aim, int] = {
    "step": 7, "save": 6, "log": 3, "start": 2, "end": 2, "stop": 3, "ask": 4,
}  # fmt: skip
SECONDS_BETWEEN_LOOKS = 0.0003
# A run in whose folder nothing happens for so long does not come back.
SECONDS_OF_PATIENCE = 120.0
_SECONDS_AFTER_A_WRITE = 0.002


class Running(Protocol):
    """What an observer has to know of a job."""

    @property
    def status(self) -> int | None:
        """What it exited with; None as long as it runs."""


@dataclass
class Pace:
    """Seconds that things take, as seen from outside; from them moments are drawn."""

    start: float = 1.0  # from the start of a job to its first step
    checkpoint: float = 0.1  # from one checkpoint to the next
    save: float = 0.01  # from the first name of a checkpoint to its last
    end: float = 0.1  # from the last step to the end of the job


class EndedFirst(Exception):
    """The job ended before the moment of its kill came."""


class Observer:
    """Watches the folder of a run while a job trains in it.

    Args:
        run_dir: the run's folder; it need not be there yet.
        job: what trains in it.
        pace: seconds that things take; what is seen of the start is entered there.
    """

    def __init__(self, run_dir: Path, job: Running, pace: Pace) -> None:
        self._run_dir, self._job, self.pace = run_dir, job, pace
        self._started = time.monotonic()
        self._first_log = self._log()
        self._first_checkpoint = newest_checkpoint(run_dir)

    def await_end(self) -> None:
        """Watch until the job ends, and enter what its parts take.

        Raises:
            TimeoutError: nothing happened for two minutes.
        """
        logged = saved = began = 0.0
        gaps: list[float] = []
        saves: list[float] = []
        log, newest = self._first_log, self._first_checkpoint

        def look() -> bool:
            nonlocal logged, saved, began, log, newest
            now, saving = time.monotonic(), is_saving(self._run_dir)
            if (found := self._log()) != log:
                log, logged = found, now
            if saving != bool(began):
                saves.extend([now - began] if began else [])
                began = now if saving else 0.0
            if (name := newest_checkpoint(self._run_dir)) != newest:
                gaps.extend([now - saved] if saved else [])
                newest, saved = name, now
            return False

        with suppress(EndedFirst):
            self._until(look, between=0.001)
        self.pace.end = time.monotonic() - logged
        if gaps and saves:
            self.pace.checkpoint = statistics.median(gaps)
            self.pace.save = statistics.median(saves)

    def await_start(self) -> None:
        """Return when the job has opened the log, just before its first step.

        Raises:
            EndedFirst, TimeoutError: as `await_moment` does.
        """
        self._until(lambda: self._log() != self._first_log, SECONDS_BETWEEN_LOOKS * 10)
        self.pace.start = time.monotonic() - self._started

    def await_moment(self, aim: Aim, rng: random.Random) -> None:
        """Return at the instant of the hit; for all but a "start", after `await_start`.

        For "ask" it is that of the request; the kill comes after `await_answer`.

        Raises:
            EndedFirst: there was none before the job ended.
            TimeoutError: nothing happened for two minutes.
        """
        if aim == "start":
            moment = self._started + rng.uniform(0.0, self.pace.start)
            self._until(lambda: time.monotonic() >= moment or self._log() != self._first_log)
            return
        if aim == "end":
            self._await_end_of_training(rng)
            return
        self._until(lambda: newest_checkpoint(self._run_dir) > self._first_checkpoint)
        if aim in ("step", "stop", "ask"):
            self._pause(rng.uniform(0.0, 2.0 * self.pace.checkpoint))
        elif aim == "save":
            self._until(lambda: not is_saving(self._run_dir))
            self._until(lambda: is_saving(self._run_dir))
            moment = time.monotonic() + rng.uniform(0.0, self.pace.save)
            self._until(lambda: time.monotonic() >= moment or not is_saving(self._run_dir))
        else:
            for _ in range(rng.randint(1, 8)):
                log = self._log()
                self._until(lambda before=log: self._log() != before)  # type: ignore[misc]
            self._pause(rng.uniform(0.0, _SECONDS_AFTER_A_WRITE))

    def await_answer(self, before: set[str], rng: random.Random) -> None:
        """Return some time after the first checkpoint was begun that is not among `before`.

        Raises:
            EndedFirst, TimeoutError: as `await_moment` does.
        """
        self._until(lambda: not begun_checkpoints(self._run_dir) <= before)
        self._pause(rng.uniform(0.0, self.pace.checkpoint))

    def _await_end_of_training(self, rng: random.Random) -> None:
        steps = Config.load(self._run_dir / "config.toml").training.max_steps
        self._until(lambda: last_step(self._run_dir) == steps)
        written = rng.choice(["model.safetensors", "samples.txt", "summary.json", ""])
        if not written:
            self._pause(rng.uniform(0.0, self.pace.end))
            return
        before = self._identities(written)
        self._until(lambda: self._identities(written) != before)
        self._pause(rng.uniform(0.0, _SECONDS_AFTER_A_WRITE))

    def _identities(self, name: str) -> set[int]:
        """What the file of this name is, and what is there to become it, as `.NAME.…`."""
        return {entry.inode() for entry in os.scandir(self._run_dir) if name in entry.name}

    def _pause(self, seconds: float) -> None:
        moment = time.monotonic() + seconds
        self._until(lambda: time.monotonic() >= moment)

    def _until(self, condition: Callable[[], bool], between: float = SECONDS_BETWEEN_LOOKS) -> None:
        state, looked = self._state(), time.monotonic()
        while not condition():
            if self._job.status is not None:
                raise EndedFirst
            if time.monotonic() > looked + SECONDS_OF_PATIENCE:
                before, state, looked = state, self._state(), time.monotonic()
                if state == before:
                    raise TimeoutError(
                        f"nothing happened in its folder for {SECONDS_OF_PATIENCE:.0f} s"
                    )
            time.sleep(between)

    def _log(self) -> tuple[int, int]:
        """Which file the log is and how long; another one stands there after a step back."""
        try:
            found = (self._run_dir / "metrics.jsonl").stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_size

    def _state(self) -> tuple[tuple[int, int], list[str]]:
        return self._log(), sorted(_checkpoints(self._run_dir))


def begun_checkpoints(run_dir: Path) -> set[str]:
    """The names that a run's checkpoints have, or will have once they are whole."""
    return {name.removeprefix(".").removesuffix(".partial") for name in _checkpoints(run_dir)}


def newest_checkpoint(run_dir: Path) -> str:
    """The greatest name among a run's checkpoints; empty where there is none."""
    return max((name for name in _checkpoints(run_dir) if name.startswith("step-")), default="")


def is_saving(run_dir: Path) -> bool:
    """Whether there is a checkpoint that is not whole."""
    return any(name.startswith(".step-") for name in _checkpoints(run_dir))


def last_step(run_dir: Path) -> int:
    """The step of the last whole line of a run's log; 0 where there is none."""
    lines = log_lines(run_dir)
    return int(lines[-1].partition(b'"step": ')[2].partition(b",")[0]) if lines else 0


def log_lines(run_dir: Path) -> list[bytes]:
    """The whole lines of a run's log."""
    try:
        return (run_dir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []


def is_torn(run_dir: Path) -> bool:
    """Whether the last line of a run's log is cut off."""
    log = run_dir / "metrics.jsonl"
    return log.is_file() and log.read_bytes()[-1:] not in (b"", b"\n")


def _checkpoints(run_dir: Path) -> list[str]:
    try:
        return [path.name for path in (run_dir / "checkpoints").iterdir()]
    except FileNotFoundError:
        return []
