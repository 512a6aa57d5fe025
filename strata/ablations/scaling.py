"""Scaling laws: how the loss falls with parameters, tokens and compute.

`fit_scaling_law` fits L(N, D) = E + A / N^α + B / D^β to finished runs, in the third way of
Hoffmann et al. (2022, arXiv 2203.15556, section 3.3 and appendix D.4): Huber's loss on the
logarithm of the loss, the sum of three terms written as a log-sum-exp, BFGS from a grid of
starts. E is the loss that no model of this kind goes below, A / N^α what a larger model would
gain, B / D^β what more tokens would. Beside it stand the second way of the paper, in
`strata/ablations/isoflop.py`, and the line through the best runs alone, in `power_law.py`; what a
fit says of sizes and losses that nobody has made is asked in `extrapolation.py`.

Five parameters want many runs. Where there are too few, or where the fit shows that the runs do
not determine them, `ScalingFit.problems` says so in sentences; print them beside the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from strata.ablations.analysis import FloatArray, Interval

MIN_RUNS = 6  # one more than there are parameters
MIN_LEVELS = 3  # different sizes, and different numbers of tokens: two fix a slope, not a bend


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, N in parameters, D in tokens, L in the data's unit.

    E, A and B depend on the tokenizer, the text and the unit of the loss (nats per token or bits
    per byte); between two corpora only the exponents may be compared.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: ArrayLike, tokens: ArrayLike) -> FloatArray:
        """Predicted loss; parameters and tokens broadcast against each other."""
        n = np.asarray(parameters, dtype=np.float64)
        d = np.asarray(tokens, dtype=np.float64)
        return np.asarray(self.E + self.A / n**self.alpha + self.B / d**self.beta)

    def optimum(
        self, flops: ArrayLike, flops_per_parameter: float = 6.0
    ) -> tuple[FloatArray, FloatArray]:
        """Parameters and tokens of least loss for a compute of `flops` (Hoffmann, eq. 4).

        Each parameter is taken to cost `flops_per_parameter` a token, so that C = 6 N D. Setting
        the slope along that curve to zero gives αA / N^α = βB / D^β.
        """
        product = np.asarray(flops, dtype=np.float64) / flops_per_parameter  # N · D
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * product ** (self.beta / (self.alpha + self.beta))
        return parameters, product / parameters

    def cheapest(self, loss: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Parameters and tokens of least compute that reach `loss`; infinite where none do.

        By the same condition as `optimum`: of the excess over E, A / N^α is the share
        β / (α + β).
        """
        excess = np.asarray(loss, dtype=np.float64) - self.E
        by_size = excess * self.beta / (self.alpha + self.beta)
        with np.errstate(all="ignore"):  # a law that the runs leave open may be of any steepness
            parameters = (self.A / by_size) ** (1 / self.alpha)
            tokens = (self.B / (excess - by_size)) ** (1 / self.beta)
            reached = (excess > 0) & np.isfinite(parameters * tokens)
        return np.where(reached, parameters, np.inf), np.where(reached, tokens, np.inf)


# Published fits, in nats per token of DeepMind's tokenizer on MassiveText. The first as printed
# (Hoffmann et al., eq. 10, rounded); the second is the refit of the same runs by Besiroglu et al.
# (2024, arXiv 2404.10102), who found the rounding and an optimiser that stopped early to have
# biased the first: standard errors 0.03, 124.58, 1293.23, 0.02, 0.02.
CHINCHILLA = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
CHINCHILLA_REFIT = ScalingLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


@dataclass(frozen=True)
class Band:
    """A curve with its confidence band; three arrays of one shape."""

    estimate: FloatArray
    low: FloatArray
    high: FloatArray
    confidence: float


