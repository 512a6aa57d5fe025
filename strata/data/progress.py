"""A progress bar while something is built, and one line that says what was built.

The bar (tqdm, with rate and time left) is for whoever watches, in a terminal or a notebook, and
vanishes when it is full; the line stays, in a terminal, a log or a stored notebook. Both go to
stderr, so that what a command or a cell prints is its result alone.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.asyncio import tqdm_asyncio
from tqdm.auto import tqdm

SECONDS_BETWEEN_UPDATES = 0.5


def is_live() -> bool:
    """Whether a bar can be drawn over: in a terminal, or as a notebook's widget, not in a log."""
    in_notebook = tqdm is not tqdm_asyncio  # tqdm.auto takes another class there
    return in_notebook or sys.stderr.isatty()


@contextmanager
def building(
    what: str, total: int | None, *, unit: str = "B", progress: bool = True
) -> Iterator[Callable[[int], None]]:
    """Give the block a function to call with each amount done; afterwards, print one line.

    Args:
        what: what is being done, as in "tokenising train".
        total: units to come; None when unknown, and then the bar shows the rate alone.
        unit: what the amounts count: "B" for bytes, or the word for it.
        progress: False shows nothing at all.
    """
    start = time.perf_counter()
    with tqdm(
        total=total,
        desc=what,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=True,
        mininterval=SECONDS_BETWEEN_UPDATES,
        disable=not (progress and is_live()),
        leave=False,
    ) as bar:
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            bar.update(amount)

        yield advance
    if progress:
        amount = f"{done / 1e6:,.1f} MB" if unit == "B" else f"{done:,} {unit}"
        print(f"{what}: {amount} in {time.perf_counter() - start:.1f} s", file=sys.stderr)


def duration(seconds: float) -> str:
    """A time, rounded, in the largest unit that says enough."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
