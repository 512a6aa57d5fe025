"""What a set of runs says, and how surely.

Three questions are asked of the runs of an ablation, in this order:

1. *How good is a recipe?* `mean_interval`: the mean over seeds with Student's interval.
2. *What does one ingredient change?* `compare`: the difference to the base recipe, paired by seed
   (two runs of one seed see the same batches in the same order), with Holm's correction, because
   ten comparisons at 5 % would find something even where there is nothing.
3. *What is that worth in compute?* `compute_multiplier`: how many times the compute, the tokens
   or the time the baseline needed for the same loss, read off the two learning curves.

All functions are pure: numbers in, small frozen dataclasses out. The loss is bits per byte
throughout, the one that can be compared between vocabularies; lower is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from strata.evaluation.comparison import holm

FloatArray = NDArray[np.float64]
Axis = Literal["flops", "tokens", "seconds"]
Bound = Literal["exact", "at least", "at most"]


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it, made of `n` observations."""

    estimate: float
    low: float
    high: float
    confidence: float
    n: int


@dataclass(frozen=True)
class LearningCurve:
    """Validation loss along one run; four arrays of equal length (points,), compute increasing.

    `flops` and `tokens` count training alone, from the first update; `seconds` is the clock of
    the run, NaN where it was not recorded; `bits_per_byte` is measured on the validation text.
    """

    flops: FloatArray
    tokens: FloatArray
    seconds: FloatArray
    bits_per_byte: FloatArray

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in self.__dataclass_fields__}
        if len(lengths) != 1:
            raise ValueError(f"the arrays of a learning curve differ in length: {sorted(lengths)}")
        if np.any(np.diff(self.flops) <= 0) or np.any(self.flops <= 0):
            raise ValueError("flops of a learning curve must be positive and strictly increasing")


