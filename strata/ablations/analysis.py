"""What a set of runs says, and how surely.

Three questions are asked of the runs of an ablation, in this order:

1. *How good is a recipe?* `mean_interval`: the mean over seeds with Student's interval.
2. *What does one ingredient change?* `compare`: the difference to the base recipe, paired by seed
   (two runs of one seed see the same batches in the same order), with Holm's correction, because
   ten comparisons at 5 % would find something even where there is nothing.
3. *What is that worth in compute and in parameters?* `strata/ablations/multipliers.py`.

All functions are pure: numbers in, small frozen dataclasses out. The loss is bits per byte
throughout, the one that can be compared between vocabularies; lower is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from strata.evaluation.comparison import holm

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it, made of `n` observations."""

    estimate: float
    low: float
    high: float
    confidence: float
    n: int


# ---------------------------------------------------------------- one recipe: mean over seeds


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent runs with Student's t interval: x̄ ± t · s / √n, n − 1 degrees.

    One value alone says nothing about its spread: its interval is the whole line.
    Raises ValueError for no values, a value that is not finite, or confidence outside (0, 1).
    """
    sample = np.asarray(values, dtype=np.float64)
    check_confidence(confidence)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"expected a list of at least one value, got shape {sample.shape}")
    if not np.all(np.isfinite(sample)):
        raise ValueError(f"values must be finite, got {sample.tolist()}")
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, -np.inf, np.inf, confidence, 1)
    half = t_quantile(confidence, sample.size - 1) * _standard_error(sample)
    return Interval(mean, mean - half, mean + half, confidence, sample.size)


def _standard_error(sample: FloatArray) -> float:
    return float(sample.std(ddof=1) / np.sqrt(sample.size))


def t_quantile(confidence: float, degrees: int) -> float:
    """The t value that leaves (1 − confidence) / 2 in each tail."""
    from scipy import stats  # takes a second to load, which no worker of a sweep needs

    return float(stats.t.ppf(0.5 + confidence / 2, degrees))


def check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")


# ----------------------------------------------- one ingredient: difference, paired by seed


@dataclass(frozen=True)
class Comparison:
    """One variant beside the base; differences are variant − base, so positive means worse."""

    variant: str
    mean: Interval  # bits per byte of the variant over all its seeds
    difference: Interval  # bits per byte, over the seeds that both have
    p_value: float  # two-sided, of "the difference is zero"
    p_adjusted: float  # the same after Holm's correction over all comparisons of the table
    seeds: tuple[int, ...]  # the seeds that both have


def compare(
    losses: Mapping[str, Mapping[int, float]], base: str, confidence: float = 0.95
) -> list[Comparison]:
    """Every variant against the base, seed by seed, by the paired t-test.

    `losses[variant][seed]` is the final loss of one run. Seeds that only one side has (a failed
    run) are left out of the difference. The order is that of `losses`, the base first with a
    difference of zero. The interval is that of one comparison; `p_adjusted` is what holds for
    the table as a whole. With one common seed nothing can be concluded: p = 1.

    Raises ValueError when the base is missing or shares no seed with a variant.
    """
    if base not in losses:
        raise ValueError(f"base {base!r} has no runs; there are {', '.join(losses) or 'none'}")
    others = [name for name in losses if name != base]
    paired = {name: _paired_differences(name, losses[name], base, losses[base]) for name in others}
    p_values = [_paired_p_value(differences) for _, differences in paired.values()]
    zero = Interval(0.0, 0.0, 0.0, confidence, len(losses[base]))
    base_mean = mean_interval(list(losses[base].values()), confidence)
    table = [Comparison(base, base_mean, zero, 1.0, 1.0, tuple(sorted(losses[base])))]
    for name, p, adjusted in zip(others, p_values, holm(p_values), strict=True):
        seeds, differences = paired[name]
        mean = mean_interval(list(losses[name].values()), confidence)
        difference = mean_interval(differences, confidence)
        table.append(Comparison(name, mean, difference, p, float(adjusted), seeds))
    return table


def _paired_differences(
    name: str, ours: Mapping[int, float], base: str, theirs: Mapping[int, float]
) -> tuple[tuple[int, ...], FloatArray]:
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    if not seeds:
        raise ValueError(
            f"{name!r} and {base!r} share no seed: {sorted(ours)} and {sorted(theirs)}; "
            "a paired comparison needs runs of the same seeds"
        )
    return seeds, np.array([ours[seed] - theirs[seed] for seed in seeds])


def _paired_p_value(differences: FloatArray) -> float:
    if differences.size < 2:
        return 1.0
    error = _standard_error(differences)
    if error == 0.0:
        return 1.0 if differences.mean() == 0.0 else 0.0
    from scipy import stats

    return float(2 * stats.t.sf(abs(differences.mean()) / error, differences.size - 1))
