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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from strata.evaluation.comparison import holm

FloatArray = NDArray[np.float64]
Losses = Mapping[str, Mapping[int, float]]  # final loss by variant and seed
Variance = Literal["paired", "pooled"]


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it, made of `n` observations."""

    estimate: float
    low: float
    high: float
    confidence: float
    n: int

    def exp(self) -> Interval:
        """Of a ratio, where this is the interval of its logarithm."""
        low, high = float(np.exp(self.low)), float(np.exp(self.high))
        return replace(self, estimate=float(np.exp(self.estimate)), low=low, high=high)


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
    """Raise ValueError unless it lies between 0 and 1."""
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
    degrees_of_freedom: int  # of the variance behind interval and p-value; 0 says there is none


def compare(
    losses: Losses, base: str, confidence: float = 0.95, variance: Variance = "paired"
) -> list[Comparison]:
    """Every variant against the base, seed by seed.

    `losses[variant][seed]` is the final loss of one run. Seeds that only one side has (a failed
    run) are left out of a paired difference. The order is that of `losses`, the base first with a
    difference of zero. The interval is that of one comparison; `p_adjusted` is what holds for
    the table as a whole. `compare_pairs` says what `variance` is.

    Raises ValueError when the base is missing or shares no seed with a variant.
    """
    if base not in losses:
        raise ValueError(f"base {base!r} has no runs; there are {', '.join(losses) or 'none'}")
    zero = Interval(0.0, 0.0, 0.0, confidence, len(losses[base]))
    base_mean = mean_interval(list(losses[base].values()), confidence)
    itself = Comparison(base, base_mean, zero, 1.0, 1.0, tuple(sorted(losses[base])), 0)
    pairs = [(name, base) for name in losses if name != base]
    return [itself, *compare_pairs(losses, pairs, confidence, variance)]


def compare_pairs(
    losses: Losses,
    pairs: Sequence[tuple[str, str]],
    confidence: float = 0.95,
    variance: Variance = "paired",
) -> list[Comparison]:
    """Each variant against the base beside it, with Holm's correction over all of `pairs`.

    variance="paired" is the paired t-test: each comparison estimates its own variance from its
    n − 1 differences. With three seeds these are two degrees of freedom, and a difference has to
    exceed 4.3 standard errors that are themselves uncertain by half.

    variance="pooled" takes the runs of a base and of all variants beside it for one experiment in
    randomised blocks (Fisher 1935, The Design of Experiments; Montgomery, Design and Analysis of
    Experiments, chapter 4):
    ℓ(variant, seed) = μ(variant) + a(seed) + e, e normal with one variance for all, fitted by least
    squares. With V variants of S seeds, the base among them, the variance has (V − 1)(S − 1)
    degrees of freedom. Pairs of another base are another experiment, since recipes differ in their
    noise. The price is the assumption: a variant whose runs scatter more than the others' gets too
    narrow an interval, the others too wide ones. Missing runs are allowed; a difference is then the
    one of the fit. For two variants both ways are one.

    With one common seed a paired difference concludes nothing: p = 1; so does a pooled one where
    no other runs are left to estimate the variance from.

    Raises ValueError when a variant has no runs or shares no seed with its base.
    """
    for name in {name for pair in pairs for name in pair}:
        if not losses.get(name):
            raise ValueError(f"{name!r} has no runs; there are {', '.join(losses) or 'none'}")
    beside: dict[str, list[str]] = {}
    for name, base in pairs:
        beside.setdefault(base, [base]).append(name)
    fits = {
        base: _TwoWay.of({name: losses[name] for name in names})
        for base, names in beside.items()
        if variance == "pooled"
    }
    rows = []
    for name, base in pairs:
        seeds, differences = _paired_differences(name, losses[name], base, losses[base])
        if base in fits:
            difference, error, degrees = fits[base].difference(name, base)
        else:
            difference, degrees = float(differences.mean()), len(seeds) - 1
            error = _standard_error(differences) if degrees else np.inf
        half = t_quantile(confidence, degrees) * error if degrees else np.inf
        rows.append(
            Comparison(
                variant=name,
                mean=mean_interval(list(losses[name].values()), confidence),
                difference=Interval(
                    difference, difference - half, difference + half, confidence, len(seeds)
                ),
                p_value=_p_value(difference, error, degrees),
                p_adjusted=1.0,
                seeds=seeds,
                degrees_of_freedom=degrees,
            )
        )
    adjusted = holm([row.p_value for row in rows])
    return [replace(row, p_adjusted=float(p)) for row, p in zip(rows, adjusted, strict=True)]


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


def _p_value(difference: float, error: float, degrees: int) -> float:
    if not degrees:
        return 1.0
    if error == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    from scipy import stats

    return float(2 * stats.t.sf(abs(difference) / error, degrees))


@dataclass(frozen=True)
class _TwoWay:
    """Least squares of loss = effect of the variant + effect of the seed, over all runs."""

    names: list[str]
    effects: FloatArray  # (variants + seeds,); only differences of variants have a meaning
    inverse: FloatArray  # pseudo-inverse of X'X, of the same size
    variance: float  # of one run about the fit
    degrees: int

    @classmethod
    def of(cls, losses: Losses) -> _TwoWay:
        names = list(losses)
        seeds = sorted({seed for runs in losses.values() for seed in runs})
        runs = [(name, seed) for name in names for seed in losses[name]]
        design = np.zeros((len(runs), len(names) + len(seeds)))  # (runs, variants + seeds)
        for row, (name, seed) in enumerate(runs):
            design[row, names.index(name)] = 1.0
            design[row, len(names) + seeds.index(seed)] = 1.0
        values = np.array([losses[name][seed] for name, seed in runs])
        effects, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
        degrees = len(runs) - int(rank)
        residuals = values - design @ effects
        # what rounding leaves of equal differences is no variance
        residuals[np.abs(residuals) < 1e-12 * np.abs(values)] = 0.0
        variance = float(residuals @ residuals) / degrees if degrees else np.inf
        inverse = np.asarray(np.linalg.pinv(design.T @ design), dtype=np.float64)
        return cls(names, effects, inverse, variance, degrees)

    def difference(self, name: str, base: str) -> tuple[float, float, int]:
        """Effect of `name` less that of `base`, its standard error and the degrees of freedom."""
        contrast = np.zeros(len(self.effects))
        contrast[[self.names.index(name), self.names.index(base)]] = 1.0, -1.0
        error = np.sqrt(self.variance * (contrast @ self.inverse @ contrast))
        return float(contrast @ self.effects), float(error), self.degrees