# ---------------------------------------------------------------- one recipe: mean over seeds


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent runs with Student's t interval: x̄ ± t · s / √n, n − 1 degrees.

    One value alone says nothing about its spread: its interval is the whole line.
    Raises ValueError for no values, a value that is not finite, or confidence outside (0, 1).
    """
    sample = np.asarray(values, dtype=np.float64)
    _check_confidence(confidence)
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


def _check_confidence(confidence: float) -> None:
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


# --------------------------------------------- its worth: compute for the same loss, as a ratio


@dataclass(frozen=True)
class Multiplier:
    """How many times the candidate's cost the baseline paid for the same loss.

    `interval.estimate` is the geometric mean over seeds. `bound` says what kind of number it is:
    "exact" (both losses inside the data), "at least" (the baseline never got there, or the
    candidate was there before its first validation) or "at most" (the reverse).
    """

    interval: Interval
    bound: Bound
    axis: Axis
    target: float  # bits per byte at which the two are compared, mean over seeds
    by_seed: dict[int, float]


def cost_to_reach(curve: LearningCurve, target: float, axis: Axis = "flops") -> tuple[float, Bound]:
    """Cost at which a curve first comes down to `target`, and how that number is to be read.

    Between the last point above the target and the first at or below it the loss is taken as
    linear in the logarithm of the cost. Nothing is extrapolated: a curve that never gets there
    returns its last cost as "at least", one that starts there its first cost as "at most".
    """
    cost = np.asarray(getattr(curve, axis), dtype=np.float64)
    if not np.all(np.isfinite(cost)):
        raise ValueError(f"this learning curve has no {axis}")
    reached = np.flatnonzero(curve.bits_per_byte <= target)
    if reached.size == 0:
        return float(cost[-1]), "at least"
    after = int(reached[0])
    if after == 0:
        exact = curve.bits_per_byte[0] == target
        return float(cost[0]), "exact" if exact else "at most"
    above, below = curve.bits_per_byte[after - 1], curve.bits_per_byte[after]
    share = (above - target) / (above - below)
    logs = np.log(cost[after - 1 : after + 1])
    return float(np.exp(logs[0] + share * (logs[1] - logs[0]))), "exact"


def compute_multiplier(
    candidate: Mapping[int, LearningCurve],
    baseline: Mapping[int, LearningCurve],
    *,
    target: float | None = None,
    axis: Axis = "flops",
    confidence: float = 0.95,
    method: Literal["t", "bootstrap"] = "t",
    bootstrap_samples: int = 2_000,
) -> Multiplier:
    """Ratio of the costs, baseline over candidate, at which both reach the same loss.

    **Definition.** For a seed let a(ℓ) and b(ℓ) be the costs at which candidate and baseline
    first reach the loss ℓ (`cost_to_reach`). The multiplier of the seed is b(ℓ) / a(ℓ). Without
    a `target`, ℓ is the best loss that both runs reached, max(last loss of the candidate, last
    loss of the baseline): if the candidate is better, that is the baseline's final loss, which
    the candidate passed on its way. So both costs lie inside the data and nothing is
    extrapolated. It is also the cautious choice: the baseline is read at the end of its
    schedule, its learning rate decayed, the candidate in the middle of its own, where the
    decay is still to pay off.

    With a `target`, for example the candidate's final loss, the baseline may never have reached
    it; the answer is then a bound (`Multiplier.bound`), "at least ×k", over its last cost.

    **Interval.** Over the seeds that both have, on the logarithm of the ratio: Student's t, or
    with method="bootstrap" the percentiles of resampled seeds. With three seeds the bootstrap
    knows ten different samples and comes out much too narrow; prefer it from about ten seeds on.

    Raises ValueError without common seeds, and where neither run says anything of the target
    (both never reached it, or both started below it).
    """
    _check_confidence(confidence)
    seeds = sorted(candidate.keys() & baseline.keys())
    if not seeds:
        raise ValueError(f"no common seed: {sorted(candidate)} and {sorted(baseline)}")
    ratios, bounds, targets = [], [], []
    for seed in seeds:
        ours, theirs = candidate[seed], baseline[seed]
        best_of_both = max(float(ours.bits_per_byte[-1]), float(theirs.bits_per_byte[-1]))
        targets.append(best_of_both if target is None else target)
        our_cost, our_bound = cost_to_reach(ours, targets[-1], axis)
        their_cost, their_bound = cost_to_reach(theirs, targets[-1], axis)
        ratios.append(their_cost / our_cost)
        bounds.append(_bound_of_ratio(their_bound, our_bound, seed, targets[-1]))
    logs = np.log(ratios)
    if method == "t":
        interval = mean_interval(logs, confidence)
    else:
        interval = _bootstrap_mean(logs, confidence, bootstrap_samples)
    return Multiplier(
        interval=Interval(
            float(np.exp(interval.estimate)),
            float(np.exp(interval.low)),
            float(np.exp(interval.high)),
            confidence,
            len(seeds),
        ),
        bound=_bound_over_seeds(bounds),
        axis=axis,
        target=float(np.mean(targets)),
        by_seed=dict(zip(seeds, ratios, strict=True)),
    )


def _bound_of_ratio(baseline: Bound, candidate: Bound, seed: int, target: float) -> Bound:
    """A lower bound above the line or an upper bound below it makes a lower bound of the ratio."""
    directions = {
        {"exact": 0, "at least": 1, "at most": -1}[baseline],
        {"exact": 0, "at least": -1, "at most": 1}[candidate],
    } - {0}
    if len(directions) == 2:
        raise ValueError(
            f"seed {seed}: a loss of {target:.4f} bits per byte is outside both learning curves; "
            "choose a target that at least one of them crosses"
        )
    if not directions:
        return "exact"
    return "at least" if directions == {1} else "at most"


def _bound_over_seeds(bounds: Sequence[Bound]) -> Bound:
    kinds = set(bounds) - {"exact"}
    if len(kinds) == 2:
        raise ValueError("some seeds bound the multiplier from below and others from above")
    return kinds.pop() if kinds else "exact"


def _bootstrap_mean(values: FloatArray, confidence: float, samples: int) -> Interval:
    generator = np.random.default_rng(0)
    picks = generator.integers(0, values.size, size=(samples, values.size))
    means = values[picks].mean(axis=1)  # (samples,)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.mean()), float(low), float(high), confidence, values.size)
