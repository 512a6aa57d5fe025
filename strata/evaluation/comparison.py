"""How sure a score is, and whether two models differ.

A score is a ratio of sums over items: right answers over questions, or bits over bytes. Its
interval is a percentile bootstrap (Efron 1979): draw as many items as there are, with replacement,
many times, and take the quantiles of the scores. Items that depend on each other, being cut from
one document, are drawn together as one cluster.

Two models that answered the same items are compared item by item, which takes the items' difficulty
out of the comparison: the interval of the difference comes from a bootstrap that draws the same
items for both, its p-value from a permutation test that swaps the two models' answers at random
(Fisher's sign-flip test; for right and wrong it is McNemar's, and exact). Several tasks are several
tests: `holm` corrects for that. Every seed is fixed, so the same results give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

# Draws held in memory at once: 32 MB of counts.
_CHUNK = 4_000_000


def bootstrap_interval(
    values: Numbers,
    weights: Numbers,
    clusters: NDArray[np.int64],
    n_samples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of sum(values) / sum(weights) when items are drawn anew.

    Args:
        values: (items,) what an item adds to the numerator.
        weights: (items,) what it adds to the denominator.
        clusters: (items,) items with the same number ≥ 0 are drawn together; -1 = alone.
        n_samples: how many times the items are drawn.
        confidence: coverage, for example 0.95.
        seed: of the draws.

    Returns:
        the lower and the upper end; both nan for no items.

    Raises:
        ValueError: the arrays have different lengths, or a number is out of its range.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence = {confidence}: expected a number between 0 and 1")
    scores = bootstrap_scores(values, weights, clusters, n_samples, seed)
    return quantile_interval(scores, confidence) if len(values) else (float("nan"), float("nan"))


def bootstrap_scores(
    values: Numbers,
    weights: Numbers,
    clusters: NDArray[np.int64],
    n_samples: int = 2_000,
    seed: int = 0,
) -> Numbers:
    """The scores, (n_samples,), of items drawn anew; arguments as for `bootstrap_interval`.

    Clusters of equal sums are of one kind, and all that a draw says is how many it took of each
    kind. So the counts are drawn, from their multinomial distribution: 67,000 answers that are
    right or wrong cost no more than two of them.
    """
    if not len(values) == len(weights) == len(clusters):
        raise ValueError(
            f"values, weights and clusters must be of one length, "
            f"not {len(values)}, {len(weights)} and {len(clusters)}"
        )
    if n_samples < 1:
        raise ValueError(f"n_samples = {n_samples}: expected at least 1")
    if len(values) == 0:
        return np.zeros(0)
    sums = np.stack([_per_cluster(values, clusters), _per_cluster(weights, clusters)], axis=1)
    kinds, counts = np.unique(sums, axis=0, return_counts=True)  # (kinds, 2), (kinds,)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(kinds))
    scores = []
    for start in range(0, n_samples, rows):
        drawn = generator.multinomial(
            len(sums), counts / len(sums), size=min(rows, n_samples - start)
        )  # (samples, kinds)
        numerators, denominators = (drawn @ kinds).T
        scores.append(numerators / denominators)
    return np.concatenate(scores)


def quantile_interval(draws: Numbers, confidence: float) -> tuple[float, float]:
    """What lies in the middle of the draws, at this coverage."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return (float(low), float(high))


def score_interval(
    values: Numbers,
    weights: Numbers,
    clusters: NDArray[np.int64],
    n_samples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of a score: the bootstrap's, but exact where every answer is right or wrong.

    Drawing anew from answers that are all alike knows no doubt. The exact bound does (Clopper and
    Pearson 1934): n clusters that are all wrong are compatible with any share p for which
    (1 - p)^n is not below the tail's probability.

    Arguments as for `bootstrap_interval`.
    """
    alike = len(values) > 0 and values[0] in (0.0, 1.0) and bool((values == values[0]).all())
    if not (alike and (weights == 1.0).all()):
        return bootstrap_interval(values, weights, clusters, n_samples, confidence, seed)
    bound = 1.0 - ((1.0 - confidence) / 2.0) ** (1.0 / len(_per_cluster(values, clusters)))
    return (0.0, bound) if values[0] == 0.0 else (1.0 - bound, 1.0)


def permutation_p_value(
    differences: Numbers, clusters: NDArray[np.int64], n_samples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value of "the two models are alike", from their differences item by item.

    Were they alike, each difference could as well have had the other sign. The p-value is the
    share of random sign patterns whose sum is at least as far from zero as the one observed,
    the observed one counted among them (so it is never 0). Where all differences are of one size,
    as those of right and wrong are, it is exact.

    Args: as for `bootstrap_interval`; clusters change sign together.
    """
    sums = _per_cluster(differences, clusters)
    sums = sums[sums != 0.0]  # a tie stays a tie whatever its sign
    if len(sums) == 0:
        return 1.0
    sizes, counts = np.unique(abs(sums), return_counts=True)
    observed = abs(float(sums.sum()))
    if len(sizes) == 1:  # then the number of positive signs says all, and it is binomial
        positive = int((sums > 0.0).sum())
        from scipy.special import bdtr  # takes a while to load

        tail = bdtr(min(positive, len(sums) - positive), len(sums), 0.5)
        return min(1.0, 2.0 * float(tail))
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(sizes))
    as_far = 0
    for start in range(0, n_samples, rows):
        positives = generator.binomial(
            counts, 0.5, size=(min(rows, n_samples - start), len(sizes))
        )  # (samples, sizes)
        totals = (2 * positives - counts) @ sizes
        # a hair of slack, so that equal sums in another order count as equal
        as_far += int((abs(totals) >= observed - 1e-12 * abs(sums).sum()).sum())
    return (as_far + 1) / (n_samples + 1)


@dataclass(frozen=True)
class Difference:
    """Two scores on the same items.

    difference: second minus first, with its interval.
    p_value: of the permutation test that the two are alike.
    """

    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    n_items: int


def paired_difference(
    first: Numbers,
    second: Numbers,
    weights: Numbers,
    clusters: NDArray[np.int64],
    n_samples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """How far the second model's score lies above the first's, on the same items.

    Args:
        first, second: (items,) what an item adds to each model's numerator.
        weights, clusters, n_samples, confidence, seed: as for `bootstrap_interval`.
    """
    if len(first) != len(second):
        raise ValueError(f"the models answered {len(first)} and {len(second)} items")
    differences = second - first
    total = weights.sum()
    return Difference(
        first=float(first.sum() / total),
        second=float(second.sum() / total),
        difference=float(differences.sum() / total),
        interval=bootstrap_interval(differences, weights, clusters, n_samples, confidence, seed),
        p_value=permutation_p_value(differences, clusters, seed=seed),
        n_items=len(first),
    )


def holm(p_values: Sequence[float]) -> Numbers:
    """Holm's (1979) step-down adjustment: the chance of any false finding stays below the level.

    The smallest of m values is multiplied by m, the next by m − 1, …; then each is raised to at
    least its predecessor, so that the order stays, and capped at 1. Returned in the given order.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if np.any((p < 0) | (p > 1)):
        raise ValueError(f"p-values must lie between 0 and 1, got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _per_cluster(values: Numbers, clusters: NDArray[np.int64]) -> Numbers:
    """Sums of the values over each cluster; items that stand alone keep theirs."""
    alone = clusters < 0
    _, member = np.unique(clusters[~alone], return_inverse=True)
    together = np.bincount(member, weights=values[~alone]) if len(member) else np.zeros(0)
    return np.concatenate([values[alone], together]).astype(np.float64)
