"""Which parts earn their cost? The ablations of notebook 05.

`variants` says what is compared, `sweep` makes the runs, `summary` reads them back and `stored`
keeps them in one small file. `analysis` says what they show and how surely, `multipliers` what that
is worth, and `scaling` how the loss falls with size, tokens and compute.

Which values suit best? `tuning` searches (in a `study` on disk, over what `search` reads), and
`tuning_figures` draws what it found; imported by their own names, since a sweep needs no Optuna.
Sweeps and searches are spread over `processes`.
"""

from strata.ablations.analysis import (
    Comparison,
    Interval,
    compare,
    mean_interval,
)
from strata.ablations.multipliers import (
    LearningCurve,
    Multiplier,
    SizeCurve,
    compute_multiplier,
    cost_to_reach,
    parameter_multiplier,
    size_to_reach,
)
from strata.ablations.power_law import PowerLaw, efficient_frontier, fit_power_law
from strata.ablations.scaling import (
    CHINCHILLA,
    CHINCHILLA_REFIT,
    ScalingFit,
    ScalingLaw,
    fit_scaling_law,
)
from strata.ablations.stored import left_out, load_stored, store_runs, stored_choices
from strata.ablations.summary import (
    RunSummary,
    final_losses,
    learning_curves,
    load_suite,
    scaling_runs,
    size_curves,
    summarise,
)
from strata.ablations.sweep import SweepError, best_choices, run_suite
from strata.ablations.variants import (
    Suite,
    Tuning,
    Variant,
    leave_one_out,
    nano_suite,
    scaling_grid,
)
from strata.evaluation.comparison import holm

__all__ = [
    "CHINCHILLA",
    "CHINCHILLA_REFIT",
    "Comparison",
    "Interval",
    "LearningCurve",
    "Multiplier",
    "PowerLaw",
    "RunSummary",
    "ScalingFit",
    "ScalingLaw",
    "SizeCurve",
    "Suite",
    "SweepError",
    "Tuning",
    "Variant",
    "best_choices",
    "compare",
    "compute_multiplier",
    "cost_to_reach",
    "efficient_frontier",
    "final_losses",
    "fit_power_law",
    "fit_scaling_law",
    "holm",
    "learning_curves",
    "leave_one_out",
    "left_out",
    "load_stored",
    "load_suite",
    "mean_interval",
    "nano_suite",
    "parameter_multiplier",
    "run_suite",
    "scaling_grid",
    "scaling_runs",
    "size_curves",
    "size_to_reach",
    "store_runs",
    "stored_choices",
    "summarise",
]