@dataclass(frozen=True)
class ScalingFit:
    """A fitted law, its uncertainty, and what is wrong with it.

    `law` is None when the runs are too few to fit five parameters at all. `intervals` holds
    bootstrap percentiles by field name of the law (empty without a bootstrap). `parameters`,
    `tokens`, `losses` are the runs, in the order given, and `residuals` log L − log L̂ of each.
    `problems` is empty when nothing speaks against reading the five numbers; `undetermined` are
    those of them that leave no ground for saying anything beyond the runs.
    """

    law: ScalingLaw | None
    intervals: dict[str, Interval]
    parameters: FloatArray
    tokens: FloatArray
    losses: FloatArray
    residuals: FloatArray
    samples: tuple[ScalingLaw, ...]  # the bootstrap's laws, for bands around a prediction
    problems: tuple[str, ...]
    undetermined: tuple[str, ...]

    @property
    def n_runs(self) -> int:
        """How many runs were fitted."""
        return len(self.losses)

    @property
    def spread(self) -> float:
        """Standard deviation of one run's log L about the law, with n − 5 degrees of freedom."""
        return float(np.sqrt(np.sum(self.residuals**2) / (self.n_runs - 5)))

    def band(
        self, curve: Callable[[ScalingLaw], ArrayLike], confidence: float = 0.95
    ) -> Band | None:
        """Anything that follows from a law, with percentiles over the bootstrap's laws.

        A loss along sizes is `fit.band(lambda law: law.loss(sizes, tokens))`, the least loss of
        each compute `fit.band(lambda law: law.loss(*law.optimum(flops)))`. None where there is no
        law; without bootstrap samples the band is the whole plane. It covers the uncertainty of
        the law, neither the noise of a single run nor an error of its form outside the data.
        """
        if self.law is None:
            return None
        estimate = np.asarray(curve(self.law), dtype=np.float64)
        if not self.samples:
            whole = np.full(estimate.shape, np.inf)
            return Band(estimate, -whole, whole, confidence)
        with np.errstate(all="ignore"):  # a sample's law may be of any steepness
            values = np.array([curve(law) for law in self.samples])  # (samples, …)
        low, high = np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        return Band(estimate, low, high, confidence)

    def predict(
        self, parameters: float, tokens: float, confidence: float = 0.95
    ) -> Interval | None:
        """Expected loss at a point with its bootstrap band; see `band` for what that covers."""
        band = self.band(lambda law: law.loss(parameters, tokens), confidence)
        if band is None:
            return None
        ends = float(band.estimate), float(band.low), float(band.high)
        return Interval(*ends, confidence, self.n_runs)

    def predict_run(
        self, parameters: float, tokens: float, confidence: float = 0.95
    ) -> Interval | None:
        """Loss of one new run: as `predict`, and with a run's own noise about the law.

        To the log of each sample's loss are added draws of Student's t, of `spread`.
        """
        expected = self.predict(parameters, tokens, confidence)
        if expected is None or not self.samples:
            return expected
        losses = np.array([law.loss(parameters, tokens) for law in self.samples])
        noise = np.random.default_rng(0).standard_t(self.n_runs - 5, (len(losses), 500))
        drawn = losses[:, None] * np.exp(self.spread * noise)  # (samples, draws)
        low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        return replace(expected, low=float(low), high=float(high))


