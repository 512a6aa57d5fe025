"""What a search found, drawn: its course, its slices, what mattered, and the values together.

Each function takes the study that `tune` or `load_study` gives and returns a figure in the style
that is set. Finished trials are dots, the best one is marked; trials that were stopped early are
rings at their last validation. Losses far above the middle are drawn at the upper edge, since a
rate that diverges would leave no room for the rest.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

_BEST = {"marker": "*", "markersize": 11, "linestyle": "", "color": "C1", "zorder": 3}
_DOT = {"marker": "o", "linestyle": "", "color": "C0"}
_RING = {"marker": "o", "linestyle": "", "color": "0.6", "markerfacecolor": "none", "zorder": 1}


def plot_history(study: Study) -> Figure:
    """The loss of each trial, and the best so far."""
    finished, stopped = _trials(study)
    best = study.best_trial
    figure, axis = plt.subplots()
    top = _top(finished + stopped)
    _draw(axis, [one.number for one in stopped], stopped, top, "stopped early", _RING)
    _draw(axis, [one.number for one in finished], finished, top, "finished", _DOT)
    lowest = np.minimum.accumulate([one.value or 0.0 for one in finished])
    numbers = [one.number for one in finished] + [len(study.trials) - 1]
    axis.step(numbers, [*lowest, lowest[-1]], where="post", color="C0", label="best so far")
    _draw(axis, [best.number], [best], top, f"best, trial {best.number}", _BEST)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="trial", ylabel="held-out text, bits per byte")
    first = finished[0]
    axis.set_title(
        f"From {first.value:.3f} (trial {first.number}) to {best.value:.3f} bits per byte "
        f"(trial {best.number}) in {len(finished) + len(stopped)} trials"
    )
    axis.legend()
    return figure


def plot_slices(study: Study) -> Figure:
    """The loss over each searched value, whatever the others were."""
    finished, stopped = _trials(study)
    names = list(study.best_params)
    n_columns = min(3, len(names))
    n_rows = -(-len(names) // n_columns)
    width, height = plt.rcParams["figure.figsize"]
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=(width, height * n_rows), sharey=True, squeeze=False
    )
    top = _top(finished + stopped)
    for name, axis in zip(names, grid.flat, strict=False):
        scale = study.best_trial.distributions[name]
        for trials, style in ((stopped, _RING), (finished, _DOT), ([study.best_trial], _BEST)):
            _draw(axis, [_place(scale, one.params[name]) for one in trials], trials, top, "", style)
        axis.set_xlabel(name)
        if isinstance(scale, CategoricalDistribution):
            axis.set_xticks(range(len(scale.choices)), [str(choice) for choice in scale.choices])
            axis.set_xlim(-0.5, len(scale.choices) - 0.5)
        elif getattr(scale, "log", False):
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())  # they overlap where a decade is long
        elif isinstance(scale, IntDistribution):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in grid.flat[len(names) :]:
        axis.set_visible(False)
    for axis in grid[:, 0]:
        axis.set_ylabel("held-out text, bits per byte")
    figure.suptitle(f"Best at {_values(study.best_trial)}", x=0.01, ha="left", fontsize="medium")
    return figure


def plot_importance(study: Study) -> Figure:
    """How much each field has to do with a trial's being among the best.

    By PED-ANOVA (Watanabe et al., 2023, arXiv:2304.10255), normalised to a sum of one.

    Raises:
        ValueError: if fewer than two trials are finished.
    """
    finished, _ = _trials(study)
    if len(finished) < 2:
        raise ValueError("importance needs at least two finished trials to compare")
    shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    names = list(reversed(shares))
    figure, axis = plt.subplots()
    bars = axis.barh(names, [shares[name] for name in names])
    axis.bar_label(bars, fmt="{:.0%}", padding=3)
    axis.margins(x=0.1)
    axis.grid(visible=False, axis="y")
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.set_xlabel("share of the importance (PED-ANOVA)")
    axis.set_title(f"{names[-1]} decides most, by {len(finished)} finished trials")
    return figure


def plot_together(study: Study) -> Figure:
    """Parallel coordinates: a line a finished trial through its values, the darker the better."""
    finished, _ = _trials(study)
    names = list(study.best_params)
    figure, axis = plt.subplots()
    ordered = sorted(finished, key=lambda one: one.value or 0.0, reverse=True)
    colours = plt.colormaps["cividis_r"](np.linspace(0.0, 1.0, len(ordered)))
    for colour, trial in zip(colours, ordered, strict=True):
        heights = [_height(trial.distributions[name], trial.params[name]) for name in names]
        axis.plot(range(len(names)), heights, color=colour, linestyle="-", linewidth=1.0)
    axis.get_lines()[-1].set(color="C1", linewidth=2.0)  # the best
    for place, name in enumerate(names):
        axis.axvline(place, color="0.4", linewidth=0.6)
        for value in _marks(study.best_trial.distributions[name]):
            height = _height(study.best_trial.distributions[name], value)
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            axis.annotate(
                text, (place, height), (4, 0), textcoords="offset points", va="center",
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
            )  # fmt: skip
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.grid(visible=False)
    axis.margins(x=0.12)
    axis.set_title(f"The best of {len(finished)} finished trials: {_values(study.best_trial)}")
    return figure


def _trials(study: Study) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
    """The finished trials, and those stopped early that were validated at least once.

    Raises:
        ValueError: if none is finished.
    """
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    stopped = study.get_trials(states=(TrialState.PRUNED,))
    if not finished:
        raise ValueError("nothing to draw: no trial of the search is finished yet")
    return finished, [one for one in stopped if one.value is not None]


def _top(trials: Sequence[FrozenTrial]) -> float:
    """The loss at the upper edge: some way beyond the median, seen from the lowest."""
    values = np.array([one.value for one in trials])
    return float(min(values.max(), values.min() + 4 * (np.median(values) - values.min())))


def _draw(
    axis: Axes,
    places: Sequence[Any],
    trials: Sequence[FrozenTrial],
    top: float,
    label: str,
    style: dict[str, Any],
) -> None:
    axis.plot(places, [min(one.value or 0.0, top) for one in trials], label=label, **style)


def _place(scale: Any, value: Any) -> Any:
    """Where a value stands on an axis."""
    return scale.choices.index(value) if isinstance(scale, CategoricalDistribution) else value


def _height(scale: Any, value: Any) -> float:
    """Where a value stands between the ends of what was searched, from 0 to 1."""
    if isinstance(scale, CategoricalDistribution):
        return float(scale.choices.index(value) / (len(scale.choices) - 1))
    ends = np.array([scale.low, value, scale.high], dtype=np.float64)
    low, here, high = np.log(ends) if scale.log else ends
    return float((here - low) / (high - low))


def _marks(scale: Any) -> tuple[Any, ...]:
    """The values that are written beside an axis."""
    return scale.choices if isinstance(scale, CategoricalDistribution) else (scale.low, scale.high)


def _values(trial: FrozenTrial) -> str:
    """A trial's values, by the last part of their names."""
    return ", ".join(
        f"{name.split('.')[1]} {f'{value:.3g}' if isinstance(value, float) else value}"
        for name, value in trial.params.items()
    )
