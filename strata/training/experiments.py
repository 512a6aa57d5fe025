"""Tools for choosing an optimizer and its numbers: a range test of rates, schedules side by side.

    result = range_test(model, config, batches)
    plot_range_test(result)
    plot_schedules({"Strata": config, "GPT-3 recipe": gpt3_config})

The figures follow whatever style is set where they are drawn.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from strata.config import Config
from strata.model import Transformer
from strata.training.optimizer import build_optimizer
from strata.training.schedule import schedule_at
from strata.training.step import train_step

# A loss this many times the first is taken for divergence: what was learnt is lost, and more.
_DIVERGED = 1.1


@dataclass(frozen=True)
class RangeTest:
    """Losses in nats while the rate rose, and what they suggest.

    `losses[i]` is the loss after the update with `rates[i]`, `smooth` their running mean; the last
    is of the last rate that did not diverge.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smooth: tuple[float, ...]
    steepest: float  # the rate at which the loss fell fastest
    diverged: float | None  # the rate that ended the test, if one did
    suggestion: float  # the steepest, or a tenth of what diverged where that is less


def range_test(
    model: Transformer,
    config: Config,
    batches: Iterable[Sequence[Tensor]],
    low: float = 1e-5,
    high: float = 10.0,
    steps: int = 100,
) -> RangeTest:
    """Raise the learning rate from `low` to `high` and see where the loss falls, and where it ends.

    The rate grows by a constant factor from update to update (Smith, 2017, "Cyclical Learning
    Rates", section 3.3, with a line for the rate; the factor is what is usual since). It stands for
    `optimizer.learning_rate`; the rates of the other roles keep their ratios to it. A few updates
    at a rate say little about a run at it: the suggestion is where to begin a search.

    Args:
        model: trained from where it stands, as a copy: neither it nor anything else is changed.
        batches: (tokens, targets), both (batch, time), one an update: `Batch`es of a loader of
            the test's own, since a loader moves on.
        low, high: first and last rate.
        steps: updates, fewer if the loss diverges.

    Raises:
        ValueError: if the rates do not rise, or there are too few batches.
    """
    if not 0 < low < high or steps < 10:
        raise ValueError(
            f"low = {low}, high = {high}, steps = {steps}: expected 0 < low < high and at least "
            "10 steps"
        )
    model = copy.deepcopy(model).train()
    optimizer = build_optimizer(model, config.optimizer)
    rates = np.geomspace(low, high, steps).tolist()
    losses: list[float] = []
    # the loss of a batch is that before its update, hence after the update before it
    for batch, rate in zip(batches, [*rates, high], strict=False):
        optimizer.set_rate(rate / config.optimizer.learning_rate)
        loss = train_step(model, optimizer, [(batch[0], batch[1])], config.training).item()
        if losses and not loss <= _DIVERGED * losses[0]:  # nor does a NaN
            break
        losses.append(loss)
    else:
        if len(losses) <= steps:
            raise ValueError(f"{len(losses)} batches: expected steps + 1 = {steps + 1} of them")
    losses = losses[1:]
    diverged = rates[len(losses)] if len(losses) < steps else None
    rates = rates[: len(losses)]
    if len(losses) < 3:
        raise ValueError(f"low = {low}: the loss rises at once; expected a lower rate")
    smooth = _running_mean(losses, max(3, steps // 10))
    steepest = rates[int(np.argmin(np.gradient(smooth, np.log(rates))))]
    return RangeTest(
        rates=tuple(rates),
        losses=tuple(losses),
        smooth=tuple(smooth),
        steepest=steepest,
        diverged=diverged,
        suggestion=min(steepest, diverged / 10) if diverged else steepest,
    )


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the `width` values around each, of fewer at the ends."""
    half = width // 2
    return [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def plot_range_test(result: RangeTest) -> Figure:
    """Loss against rate, with the suggestion."""
    fig, axis = plt.subplots(layout="constrained")
    axis.plot(result.rates, result.losses, ".", color="#999999", label="a batch")
    axis.plot(result.rates, result.smooth, "-", label="running mean")
    axis.axvline(result.suggestion, color="black", linestyle="--", linewidth=1, label="suggestion")
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss (nats per token)")
    axis.set_title(f"A rate to begin with: {result.suggestion:.2g}")
    axis.legend()
    return fig


def plot_schedules(configs: Mapping[str, Config]) -> Figure:
    """Rate, momentum and weight decay of several configurations' matrices, side by side.

    A rule that has betas in place of a momentum has no line there.
    """
    fig, axes = plt.subplots(1, 3, figsize=(6.3, 2.4), layout="constrained")
    for name, config in configs.items():
        optimizer = config.optimizer
        steps = range(1, config.training.max_steps + 1)
        settings = [schedule_at(step, config) for step in steps]
        rates = [optimizer.learning_rate * at.rate_ratio for at in settings]
        decays = [optimizer.weight_decay * at.decay_ratio for at in settings]
        has_momentum = optimizer.name not in ("adamw", "lion", "adafactor")
        momenta = [at.momentum if has_momentum else math.nan for at in settings]
        for axis, values in zip(axes, (rates, momenta, decays), strict=True):
            axis.plot(steps, values, label=name)
    for axis, title in zip(axes, ("learning rate", "momentum", "weight decay"), strict=True):
        axis.set(xlabel="update", title=title, xlim=(0, None))
    axes[0].set_ylim(0, None)
    axes[2].set_ylim(0, None)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(configs))
    return fig
