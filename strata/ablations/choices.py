"""What the tunings of a suite chose, from what, and who takes it.

`choices.json` in the suite's folder holds an entry a tuning, for people to read and for a suite
that is resumed:

    variant, seed, steps       who was tuned, with which seed, for how many updates of the suite's
    tried, trials              the values or the spaces by field, and the number of trials
    config_hash, measured      of the configuration around which was tried; when it was validated
    code                       the hash of the code that made the trials
    results                    every trial: its folder, values, bits per byte and what became of it
    chosen, bits_per_byte      the best of them
    taken_by                   the fields that each variant takes over

An entry holds as long as the question is the same, so trials may be deleted once it is written. It
is written when every trial is done or has diverged; one that failed otherwise is tried again first.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.ablations.plan import measured_at, trial_config, trials_of
from strata.ablations.summary import RunSummary
from strata.ablations.variants import Changes, Search, Suite, Tuning
from strata.storage import write_whole
from strata.training.folder import code_hash

if TYPE_CHECKING:
    from optuna.study import Study

CHOICES = "choices.json"
Entry = dict[str, Any]


def takers(suite: Suite, tuning: Tuning | Search) -> dict[str, list[str]]:
    """The variants that take what a tuning chooses, and which fields each of them takes.

    The variant itself takes all. One of `tuning.also` takes a field if it had the same value as
    the variant before, so that `gpt3+muon` keeps Muon's rate when GPT-3's recipe is tuned, and if
    it is not tuned in that field itself.
    """
    tuned = suite.variant(tuning.variant).apply(suite.base, 0)
    found = {tuning.variant: list(tuning.fields)}
    for variant in suite.variants:
        if variant.name == tuning.variant or variant.name not in suite.named(tuning.also):
            continue
        own = {f for t in suite.tunings if t.variant == variant.name for f in t.fields}
        different = tuned.differences(variant.apply(suite.base, 0)).keys()
        if fields := [name for name in tuning.fields if name not in own | different]:
            found[variant.name] = fields
    return found


def spread(
    suite: Suite, chosen: Iterable[tuple[Tuning | Search, Changes]]
) -> dict[str, dict[str, object]]:
    """What tunings chose as changes to the variants that take it."""
    choices: dict[str, dict[str, object]] = {}
    for tuning, values in chosen:
        for name, fields in takers(suite, tuning).items():
            choices.setdefault(name, {}).update({field: values[field] for field in fields})
    return choices


def best_choices(suite: Suite, trials: Iterable[RunSummary]) -> dict[str, dict[str, object]]:
    """For each variant the values that its trials chose, as changes to its configuration.

    A tuning of which no trial finished chooses nothing. A best value at the end of its range is
    said in a warning: the tuning was too narrow to be fair. Searches keep their trials elsewhere
    and are not looked at; `read_choices` has both.
    """
    losses = {trial.variant: trial.bits_per_byte for trial in trials}
    grids = [tuning for tuning in suite.tunings if isinstance(tuning, Tuning)]
    best = [(tuning, _best(suite, tuning, losses)) for tuning in grids]
    return spread(suite, [(one, {one.field: value}) for one, value in best if value is not None])


def _best(suite: Suite, tuning: Tuning, losses: Mapping[str, float]) -> float | None:
    names = [run.variant for run in trials_of(suite, tuning)]
    tried = [
        (losses[name], value)
        for name, value in zip(names, tuning.values, strict=True)
        if name in losses
    ]
    if not tried:
        return None
    best = min(tried)[1]
    if len(tuning.values) > 2 and best in (min(tuning.values), max(tuning.values)):
        warnings.warn(
            f"{tuning.variant}: the best {tuning.field} of {tuning.values} is {best:g}, at "
            "the end of the range; add values beyond it",
            stacklevel=3,
        )
    return best


# ---- On disk -------------------------------------------------------------------------------------


def read_choices(folder: str | Path) -> list[Entry]:
    """The entries of a suite's `choices.json`; none where there is no such file.

    Raises ValueError, with the path, where it is not one.
    """
    path = Path(folder) / CHOICES
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [{**entry, "chosen": dict(entry["chosen"])} for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): mend or delete it; what it held is found again from "
            "the trials"
        ) from error


def held_choice(
    suite: Suite, tuning: Tuning | Search, folder: Path, fresh: bool = False
) -> Changes | None:
    """What was chosen when this very tuning was made before; None if it was not.

    `fresh` counts only what was made by the code at hand.
    """
    asked = _question(suite, tuning)
    for entry in read_choices(folder):
        if {key: entry.get(key) for key in asked} == asked:
            return entry["chosen"] if not fresh or entry["code"] == code_hash() else None
    return None


def keep_choice(
    suite: Suite, tuning: Tuning | Search, folder: Path, results: list[Entry], best: Entry
) -> None:
    """Write down what a tuning came to, in place of what was held of the same fields."""
    asked = _question(suite, tuning)
    entry = asked | {
        "suite_steps": suite.variant(tuning.variant).apply(suite.base, 0).training.max_steps,
        "code": code_hash(),
        "results": results,
        "chosen": best["values"],
        "bits_per_byte": best["bits_per_byte"],
        "taken_by": takers(suite, tuning),
    }
    others = [
        other
        for other in read_choices(folder)
        if (other["variant"], other["tried"].keys()) != (asked["variant"], asked["tried"].keys())
    ]
    write_whole(folder / CHOICES, json.dumps([*others, entry], indent=1) + "\n")


def _question(suite: Suite, tuning: Tuning | Search) -> Entry:
    """All that the answer of a tuning depends on, as JSON gives it back."""
    config = trial_config(suite, tuning, suite.variant(tuning.variant))
    if isinstance(tuning, Search):
        tried: Entry = dict(tuning.space)
    else:
        tried = {tuning.field: list(tuning.values)}
    return {
        "variant": tuning.variant,
        "seed": tuning.seed,
        "steps": config.training.max_steps,
        "tried": tried,
        "trials": tuning.trials if isinstance(tuning, Search) else len(tuning.values),
        "config_hash": config.hash(),
        "measured": list(measured_at(config)),
    }


def results_of_trials(
    suite: Suite, tuning: Tuning, finished: Iterable[RunSummary], failures: Mapping[str, str]
) -> list[Entry]:
    """What became of each trial of given values."""
    losses = {run.variant: run.bits_per_byte for run in finished}
    return [
        {
            "folder": run.folder_name,
            "values": {tuning.field: value},
            "bits_per_byte": losses.get(run.variant),
            "outcome": "finished" if run.variant in losses else failures.get(run.folder_name, ""),
        }
        for run, value in zip(trials_of(suite, tuning), tuning.values, strict=True)
    ]


def results_of_search(tuning: Search, study: Study) -> list[Entry]:
    """What became of each trial of a search; the loss of one stopped early is its last."""
    return [
        {
            "folder": f"{tuning.folder_name}/trial-{trial.number:04d}",
            "values": trial.params,
            "bits_per_byte": trial.value,
            "outcome": {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}.get(
                trial.state.name, "begun"
            )
            + (f": {trial.user_attrs['reason']}" if "reason" in trial.user_attrs else ""),
        }
        for trial in study.trials
    ]
