"""Running a suite: every run an ordinary run folder, none made twice.

    suites/nano/
      strata-seed0/  strata-seed1/ …   gpt3-seed0/ …     one folder a variant and seed
      gpt3@learning_rate=0.003-seed1000/                 a trial of a tuning
      width64-steps38-seed0/                             a run for the scaling law

A run whose folder holds a summary and the wanted configuration is left alone, one whose
configuration has changed is made anew, one that was interrupted goes on from its checkpoint. The
seeds are the outer loop, so a sweep that is stopped early has every variant equally often. A run
that fails is reported at the end and costs nothing but itself.

Small runs gain little from several threads. Where the suite's `training.threads` is less than the
number of cores, runs go side by side in as many processes as fit; on a GPU they take turns.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from strata.ablations.processes import available_cores, side_by_side
from strata.ablations.summary import RunSummary, summarise
from strata.ablations.variants import Changes, Suite
from strata.config import Config
from strata.data import prepare
from strata.model import flops_per_token
from strata.training import Trainer
from strata.training.folder import code_hash

Train = Callable[[Config, Path], None]
FINISHED = "finished"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a suite before it is made."""

    variant: str
    seed: int
    config: Config

    @property
    def folder_name(self) -> str:
        """Where it lies in the suite's folder."""
        return f"{self.variant}-seed{self.seed}"

    @property
    def flops(self) -> float:
        """What the whole run costs in training."""
        training, model = self.config.training, self.config.model
        tokens = training.max_steps * training.batch_size * model.context_length
        return tokens * flops_per_token(model)


class SweepError(RuntimeError):
    """Some runs of a suite failed; the others are finished. `failures` maps folder to reason."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        self.failures = dict(failures)
        lines = [f"  {folder}: {reason}" for folder, reason in self.failures.items()]
        super().__init__(
            f"{len(lines)} of the suite's runs failed; the others are kept, and running the suite "
            "again tries these alone:\n" + "\n".join(lines)
        )


def train_run(config: Config, folder: Path) -> None:
    """Make one run in its folder with the ordinary `Trainer`."""
    Trainer(config, folder, progress=False).fit()


def run_suite(
    suite: Suite,
    folder: str | Path,
    progress: bool = True,
    *,
    workers: int = 0,
    train: Train = train_run,
) -> list[RunSummary]:
    """Make every run of `suite` under `folder` that is not there yet; summaries of all of them.

    First come the trials of the tunings; the best value of each joins its variant's changes. Then
    the variants, seed by seed, and the runs for the scaling law. `workers` is the number of
    processes; 0 takes as many as `training.threads` leaves room for, 1 trains in this process.
    One progress line counts training FLOPs, with rate and time left. `train` makes one run.

    Raises SweepError, after everything else is done, when runs failed; `load_suite` still reads
    what is there. After an interrupt (KeyboardInterrupt) the next call continues.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    workers = workers or _room_for(suite.base)
    trials = planned_trials(suite)
    total = sum(run.flops for run in trials + planned_runs(suite))
    with tqdm(
        total=total,
        unit="FLOP",
        unit_scale=True,
        smoothing=0,
        desc=suite.name,
        disable=not progress,
    ) as bar:
        lost_trials = _make(trials, folder, workers, train, bar)
        runs = planned_runs(suite, best_choices(suite, _finished(trials, folder)))
        failures = _make(runs, folder, workers, train, bar)
    for tuning in suite.tunings:  # a rate that is too high may diverge; all of them may not
        names = {trial.name for trial in tuning.trials(suite.variant(tuning.variant))}
        lost = {run.folder_name for run in trials if run.variant in names} & lost_trials.keys()
        if len(lost) == len(names):
            failures |= {name: lost_trials[name] for name in lost}
    if failures:
        raise SweepError(failures)
    return _finished(trials + runs, folder)


def planned_trials(suite: Suite) -> list[PlannedRun]:
    """The runs of the tunings."""
    return [
        PlannedRun(trial.name, tuning.seed, trial.apply(suite.base, tuning.seed))
        for tuning in suite.tunings
        for trial in tuning.trials(suite.variant(tuning.variant))
    ]


def planned_runs(suite: Suite, choices: Mapping[str, Changes] | None = None) -> list[PlannedRun]:
    """The reported runs, all variants of a seed before the next seed, then the scaling runs."""
    choices = choices or {}
    pairs = [(variant, seed) for seed in suite.seeds for variant in suite.variants]
    pairs += [(variant, suite.seeds[0]) for variant in suite.scaling]
    return [
        PlannedRun(variant.name, seed, variant.apply(suite.base, seed, choices.get(variant.name)))
        for variant, seed in pairs
    ]


