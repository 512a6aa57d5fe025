"""What a fitted law says of losses that nobody has reached: an extrapolation, and marked as one.

`reach` asks what a loss would take: parameters, tokens, operations and hours of a GPU.
`reach_gpt3` asks it of each size of GPT-3, whose loss on our text nobody knows either: its
loss-equivalent is what the baseline recipe's own fit gives at GPT-3's parameters and tokens, these
counted in our tokenizer's. Every answer says how many decades it lies beyond the runs that were
fitted, and carries what the fit says against itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strata.ablations.analysis import FloatArray, Interval
from strata.ablations.scaling import ScalingFit
from strata.evaluation.reference import GPT3_SIZES

GPT3_TOKENS = 300e9  # all eight sizes; Brown et al. (2020), Table 2.1


@dataclass(frozen=True)
class Reach:
    """What it would take to reach a loss, at the least compute that does.

    target: the loss, with an interval where it is itself predicted.
    parameters, tokens, flops, gpu_hours: percentiles over the bootstrap; an end that is infinite
        says that by some of its laws no model reaches the loss. None where the answer is refused.
    decades_beyond: how many powers of ten the furthest of parameters, tokens and compute lies
        outside what was fitted, for the target or for the answer; 0 inside.
    cautions: what the fits say against themselves.
    refusal: why there is no answer; empty where there is one.
    """

    target: Interval
    parameters: Interval | None
    tokens: Interval | None
    flops: Interval | None
    gpu_hours: Interval | None
    decades_beyond: float
    cautions: tuple[str, ...]
    refusal: str = ""

    @property
    def extrapolated(self) -> bool:
        """Whether the answer, or the loss that was asked for, lies beyond the runs."""
        return self.decades_beyond > 0


def reach(
    fit: ScalingFit,
    target: float,
    *,
    flops_per_second: float,
    utilisation: float,
    flops_per_parameter: float = 6.0,
    confidence: float = 0.95,
) -> Reach:
    """What it would take to come down to a loss of `target`, in the unit of the fit.

    Args:
        flops_per_second: peak of one GPU in the precision that is trained in.
        utilisation: share of it that training reaches, above 0 and at most 1.
        flops_per_parameter: operations a token for each parameter, as in `ScalingLaw.optimum`.

    The answer is refused, with the reason in `refusal`, where the fit has no law, where its
    exponents are not determined (`ScalingFit.undetermined`), and where the loss lies below E.

    Raises:
        ValueError: if a rate or the utilisation is none.
    """
    machine = _rate(flops_per_second, utilisation)
    known = Interval(target, target, target, confidence, fit.n_runs)
    return _reach(fit, known, [target], machine, flops_per_parameter)


def reach_gpt3(
    fit: ScalingFit,
    baseline: ScalingFit,
    *,
    flops_per_second: float,
    utilisation: float,
    flops_per_parameter: float = 6.0,
    confidence: float = 0.95,
) -> dict[str, Reach]:
    """`reach` for the loss-equivalent of each size of GPT-3, by its name ("Small" … "175B").

    Args:
        fit: of the recipe that is asked about.
        baseline: of GPT-3's recipe, on the same text and tokenizer.

    The intervals hold the doubt of both fits: each law of one bootstrap answers for the loss by
    each law of the other, so that what the two drew alike does not count. Refused also where the
    baseline's fit does not bear extrapolation.
    """
    machine = _rate(flops_per_second, utilisation)
    found = {}
    for size in GPT3_SIZES:
        away = _decades(baseline, size.parameters, GPT3_TOKENS)
        target = baseline.predict(size.parameters, GPT3_TOKENS, confidence)
        if target is None or baseline.undetermined:
            unknown = Interval(np.nan, np.nan, np.nan, confidence, baseline.n_runs)
            refusal = f"the baseline's fit does not bear it: {'; '.join(baseline.undetermined)}"
            found[size.name] = _refused(target or unknown, away, baseline.problems, refusal)
            continue
        losses = [float(law.loss(size.parameters, GPT3_TOKENS)) for law in baseline.samples]
        found[size.name] = _reach(
            fit, target, losses, machine, flops_per_parameter, away, baseline.problems
        )
    return found


def _reach(
    fit: ScalingFit,
    target: Interval,
    losses: Sequence[float],
    machine: float,
    flops_per_parameter: float,
    away: float = 0.0,
    cautions: tuple[str, ...] = (),
) -> Reach:
    """The answer; `losses` are the target's own samples, `away` its distance from its own data."""
    cautions = tuple(dict.fromkeys((*fit.problems, *cautions)))
    if fit.law is None or fit.undetermined:
        return _refused(target, away, cautions, "; ".join(fit.undetermined))
    parameters, tokens = map(float, fit.law.cheapest(target.estimate))
    if not np.isfinite(parameters):
        return _refused(
            target, away, cautions, f"the fit's irreducible loss, {fit.law.E:.4g}, is not below it"
        )
    answers = [np.stack(law.cheapest(losses)) for law in fit.samples]  # each (2, losses)
    sizes, lengths = np.hstack(answers) if answers else np.empty((2, 0))  # each (laws × losses,)
    flops = flops_per_parameter * sizes * lengths

    def interval(estimate: float, values: FloatArray) -> Interval:
        if not len(values):
            return Interval(estimate, 0.0, np.inf, target.confidence, fit.n_runs)
        share = (1 - target.confidence) / 2
        # values of the sample, since between a number and infinity there is none
        low = float(np.quantile(values, share, method="lower"))
        high = float(np.quantile(values, 1 - share, method="higher"))
        return Interval(estimate, low, high, target.confidence, fit.n_runs)

    needed = flops_per_parameter * parameters * tokens
    return Reach(
        target=target,
        parameters=interval(parameters, sizes),
        tokens=interval(tokens, lengths),
        flops=interval(needed, flops),
        gpu_hours=interval(needed / machine / 3600, flops / machine / 3600),
        decades_beyond=max(away, _decades(fit, parameters, tokens)),
        cautions=cautions,
    )


def _refused(target: Interval, away: float, cautions: tuple[str, ...], refusal: str) -> Reach:
    return Reach(target, None, None, None, None, away, cautions, refusal)


def _rate(flops_per_second: float, utilisation: float) -> float:
    """Operations a second that training comes to on one GPU."""
    if not flops_per_second > 0:
        raise ValueError(f"flops_per_second = {flops_per_second}: expected a rate above 0")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation = {utilisation}: expected a share above 0 and at most 1")
    return flops_per_second * utilisation


def _decades(fit: ScalingFit, parameters: float, tokens: float) -> float:
    """Powers of ten by which the furthest of size, tokens and their product leaves the data."""
    furthest = 0.0
    for value, data in (
        (parameters, fit.parameters),
        (tokens, fit.tokens),
        (parameters * tokens, fit.parameters * fit.tokens),
    ):
        furthest = max(furthest, np.log10(value / data.max()), np.log10(data.min() / value))
    return float(furthest)
