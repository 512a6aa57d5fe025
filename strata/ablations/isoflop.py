"""The best size for a compute, read off runs that spend it differently.

The second way of Hoffmann et al. (2022, arXiv 2203.15556, section 3.2): at one compute, small
models see many tokens and large ones few, and the final loss over log N is a valley. A parabola
through its runs gives the size of least loss, N_opt; over several computes N_opt ∝ C^a and
D_opt ∝ C^b. Nothing is assumed of the form of the law, so it checks the parametric fit, by which
a = β / (α + β).

The parabola is an approximation: of a lopsided valley, or one sampled far to one side, it misses
the bottom by a little. A valley whose bottom lies outside its runs is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from strata.ablations.analysis import FloatArray, Interval
from strata.ablations.scaling import ScalingFit


@dataclass(frozen=True)
class Valley:
    """The runs of one compute and the parabola through them.

    flops: their compute, the geometric mean.
    runs: their places in the arrays that were given.
    parabola: (3,) loss = c₂ x² + c₁ x + c₀ with x = log N.
    parameters, tokens, loss: at the bottom; tokens by interpolation between the runs.
    problem: why it has none inside its runs; empty where it has.
    """

    flops: float
    runs: tuple[int, ...]
    parabola: FloatArray
    parameters: float
    tokens: float
    loss: float
    problem: str

    def loss_at(self, parameters: ArrayLike) -> FloatArray:
        """The parabola, for drawing."""
        return np.asarray(np.polyval(self.parabola, np.log(parameters)))


@dataclass(frozen=True)
class Allocation:
    """How the best sizes and lengths grow with compute: N_opt ∝ C^a, D_opt ∝ C^b."""

    source: str
    a: Interval
    b: Interval


@dataclass(frozen=True)
class IsoFlopFit:
    """All valleys, and how their bottoms go with compute; `allocation` is None below two bottoms.

    The intervals are percentiles of a bootstrap of residuals: losses are drawn anew about the
    parabolas and everything is computed again. They are the whole line where no valley has more
    runs than the three that a parabola takes.
    """

    valleys: tuple[Valley, ...]
    allocation: Allocation | None
    size_line: FloatArray | None  # (2,) log N_opt = line[0] · log C + line[1]
    token_line: FloatArray | None  # (2,) the same of D_opt
    problems: tuple[str, ...]

    def optimum(self, flops: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Parameters and tokens of least loss by the lines; ValueError where there are none."""
        if self.size_line is None or self.token_line is None:
            raise ValueError(f"no line through the valleys: {'; '.join(self.problems)}")
        logs = np.log(flops)
        return np.exp(np.polyval(self.size_line, logs)), np.exp(np.polyval(self.token_line, logs))


# Hoffmann et al. (2022), Table 2; in brackets there the 10th and 90th percentile of a bootstrap.
# Over 400 runs in all. Kaplan et al. (2020) had 0.73 and 0.27, without an interval.
HOFFMANN_ALLOCATIONS = tuple(
    Allocation(f"Hoffmann et al. (2022), {way}", Interval(*a, 0.8, 400), Interval(*b, 0.8, 400))
    for way, a, b in (
        ("minimum over training curves", (0.50, 0.488, 0.502), (0.50, 0.501, 0.512)),
        ("iso-FLOP profiles", (0.49, 0.462, 0.534), (0.51, 0.483, 0.529)),
        ("parametric fit", (0.46, 0.454, 0.455), (0.54, 0.542, 0.543)),
    )
)


def allocation_of(fit: ScalingFit, confidence: float = 0.95) -> Allocation | None:
    """What a parametric fit says of a and b: β / (α + β) and α / (α + β); None without a law."""
    size = fit.band(lambda law: law.beta / (law.alpha + law.beta), confidence)
    length = fit.band(lambda law: law.alpha / (law.alpha + law.beta), confidence)
    if size is None or length is None:
        return None
    a, b = (
        Interval(float(band.estimate), float(band.low), float(band.high), confidence, fit.n_runs)
        for band in (size, length)
    )
    return Allocation("parametric fit", a, b)