def best_choices(suite: Suite, trials: Iterable[RunSummary]) -> dict[str, dict[str, object]]:
    """For each tuned variant the value with the lowest loss, as changes to its configuration.

    A tuning of which no trial finished chooses nothing. A best value at the end of its range is
    said in a warning: the search was too narrow to be fair.
    """
    losses = {trial.variant: trial.bits_per_byte for trial in trials}
    choices: dict[str, dict[str, object]] = {}
    for tuning in suite.tunings:
        names = [trial.name for trial in tuning.trials(suite.variant(tuning.variant))]
        tried = [
            (losses[name], value)
            for name, value in zip(names, tuning.values, strict=True)
            if name in losses
        ]
        if not tried:
            continue
        best = min(tried)[1]
        choices.setdefault(tuning.variant, {})[tuning.field] = best
        if len(tuning.values) > 2 and best in (min(tuning.values), max(tuning.values)):
            warnings.warn(
                f"{tuning.variant}: the best {tuning.field} of {tuning.values} is {best:g}, at "
                "the end of the range; add values beyond it",
                stacklevel=2,
            )
    return choices


# --------------------------------------------------------------------------- making the runs


def _room_for(base: Config) -> int:
    """How many runs fit side by side: cores over threads a run, one on an accelerator."""
    device = base.training.device
    on_cpu = device == "cpu" or (
        device == "auto" and not torch.cuda.is_available() and not torch.backends.mps.is_available()
    )
    threads = base.training.threads
    return max(1, available_cores() // threads) if on_cpu and threads else 1


def _make(
    runs: Sequence[PlannedRun], folder: Path, workers: int, train: Train, bar: tqdm[None]
) -> dict[str, str]:
    """Make those of `runs` that are not finished; the reasons of those that failed, by folder."""
    waiting = []
    for run in runs:
        if _is_finished(run, folder / run.folder_name):
            if not bar.disable:
                bar.initial += run.flops  # so that what was there does not count as speed
            bar.update(run.flops)
        else:
            waiting.append(run)
    workers = max(1, min(workers, len(waiting)))
    if workers > 1:
        for data, vocabulary in {(run.config.data, run.config.model.vocab_size) for run in waiting}:
            prepare(data, vocabulary)  # once, rather than in every process at the same time
    queue = iter(waiting)
    outcomes = side_by_side(lambda: next(queue, None), partial(_attempt, folder, train), workers)
    failures: dict[str, str] = {}
    for run, reason in outcomes:
        bar.set_postfix_str(run.folder_name, refresh=False)
        bar.update(run.flops)
        if reason != FINISHED:
            failures[run.folder_name] = reason or "its process died; was it out of memory?"
            bar.write(f"{run.folder_name} failed: {failures[run.folder_name]}")
    return failures


def _attempt(suite_folder: Path, train: Train, run: PlannedRun) -> str:
    """Make one run; `FINISHED`, or else one line that says why it is not."""
    folder = suite_folder / run.folder_name
    try:
        _clear_if_changed(run, folder)
        train(run.config, folder)
        summarise(folder)
    except Exception as error:  # whatever it was, the other runs go on
        return f"{type(error).__name__}: {error}"
    return FINISHED


def _same_run(run: PlannedRun, folder: Path) -> bool:
    """Whether the folder holds this very run: by the same code, and measured at the same steps."""
    try:
        there = Config.load(folder / "config.toml")
        code = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["code"]
    except (FileNotFoundError, ValueError, KeyError):
        return False
    return (code, there.hash()) == (code_hash(), run.config.hash()) and all(
        getattr(there.training, name) == getattr(run.config.training, name)
        for name in ("validate_every", "validation_sequences")
    )


def _is_finished(run: PlannedRun, folder: Path) -> bool:
    """Whether this very run is there, whole and with a finite loss."""
    try:
        return _same_run(run, folder) and bool(summarise(folder))
    except (FileNotFoundError, ValueError):
        return False


def _clear_if_changed(run: PlannedRun, folder: Path) -> None:
    """Remove the run of another configuration; leave what is not a run."""
    if not folder.exists() or _same_run(run, folder) or not any(folder.iterdir()):
        return
    if not (folder / "config.toml").is_file():
        raise ValueError(f"{folder} is in the way: it holds files but no config.toml of a run")
    shutil.rmtree(folder)


def _finished(runs: Iterable[PlannedRun], folder: Path) -> list[RunSummary]:
    folders = [(run, folder / run.folder_name) for run in runs]
    return [summarise(path) for run, path in folders if _is_finished(run, path)]
