"""Running a suite: every run an ordinary run folder, none made twice.

    suites/nano/
      choices.json                                       what the tunings chose, and from what
      strata-seed0/  strata-seed1/ …   gpt3-seed0/ …     one folder a variant and seed
      gpt3@learning_rate=0.003-seed1000/                 a trial of a tuning
      search-gpt3/trial-0000/ …                          trials of a search, as of `strata tune`
      width64-steps38-seed0/                             a run for the scaling law
      replaced/                                          runs that were in the way of others

A run whose folder holds a summary and the wanted configuration is left alone, whatever version of
the code made it (`strata/ablations/plan.py` says why, and what `fresh` is for); one that was
interrupted goes on from its checkpoint; one of another configuration is put aside and the run made
anew. The seeds are the outer loop, so a sweep that is stopped early has every variant equally
often. A run that fails is reported at the end and costs nothing but itself; a trial that fails, its
tuning and the variants behind it, until it is made: only that it diverged is an answer.

Small runs gain little from several threads. Where the suite's `training.threads` is less than the
number of cores, runs go side by side in as many processes as fit; on GPUs, one on each.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import torch
from tqdm.auto import tqdm

from strata.ablations.choices import (
    best_choices,
    held_choice,
    keep_choice,
    results_of_search,
    results_of_trials,
    spread,
    takers,
)
from strata.ablations.hopeless import Hopeless, StopsHopeless, read_stopped
from strata.ablations.plan import (
    STOPPED,
    PlannedRun,
    by_other_code,
    check_one_text,
    finished_runs,
    is_continuable,
    made_by,
    planned_runs,
    planned_trials,
    state_of,
    trial_config,
    trials_of,
)
from strata.ablations.processes import available_cores, side_by_side
from strata.ablations.summary import RunSummary, WithoutResult, summarise
from strata.ablations.variants import Changes, Search, Suite, Tuning
from strata.config import Config
from strata.data import prepare
from strata.training import Callback, Trainer
from strata.training.folder import code_hash
from strata.training.guard import Diverged
from strata.training.lock import OneWriter

Train = Callable[[Config, Path, Sequence[Callback]], None]
FINISHED = "finished"
HOPELESS = "hopeless: "
DIVERGED = "Diverged: "


class SweepError(RuntimeError):
    """Some runs of a suite failed. `failures` maps folder to reason; `finished` are the others."""

    def __init__(self, failures: Mapping[str, str], finished: Sequence[RunSummary]) -> None:
        self.failures, self.finished = dict(failures), list(finished)
        lines = [f"  {folder}: {reason}" for folder, reason in self.failures.items()]
        super().__init__(
            f"{len(lines)} of the suite's runs failed; the others are kept, and running the suite "
            "again tries these alone:\n" + "\n".join(lines)
        )


def train_run(config: Config, folder: Path, callbacks: Sequence[Callback]) -> None:
    """Make one run in its folder with the ordinary `Trainer`."""
    Trainer(config, folder, callbacks, progress=False).fit()


def run_suite(
    suite: Suite,
    folder: str | Path,
    progress: bool = True,
    *,
    workers: int = 0,
    only: Sequence[str] = (),
    fresh: bool = False,
    stop_hopeless: float = 0.0,
    train: Train = train_run,
) -> list[RunSummary]:
    """Make every run of `suite` under `folder` that is not there yet; summaries of all of them.

    First come the tunings; what each chose joins the changes of the variants that take it. Then
    the variants, seed by seed, and the runs for the scaling law. One progress line counts training
    FLOPs, with rate and time left; a search says each of its trials in a line besides.

    Args:
        workers: processes; 0 takes as many as `training.threads` leaves room for, or one a GPU, and
            1 trains in this process.
        only: patterns of variants' names: make the runs of these alone, and the tunings behind
            them. Summaries are of all that is there.
        fresh: make runs anew that other code has made.
        stop_hopeless: stop variants (not the base, a trial or a scaling run) that are worse than
            the base by more than this, in bits per byte; 0 = none. A later call without it, or
            with a larger one, goes on with them. `strata/ablations/hopeless.py` has the rule.
        train: makes one run.

    Raises:
        BlockingIOError: if another process is at work in the folder, saying which.
        SweepError: after everything else is done, when runs failed; `load_suite` still reads what
            is there. After an interrupt (KeyboardInterrupt) the next call continues.
        ValueError: if a pattern fits no variant, or runs have read different text.
    """
    if stop_hopeless < 0 or workers < 0:
        raise ValueError(
            f"stop_hopeless = {stop_hopeless}, workers = {workers}: expected 0 or more of each"
        )
    folder = Path(folder)
    wanted = suite.named(only or ["*"])
    workers = workers or room_for(suite.base)
    task = _Task(folder, train, fresh)
    tunings = wanted_tunings(suite, wanted)
    trials = [run for tuning in tunings for run in trials_of(suite, tuning)]
    unmade = [run for run in planned_runs(suite) if run.variant in wanted]
    with (
        OneWriter(folder),
        tqdm(
            total=sum(run.flops for run in trials + unmade),
            unit="FLOP",
            unit_scale=True,
            smoothing=0,
            desc=suite.name,
            disable=not progress,
        ) as bar,
    ):
        chosen, failures = _settle(suite, tunings, task, workers, bar)
        untuned = {
            name
            for tuning in tunings
            if tuning not in [settled for settled, _ in chosen]
            for name in takers(suite, tuning)
        }
        # what was chosen before for the variants that are not wanted now
        chosen += [
            (tuning, held)
            for tuning in suite.tunings
            if tuning not in tunings
            and (held := held_choice(suite, tuning, folder, fresh)) is not None
        ]
        runs = planned_runs(suite, spread(suite, chosen))
        recipes = {one.name: one.recipe or one.name for one in (*suite.variants, *suite.scaling)}
        making = [r for r in runs if r.variant in wanted and recipes[r.variant] not in untuned]
        if stop_hopeless:
            base, *others = (variant.name for variant in suite.variants)
            beside = tuple(run for run in runs if run.variant == base)
            task = _Task(folder, train, fresh, frozenset(others), beside, stop_hopeless)
        failures |= _make(making, task, workers, bar)
    summaries = finished_runs(planned_trials(suite) + runs, folder, fresh)
    check_one_text(summaries)
    if progress and (others_made := by_other_code(summaries)):
        commits = ", ".join(f"{count} at {commit}" for commit, count in others_made.items())
        print(
            f"{sum(others_made.values())} of these runs were made by other versions of the code "
            f"({commits}) and are kept; --fresh, or fresh=True, makes them anew",
            file=sys.stderr,
        )
    if failures:
        raise SweepError(failures, summaries)
    return summaries


def wanted_tunings(suite: Suite, wanted: set[str]) -> list[Tuning | Search]:
    """The tunings on whose choice a variant or scaling run among `wanted` depends."""
    recipes = {
        variant.recipe or variant.name
        for variant in (*suite.variants, *suite.scaling)
        if variant.name in wanted
    }
    return [tuning for tuning in suite.tunings if recipes & takers(suite, tuning).keys()]


def room_for(base: Config) -> int:
    """How many runs fit side by side: cores over threads a run, and on GPUs one on each."""
    device = base.training.device
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    if device == "mps" or (device == "auto" and torch.backends.mps.is_available()):
        return 1
    threads = base.training.threads
    return max(1, available_cores() // threads) if threads else 1


# ---- The tunings ---------------------------------------------------------------------------------


def _settle(
    suite: Suite, tunings: Sequence[Tuning | Search], task: _Task, workers: int, bar: tqdm[None]
) -> tuple[list[tuple[Tuning | Search, Changes]], dict[str, str]]:
    """What each tuning chose, those made before among them, and why some chose nothing."""
    chosen: list[tuple[Tuning | Search, Changes]] = []
    failures: dict[str, str] = {}
    open_ones = []
    for tuning in tunings:
        if (held := held_choice(suite, tuning, task.folder, task.fresh)) is not None:
            chosen.append((tuning, held))
            _count(trials_of(suite, tuning), bar)
        else:
            open_ones.append(tuning)
    lost = _make([run for one in open_ones for run in trials_of(suite, one)], task, workers, bar)
    for tuning in open_ones:
        names = {run.folder_name for run in trials_of(suite, tuning)}
        own = {name: reason for name, reason in lost.items() if name in names}
        found: Changes = {}
        try:
            if isinstance(tuning, Search):
                found = _search(suite, tuning, task, workers, not bar.disable)
            elif all(reason.startswith(DIVERGED) for reason in own.values()):
                found = _weigh(suite, tuning, task, own)
        except (RuntimeError, OSError, ValueError) as error:
            failures[f"tuning of {tuning.variant}"] = str(error)
            continue
        if found:
            chosen.append((tuning, found))
        else:  # a rate that is too high may diverge; all of them may not
            failures |= own
    return chosen, failures


def _weigh(suite: Suite, tuning: Tuning, task: _Task, lost: Mapping[str, str]) -> Changes:
    """What the trials of given values chose; nothing where all have diverged."""
    finished = finished_runs(trials_of(suite, tuning), task.folder, task.fresh)
    field = tuning.field
    chosen = best_choices(suite, finished).get(tuning.variant, {})
    if field not in chosen:
        return {}
    results = results_of_trials(suite, tuning, finished, lost)
    best = next(one for one in results if one["values"] == {field: chosen[field]})
    keep_choice(suite, tuning, task.folder, results, best)
    return {field: chosen[field]}


def _search(suite: Suite, tuning: Search, task: _Task, workers: int, progress: bool) -> Changes:
    """What a search chose, made or continued.

    Raises:
        RuntimeError: no trial was finished, or some failed and are to be tried again.
        ValueError: the folder holds another search.
    """
    from strata.ablations.tuning import tune  # needs Optuna, as suites seldom do

    place = task.folder / tuning.folder_name
    if task.fresh and any(made_by(run)[0] != code_hash() for run in place.glob("trial-*")):
        shutil.rmtree(place)
    config = trial_config(suite, tuning, suite.variant(tuning.variant))
    try:
        study = tune(
            config, tuning.space, place, trials=tuning.trials, workers=workers, progress=progress
        )
    except ValueError as error:
        raise ValueError(f"{error}, or delete {place} to search anew") from error
    results = results_of_search(tuning, study)
    done = sum(one["outcome"].startswith((FINISHED, "stopped")) for one in results)
    if done < tuning.trials:
        raise RuntimeError(
            f"{tuning.trials - done} of {tuning.trials} trials failed: "
            + next(one["outcome"] for one in reversed(results) if "failed" in one["outcome"])
        )
    best = results[study.best_trial.number]
    keep_choice(suite, tuning, task.folder, results, best)
    chosen: Changes = best["values"]
    return chosen


# ---- Making the runs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What all runs of a sweep have in common; it goes to the workers."""

    folder: Path
    train: Train
    fresh: bool
    judged: frozenset[str] = frozenset()  # variants that are stopped early
    beside: tuple[PlannedRun, ...] = ()  # runs of the base that they are judged by
    margin: float = 0.0

    def is_settled(self, run: PlannedRun) -> bool:
        """Whether nothing is left to do for a run."""
        state = state_of(run, self.folder, self.fresh)
        if state == "stopped" and run.variant in self.judged:
            excess: float = read_stopped(self.folder / run.folder_name)["excess"]
            return excess > self.margin
        return state == "finished"


