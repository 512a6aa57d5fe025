"""What turns compute into a model, in the order of notebook 03.

`schedule` says how large an update may be at each step, `rules` how a gradient becomes one,
`groups` which parameter follows which, and `optimizer` applies them; `experiments` helps to choose.
`step` is one update and `trainer` repeats it, with `batches` for what each process reads, `growth`
for what starts small, `memory` for what does not fit, `guard` for what goes wrong, `validation` for
how it does on other text, and `callbacks` for what else you want. `checkpoint` and `state` make a
run survive, `signals` stop it and `lock` keeps others out; `logger` writes down what happened and
`curves` shows it. `device` decides where to compute and `parallelism` what several processes share;
`distributed` and `sharding` let them share it, and `launch` starts them. `folder` is what a run
leaves behind, and `history` reads runs back.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strata.training.callbacks import Callback as Callback
    from strata.training.callbacks import EarlyStopping as EarlyStopping
    from strata.training.callbacks import LivePlot as LivePlot
    from strata.training.callbacks import Profiler as Profiler
    from strata.training.callbacks import StepResult as StepResult
    from strata.training.checkpoint import latest_checkpoint as latest_checkpoint
    from strata.training.device import Runtime as Runtime
    from strata.training.device import choose_runtime as choose_runtime
    from strata.training.groups import group_table as group_table
    from strata.training.history import find_runs as find_runs
    from strata.training.history import plot_runs as plot_runs
    from strata.training.history import read_run as read_run
    from strata.training.launch import launch_training as launch_training
    from strata.training.logger import read_metrics as read_metrics
    from strata.training.optimizer import Optimizer as Optimizer
    from strata.training.optimizer import build_optimizer as build_optimizer
    from strata.training.schedule import Settings as Settings
    from strata.training.schedule import rate_ratio as rate_ratio
    from strata.training.schedule import schedule_at as schedule_at
    from strata.training.signals import Interrupted as Interrupted
    from strata.training.step import train_step as train_step
    from strata.training.trained import load_trained as load_trained
    from strata.training.trainer import Trainer as Trainer

# Imported when first used: a GPU machine that only measures needs no corpus and no tokenizer.
_NAMES = {
    "callbacks": ["Callback", "EarlyStopping", "LivePlot", "Profiler", "StepResult"],
    "checkpoint": ["latest_checkpoint"],
    "device": ["Runtime", "choose_runtime"],
    "groups": ["group_table"],
    "history": ["find_runs", "plot_runs", "read_run"],
    "launch": ["launch_training"],
    "logger": ["read_metrics"],
    "optimizer": ["Optimizer", "build_optimizer"],
    "schedule": ["Settings", "rate_ratio", "schedule_at"],
    "signals": ["Interrupted"],
    "step": ["train_step"],
    "trained": ["load_trained"],
    "trainer": ["Trainer"],
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'strata.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"strata.training.{_HOMES[name]}"), name)
