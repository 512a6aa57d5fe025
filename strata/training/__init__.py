"""What turns compute into a model, in the order of notebook 03.

`schedule` says how large an update may be at each step, `rules` how a gradient becomes one,
`groups` which parameter follows which, `optimizer` applies them, `experiments` helps to choose,
`trainer` repeats it, `checkpoint` makes it survive, `logger` writes down what happened, `device`
and `distributed` decide where and on how many processes, and `folder` what a run leaves behind.
"""

from strata.training.checkpoint import latest_checkpoint
from strata.training.device import Runtime, choose_runtime
from strata.training.groups import group_table
from strata.training.logger import read_metrics
from strata.training.optimizer import Optimizer, build_optimizer
from strata.training.schedule import Settings, rate_ratio, schedule_at
from strata.training.trainer import Callback, Interrupted, StepResult, Trainer, train_step

__all__ = [
    "Callback",
    "Interrupted",
    "Optimizer",
    "Runtime",
    "Settings",
    "StepResult",
    "Trainer",
    "build_optimizer",
    "choose_runtime",
    "group_table",
    "latest_checkpoint",
    "rate_ratio",
    "read_metrics",
    "schedule_at",
    "train_step",
]