def _make(runs: Sequence[PlannedRun], task: _Task, workers: int, bar: tqdm[None]) -> dict[str, str]:
    """Make those of `runs` that are not finished; the reasons of those that failed, by folder."""
    settled = [run for run in runs if task.is_settled(run)]
    waiting = [run for run in runs if run not in settled]
    _count(settled, bar)
    workers = max(1, min(workers, len(waiting)))
    if workers > 1:
        for data, vocabulary in {(run.config.data, run.config.model.vocab_size) for run in waiting}:
            prepare(data, vocabulary)  # once, rather than in every process at the same time
    queue = iter(waiting)
    failures: dict[str, str] = {}
    for run, outcome in side_by_side(lambda: next(queue, None), partial(_attempt, task), workers):
        bar.set_postfix_str(run.folder_name, refresh=False)
        bar.update(run.flops)
        if outcome == FINISHED:
            if settled:  # before more runs are made that nothing can be compared with
                check_one_text(finished_runs([*settled, run], task.folder, task.fresh))
                settled = []
            continue
        reason = outcome or "its process died; was it out of memory?"
        if reason.startswith(HOPELESS):
            bar.write(f"{run.folder_name} {reason.removeprefix(HOPELESS)}")
        else:
            failures[run.folder_name] = reason
            bar.write(f"{run.folder_name} failed: {reason}")
    return failures


