"""What comes out of an evaluation: scores that can be saved, read back and compared.

A `TaskResult` holds a score, its interval, and every item with the choice taken and the
log-likelihoods behind it. `compare_results` puts two models side by side, item by item.
`overall_score` is one number for several tasks: the mean of their scores, each centred, that is
measured from guessing (0) to faultless (1). `place_overall` says which GPT-3 would have it.

Written out for a reader by `tables`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.evaluation.comparison import (
    Difference,
    bootstrap_scores,
    paired_difference,
    permutation_p_value,
    quantile_interval,
)
from strata.evaluation.reference import (
    GPT3_FEW_SHOT,
    GPT3_RESULTS,
    Placement,
    centred,
    gpt3_curve,
    place_on_curve,
)
from strata.storage import write_whole


@dataclass(frozen=True)
class ItemResult:
    """How one item went.

    index: its number in the task.
    fingerprint: of the question itself; two models are compared on equal ones only.
    prediction: the choice taken; for a cloze 0 where the target was predicted, else -1; for a
        text -1.
    correct: whether the prediction is the label; False for a text.
    log_likelihoods: nats, one a choice.
    value, weight: the task's score is the sum of values over the sum of weights: 1 or 0 over 1
        for an accuracy, bits over bytes for a text.
    cluster: items with the same number are drawn together by the bootstrap; -1 = alone.
    """

    index: int
    fingerprint: str
    prediction: int
    correct: bool
    log_likelihoods: tuple[float, ...]
    value: float
    weight: float = 1.0
    cluster: int = -1


@dataclass(frozen=True)
class TaskResult:
    """The score of one model on one task.

    score: a fraction from 0 to 1, or bits per byte.
    interval: of the score, at `confidence`.
    metric: which of the `metrics` the score is; strata/evaluation/tasks.py says what they are.
    chance: the score of guessing.
    higher_is_better: False for bits per byte.
    metrics: every metric that the items allow, and ``acc/PART`` for each part of a task.
    shots: examples with their answers that stood before each question.
    n_cut: items of which the model's context did not hold the beginning, examples or question.
    """

    task: str
    score: float
    interval: tuple[float, float]
    confidence: float
    n_items: int
    metric: str
    chance: float
    higher_is_better: bool
    metrics: dict[str, float]
    items: tuple[ItemResult, ...]
    shots: int = 0
    n_cut: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TaskResult:
        """The inverse of `to_dict`, also after a journey through JSON."""
        items = tuple(
            ItemResult(**{**item, "log_likelihoods": tuple(item["log_likelihoods"])})
            for item in fields["items"]
        )
        return cls(**{**fields, "interval": tuple(fields["interval"]), "items": items})


def columns(
    items: Sequence[ItemResult],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Values, weights and clusters of the items as arrays, each (items,)."""
    return (
        np.array([item.value for item in items]),
        np.array([item.weight for item in items]),
        np.array([item.cluster for item in items]),
    )


def chance_of(items: Sequence[ItemResult]) -> float:
    """The score of guessing among each item's own choices; a cloze is not guessed.

    ARC's questions have three to five choices, so that it is not one over four.
    """
    choices = [len(item.log_likelihoods) for item in items]
    return sum(1.0 / count for count in choices if count > 1) / len(items)


def save_results(results: Mapping[str, TaskResult], path: str | Path) -> None:
    """Write results as JSON, whole or not at all."""
    fields = {name: result.to_dict() for name, result in results.items()}
    write_whole(Path(path), json.dumps(fields, indent=1) + "\n")


def load_results(path: str | Path) -> dict[str, TaskResult]:
    """Read what `save_results` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no results.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        return {name: TaskResult.from_dict(result) for name, result in fields.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what strata evaluate writes ({error}); evaluate anew"
        ) from None


def compare_results(
    first: Mapping[str, TaskResult],
    second: Mapping[str, TaskResult],
    *,
    bootstrap_samples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Second minus first, on every task that both have.

    Raises:
        ValueError: the two did not answer the same items of a task.
    """
    differences = {}
    names = [name for name in first if name in second]
    _check_alike(first, second, names)
    for name in names:
        ours, weights, clusters = columns(first[name].items)
        theirs, _, _ = columns(second[name].items)
        differences[name] = paired_difference(
            ours, theirs, weights, clusters, bootstrap_samples, confidence, seed
        )
    return differences


