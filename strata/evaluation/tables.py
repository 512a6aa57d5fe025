"""Results as tables for a reader: a header and rows of strings, for print or paper.

`results_table` is one model, `comparison_table` two, `gpt3_table` one beside GPT-3, and
`overlap_table` what the training corpus holds of the questions. Accuracies are in per cent with one
decimal, bits per byte have three. A row names its shots, where there are any. The last row is the
mean of the accuracies, each centred: measured from guessing (0) to faultless (100).
"""

from __future__ import annotations

from collections.abc import Mapping

from strata.evaluation.comparison import holm
from strata.evaluation.overlap import Overlap, split_result
from strata.evaluation.reference import (
    GPT3_SIZES,
    Placement,
    centred,
    gpt3_curve,
    in_words,
    place_in_gpt3,
    range_in_words,
    size_in_words,
)
from strata.evaluation.results import (
    TaskResult,
    compare_overall,
    compare_results,
    gpt3_mean_curve,
    gpt3_results,
    overall_score,
    place_overall,
)
from strata.evaluation.tasks import TASKS

Table = tuple[list[str], list[list[str]]]
NOTHING = "–"
MEAN = "mean, centred"


def results_table(
    results: Mapping[str, TaskResult],
    overlap: Overlap | None = None,
    *,
    bootstrap_samples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Table:
    """One model's scores.

    Args:
        overlap: of its training corpus with the tasks; then the share of dirty items and the score
            on the clean ones stand beside the score.
        bootstrap_samples, confidence, seed: of the last row's interval.
    """
    header = ["task", "score", "interval", "guessing", "centred", "items"]
    header += ["dirty, %", "score, clean items"] if overlap else []
    rows = []
    for name, result in results.items():
        row = [_title(result), _number(result.score, result), _range(result.interval, result)]
        if result.higher_is_better:
            row += [_percent(result.chance), _percent(centred(result.score, result.chance))]
        else:
            row += [NOTHING, NOTHING]
        row.append(str(result.n_items))
        if overlap:
            split = split_result(result, overlap.tasks.get(name))
            row.append(_percent(split.dirty_share) if split else NOTHING)
            row.append(_number(split.clean.score, result) if split and split.clean else NOTHING)
        rows.append(row)
    overall = overall_score(
        results, bootstrap_samples=bootstrap_samples, confidence=confidence, seed=seed
    )
    if overall and len(overall.tasks) > 1:
        score = _percent(overall.score)
        row = [MEAN, score, _percents(overall.interval), _percent(0.0), score]
        rows.append([*row, str(overall.n_items), *[NOTHING] * (len(header) - 6)])
    return header, rows


def comparison_table(
    first: Mapping[str, TaskResult],
    second: Mapping[str, TaskResult],
    names: tuple[str, str] = ("first", "second"),
    *,
    bootstrap_samples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Table:
    """Two models' scores on the same items, and their difference, paired item by item.

    Of the p-values, the second column holds for the table as a whole: Holm's correction over its
    tasks. The mean is one test, not among them.

    Raises:
        ValueError: as `compare_results`.
    """
    found = compare_results(
        first, second, bootstrap_samples=bootstrap_samples, confidence=confidence, seed=seed
    )
    overall = compare_overall(
        first, second, bootstrap_samples=bootstrap_samples, confidence=confidence, seed=seed
    )
    adjusted = holm([difference.p_value for difference in found.values()])
    header = ["task", *names, "difference", "interval", "p", "p (Holm)", "guessing", "items"]
    rows = []
    for (name, difference), p_adjusted in zip(found.items(), adjusted, strict=True):
        result = first[name]
        rows.append(
            [
                _title(result),
                _number(difference.first, result),
                _number(difference.second, result),
                _number(difference.difference, result, sign=True),
                _range(difference.interval, result, sign=True),
                _p_value(difference.p_value),
                _p_value(float(p_adjusted)),
                _percent(result.chance) if result.higher_is_better else NOTHING,
                str(difference.n_items),
            ]
        )
    if overall and len(rows) > 1:
        rows.append(
            [
                MEAN,
                _percent(overall.first),
                _percent(overall.second),
                _percent(overall.difference, sign=True),
                _percents(overall.interval, sign=True),
                _p_value(overall.p_value),
                NOTHING,
                _percent(0.0),
                str(overall.n_items),
            ]
        )
    return header, rows


def gpt3_table(
    results: Mapping[str, TaskResult],
    *,
    bootstrap_samples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Table:
    """One model beside the smallest and the largest GPT-3, and the size whose scores it has.

    Zero-shot results stand beside GPT-3's zero-shot scores, others beside its few-shot scores. No
    rows where no task of GPT-3's was measured.
    """
    ends = [f"GPT-3 {in_words(GPT3_SIZES[index].parameters)}" for index in (0, -1)]
    header = ["task", "score", "interval", *ends, "GPT-3-equivalent size", "its interval"]
    shared, rows = gpt3_results(results), []
    for name, result in shared.items():
        curve = gpt3_curve(name, result.shots)
        row = [_title(result), _number(result.score, result), _range(result.interval, result)]
        place = place_in_gpt3(name, result.score, result.interval, shots=result.shots)
        rows.append([*row, _percent(curve[0]), _percent(curve[-1]), *_in_words(place)])
    found = place_overall(
        results, bootstrap_samples=bootstrap_samples, confidence=confidence, seed=seed
    )
    if found and len(rows) > 1:
        overall, place = found
        curve = gpt3_mean_curve(shared)
        row = [MEAN, _percent(overall.score), _percents(overall.interval)]
        rows.append([*row, _percent(curve[0]), _percent(curve[-1]), *_in_words(place)])
    return header, rows


def overlap_table(
    overlap: Overlap,
    results: Mapping[str, TaskResult] | None = None,
    *,
    bootstrap_samples: int = 2_000,
    seed: int = 0,
) -> Table:
    """What a corpus holds of each task's items, in the manner of GPT-3's Table C.1.

    Args:
        results: of a model; then the scores on the clean and on the dirty items, each with its
            interval, and by how many per cent the clean score differs from that of all items. A
            result that has other items than were looked for has none of these.
        bootstrap_samples, seed: of the intervals.
    """
    header = ["task", "N", "items", "too short", "dirty, %"]
    header += ["score", "clean", "interval", "dirty", "interval", "clean vs all, %"] * bool(results)
    rows = []
    for name, task in overlap.tasks.items():
        n_items = len(task.dirty) + len(task.clean)
        row = [TASKS[name].title, str(task.n_words), str(n_items), str(task.too_short)]
        row.append(_percent(task.dirty_share))
        result = (results or {}).get(name)
        split = result and split_result(
            result, task, bootstrap_samples=bootstrap_samples, seed=seed
        )
        if result and split:
            row.append(_number(result.score, result))
            for part in (split.clean, split.dirty):
                row += [_number(part.score, result), _range(part.interval, result)] if part else [
                    NOTHING, NOTHING]  # fmt: skip
            change = split.clean.score / result.score - 1 if split.clean and result.score else None
            row.append(_percent(change, sign=True) if change is not None else NOTHING)
        rows.append(row + [NOTHING] * (len(header) - len(row)))
    return header, rows


def _title(result: TaskResult) -> str:
    shots = f", {result.shots}-shot" if result.shots else ""
    return TASKS[result.task].title + shots


def _in_words(place: Placement) -> list[str]:
    """The size, and its interval."""
    interval = range_in_words(*place.interval) if place.interval else NOTHING
    return [size_in_words(place.parameters), interval]


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _percent(fraction: float, sign: bool = False) -> str:
    return f"{100 * fraction:{'+' if sign else ''}.1f}"


def _percents(interval: tuple[float, float], sign: bool = False) -> str:
    low, high = (_percent(end, sign) for end in interval)
    return f"[{low}, {high}]"


def _number(value: float, result: TaskResult, sign: bool = False) -> str:
    """An accuracy in per cent, bits per byte with three decimals."""
    if result.higher_is_better:
        return _percent(value, sign)
    return f"{value:{'+' if sign else ''}.3f}"


def _range(interval: tuple[float, float], result: TaskResult, sign: bool = False) -> str:
    low, high = (_number(end, result, sign) for end in interval)
    return f"[{low}, {high}]"