def _count(runs: Iterable[PlannedRun], bar: tqdm[None]) -> None:
    """Count what was there before, but not as speed."""
    for run in runs:
        if not bar.disable:
            bar.initial += run.flops
        bar.update(run.flops)


def _attempt(task: _Task, run: PlannedRun) -> str:
    """Make one run; `FINISHED`, or else one line that says why it is not."""
    folder = task.folder / run.folder_name
    callbacks: list[Callback] = []
    try:
        _make_room(run, task)
        (folder / STOPPED).unlink(missing_ok=True)
        if run.variant in task.judged:
            finished = finished_runs(task.beside, task.folder, task.fresh)
            callbacks.append(StopsHopeless(finished, task.margin))
        task.train(run.config, folder, callbacks)
        summarise(folder)
    except Hopeless as stopped:
        return f"{HOPELESS}{stopped}"
    except (Diverged, WithoutResult) as error:
        return f"{DIVERGED}{error}"
    except Exception as error:  # whatever it was, the other runs go on
        return f"{type(error).__name__}: {error}"
    return FINISHED


def _make_room(run: PlannedRun, task: _Task) -> None:
    """Put aside what the folder of a run holds of another run; leave what is not a run.

    With `fresh`, whose runs are cheap, it is removed; otherwise it lies under `replaced/` by the
    hash of its configuration, with a number where that is taken.
    """
    folder = task.folder / run.folder_name
    if not folder.exists() or not any(folder.iterdir()):
        return
    if is_continuable(run, task.folder, task.fresh):
        return
    if not (folder / "config.toml").is_file():
        raise ValueError(f"{folder} is in the way: it holds files but no config.toml of a run")
    if task.fresh:
        shutil.rmtree(folder)
        return
    held = Config.load(folder / "config.toml").hash()
    first = aside = task.folder / "replaced" / f"{folder.name}-{held}"
    numbers = count(2)
    while aside.exists():
        aside = first.with_name(f"{first.name}-{next(numbers)}")
    aside.parent.mkdir(exist_ok=True)
    folder.rename(aside)