def fit_isoflop(
    flops: ArrayLike,
    parameters: ArrayLike,
    tokens: ArrayLike,
    losses: ArrayLike,
    *,
    tolerance: float = 0.05,
    bootstrap_samples: int = 1_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> IsoFlopFit:
    """Valleys and their bottoms of runs with compute C, size N, tokens D and loss L, each (runs,).

    Runs belong to one compute where theirs differ by at most the share `tolerance` from the next.
    Other runs of a suite may be among them: a compute with a single size is passed over.

    Raises:
        ValueError: for arrays of different length or values that are not positive and finite.
    """
    named = {"flops": flops, "parameters": parameters, "tokens": tokens, "losses": losses}
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in named.items()}
    shape = arrays["losses"].shape
    for name, values in arrays.items():
        if values.ndim != 1 or values.shape != shape:
            raise ValueError(
                f"{name} has shape {values.shape}, expected ({len(arrays['losses'])},)"
            )
        if not np.all(np.isfinite(values) & (values > 0)):
            raise ValueError(f"{name} must be positive and finite, got {values.tolist()}")
    log_c, log_n, log_d = (np.log(arrays[name]) for name in ("flops", "parameters", "tokens"))
    loss = arrays["losses"]
    groups = [group for group in _groups(log_c, tolerance) if len(np.unique(log_n[group])) > 1]
    valleys = tuple(_valley(group, log_c, log_n, log_d, loss) for group in groups)
    good = [valley for valley in valleys if not valley.problem]
    problems = tuple(f"{v.flops:.3g} FLOP: {v.problem}" for v in valleys if v.problem)
    if len(good) < 2:
        few = f"{len(good)} valleys with a bottom; two or more make a line"
        return IsoFlopFit(valleys, None, None, None, (*problems, few))
    size_line, token_line = _lines(good)

    samples = _bootstrap(good, log_c, log_n, log_d, loss, bootstrap_samples, seed)
    share = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.array([[-np.inf] * 2, [np.inf] * 2])
    if len(samples):
        low, high = np.quantile(samples, share, axis=0)
    a, b = (
        Interval(float(line[0]), float(low[place]), float(high[place]), confidence, len(good))
        for place, line in enumerate((size_line, token_line))
    )
    return IsoFlopFit(valleys, Allocation("iso-FLOP", a, b), size_line, token_line, problems)


def _groups(log_c: FloatArray, tolerance: float) -> list[FloatArray]:
    """Indices of runs of one compute, by rising compute."""
    order = np.argsort(log_c, kind="stable")
    cuts = np.flatnonzero(np.diff(log_c[order]) > np.log1p(tolerance)) + 1
    return list(np.split(order, cuts))


def _valley(
    group: FloatArray, log_c: FloatArray, log_n: FloatArray, log_d: FloatArray, loss: FloatArray
) -> Valley:
    x, flops = log_n[group], float(np.exp(log_c[group].mean()))
    runs = tuple(int(place) for place in group)
    levels = len(np.unique(x))
    if levels < 3:
        nothing = np.full(3, np.nan)
        few = f"{levels} sizes make no parabola; three are needed"
        return Valley(flops, runs, nothing, np.nan, np.nan, np.nan, few)
    # about the mean, where the powers of x are not all alike
    top, middle, base = np.polyfit(x - x.mean(), loss[group], 2)
    parabola = np.array(
        [top, middle - 2 * top * x.mean(), base - middle * x.mean() + top * x.mean() ** 2]
    )
    if top <= 0:
        return Valley(flops, runs, parabola, np.nan, np.nan, np.nan, "the runs make no valley")
    bottom = x.mean() - middle / (2 * top)
    problem = ""
    if bottom <= x.min():
        problem = "the smallest model is the best; smaller ones are needed"
    elif bottom >= x.max():
        problem = "the largest model is the best; larger ones are needed"
    order = np.argsort(x, kind="stable")
    tokens = np.exp(np.interp(bottom, x[order], log_d[group][order]))
    least = float(base - middle**2 / (4 * top))
    return Valley(flops, runs, parabola, float(np.exp(bottom)), float(tokens), least, problem)


def _lines(valleys: Sequence[Valley]) -> tuple[FloatArray, FloatArray]:
    """Least squares of log N_opt and log D_opt on log C: slope and offset of each."""
    logs = np.log([[valley.flops, valley.parameters, valley.tokens] for valley in valleys])
    size, tokens = (np.polyfit(logs[:, 0], logs[:, place], 1) for place in (1, 2))
    return np.asarray(size), np.asarray(tokens)


def _bootstrap(
    valleys: Sequence[Valley],
    log_c: FloatArray,
    log_n: FloatArray,
    log_d: FloatArray,
    loss: FloatArray,
    samples: int,
    seed: int,
) -> FloatArray:
    """Exponents a and b, (samples, 2), of losses drawn anew; a lost bottom is left out of its line.

    Residuals of all valleys are drawn as one set, made larger by what three fitted numbers a valley
    took from them.
    """
    groups = [np.array(valley.runs) for valley in valleys]
    members = np.concatenate(groups)
    fitted = np.concatenate(
        [valley.loss_at(np.exp(log_n[g])) for valley, g in zip(valleys, groups, strict=True)]
    )
    spare = len(members) - 3 * len(valleys)
    if not spare:
        return np.empty((0, 2))
    residuals = (loss[members] - fitted) * np.sqrt(len(members) / spare)
    generator, drawn, found = np.random.default_rng(seed), loss.copy(), []
    for _ in range(samples):
        drawn[members] = fitted + generator.choice(residuals, len(members))
        again = [_valley(group, log_c, log_n, log_d, drawn) for group in groups]
        good = [valley for valley in again if not valley.problem]
        if len(good) > 1:
            found.append([line[0] for line in _lines(good)])
    return np.array(found).reshape(-1, 2)
