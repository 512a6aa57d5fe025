"""What a recipe is worth: how many times the cost another one needs for the same loss.

A curve says which loss a recipe reached at which cost: a `LearningCurve` along one run, its costs
compute, tokens or time; a `SizeCurve` over runs of several sizes and equal tokens, its cost the
number of parameters. A multiplier is the ratio of the costs at which two curves first reach one
loss, baseline over candidate, seed by seed. Both kinds read it off in the same way, and neither
extrapolates: where one of the curves does not reach the loss, the answer is a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from strata.ablations.analysis import FloatArray, Interval, mean_interval

Axis = Literal["flops", "tokens", "seconds"]
Count = Literal["parameters", "body_parameters"]
Bound = Literal["exact", "at least", "at most"]
Curve = TypeVar("Curve", "LearningCurve", "SizeCurve")


@dataclass(frozen=True, eq=False)
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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LearningCurve) and all(
            np.array_equal(getattr(self, name), getattr(other, name), equal_nan=True)
            for name in self.__dataclass_fields__
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class SizeCurve:
    """Final loss of one recipe over its sizes, each a run of `tokens` tokens, of one seed.

    `sizes` are numbers of parameters, of all or of the body alone as `count` says, strictly
    increasing; `bits_per_byte` are the losses as measured. Both (runs,).
    """

    sizes: FloatArray
    bits_per_byte: FloatArray
    tokens: float
    count: Count = "parameters"

    def __post_init__(self) -> None:
        if self.sizes.shape != self.bits_per_byte.shape or self.sizes.ndim != 1:
            raise ValueError(
                f"a size curve has {self.sizes.shape} sizes and {self.bits_per_byte.shape} losses"
            )
        if not len(self.sizes) or self.sizes[0] <= 0 or np.any(np.diff(self.sizes) <= 0):
            raise ValueError("sizes of a size curve must be positive and strictly increasing")

    @property
    def falling(self) -> FloatArray:
        """The losses nearest to the measured ones, by least squares, that rise with no size.

        More parameters do not hurt, so a loss above that of a smaller model is noise, and the two
        are taken together (isotonic regression; Barlow et al. 1972).
        """
        from scipy.optimize import isotonic_regression  # takes a while to load

        return np.asarray(isotonic_regression(self.bits_per_byte, increasing=False).x)


# ------------------------------------------------------------------- the cost of one loss


def cost_to_reach(curve: LearningCurve, target: float, axis: Axis = "flops") -> tuple[float, Bound]:
    """Cost at which a curve first comes down to `target`, and how that number is to be read.

    Between the last point above the target and the first at or below it the loss is taken as
    linear in the logarithm of the cost. Nothing is extrapolated: a curve that never gets there
    returns its last cost as "at least", one that starts at or below it its first cost as "at most".
    """
    cost = np.asarray(getattr(curve, axis), dtype=np.float64)
    if not np.all(np.isfinite(cost)):
        raise ValueError(f"this learning curve has no {axis}")
    return _first_at(cost, curve.bits_per_byte, target)


def size_to_reach(curve: SizeCurve, target: float) -> tuple[float, Bound]:
    """Parameters with which a recipe reaches `target`; read off as `cost_to_reach` reads a cost."""
    return _first_at(curve.sizes, curve.falling, target)


def _first_at(cost: FloatArray, losses: FloatArray, target: float) -> tuple[float, Bound]:
    reached = np.flatnonzero(losses <= target)
    if reached.size == 0:
        return float(cost[-1]), "at least"
    after = int(reached[0])
    if after == 0:
        return float(cost[0]), "at most"  # less may have done, which was not measured
    above, below = losses[after - 1], losses[after]
    share = (above - target) / (above - below)
    logs = np.log(cost[after - 1 : after + 1])
    return float(np.exp(logs[0] + share * (logs[1] - logs[0]))), "exact"


# ---------------------------------------------------------------- the ratio of two costs


@dataclass(frozen=True)
class Multiplier:
    """How many times the candidate's cost the baseline paid for the same loss.

    `interval.estimate` is the geometric mean over seeds. `bound` says what kind of number it is:
    "exact" (both losses inside the data), "at least" (the baseline never got there, or the
    candidate was there before its first validation) or "at most" (the reverse). The interval is
    then that of the bound.
    """

    interval: Interval
    bound: Bound
    axis: Axis | Count
    target: float  # bits per byte at which the two are compared, mean over seeds
    by_seed: dict[int, float]


def compute_multiplier(
    candidate: Mapping[int, LearningCurve],
    baseline: Mapping[int, LearningCurve],
    *,
    target: float | None = None,
    axis: Axis = "flops",
    confidence: float = 0.95,
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

    **Interval.** Student's t over the seeds that both have, on the logarithm of the ratio. (A
    bootstrap of three seeds knows ten different samples and comes out much too narrow.)

    Raises ValueError without common seeds, and where neither run says anything of the target
    (both never reached it, or both started there or below).
    """
    found = _by_seed(
        candidate,
        baseline,
        target,
        lambda curve: float(curve.bits_per_byte[-1]),
        lambda curve, loss: cost_to_reach(curve, loss, axis),
    )
    return _multiplier(found, axis, confidence)


