"""What comes out of an evaluation: scores that can be saved, read back and compared.

A `TaskResult` holds a score, its interval, and every item with the choice taken and the
log-likelihoods behind it. `compare_results` puts two models side by side, item by item;
`results_table` and `comparison_table` write it out for a reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.evaluation.comparison import Difference, paired_difference
from strata.evaluation.tasks import TASKS
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


def save_results(results: Mapping[str, TaskResult], path: str | Path) -> None:
    """Write results as JSON, whole or not at all."""
    fields = {name: result.to_dict() for name, result in results.items()}
    write_whole(Path(path), json.dumps(fields, indent=1) + "\n")


def load_results(path: str | Path) -> dict[str, TaskResult]:
    """Read what `save_results` wrote.

    Raises:
        FileNotFoundError: there is no such file.
    """
    fields = json.loads(Path(path).read_text(encoding="utf-8"))
    return {name: TaskResult.from_dict(result) for name, result in fields.items()}


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
    for name in [name for name in first if name in second]:
        asked = [[item.fingerprint for item in run[name].items] for run in (first, second)]
        if asked[0] != asked[1]:
            raise ValueError(
                f"task {name!r}: the two results are of different items ({len(asked[0])} and "
                f"{len(asked[1])}); evaluate both with one limit, seed and corpus"
            )
        ours, weights, clusters = columns(first[name].items)
        theirs, _, _ = columns(second[name].items)
        differences[name] = paired_difference(
            ours, theirs, weights, clusters, bootstrap_samples, confidence, seed
        )
    return differences


def results_table(results: Mapping[str, TaskResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one model's scores, for print or paper; accuracies in per cent."""
    header = ["task", "score", "interval", "chance", "items"]
    rows = []
    for name, result in results.items():
        low, high = (_number(end, result) for end in result.interval)
        chance = "–" if not result.higher_is_better else _number(result.chance, result)
        rows.append(
            [TASKS[name].title, _number(result.score, result), f"[{low}, {high}]", chance,
             str(result.n_items)]
        )  # fmt: skip
    return header, rows


def comparison_table(
    first: Mapping[str, TaskResult],
    second: Mapping[str, TaskResult],
    names: tuple[str, str] = ("first", "second"),
    *,
    bootstrap_samples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of two models' scores on the same items; accuracies in per cent.

    Raises:
        ValueError: as `compare_results`.
    """
    header = ["task", *names, "difference", "interval", "p", "items"]
    rows = []
    for name, found in compare_results(
        first, second, bootstrap_samples=bootstrap_samples, confidence=confidence, seed=seed
    ).items():
        result = first[name]
        low, high = (_number(end, result, sign=True) for end in found.interval)
        rows.append(
            [
                TASKS[name].title,
                _number(found.first, result),
                _number(found.second, result),
                _number(found.difference, result, sign=True),
                f"[{low}, {high}]",
                "< 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}",
                str(found.n_items),
            ]
        )
    return header, rows


def _number(value: float, result: TaskResult, sign: bool = False) -> str:
    """An accuracy in per cent with one decimal, bits per byte with three."""
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f}" if result.higher_is_better else f"{value:{plus}.3f}"
