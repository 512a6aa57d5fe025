"""What turns compute into a model, in the order of notebook 03.

`schedule` says how large an update may be at each step, `optimizer` how a gradient becomes one,
`trainer` repeats it, `checkpoint` makes it survive, `logger` writes down what happened, `device`
and `distributed` decide where and on how many processes, and `folder` what a run leaves behind.
`history` reads runs back and sets them side by side.
"""

from strata.training.callbacks import Callback, EarlyStopping, LivePlot, Profiler
from strata.training.checkpoint import latest_checkpoint
from strata.training.device import Runtime, choose_runtime
from strata.training.history import find_runs, plot_runs, read_run
from strata.training.logger import read_metrics
from strata.training.optimizer import Optimizer, build_optimizer, group_table
from strata.training.schedule import rate_ratio
from strata.training.step import train_step
from strata.training.trainer import Interrupted, StepResult, Trainer

__all__ = [
    "Callback",
    "EarlyStopping",
    "Interrupted",
    "LivePlot",
    "Optimizer",
    "Profiler",
    "Runtime",
    "StepResult",
    "Trainer",
    "build_optimizer",
    "choose_runtime",
    "find_runs",
    "group_table",
    "latest_checkpoint",
    "plot_runs",
    "rate_ratio",
    "read_metrics",
    "read_run",
    "train_step",
]
