"""The straight line on two logarithmic axes: how one quantity of the best runs goes with compute.

L(C) = k · C^−γ is what remains of a scaling law when only compute is looked at (Kaplan et al. 2020,
arXiv 2001.08361). `efficient_frontier` says which runs it is about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from strata.ablations.analysis import FloatArray, Interval, t_quantile


@dataclass(frozen=True)
class PowerLaw:
    """L(C) = coefficient · C^−exponent, a straight line on two logarithmic axes."""

    coefficient: float
    exponent: Interval
    log_flops: FloatArray
    residuals: FloatArray  # log L − log L̂ of each run

    def loss(self, flops: ArrayLike) -> FloatArray:
        """Predicted loss at a compute of `flops`."""
        power = np.asarray(flops, dtype=np.float64) ** -self.exponent.estimate
        return np.asarray(self.coefficient * power)

    def predict(self, flops: float, confidence: float = 0.95) -> Interval:
        """Loss of one new run at `flops`, with Student's prediction interval on log L.

        The interval holds as far as the straight line does: it grows with the distance from the
        data, but knows nothing of a bend, such as an irreducible loss, beyond them.
        """
        estimate = float(self.loss(flops))
        degrees = len(self.residuals) - 2
        if degrees < 1:
            return Interval(estimate, -np.inf, np.inf, confidence, len(self.residuals))
        variance = float(np.sum(self.residuals**2)) / degrees
        centred = self.log_flops - self.log_flops.mean()
        distance = np.log(flops) - self.log_flops.mean()
        leverage = 1 + 1 / len(centred) + distance**2 / np.sum(centred**2)
        half = t_quantile(confidence, degrees) * np.sqrt(variance * leverage)
        low, high = estimate * np.exp(-half), estimate * np.exp(half)
        return Interval(estimate, float(low), float(high), confidence, len(self.residuals))


def fit_power_law(flops: ArrayLike, losses: ArrayLike, confidence: float = 0.95) -> PowerLaw:
    """Least squares of log L on log C over runs, with Student's interval on the exponent.

    Give it the best runs of each compute (`efficient_frontier`); others stand above the line.
    Raises ValueError for fewer than two different computes.
    """
    x = np.log(np.asarray(flops, dtype=np.float64))
    y = np.log(np.asarray(losses, dtype=np.float64))
    if x.shape != y.shape or x.ndim != 1 or len(np.unique(x)) < 2:
        raise ValueError("a power law needs flops and losses of at least two different computes")
    centred = x - x.mean()
    slope = float(np.sum(centred * y) / np.sum(centred**2))
    residuals = y - y.mean() - slope * centred
    half = np.inf
    if len(x) > 2:
        error = np.sqrt(np.sum(residuals**2) / (len(x) - 2) / np.sum(centred**2))
        half = float(t_quantile(confidence, len(x) - 2) * error)
    exponent = Interval(-slope, -slope - half, -slope + half, confidence, len(x))
    return PowerLaw(float(np.exp(y.mean() - slope * x.mean())), exponent, x, residuals)


def efficient_frontier(flops: ArrayLike, losses: ArrayLike) -> FloatArray:
    """Indices of the runs that no run of at most their compute beats, by rising compute."""
    cost = np.asarray(flops, dtype=np.float64)
    loss = np.asarray(losses, dtype=np.float64)
    order = np.lexsort((loss, cost))
    best = np.minimum.accumulate(loss[order])
    first = np.concatenate([[True], loss[order][1:] < best[:-1]])
    return np.asarray(order[first])
