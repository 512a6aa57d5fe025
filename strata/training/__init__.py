"""What turns compute into a model, in the order of notebook 03.

`schedule` says how large an update may be at each step, `optimizer` how a gradient becomes one,
`trainer` repeats it, `checkpoint` makes it survive, `logger` writes down what happened, `device`
and `distributed` decide where and on how many processes, and `folder` what a run leaves behind.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strata.training.checkpoint import latest_checkpoint
    from strata.training.device import Runtime, choose_runtime
    from strata.training.logger import read_metrics
    from strata.training.optimizer import Optimizer, build_optimizer, group_table
    from strata.training.schedule import rate_ratio
    from strata.training.trainer import Callback, Interrupted, StepResult, Trainer, train_step

# Imported when first used: a GPU machine that only measures needs no corpus and no tokenizer.
_HOMES = {
    "Callback": "strata.training.trainer",
    "Interrupted": "strata.training.trainer",
    "Optimizer": "strata.training.optimizer",
    "Runtime": "strata.training.device",
    "StepResult": "strata.training.trainer",
    "Trainer": "strata.training.trainer",
    "build_optimizer": "strata.training.optimizer",
    "choose_runtime": "strata.training.device",
    "group_table": "strata.training.optimizer",
    "latest_checkpoint": "strata.training.checkpoint",
    "rate_ratio": "strata.training.schedule",
    "read_metrics": "strata.training.logger",
    "train_step": "strata.training.trainer",
}

__all__ = [
    "Callback",
    "Interrupted",
    "Optimizer",
    "Runtime",
    "StepResult",
    "Trainer",
    "build_optimizer",
    "choose_runtime",
    "group_table",
    "latest_checkpoint",
    "rate_ratio",
    "read_metrics",
    "train_step",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'strata.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
