"""Which parts earn their cost? The ablations of notebook 05.

`variants` says what is compared, `ingredients` in what the two recipes differ, `grid` which sizes
are run for how long, and `suites` reads all of it from a file. `plan` lists the runs, `choices`
keeps what was tuned, `sweep` makes the runs, `hopeless` stops those that will come to nothing and
`outlook` says what is left to do. `summary` reads them back, `analysis` says what they show and how
surely, and `scaling` how the loss falls with size, tokens and compute.

Which values suit best? `tuning` searches (in a `study` on disk, over what `search` reads), and
`tuning_figures` draws what it found; imported by their own names, since a sweep needs no Optuna.
Sweeps and searches are spread over `processes`.
"""

from strata.ablations.analysis import (
    Comparison,
    Interval,
    LearningCurve,
    Multiplier,
    compare,
    compute_multiplier,
    cost_to_reach,
    mean_interval,
)
from strata.ablations.choices import best_choices, read_choices
from strata.ablations.hopeless import stopped_runs
from strata.ablations.ingredients import INGREDIENTS, add_one_in, leave_one_out
from strata.ablations.outlook import Outlook, look_out
from strata.ablations.plan import planned_runs, planned_trials
from strata.ablations.scaling import (
    CHINCHILLA,
    CHINCHILLA_REFIT,
    PowerLaw,
    ScalingFit,
    ScalingLaw,
    efficient_frontier,
    fit_power_law,
    fit_scaling_law,
)
from strata.ablations.suites import read_suite, shipped_suites
from strata.ablations.summary import (
    RunSummary,
    final_losses,
    learning_curves,
    load_suite,
    scaling_runs,
    summarise,
)
from strata.ablations.sweep import SweepError, run_suite
from strata.ablations.variants import Search, Suite, Tuning, Variant
from strata.evaluation.comparison import holm

__all__ = [
    "CHINCHILLA",
    "CHINCHILLA_REFIT",
    "INGREDIENTS",
    "Comparison",
    "Interval",
    "LearningCurve",
    "Multiplier",
    "Outlook",
    "PowerLaw",
    "RunSummary",
    "ScalingFit",
    "ScalingLaw",
    "Search",
    "Suite",
    "SweepError",
    "Tuning",
    "Variant",
    "add_one_in",
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
    "load_suite",
    "look_out",
    "mean_interval",
    "planned_runs",
    "planned_trials",
    "read_choices",
    "read_suite",
    "run_suite",
    "scaling_runs",
    "shipped_suites",
    "stopped_runs",
    "summarise",
]
