"""Stopping a run early that will not catch up, if one asks for it.

The rule: beyond the first third of its updates a run is stopped when, at a validation, its loss is
worse by more than a margin than that of every finished run of the base variant at as many tokens.
Early losses of recipes with different rates and schedules say little of the last ones, hence the
third; and a stopped run has no final loss, so it appears in no table, only as stopped. What such a
rule cannot see is a variant that would have overtaken late: report with a table which runs it
ended, and ask for a margin larger than any difference that you want to see.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from strata.ablations.multipliers import LearningCurve
from strata.ablations.plan import STOPPED
from strata.ablations.summary import RunSummary
from strata.storage import write_whole
from strata.training import Callback, Trainer


class Hopeless(Exception):
    """A run was stopped; its folder says by what rule."""


class StopsHopeless(Callback):
    """Ends a run that is worse than all of some finished ones by more than a margin.

    The run is left as one that was interrupted, with `stopped.json` in its folder.

    Args:
        finished: runs of the base variant.
        margin: in bits per byte, more than zero.
    """

    def __init__(self, finished: Sequence[RunSummary], margin: float) -> None:
        self._finished, self._margin = finished, margin

    def on_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        steps = trainer.config.training.max_steps
        if not steps <= 3 * metrics["step"] < 3 * steps:
            return
        bits, tokens = metrics["validation_bits_per_byte"], metrics["tokens"]
        losses = {run.name: loss_at(run.curve, tokens) for run in self._finished}
        known = {name: loss for name, loss in losses.items() if loss is not None}
        if not known or bits <= max(known.values()) + self._margin:
            return
        reason = (
            f"stopped after step {metrics['step']:,}: {bits:.4f} bits per byte, and the worst of "
            f"{len(known)} finished runs of the base had {max(known.values()):.4f} there"
        )
        held = {
            "step": metrics["step"],
            "tokens": tokens,
            "bits_per_byte": bits,
            "beside": known,
            "excess": bits - max(known.values()),
            "margin": self._margin,
            "reason": reason,
        }
        write_whole(trainer.run_dir / STOPPED, json.dumps(held, indent=1) + "\n")
        raise Hopeless(reason)


def loss_at(curve: LearningCurve, tokens: float) -> float | None:
    """A curve's loss after so many tokens, linear in their logarithm between two validations.

    None before its first validation and after its last.
    """
    if not curve.tokens[0] <= tokens <= curve.tokens[-1]:
        return None
    return float(np.interp(np.log(tokens), np.log(curve.tokens), curve.bits_per_byte))


def read_stopped(run_dir: str | Path) -> dict[str, Any]:
    """What the folder of a stopped run says of it.

    Raises FileNotFoundError where it was not stopped, ValueError where the file is damaged.
    """
    path = Path(run_dir) / STOPPED
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**held, "excess": float(held["excess"]), "reason": str(held["reason"])}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the run goes on") from error


def stopped_runs(folder: str | Path) -> dict[str, str]:
    """Names of the runs under a suite's folder that were stopped, and why."""
    return {
        path.parent.name: read_stopped(path.parent)["reason"]
        for path in sorted(Path(folder).glob(f"*-seed*/{STOPPED}"))
    }