def parameter_multiplier(
    candidate: Mapping[int, SizeCurve],
    baseline: Mapping[int, SizeCurve],
    *,
    target: float | None = None,
    confidence: float = 0.95,
) -> Multiplier:
    """How many times the candidate's parameters the baseline needs for the same loss.

    Defined as `compute_multiplier` is, with the number of parameters as the cost and runs of equal
    tokens as the curve (`size_to_reach`). Without a `target` the loss compared is the best that
    both recipes reach at some size. For "how small may the candidate be to match the baseline of
    one given size?", give that baseline's loss. A recipe of one size alone bounds what it needs for
    its own loss from above, since a smaller one might have come as far.

    Raises ValueError without common seeds, where the tokens of the runs differ, where one side
    counts all parameters and the other the body's, or where neither side says anything of the
    target.
    """
    curves = [*candidate.values(), *baseline.values()]
    for what in ("tokens", "count"):
        values = {getattr(curve, what) for curve in curves}
        if len(values) > 1:
            raise ValueError(
                f"the sizes are compared at equal {what}, but these runs have "
                + " and ".join(str(value) for value in sorted(values))
            )
    found = _by_seed(
        candidate, baseline, target, lambda curve: float(curve.falling[-1]), size_to_reach
    )
    return _multiplier(found, curves[0].count, confidence)


@dataclass(frozen=True)
class _Ratio:
    value: float
    bound: Bound
    target: float


def _by_seed(
    candidate: Mapping[int, Curve],
    baseline: Mapping[int, Curve],
    target: float | None,
    best: Callable[[Curve], float],
    reach: Callable[[Curve, float], tuple[float, Bound]],
) -> dict[int, _Ratio]:
    seeds = sorted(candidate.keys() & baseline.keys())
    if not seeds:
        raise ValueError(f"no common seed: {sorted(candidate)} and {sorted(baseline)}")
    found = {}
    for seed in seeds:
        ours, theirs = candidate[seed], baseline[seed]
        loss = max(best(ours), best(theirs)) if target is None else target
        our_cost, our_bound = reach(ours, loss)
        their_cost, their_bound = reach(theirs, loss)
        bound = _bound_of_ratio(their_bound, our_bound, seed, loss)
        found[seed] = _Ratio(their_cost / our_cost, bound, loss)
    return found


def _multiplier(found: Mapping[int, _Ratio], axis: Axis | Count, confidence: float) -> Multiplier:
    """The seeds' ratios taken together."""
    logs = np.log([ratio.value for ratio in found.values()])
    return Multiplier(
        interval=mean_interval(logs, confidence).exp(),
        bound=_bound_over_seeds([ratio.bound for ratio in found.values()]),
        axis=axis,
        target=float(np.mean([ratio.target for ratio in found.values()])),
        by_seed={seed: ratio.value for seed, ratio in found.items()},
    )


def _bound_of_ratio(baseline: Bound, candidate: Bound, seed: int, target: float) -> Bound:
    """A lower bound above the line or an upper bound below it makes a lower bound of the ratio."""
    directions = {
        {"exact": 0, "at least": 1, "at most": -1}[baseline],
        {"exact": 0, "at least": -1, "at most": 1}[candidate],
    } - {0}
    if len(directions) == 2:
        raise ValueError(
            f"seed {seed}: a loss of {target:.4f} bits per byte is outside both curves; "
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
