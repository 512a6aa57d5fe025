"""A run on the far machine, watched from here until its job ends."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from strata.data.progress import duration, is_live
from strata.transfer.control import Caller, Status, name_of
from strata.transfer.rules import TransferError
from strata.transfer.target import Target, find_target

DEAD = ("failed", "killed")
# Between two questions; a cluster's queue does not want to be asked often.
PAUSE, PAUSE_OF_QUEUE = 2.0, 10.0
# Between two lines where nobody sees a bar.
SECONDS_BETWEEN_LINES = 30.0


def watch(run_dir: str | Path, target: str | Target) -> Status:
    """Show how far a run there has come until its job ends; Ctrl-C ends the watching alone.

    In a terminal and in a notebook this is a bar, elsewhere a line every half a minute. A line that
    is cut is taken up again.

    Raises:
        ValueError: the target is not one.
        TransferError: it cannot be asked; or the job there has died, and what to do then.
    """
    name, there = name_of(run_dir), find_target(target)
    shown = _Shown(name)
    try:
        with Caller(there) as far:
            while True:
                found = Status(**far.ask("look", name=name))
                shown.show(found)
                if not found.running:
                    break
                time.sleep(PAUSE_OF_QUEUE if found.job else PAUSE)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{name} goes on there: this was the watching alone") from None
    finally:
        shown.close()
    if found.state in DEAD:
        place = target if isinstance(target, str) else f"{there.host}:{there.folder}"
        words = shlex.join([str(run_dir), place])
        goes_on = f"from step {found.checkpoint:,}" if found.checkpoint else "from the start"
        raise TransferError(
            f"{found}; `strata transfer logs {words}` shows more, `strata transfer run {words}` "
            f"goes on {goes_on}"
        )
    return found


class _Shown:
    """A bar, or now and then a line."""

    def __init__(self, name: str) -> None:
        self._name, self._live = name, is_live()
        self._bar: Any = None
        self._told = -SECONDS_BETWEEN_LINES

    def show(self, status: Status) -> None:
        """Show a run; a job that has ended in one line."""
        if not status.running:
            self.close()
            if status.state not in DEAD:  # of these an error says more
                print(status, file=sys.stderr)
        elif self._live:
            self._draw(status)
        elif time.monotonic() - self._told >= SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            print(status, file=sys.stderr, flush=True)

    def _draw(self, status: Status) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=status.max_steps, initial=status.step or 0, unit="step", desc=self._name,
                leave=False,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix}",
            )  # fmt: skip
        self._bar.n = status.step or 0
        said = status.numbers()
        if status.state == "queued":
            said = f"queued, {status.reason}"
        elif status.seconds_left is not None:
            said += f", {duration(status.seconds_left)} left"
        self._bar.set_postfix_str(said, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