def fit_scaling_law(
    parameters: ArrayLike,
    tokens: ArrayLike,
    losses: ArrayLike,
    *,
    delta: float = 1e-3,
    bootstrap_samples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> ScalingFit:
    """Fit E, A, B, α, β to runs of `parameters` N, `tokens` D and final `losses` L, each (runs,).

    Minimised is Σ Huber_δ(log L̂ − log L). Two things differ from the paper, neither the optimum:
    N and D are divided by their geometric means while fitting, so that the offsets and exponents
    pull independently, and the objective is in units of δ². Unscaled it is of order 1e-6, below
    the tolerance at which L-BFGS declares itself done: the error that Besiroglu et al. found.
    Of a grid of 1,125 starts, BFGS goes on from the 12 with the lowest objective; the paper's
    L-BFGS saves memory that five parameters do not need, and SciPy's waits for BLAS threads at
    every step, on a busy machine ten times as long as it computes.

    The bootstrap draws runs with replacement, sets that could not be fitted excepted; its
    intervals are percentiles. `bootstrap_samples=0` leaves it out.

    Raises ValueError for arrays of different length or values that are not positive and finite.
    """
    n, d, loss = (np.asarray(values, dtype=np.float64) for values in (parameters, tokens, losses))
    for name, values in (("parameters", n), ("tokens", d), ("losses", loss)):
        if values.ndim != 1 or len(values) != len(loss):
            raise ValueError(f"{name} has shape {values.shape}, expected ({len(loss)},)")
        if not np.all(np.isfinite(values) & (values > 0)):
            raise ValueError(f"{name} must be positive and finite, got {values.tolist()}")
    problems = _too_few(n, d)
    if problems:
        missing = np.full(len(loss), np.nan)
        return ScalingFit(None, {}, n, d, loss, missing, (), problems, problems)

    centre_n, centre_d = float(np.log(n).mean()), float(np.log(d).mean())
    logs = np.stack([np.log(n) - centre_n, np.log(d) - centre_d, np.log(loss)])  # (3, runs)
    best = min((_descend(start, logs, delta) for start in _starts(logs, delta)), key=lambda r: r[1])
    law = _law(best[0], centre_n, centre_d)
    samples = tuple(
        _law(point, centre_n, centre_d)
        for point in _bootstrap(best[0], n, d, logs, delta, bootstrap_samples, seed)
    )
    intervals = {
        name: _percentiles(
            getattr(law, name), [getattr(s, name) for s in samples], confidence, len(loss)
        )
        for name in (ScalingLaw.__dataclass_fields__ if samples else ())
    }
    undetermined = _no_scaling(law, intervals)
    return ScalingFit(
        law=law,
        intervals=intervals,
        parameters=n,
        tokens=d,
        losses=loss,
        residuals=logs[2] - np.log(law.loss(n, d)),
        samples=samples,
        problems=_doubts_of_limit(law, intervals, loss) + undetermined,
        undetermined=undetermined,
    )


def _percentiles(estimate: float, values: list[float], confidence: float, n: int) -> Interval:
    with np.errstate(invalid="ignore"):  # between two infinities there is no number
        low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high), confidence, n)


def _too_few(n: FloatArray, d: FloatArray) -> tuple[str, ...]:
    """Why five parameters cannot be had from these runs; empty when they can."""
    problems = []
    points = len(set(zip(n.tolist(), d.tolist(), strict=True)))
    if points < MIN_RUNS:
        problems.append(
            f"{points} different pairs of size and tokens cannot fix five parameters and leave "
            f"anything to judge the fit by; at least {MIN_RUNS} are needed"
        )
    for what, values in (("sizes", n), ("numbers of tokens", d)):
        levels = len(np.unique(values))
        if levels < MIN_LEVELS:
            problems.append(
                f"{levels} different {what} cannot show a bend; at least {MIN_LEVELS} are needed"
            )
    return tuple(problems)


def _doubts_of_limit(
    law: ScalingLaw, intervals: dict[str, Interval], loss: FloatArray
) -> tuple[str, ...]:
    """What the fit itself shows of its E; without one, losses beyond the runs come out too low."""
    if law.E / loss.min() < 1e-3:
        return ("no irreducible loss E shows in this range; the law is a pure power law",)
    if "E" in intervals and intervals["E"].low < 0.1 * law.E:
        return ("the irreducible loss E is not determined: its interval reaches to zero",)
    return ()


