"""Which values are best? A search over any fields of a configuration, by Optuna.

    study = tune(
        Config.preset("nano"),
        {"optimizer.learning_rate": "log:0.001:0.1", "model.n_layers": "2:6"},
        "runs/tune-nano",
    )

    runs/tune-nano/
      base.toml     the configuration that is searched around
      study.db      what was tried and what came of it (SQLite, as Optuna keeps it)
      best.toml     the best configuration so far: `strata train runs/tune-nano/best.toml …`
      trial-0000/   trial-0001/ …   every trial an ordinary run

What is minimised is the bits per byte of held-out text after the last update. This process alone
asks the sampler (TPE; Bergstra et al., 2011) and writes down results; a trial trains where
`strata/ablations/processes.py` puts it, and is stopped early when its validations are poor beside
those of the trials before it. A trial stopped early keeps an unfinished run, which `strata train
--run-dir` can finish.

Each draw is seeded by the seed of the search and the number of the trial, so with one worker a
search that was interrupted and continued is the search that was not. A trial under way when the
search ended is taken up again under its own number, from its run's last checkpoint.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.study import Study
from optuna.trial import TrialState

from strata.ablations.processes import available_cores, side_by_side
from strata.ablations.search import Space, parse_search
from strata.ablations.study import alone_in, load_study, open_study
from strata.config import Config
from strata.data import prepare
from strata.training import Callback, Trainer
from strata.training.guard import Diverged
from strata.training.memory import is_out_of_memory

Pruning = Literal["median", "halving", "none"]


def tune(
    config: Config,
    search: Mapping[str, str],
    folder: str | Path,
    *,
    trials: int = 20,
    workers: int = 1,
    pruning: Pruning = "median",
    seed: int = 0,
    seeds: Sequence[int] = (),
    progress: bool = True,
) -> Study:
    """Search until `trials` trials are done, those of earlier calls among them.

    Args:
        config: the configuration around which is searched. If its own values lie within the
            search they are the first trial, so that the best is no worse than they are.
        search: what to try, by dotted name; `strata/ablations/search.py` says how.
        folder: where everything goes; a search that is there is continued.
        trials: in all. One that failed by no fault of its values is tried anew in the next call.
        workers: processes side by side; they share the cores, and the GPUs if there are several.
        pruning: which trials to stop early. "median": beyond the first third of a run, those
            worse than the median of earlier trials after as many updates. "halving": at 1/16 and
            1/4 of a run, those not in the best quarter (ASHA; Li et al., 2020).
        seed: of the sampler.
        seeds: train each trial with each of these as `training.seed`, and take the mean; which
            trials are stopped early, the first decides. None: as the configuration says.
        progress: whether to print a line a trial, to stderr.

    Returns:
        the study, as Optuna gives it.

    Raises:
        ValueError: a field or value that cannot be searched, or a folder that is in use or holds
            something else.
        RuntimeError: no trial was finished.
    """
    folder = Path(folder)
    if trials < 1 or workers < 1:
        raise ValueError(f"trials = {trials}, workers = {workers}: expected at least 1 of each")
    space = parse_search(search, config)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        study = open_study(folder, config, space, seeds)
        # once and in sight, rather than in every process at the same time
        prepare(config.data, config.model.vocab_size, progress=progress)
        threads = config.training.threads
        if workers > 1 and not threads:
            threads = max(1, available_cores() // workers)
        plan = _Plan(folder, config, tuple(seeds), pruning, threads)
        queue = _Queue(study, space, trials, seed)
        for job, outcome in side_by_side(queue.take, partial(_run_trial, plan), workers):
            if outcome is None and queue.give_back(job):
                continue
            outcome = outcome or _Outcome(TrialState.FAIL, reason="its process died twice")
            if outcome.reason:
                optuna.Trial(study, job.id).set_user_attr("reason", outcome.reason)
            study.tell(job.number, outcome.value, outcome.state)
            if progress:
                print(_line(study, job, trials, outcome), file=sys.stderr, flush=True)
            _save_best(study, config, folder)
        _save_best(study, config, folder)
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        reasons = [one.user_attrs["reason"] for one in study.trials if "reason" in one.user_attrs]
        raise RuntimeError(f"{folder}: no trial was finished; the last says: {reasons[-1]}")
    return study


def _save_best(study: Study, config: Config, folder: Path) -> None:
    """Write `best.toml`, once a trial is finished."""
    if study.get_trials(states=(TrialState.COMPLETE,)):
        config.override(study.best_params).save(folder / "best.toml")


# ---- Which trial is next -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """A trial on its way to a worker."""

    id: int  # in the study's storage
    number: int
    values: dict[str, Any]  # by dotted name


@dataclass(frozen=True)
class _Outcome:
    """What came of a trial."""

    state: TrialState
    value: float | None = None  # bits per byte
    reason: str = ""  # why there is no value


class _Queue:
    """The trials to come: first those that an earlier call left under way, then new ones."""

    def __init__(self, study: Study, space: Space, trials: int, seed: int) -> None:
        self._study, self._space, self._seed = study, space, seed
        self._waiting: list[_Job] = []
        self._died: set[int] = set()
        done = 0
        for one in study.trials:
            if one.state == TrialState.RUNNING and one.params.keys() == space.keys():
                self._waiting.append(_Job(one._trial_id, one.number, one.params))
            elif one.state == TrialState.RUNNING:  # it was being drawn when its process ended
                study.tell(one.number, state=TrialState.FAIL)
            done += one.state in (TrialState.COMPLETE, TrialState.PRUNED)
        self._left = trials - done - len(self._waiting)

    def take(self) -> _Job | None:
        """The next trial; None if there is none now."""
        if self._waiting:
            return self._waiting.pop(0)
        if self._left <= 0:
            return None
        self._left -= 1
        draw = np.random.SeedSequence((self._seed, len(self._study.trials))).generate_state(1)
        self._study.sampler = optuna.samplers.TPESampler(seed=int(draw[0]))
        trial = self._study.ask(self._space)
        return _Job(trial._trial_id, trial.number, trial.params)

    def give_back(self, job: _Job) -> bool:
        """Whether a trial whose process died is tried again: once it is."""
        if job.number in self._died:
            return False
        self._died.add(job.number)
        self._waiting.append(job)
        return True


# ---- One trial, in a worker ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What all trials have in common."""

    folder: Path
    config: Config
    seeds: tuple[int, ...]
    pruning: Pruning
    threads: int

    def runs(self, job: _Job) -> dict[Path, Config]:
        """The folders of a trial's runs and their configurations."""
        folder = self.folder / f"trial-{job.number:04d}"
        config = self.config.override({**job.values, "training.threads": self.threads})
        if not self.seeds:
            return {folder: config}
        return {
            folder.with_name(f"{folder.name}-seed{seed}"): config.override({"training.seed": seed})
            for seed in self.seeds
        }


