"""A drill: a small run, killed again and again, has to end as the run that nobody disturbed.

    strata drill runs/drill --kills 30

`small_run` is what is trained. `jobs` starts it in processes of its own, as a user would, and kills
it, or asks it to stop, as a scheduler would; `aims` chooses the instant, by looking at nothing but
the names and sizes in the run's folder; `comparison` holds what came out beside the undisturbed
run; `exercise` puts these together, and `record` adds up what was found, call after call.
"""

from strata.drill.comparison import find_differences
from strata.drill.exercise import drill
from strata.drill.record import Outcome, add_to_record, save_kills, sum_record, table

__all__ = [
    "Outcome",
    "add_to_record",
    "drill",
    "find_differences",
    "save_kills",
    "sum_record",
    "table",
]
