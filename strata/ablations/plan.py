"""The runs of a suite before they are made, and what has become of them in its folder.

A run that is finished stays, by whatever version of the code it was made, as long as its
configuration is the one that is wanted: runs are dear, most changes of code change no weight, and
each run's provenance says by which commit it was made. Where a result has to be that of the code
at hand, as in the workbook, `fresh` counts only runs of this very code (`code_hash`, which leaves
comments out). A run that is half made is never continued by other code than it was begun by.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.ablations.grid import at_length, run_flops
from strata.ablations.summary import RunSummary, summarise
from strata.ablations.variants import Changes, Search, Suite, Tuning, Variant
from strata.config import Config
from strata.training.folder import code_hash

State = Literal["finished", "stopped", "begun", "to do"]
# In the folder of a run that was stopped early: where it stood, and beside what.
STOPPED = "stopped.json"


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
        return run_flops(self.config)


def planned_trials(suite: Suite) -> list[PlannedRun]:
    """The runs of the tunings that try given values; what a search tries, it decides itself."""
    return [run for tuning in suite.tunings for run in trials_of(suite, tuning)]


def trials_of(suite: Suite, tuning: Tuning | Search) -> list[PlannedRun]:
    """The runs of one tuning; none for a search."""
    if isinstance(tuning, Search):
        return []
    trials = tuning.trials(suite.variant(tuning.variant))
    return [
        PlannedRun(trial.name, tuning.seed, trial_config(suite, tuning, trial)) for trial in trials
    ]


def trial_config(suite: Suite, tuning: Tuning | Search, variant: Variant) -> Config:
    """What a trial of `variant` is, at the seed and the length of the tuning."""
    config = variant.apply(suite.base, tuning.seed)
    return config.override(at_length(config, tuning.steps)) if tuning.steps else config


def planned_runs(suite: Suite, choices: Mapping[str, Changes] | None = None) -> list[PlannedRun]:
    """The reported runs, all variants of a seed before the next seed, then the scaling runs.

    A scaling run takes what was chosen for its recipe.
    """
    choices = choices or {}
    pairs = [(variant, seed) for seed in suite.seeds for variant in suite.variants]
    pairs += [(variant, suite.seeds[0]) for variant in suite.scaling]
    return [
        PlannedRun(
            variant.name,
            seed,
            variant.apply(suite.base, seed, choices.get(variant.recipe or variant.name)),
        )
        for variant, seed in pairs
    ]


# ---- What has become of them ---------------------------------------------------------------------


def state_of(run: PlannedRun, folder: Path, fresh: bool = False) -> State:
    """What the suite's folder holds of a run; of another configuration, it holds nothing."""
    place = folder / run.folder_name
    if not _is_wanted(run, place):
        return "to do"
    ours = made_by(place)[0] == code_hash()
    if not ours and fresh:
        return "to do"
    try:
        summarise(place)
    except (FileNotFoundError, ValueError):
        if not ours or not (place / "metrics.jsonl").is_file():
            return "to do"
        return "stopped" if (place / STOPPED).is_file() else "begun"
    return "finished"


def is_continuable(run: PlannedRun, folder: Path, fresh: bool = False) -> bool:
    """Whether training the run goes on from what its folder holds, if that is anything."""
    place = folder / run.folder_name
    ours = _is_wanted(run, place) and made_by(place)[0] == code_hash()
    return ours or state_of(run, folder, fresh) == "finished"


def finished_runs(
    runs: Iterable[PlannedRun], folder: Path, fresh: bool = False
) -> list[RunSummary]:
    """Summaries of those that are finished."""
    done = [run for run in runs if state_of(run, folder, fresh) == "finished"]
    return [summarise(folder / run.folder_name) for run in done]


def made_by(place: Path) -> tuple[str, str]:
    """The hash of the code and the commit that a run was begun by; empty where it does not say."""
    try:
        origin = json.loads((place / "provenance.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return "", ""
    return origin.get("code", ""), origin.get("commit", "")


def by_other_code(runs: Iterable[RunSummary]) -> dict[str, int]:
    """How many of some runs were made by other code than this, by the commit they name."""
    found: dict[str, int] = {}
    for run in runs:
        if run.provenance.get("code", "") != code_hash():
            commit = run.provenance.get("commit", "")
            found[commit[:12] or "unknown"] = found.get(commit[:12] or "unknown", 0) + 1
    return found


def check_one_text(runs: Iterable[RunSummary]) -> None:
    """Check that runs which name the same data have read the same text.

    Raises ValueError where a corpus has changed between two of them, naming both.
    """
    texts: dict[tuple[str, int], tuple[object, str]] = {}
    for run in runs:
        text = run.provenance.get("corpus"), run.provenance.get("tokenizer")
        key = repr(run.config.data), run.config.model.vocab_size
        before, other = texts.setdefault(key, (text, run.name))
        if before != text:
            raise ValueError(
                f"{run.name} and {other} have read different text, though both name the corpus "
                f"{run.config.data.corpus!r}: it has changed in between, so they cannot be "
                "compared; remove those of the older text, or take another folder"
            )


def _is_wanted(run: PlannedRun, place: Path) -> bool:
    """Whether a folder holds a run of this configuration, measured at the same steps."""
    try:
        there = Config.load(place / "config.toml")
    except (FileNotFoundError, ValueError):
        return False
    return there.hash() == run.config.hash() and measured_at(there) == measured_at(run.config)


def measured_at(config: Config) -> tuple[int, int]:
    """When a run is validated and on how much: no weight depends on it, but its curve does."""
    return config.training.validate_every, config.training.validation_sequences