def _no_scaling(law: ScalingLaw, intervals: dict[str, Interval]) -> tuple[str, ...]:
    """Exponents that the fit itself shows to be undetermined."""
    problems = []
    for name, term in (("alpha", "size"), ("beta", "tokens")):
        exponent = getattr(law, name)
        if not 0 < exponent < 2:
            problems.append(
                f"{name} = {exponent:.2g} is no scaling with {term}: these runs do not show any"
            )
        elif name in intervals:
            width = intervals[name].high - intervals[name].low
            if width > exponent:
                problems.append(
                    f"{name} is hardly determined: from {intervals[name].low:.2g} "
                    f"to {intervals[name].high:.2g}"
                )
    return tuple(problems)


def _starts(logs: FloatArray, delta: float, keep: int = 12) -> list[FloatArray]:
    """The most promising points (a, b, e, α, β) of a grid; a, b, e are logs of the three terms.

    At the centre of the data A / N^α, B / D^β and E are shares of the mean loss.
    """
    shares = np.log([0.02, 0.1, 0.3, 0.6, 0.9]) + logs[2].mean()
    exponents = np.array([0.1, 0.3, 0.6])
    axes = np.meshgrid(shares, shares, shares, exponents, exponents, indexing="ij")
    grid = np.stack([axis.ravel() for axis in axes], axis=1)  # (starts, 5)
    values = np.array([_objective(point, logs, delta)[0] for point in grid])
    return list(grid[np.argsort(values, kind="stable")[:keep]])


def _descend(start: FloatArray, logs: FloatArray, delta: float) -> tuple[FloatArray, float]:
    from scipy import optimize  # takes a while to load

    result = optimize.minimize(
        _objective,
        start,
        args=(logs, delta),
        jac=True,
        method="BFGS",
        options={"maxiter": 500, "gtol": 1e-6},
    )
    return np.asarray(result.x), float(result.fun)


def _objective(point: FloatArray, logs: FloatArray, delta: float) -> tuple[float, FloatArray]:
    """Σ Huber_δ(log L̂ − log L) / δ² and its gradient at (a, b, e, α, β)."""
    a, b, e, alpha, beta = point
    log_n, log_d, log_loss = logs
    terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])  # (3, runs)
    top = terms.max(axis=0)
    weights = np.exp(terms - top)
    total = weights.sum(axis=0)
    residual = (top + np.log(total) - log_loss) / delta  # (runs,) in units of δ
    clipped = np.clip(residual, -1.0, 1.0)  # the derivative of Huber's loss
    value = np.sum(clipped * (residual - clipped / 2))
    pull = weights / total * clipped / delta  # (3, runs): by each term's share of the loss
    along_n, along_d = -(pull[0] * log_n).sum(), -(pull[1] * log_d).sum()
    return float(value), np.array([*pull.sum(axis=1), along_n, along_d])


def _bootstrap(
    best: FloatArray,
    n: FloatArray,
    d: FloatArray,
    logs: FloatArray,
    delta: float,
    samples: int,
    seed: int,
) -> list[FloatArray]:
    """Fits of runs drawn with replacement, each from the best fit of all runs."""
    generator = np.random.default_rng(seed)
    fits: list[FloatArray] = []
    for _ in range(100 * samples):  # small sets are often degenerate; do not draw for ever
        if len(fits) == samples:
            break
        pick = generator.integers(0, len(n), size=len(n))
        if not _too_few(n[pick], d[pick]):
            fits.append(_descend(best, logs[:, pick], delta)[0])
    return fits


def _law(point: FloatArray, centre_n: float, centre_d: float) -> ScalingLaw:
    """Undo the centring: A / N^α = e^a · (N / N₀)^−α."""
    a, b, e, alpha, beta = (float(value) for value in point)
    with np.errstate(over="ignore"):  # exponents that the runs leave open may be of any steepness
        return ScalingLaw(
            E=float(np.exp(e)),
            A=float(np.exp(a + alpha * centre_n)),
            B=float(np.exp(b + beta * centre_d)),
            alpha=alpha,
            beta=beta,
        )
