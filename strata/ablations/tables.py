"""What each ingredient is worth, in one table: loss, compute, parameters, memory and time.

Two directions tell it. *Left out*: the full recipe without the ingredient beside the full recipe.
*Added*: the baseline with the ingredient beside the baseline. An ingredient that is worth much
alone and little in company does the work of another. All rows are one family of comparisons, so
Holm's correction goes over both directions; the variance is pooled within each, since the noise of
one recipe is not that of the other.

However a row was made, a positive gain and a multiplier above one speak for the ingredient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np

from strata.ablations.analysis import Comparison, Interval, Variance, compare_pairs
from strata.ablations.costs import Cost, variant_costs
from strata.ablations.multipliers import Bound, Multiplier, compute_multiplier
from strata.ablations.scaling import ScalingFit, ScalingLaw
from strata.ablations.summary import RunSummary, final_losses, learning_curves

Direction = Literal["left out", "added"]


@dataclass(frozen=True)
class IngredientRow:
    """One ingredient in one direction.

    comparison: the variant beside its base, differences as measured, variant − base.
    compute, tokens: how many times as much the recipe without the ingredient needs.
    parameters: how many times the parameters it needs, by the scaling fit of the base; None where
        there is no fit that says so.
    cost: of the variant, times beside those of its base. base_cost: of the base.
    """

    variant: str
    base: str
    direction: Direction
    comparison: Comparison
    compute: Multiplier
    tokens: Multiplier
    parameters: Multiplier | None
    cost: Cost
    base_cost: Cost

    @property
    def gain(self) -> Interval:
        """Bits per byte that the ingredient saves: the difference, or its negative if added."""
        difference = self.comparison.difference
        if self.direction == "left out":
            return difference
        estimate, low, high = -difference.estimate, -difference.high, -difference.low
        return replace(difference, estimate=estimate, low=low, high=high)


def ingredient_table(
    runs: Iterable[RunSummary],
    *,
    full: str,
    left_out: Sequence[str],
    baseline: str = "",
    added: Sequence[str] = (),
    fits: Mapping[str, ScalingFit] | None = None,
    variance: Variance = "pooled",
    confidence: float = 0.95,
) -> list[IngredientRow]:
    """One row for each variant in `left_out`, then one for each in `added`.

    Args:
        runs: of the suite; those of other variants are passed over.
        full, left_out: the full recipe, and the variants that lack one ingredient of it.
        baseline, added: the other recipe, and the variants that have one ingredient more.
        fits: scaling fits of `full` and `baseline` by their name, for the parameter multipliers.
        variance: as for `compare_pairs`; the pooled one is that of a direction's variants.

    Raises:
        ValueError: if a variant has no runs or shares no seed with its base, or the runs of a
            variant are of different sizes.
    """
    pairs = [(name, full) for name in left_out] + [(name, baseline) for name in added]
    names = list(dict.fromkeys(name for pair in pairs for name in reversed(pair)))
    runs = [run for run in runs if run.variant in names]
    table = compare_pairs(final_losses(runs, names), pairs, confidence, variance)
    curves = {name: learning_curves(runs, name) for name in names}
    prices = {base: variant_costs(runs, base, confidence) for base in {base for _, base in pairs}}
    directions = cast(list[Direction], ["left out"] * len(left_out) + ["added"] * len(added))
    rows = []
    for comparison, (name, base), direction in zip(table, pairs, directions, strict=True):
        better, worse = (base, name) if direction == "left out" else (name, base)
        compute, tokens = (
            compute_multiplier(curves[better], curves[worse], axis=axis, confidence=confidence)
            for axis in ("flops", "tokens")
        )
        cost, fit = prices[base][name], (fits or {}).get(base)
        parameters = None
        if fit is not None:
            seen = next(run.tokens for run in runs if run.variant == name)
            parameters = parameters_by_fit(
                fit, cost.parameters, seen, comparison.difference, direction
            )
        rows.append(
            IngredientRow(
                variant=name,
                base=base,
                direction=direction,
                comparison=comparison,
                compute=compute,
                tokens=tokens,
                parameters=parameters,
                cost=cost,
                base_cost=prices[base][base],
            )
        )
    return rows


def parameters_by_fit(
    fit: ScalingFit,
    parameters: int,
    tokens: float,
    difference: Interval,
    direction: Direction,
) -> Multiplier | None:
    """A difference in loss as a ratio of parameters, by the scaling fit of the base recipe.

    Args:
        fit: of the base: the full recipe for an ingredient left out, the baseline for one added.
        parameters, tokens: of the variant's runs.
        difference: its loss less the base's, at equal tokens.

    At `tokens` the base with N' parameters has the loss of the variant with N, where
    L(N', D) = L(N, D) + difference. An added ingredient is worth N' / N, one left out N / N'. N' is
    sought among the sizes that were fitted and nowhere else; beyond them the answer is a bound. The
    interval is made of the ends of the difference's interval, each through all laws of the
    bootstrap; the errors of fit and difference are so added rather than balanced, which is
    cautious. None where the fit does not determine its exponents.
    """
    if fit.law is None or fit.undetermined:
        return None
    smallest, largest = float(fit.parameters.min()), float(fit.parameters.max())

    def needed(law: ScalingLaw, away: float) -> float:
        """N', wherever it lies."""
        left = np.float64(law.A / parameters**law.alpha + away)  # what size is to account for
        with np.errstate(all="ignore"):  # a law of the bootstrap may be of any steepness
            return float((law.A / left) ** (1 / law.alpha)) if left > 0 else np.inf

    def worth(law: ScalingLaw, away: float) -> float:
        """The ratio, as far as the fitted sizes reach."""
        ratio = min(max(needed(law, away), smallest), largest) / parameters
        return ratio if direction == "added" else 1 / ratio

    bound: Bound = "exact"
    exact = needed(fit.law, difference.estimate)
    if not smallest <= exact <= largest:
        bound = "at least" if (exact > largest) == (direction == "added") else "at most"
    values = np.array(
        [
            [worth(law, away) for away in (difference.low, difference.high)]
            for law in fit.samples or (fit.law,)
        ]
    )  # (laws, ends)
    share = (1 - difference.confidence) / 2
    interval = Interval(
        worth(fit.law, difference.estimate),
        float(np.quantile(values, share, axis=0).min()),
        float(np.quantile(values, 1 - share, axis=0).max()),
        difference.confidence,
        difference.n,
    )
    loss = float(fit.law.loss(parameters, tokens)) + difference.estimate
    return Multiplier(interval, bound, "parameters", loss, {})
