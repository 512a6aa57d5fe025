"""Which parts earn their cost? The ablations of notebook 05.

`variants` says what is compared, `ingredients` in what the two recipes differ, `grid` which sizes
are run for how long, and `suites` reads all of it from a file. `plan` lists the runs, `choices`
keeps what was tuned, `sweep` makes the runs, `hopeless` stops those that will come to nothing and
`outlook` says what is left to do.

`summary` reads them back and `stored` keeps them in one small file. `analysis` says what they show
and how surely, `multipliers` what that is worth, `costs` what it costs, and `tables` all of it at a
glance. `scaling` says how the loss falls with size and tokens, `isoflop` and `power_law` how with
compute; `extrapolation` reads a fit beyond its runs, and `prediction` writes down what it says of a
run before the run is made.

Which values suit best? `tuning` searches (in a `study` on disk, over what `search` reads), and
`tuning_figures` draws what it found; imported by their own names, since a sweep needs no Optuna.
Sweeps and searches are spread over `processes`.
"""

from strata.ablations.analysis import (
    Comparison,
    Interval,
    compare,
    compare_pairs,
    mean_interval,
)
from strata.ablations.choices import best_choices, read_choices
from strata.ablations.costs import Cost, variant_costs
from strata.ablations.extrapolation import Reach, reach, reach_gpt3
from strata.ablations.hopeless import stopped_runs
from strata.ablations.ingredients import INGREDIENTS, add_one_in, leave_one_out
from strata.ablations.isoflop import (
    HOFFMANN_ALLOCATIONS,
    Allocation,
    IsoFlopFit,
    allocation_of,
    fit_isoflop,
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
from strata.ablations.outlook import Outlook, look_out
from strata.ablations.plan import planned_runs, planned_trials
from strata.ablations.power_law import PowerLaw, efficient_frontier, fit_power_law
from strata.ablations.scaling import (
    CHINCHILLA,
    CHINCHILLA_REFIT,
    Band,
    ScalingFit,
    ScalingLaw,
    fit_scaling_law,
)
from strata.ablations.stored import load_stored, store_runs, stored_choices, stored_left_out
from strata.ablations.suites import read_suite, shipped_suites
from strata.ablations.summary import (
    RunSummary,
    final_losses,
    learning_curves,
    load_suite,
    scaling_runs,
    size_curves,
    summarise,
)
from strata.ablations.sweep import SweepError, run_suite
from strata.ablations.tables import IngredientRow, ingredient_table
from strata.ablations.variants import Search, Suite, Tuning, Variant
from strata.evaluation.comparison import holm

__all__ = [
    "CHINCHILLA",
    "CHINCHILLA_REFIT",
    "HOFFMANN_ALLOCATIONS",
    "INGREDIENTS",
    "Allocation",
    "Band",
    "Comparison",
    "Cost",
    "IngredientRow",
    "Interval",
    "IsoFlopFit",
    "LearningCurve",
    "Multiplier",
    "Outlook",
    "PowerLaw",
    "Reach",
    "RunSummary",
    "ScalingFit",
    "ScalingLaw",
    "Search",
    "SizeCurve",
    "Suite",
    "SweepError",
    "Tuning",
    "Variant",
    "add_one_in",
    "allocation_of",
    "best_choices",
    "compare",
    "compare_pairs",
    "compute_multiplier",
    "cost_to_reach",
    "efficient_frontier",
    "final_losses",
    "fit_isoflop",
    "fit_power_law",
    "fit_scaling_law",
    "holm",
    "ingredient_table",
    "learning_curves",
    "leave_one_out",
    "load_stored",
    "load_suite",
    "look_out",
    "mean_interval",
    "parameter_multiplier",
    "planned_runs",
    "planned_trials",
    "reach",
    "reach_gpt3",
    "read_choices",
    "read_suite",
    "run_suite",
    "scaling_runs",
    "shipped_suites",
    "size_curves",
    "size_to_reach",
    "stopped_runs",
    "store_runs",
    "stored_choices",
    "stored_left_out",
    "summarise",
    "variant_costs",
]
