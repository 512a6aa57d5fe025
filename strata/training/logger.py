"""What a run writes down: a line of numbers a step, and how far it has come.

`metrics.jsonl` is the record and the single truth; all else, as the curves in curves.py, is made
from it and may be made again. What depends on the clock stands under "timing" in each line, so
that two equal runs have equal lines without it.

A line is in the file when its step is over, and on disk before a checkpoint that stands on it. A
disk may be full or a mount gone at any of these moments, so a line is held in memory as well until
it is known to be on disk.
"""

import bisect
import errno
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm

from strata.config import Config
from strata.data.progress import duration, is_live
from strata.storage import sync_folder
from strata.training.curves import Curves, TensorBoard

# Between two lines of a log that nobody watches: an hour makes 120 of them.
SECONDS_BETWEEN_LINES = 30.0
# Between two attempts to write what could not be written.
SECONDS_BETWEEN_ATTEMPTS = 30.0
# Bytes of lines that are held in memory before they are brought to disk, checkpoint or not.
MOST_HELD = 1 << 22


def read_metrics(run_dir: str | Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, first step first; empty where there is none yet.

    A last line that a crash left torn is passed over. Lines beyond `last_step`, whatever a loss of
    power made of them, are not looked at.

    Raises:
        ValueError: naming a line that is damaged.
    """
    return [line for line, _ in _read_lines(Path(run_dir) / "metrics.jsonl", last_step)]


def _read_lines(path: Path, last_step: int | None) -> Iterator[tuple[dict[str, Any], int]]:
    """The lines of `read_metrics`, each with the offset of the byte after it."""
    if not path.is_file():
        return
    end = 0
    whole = path.read_bytes().split(b"\n")[:-1]  # a whole line ends with a newline
    for number, text in enumerate(whole, start=1):
        try:
            line = json.loads(text)
            step = line["step"] + 0
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected the numbers of a step") from error
        if last_step is not None and step > last_step:
            return
        end += len(text) + 1
        yield line, end
        if step == last_step:
            return


def write_tensorboard(run_dir: str | Path) -> Path:
    """Make a run's TensorBoard curves anew from `metrics.jsonl`, and return their folder."""
    folder = Path(run_dir) / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    curves = TensorBoard(folder, 0)
    for line in read_metrics(run_dir):
        curves.add(line)
    curves.close()
    return folder


class Record:
    """`metrics.jsonl` of a run that trains: cut at `step`, and open for the lines that follow.

    After a failure the file is opened anew and written again from what was known to be on disk: a
    mount may have come back without the rest, and after a failed sync the operating system may
    take for written what it dropped. The file is never made anew, where a lost mount is as where
    there never was one.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        self._steps: list[int] = []
        self._ends: list[int] = []  # the offset after the line of each of these
        if step:
            for line, end in _read_lines(self.path, step):
                self._steps.append(line["step"])
                self._ends.append(end)
            if len(self._steps) < step:
                lost = step - len(self._steps)
                print(f"{self.path} lacks {lost} of the first {step} lines", file=sys.stderr)
        self._settled = self._end  # so many bytes are on disk for sure
        self._held = bytearray()  # and these follow them
        self._written = 0  # offset in the file, while that is open
        self._file: io.FileIO | None = None
        if not self.path.exists():
            self.path.touch()
            sync_folder(run_dir)
        self.sync()

    @property
    def _end(self) -> int:
        return self._ends[-1] if self._ends else 0

    def add(self, line: Mapping[str, Any]) -> None:
        """Take a line, to be written by what is called next."""
        text = (json.dumps(line) + "\n").encode()
        self._steps.append(line["step"])
        self._ends.append(self._end + len(text))
        self._held += text

    def cut(self, step: int) -> None:
        """Drop the lines beyond `step`, here and in the file with what is called next."""
        kept = bisect.bisect_right(self._steps, step)
        del self._steps[kept:], self._ends[kept:]
        self._settled = min(self._settled, self._end)
        del self._held[self._end - self._settled :]
        self.close()

    def write(self) -> None:
        """Bring all lines into the file.

        Raises:
            OSError: if that cannot be done; the file then ends with a whole line.
        """
        try:
            if self._file is None:
                if self.path.stat().st_size < self._settled:
                    raise OSError(errno.ESTALE, "shorter than what was written to it")
                self._file = io.FileIO(self.path, "r+")
                self._written = self._file.seek(self._settled)
                self._file.truncate()
            while self._written < self._end:
                self._written += self._file.write(self._held[self._written - self._settled :])
        except OSError as error:
            raise self._failure(error) from error

    def sync(self) -> None:
        """Bring all lines to disk.

        Raises:
            OSError: if that cannot be done.
        """
        self.write()
        assert self._file is not None  # or `write` had raised
        try:
            os.fsync(self._file.fileno())
            if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                raise OSError(errno.ESTALE, "another file than the one that was written")
        except OSError as error:
            raise self._failure(error) from error
        self._settled = self._end
        self._held.clear()

    def close(self) -> None:
        """Close the file; what is called next opens it again."""
        if self._file is not None:
            with suppress(OSError):  # of a network's file system, late; `sync` has seen to all
                self._file.close()
        self._file = None

    @property
    def unsynced(self) -> int:
        """Bytes that are not known to be on disk."""
        return len(self._held)

    def _failure(self, error: OSError) -> OSError:
        """Take back a torn line, and give the error with the name of the file."""
        if self._file is not None:
            whole = bisect.bisect_right(self._ends, self._written)
            with suppress(OSError):
                self._file.truncate(self._ends[whole - 1] if whole else 0)
        self.close()
        return OSError(error.errno, error.strerror, str(self.path))


class RunLogger:
    """Writes the metrics of a run; use it as a context.

    What a failure to write does is said by `training.on_write_failure` of the run's configuration.

    Args:
        run_dir: the run's folder, with its `config.toml`.
        step: steps already done; lines beyond it, from before a crash, are dropped.
        max_steps: steps in all.
        progress: whether to show how far the run has come.

    Raises:
        ValueError: on entering, if `training.wandb_project` is set and wandb is not installed.
        OSError: on entering, if the metrics cannot be written; on leaving, if not all of them are.
    """

    def __init__(self, run_dir: Path, step: int, max_steps: int, progress: bool) -> None:
        self._run_dir, self._step = run_dir, step
        self._max_steps, self._progress = max_steps, progress
        self._failed: float | None = None  # when it last did, while it does

    def __enter__(self) -> Self:
        config = Config.load(self._run_dir / "config.toml")
        self._goes_on = config.training.on_write_failure == "continue"
        self._record = Record(self._run_dir, self._step)
        self._curves = Curves(self._run_dir, config, self._step)
        self._shown = _Progress(self._run_dir.name, self._step, self._max_steps, self._progress)
        return self

    def log(self, line: dict[str, Any]) -> None:
        """Write one step's line, and show it; the line is in the file when this returns.

        Raises:
            OSError: if it cannot be written and the run is to stop then. A run that is to go on
                holds it in memory, and tries again after a while.
        """
        self._record.add(line)
        if self._failed is None or time.monotonic() - self._failed >= SECONDS_BETWEEN_ATTEMPTS:
            full = self._record.unsynced > MOST_HELD
            self._attempt(self._record.sync if full else self._record.write)
        self._curves.add(line)
        self._shown.show(line)

    def sync(self) -> bool:
        """Bring all lines to disk, before a checkpoint that stands on them; whether they are there.

        Raises:
            OSError: if they are not and the run is to stop then.
        """
        return self._attempt(self._record.sync)

    def rewind(self, step: int) -> None:
        """Drop the lines beyond `step`, to which the run goes back."""
        self._record.cut(step)
        self._attempt(self._record.write)
        self._curves.rewind(step)
        self._shown.rewind(step)

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Whether an action on the record succeeds; raise if it fails and the run is to stop."""
        try:
            action()
        except OSError as error:
            if not self._goes_on:
                raise
            if self._failed is None:
                print(f"{error}: training goes on and holds the lines in memory", file=sys.stderr)
            self._failed = time.monotonic()
            return False
        if self._failed is not None:
            print(f"{self._record.path} can be written again; no line is lost", file=sys.stderr)
            self._failed = None
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shown.close()
        # stopping a run is no failure: it can be continued
        self._curves.close(failed=isinstance(error, Exception))
        try:
            self._record.sync()
        except OSError:
            if error is None:  # a run without all of its lines must not pass for a finished one
                raise
        finally:
            self._record.close()


class _Progress:
    """A bar for whoever watches, a line now and then where nobody does; a line at the end."""

    def __init__(self, name: str, step: int, max_steps: int, progress: bool) -> None:
        self._name, self._max_steps = name, max_steps
        self._progress, self._live = progress, is_live()
        self._bar = tqdm(
            total=max_steps,
            initial=step,
            unit="step",
            desc=name,
            disable=not (progress and self._live),
            mininterval=0.5,
            leave=False,
        )
        self._held_out = ""  # of the last validation
        self._first_step = step
        self._started = self._told = time.monotonic()

    def show(self, line: Mapping[str, Any]) -> None:
        timing = line["timing"]
        if "validation_bits_per_byte" in line:
            self._held_out = f", {line['validation_bits_per_byte']:.3f} bits/byte held out"
        numbers = (
            f"loss {line['loss']:.3f}{self._held_out}, {timing['tokens_per_second']:,.0f} tok/s, "
            f"{timing['utilisation']:.0%} of peak"
        )
        self._bar.set_postfix_str(numbers, refresh=False)
        self._bar.update()
        now, step = time.monotonic(), line["step"]
        last = step == self._max_steps
        due = not self._live and now - self._told >= SECONDS_BETWEEN_LINES
        if self._progress and (last or due):
            self._told = now
            self._bar.close()  # or what is left of it would stand before the line
            spent = now - self._started
            left = spent * (self._max_steps - step) / max(1, step - self._first_step)
            clock = f"in {duration(spent)}" if last else f"{duration(left)} left"
            print(
                f"{self._name}: step {step:,} of {self._max_steps:,}, {numbers}, {clock}",
                file=sys.stderr,
                flush=True,
            )

    def rewind(self, step: int) -> None:
        self._bar.n = step
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()