def _run_trial(plan: _Plan, job: _Job) -> _Outcome:
    """Train a trial's runs, or go on with them, and say what came of it.

    What a configuration is to blame for (values that do not go together, a loss that diverged,
    memory that did not suffice) is told to the sampler like a trial that was stopped early, so
    that it looks elsewhere; anything else is a failure, from which there is nothing to learn.
    """
    study = load_study(plan.folder)
    study.pruner = _pruner(plan.pruning, plan.config.training.max_steps)
    callbacks = [_StopsPoorTrials(study, job)]
    found = []
    try:
        runs = plan.runs(job)
    except ValueError as error:
        return _Outcome(TrialState.PRUNED, reason=" ".join(str(error).split()))
    try:
        for folder, config in runs.items():
            Trainer(config, folder, callbacks, progress=False).fit()
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            found.append(summary["validation_bits_per_byte"])
            callbacks = []
        if not all(map(math.isfinite, found)):
            raise Diverged("its loss is not finite")
    except (optuna.TrialPruned, Diverged) as error:
        return _Outcome(TrialState.PRUNED, reason=" ".join(str(error).split()))
    except Exception as error:
        if is_out_of_memory(error):
            return _Outcome(TrialState.PRUNED, reason="it does not fit into memory")
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return _Outcome(TrialState.FAIL, reason=reason)
    return _Outcome(TrialState.COMPLETE, float(np.mean(found)))


class _StopsPoorTrials(Callback):
    """Reports each validation to the study and ends the run when the pruner says so.

    The run is left as one that was interrupted, with its last checkpoint.
    """

    def __init__(self, study: Study, job: _Job) -> None:
        self._trial = optuna.Trial(study, job.id)
        # a run that goes on from its checkpoint comes by some validations a second time
        self._reported = set(study.trials[job.number].intermediate_values)

    def on_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        step, bits = metrics["step"], metrics["validation_bits_per_byte"]
        if step not in self._reported:
            self._trial.report(bits, step)
        if step < trainer.config.training.max_steps and self._trial.should_prune():
            raise optuna.TrialPruned(f"stopped after step {step:,} at {bits:.3f} bits/byte")


def _pruner(pruning: Pruning, max_steps: int) -> optuna.pruners.BasePruner:
    if pruning == "median":
        third = math.ceil(max_steps / 3)
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=third)
    if pruning == "halving":
        first = max(1, max_steps // 16)
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=4)
    return optuna.pruners.NopPruner()


def _line(study: Study, job: _Job, trials: int, outcome: _Outcome) -> str:
    """A trial as it is told: how far the search is, what was tried, what came of it."""
    values = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in job.values.items()
    )
    result = outcome.reason if outcome.value is None else f"{outcome.value:.3f} bits/byte"
    states = [one.state for one in study.trials]
    done = sum(state in (TrialState.COMPLETE, TrialState.PRUNED) for state in states)
    best = ""
    if TrialState.COMPLETE in states:
        best = f" (best {study.best_value:.3f}, trial {study.best_trial.number})"
    return f"{done} of {trials}, trial {job.number}: {values}: {result}{best}"
