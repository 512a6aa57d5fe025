"""What is left to do of a suite, what that costs, and how long it may take.

The time is estimated from finished runs of the same folder: the seconds that their updates and
validations took for a FLOP, of the same variant where it has runs, else of all. Recipes differ in
what an update costs beside its FLOPs, so an estimate before each variant has a run is a rough one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from strata.ablations.choices import held_choice, spread
from strata.ablations.grid import run_flops
from strata.ablations.plan import (
    PlannedRun,
    State,
    finished_runs,
    planned_runs,
    state_of,
    trial_config,
    trials_of,
)
from strata.ablations.summary import RunSummary
from strata.ablations.sweep import room_for, wanted_tunings
from strata.ablations.variants import Changes, Search, Suite, Tuning
from strata.data.progress import duration


@dataclass(frozen=True)
class OutlookRow:
    """One run, or the trials that are left of a search."""

    name: str
    state: State
    flops: float  # of training, in all
    seconds: float  # in which it may be made; NaN where no run is finished to tell, 0 if it is


@dataclass(frozen=True)
class Outlook:
    """A suite's runs with their states. `untuned` names whom the tunings that are left are for."""

    rows: tuple[OutlookRow, ...]
    untuned: tuple[str, ...]
    workers: int

    @property
    def flops_left(self) -> float:
        """What is left to be computed."""
        return sum(row.flops for row in self.rows if row.state in ("begun", "to do"))

    @property
    def seconds_left(self) -> float:
        """For how long, with so many workers; NaN where it cannot be said."""
        return sum(row.seconds for row in self.rows) / self.workers

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A header and a row a run."""
        header = ["run", "state", "TFLOP", "time"]
        return header, [
            [row.name, row.state, f"{row.flops / 1e12:.4g}", _time(row.seconds)]
            for row in self.rows
        ]

    def sentence(self) -> str:
        """How many runs there are in each state, and what is left."""
        states = [row.state for row in self.rows]
        told = ", ".join(
            f"{states.count(state)} {state}" for state in get_args(State) if state in states
        )
        left = f"left: {self.flops_left / 1e12:.4g} TFLOP"
        if self.flops_left:
            unknown = math.isnan(self.seconds_left)
            time = "for how long no finished run tells yet" if unknown else _time(self.seconds_left)
            left += f", {time}, {self.workers} side by side"
        if self.untuned:
            left += f"; yet to be tuned: {', '.join(self.untuned)}"
        return f"{told}; {left}"


def look_out(
    suite: Suite,
    folder: str | Path,
    *,
    workers: int = 0,
    only: Sequence[str] = (),
    fresh: bool = False,
) -> Outlook:
    """The runs that `run_suite` would make with the same arguments, and those it made. Makes none.

    Raises:
        ValueError: if a pattern of `only` fits no variant.
    """
    folder = Path(folder)
    wanted = suite.named(only or ["*"])
    tunings = wanted_tunings(suite, wanted)
    chosen: list[tuple[Tuning | Search, Changes]] = []
    waiting: list[Tuning | Search] = []
    for tuning in tunings:
        held = held_choice(suite, tuning, folder, fresh)
        if held is None:
            waiting.append(tuning)
        else:
            chosen.append((tuning, held))
    runs = [run for run in planned_runs(suite, spread(suite, chosen)) if run.variant in wanted]
    trials = [run for tuning in tunings for run in trials_of(suite, tuning)]
    recipes = {one.name: one.recipe or one.name for one in suite.scaling}
    costs = _costs(finished_runs(trials + runs, folder, fresh))

    def row(run: PlannedRun, settled: bool) -> OutlookRow:
        state = "finished" if settled else state_of(run, folder, fresh)
        variant = run.variant.partition("@")[0]
        cost = _cost(costs, recipes.get(variant, variant))
        seconds = run.flops * cost if state in ("begun", "to do") else 0.0
        return OutlookRow(run.folder_name, state, run.flops, seconds)

    rows = []
    for tuning in tunings:
        settled = tuning not in waiting
        rows += [row(run, settled) for run in trials_of(suite, tuning)]
        if isinstance(tuning, Search):
            rows.append(_search_row(suite, tuning, folder, settled, _cost(costs, tuning.variant)))
    rows += [row(run, settled=False) for run in runs]
    untuned = tuple(tuning.variant for tuning in waiting)
    return Outlook(tuple(rows), untuned, workers or room_for(suite.base))


def _search_row(
    suite: Suite, tuning: Search, folder: Path, settled: bool, cost: float
) -> OutlookRow:
    """What is left of a search; that some of its trials will be stopped early is not foreseen."""
    place = folder / tuning.folder_name
    done = len(list(place.glob("trial-*/summary.json")))
    left = 0 if settled else max(0, tuning.trials - done)
    flops = run_flops(trial_config(suite, tuning, suite.variant(tuning.variant)))
    name = f"{tuning.folder_name}: {tuning.trials} trials"
    state: State = "finished" if settled else "begun" if done else "to do"
    return OutlookRow(name, state, (left or tuning.trials) * flops, left and left * flops * cost)


def _costs(runs: Iterable[RunSummary]) -> dict[str, float]:
    """Seconds a FLOP, by variant and over all ("")."""
    seconds: dict[str, float] = {}
    flops: dict[str, float] = {}
    for run in runs:
        for name in (run.variant.partition("@")[0], ""):
            seconds[name] = seconds.get(name, 0.0) + run.seconds
            flops[name] = flops.get(name, 0.0) + run.flops
    return {name: seconds[name] / flops[name] for name in seconds}


def _cost(costs: dict[str, float], variant: str) -> float:
    return costs.get(variant, costs.get("", math.nan))


def _time(seconds: float) -> str:
    """A rounded time, nothing where none is needed, a question mark where it is not known."""
    return "?" if math.isnan(seconds) else f"about {duration(seconds)}" if seconds else ""