def _check_alike(
    first: Mapping[str, TaskResult], second: Mapping[str, TaskResult], names: Sequence[str]
) -> None:
    """Raises ValueError where two models were not asked and scored alike."""
    for name in names:
        asked = [[item.fingerprint for item in run[name].items] for run in (first, second)]
        if asked[0] != asked[1]:
            raise ValueError(
                f"task {name!r}: the two results are of different items ({len(asked[0])} and "
                f"{len(asked[1])}); evaluate both with one limit, seed, corpus and number of shots"
            )
        if first[name].metric != second[name].metric:
            raise ValueError(
                f"task {name!r}: one result is scored by {first[name].metric}, the other by "
                f"{second[name].metric}; evaluate both with one version of Strata"
            )


@dataclass(frozen=True)
class Overall:
    """The mean of several tasks' centred scores, and its interval.

    tasks: their names; n_items: the items of all of them.
    """

    score: float
    interval: tuple[float, float]
    confidence: float
    tasks: tuple[str, ...]
    n_items: int


def overall_score(
    results: Mapping[str, TaskResult],
    *,
    bootstrap_samples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Overall | None:
    """The mean of the centred accuracies; None where there is no accuracy.

    Every task counts alike, however many items it has. For the interval each task's items, or
    clusters of them, are drawn anew, independently of the other tasks'.
    """
    accuracies = {name: result for name, result in results.items() if result.higher_is_better}
    if not accuracies:
        return None
    scores, draws = [], []
    for number, result in enumerate(accuracies.values()):
        drawn = bootstrap_scores(*columns(result.items), bootstrap_samples, seed + number)
        draws.append((drawn - result.chance) / (1.0 - result.chance))
        scores.append(centred(result.score, result.chance))
    return Overall(
        score=float(np.mean(scores)),
        interval=quantile_interval(np.mean(draws, axis=0), confidence),
        confidence=confidence,
        tasks=tuple(accuracies),
        n_items=sum(result.n_items for result in accuracies.values()),
    )


def compare_overall(
    first: Mapping[str, TaskResult],
    second: Mapping[str, TaskResult],
    *,
    bootstrap_samples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference | None:
    """Second minus first of the means of centred accuracies over the tasks that both have.

    Paired item by item, as `compare_results`; None where they share no accuracy.

    Raises:
        ValueError: the two did not answer the same items of a task.
    """
    names = [name for name in first if name in second and first[name].higher_is_better]
    if not names:
        return None
    _check_alike(first, second, names)
    draws, differences, clusters, means = [], [], [], []
    n_clusters = 0
    for number, name in enumerate(names):
        ours, weights, members = columns(first[name].items)
        theirs, _, _ = columns(second[name].items)
        # what one right answer adds to the mean of the centred scores
        share = 1.0 / (len(names) * weights.sum() * (1.0 - first[name].chance))
        drawn = bootstrap_scores(theirs - ours, weights, members, bootstrap_samples, seed + number)
        draws.append(drawn * share * weights.sum())
        differences.append((theirs - ours) * share)
        clusters.append(np.where(members < 0, -1, members + n_clusters))
        n_clusters += int(members.max(initial=-1)) + 1
        means.append([centred(run[name].score, first[name].chance) for run in (first, second)])
    before, after = np.mean(means, axis=0)
    return Difference(
        first=float(before),
        second=float(after),
        difference=float(after - before),
        interval=quantile_interval(np.sum(draws, axis=0), confidence),
        p_value=permutation_p_value(
            np.concatenate(differences), np.concatenate(clusters), seed=seed
        ),
        n_items=sum(len(part) for part in differences),
    )


def place_overall(
    results: Mapping[str, TaskResult],
    *,
    bootstrap_samples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Overall, Placement] | None:
    """The overall score on the tasks that GPT-3 reports, and its place among GPT-3's sizes.

    GPT-3's scores are centred by the same chances, so equal scores have equal places. None where
    no such task was measured.
    """
    shared = gpt3_results(results)
    overall = overall_score(
        shared, bootstrap_samples=bootstrap_samples, confidence=confidence, seed=seed
    )
    if overall is None:
        return None
    curve = gpt3_mean_curve(shared)
    return overall, place_on_curve(overall.score, curve, overall.interval)


def gpt3_mean_curve(results: Mapping[str, TaskResult]) -> tuple[float, ...]:
    """GPT-3's own mean of centred scores on the tasks of these results, one a size.

    Raises:
        ValueError: GPT-3's table lacks one of the tasks.
    """
    curves = [
        [centred(score, result.chance) for score in gpt3_curve(name, result.shots)]
        for name, result in results.items()
    ]
    return tuple(float(score) for score in np.mean(curves, axis=0))


def gpt3_results(results: Mapping[str, TaskResult]) -> dict[str, TaskResult]:
    """Those of the results that GPT-3's table has a row for, zero-shot or few-shot as they are."""
    return {
        name: result
        for name, result in results.items()
        if name in (GPT3_FEW_SHOT if result.shots else GPT3_RESULTS)
    }
