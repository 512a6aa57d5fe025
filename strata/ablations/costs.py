"""What a recipe costs: parameters, operations, memory and time, beside a base recipe.

Parameters, operations and the memory of the training state follow from the configuration. Time is
measured: seconds a token, the median over the stretches between a run's validations, so that one
in which the machine was busy otherwise does not count. The peak of memory is measured too, where
the runs recorded it; see `RunSummary.memory_bytes` for what it says of several runs in one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from strata.ablations.analysis import Interval, mean_interval
from strata.ablations.multipliers import LearningCurve
from strata.ablations.summary import RunSummary
from strata.config import Config
from strata.model import Transformer
from strata.training.groups import group_parameters


@dataclass(frozen=True)
class Cost:
    """What one variant costs; times are over its seeds.

    flops_per_token: operations of training on one token, forward and backward.
    state_bytes: of weights, gradients and the optimizer's moments, on one device; None for an
        optimizer of torch.optim, which keeps what it likes.
    peak_bytes: the most that one of its runs recorded; 0 where none did.
    seconds_per_token: mean over seeds.
    time_ratio: its seconds a token over the base's, paired by seed: the geometric mean, with
        Student's interval on the logarithm. None where no seed is common.
    """

    variant: str
    parameters: int
    body_parameters: int
    flops_per_token: float
    state_bytes: int | None
    peak_bytes: int
    seconds_per_token: Interval
    time_ratio: Interval | None


def variant_costs(
    runs: Iterable[RunSummary], base: str, confidence: float = 0.95
) -> dict[str, Cost]:
    """The cost of every variant by name, times beside those of `base`.

    Raises ValueError if the base has no runs, or the runs of a variant are of different sizes.
    """
    by_variant: dict[str, list[RunSummary]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run)
    if base not in by_variant:
        raise ValueError(f"base {base!r} has no runs; there are {', '.join(by_variant) or 'none'}")
    clocks = {
        name: {run.seed: seconds_per_token(run.curve) for run in members}
        for name, members in by_variant.items()
    }
    found = {}
    for name, members in by_variant.items():
        first = members[0]
        if len({(run.parameters, run.flops_per_token) for run in members}) > 1:
            raise ValueError(f"the runs of {name!r} are of different sizes: expected one a variant")
        found[name] = Cost(
            variant=name,
            parameters=first.parameters,
            body_parameters=first.body_parameters,
            flops_per_token=first.flops_per_token,
            state_bytes=training_state_bytes(first.config),
            peak_bytes=max(run.memory_bytes for run in members),
            seconds_per_token=mean_interval(list(clocks[name].values()), confidence),
            time_ratio=_ratio(clocks[name], clocks[base], confidence),
        )
    return found


def seconds_per_token(curve: LearningCurve) -> float:
    """Median over the stretches between validations.

    The first stretch, which may have compiled or filled caches, is left out where there are others.
    """
    tokens, seconds = (np.diff(values, prepend=0.0) for values in (curve.tokens, curve.seconds))
    rates = seconds / tokens  # (points,)
    return float(np.median(rates[1:] if len(rates) > 1 else rates))


def training_state_bytes(config: Config) -> int | None:
    """Bytes of weights, gradients and moments: what stays allocated between two updates.

    Activations, which depend on the micro-batch, are not among them. None where the moments are
    those of a torch.optim class.
    """
    if config.optimizer.from_pytorch:
        return None
    with torch.device("meta"):
        model = Transformer(config.model)
    total = 0
    for group in group_parameters(model, config.optimizer):
        for weight in group["params"]:
            numbers, rows = weight.numel(), weight.shape[0]
            if group["method"] == "adamw":
                moments = 2 * numbers
            elif group["method"] == "adafactor":
                moments = rows + weight.shape[1] if weight.ndim == 2 else numbers
            elif group["method"] == "muon":
                moments = numbers + (rows if config.optimizer.normalise_rows else 0)
            else:  # lion, sgd
                moments = numbers
            total += (2 * numbers + moments) * weight.element_size()
    return total


def _ratio(ours: dict[int, float], base: dict[int, float], confidence: float) -> Interval | None:
    seeds = sorted(ours.keys() & base.keys())
    if not seeds:
        return None
    if ours is base:
        return Interval(1.0, 1.0, 1.0, confidence, len(seeds))
    logs = [np.log(ours[seed] / base[seed]) for seed in seeds]
    return mean_interval(logs, confidence).exp()
