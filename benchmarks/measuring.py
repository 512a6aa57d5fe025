"""What every benchmark does: take turns, keep medians, and say on what machine.

The machines that these run on are shared and noisy, so contestants are timed one after another,
again and again, and what is reported is the median over the rounds; a ratio is the median of the
rounds' ratios, whose two times lie seconds apart.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from strata.training.device import processor_name

RESULTS = Path(__file__).parent / "results"

Seconds = dict[str, list[float]]  # of each contestant, one entry a round


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Times each contestant once a round; each round begins with another of them.

    Args:
        clock: `time.process_time` for what has one thread: a busy machine stretches it less.
    """
    seconds: Seconds = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = clock()
            contestants[name]()
            seconds[name].append(clock() - started)
    return seconds


def ratio(seconds: Seconds, ours: str, peer: str) -> float:
    """How many times as fast as `peer` we are: the median over the rounds."""
    return statistics.median(b / a for a, b in zip(seconds[ours], seconds[peer], strict=True))


def machine(packages: Iterable[str]) -> str:
    """One paragraph: date, processor, cores, system, versions."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"{date.today()}, {processor_name()}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}, {versions}."
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; floats get three significant digits."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
