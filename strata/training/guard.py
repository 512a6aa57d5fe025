"""When a run goes wrong: a loss that is no number, or one that has left its course.

The usual cure is to go back to a state before it and to leave out the data that were read since
(Chowdhery et al., 2022, "PaLM", section 5.1). The guard only says when; the trainer goes back.
"""

import math
import statistics
from collections import deque
from typing import Any

from strata.config import TrainingConfig
from strata.model import Transformer
from strata.training.sharding import local, on_all

WINDOW = 64  # losses that say what is usual
FEWEST = 16  # before so many, nothing is usual
PATIENCE = 3  # one batch may be odd, three in a row are not


class Diverged(RuntimeError):
    """The run left its course more often than `training.max_rollbacks` allows."""


def are_finite(model: Transformer) -> bool:
    """Whether weights are worth keeping; of others a run would never come free again.

    Of a sharded model all processes ask together.
    """
    here = all(bool(local(weight).isfinite().all()) for weight in model.parameters())
    return on_all(model, here)


class SpikeGuard:
    """Judges one loss after another.

    Attributes:
        rollbacks: how often the run went back so far.
    """

    def __init__(self, training: TrainingConfig) -> None:
        self._deviations = training.spike_deviations
        self._usual: deque[float] = deque(maxlen=WINDOW)
        self._above = 0
        self.rollbacks = 0

    @property
    def suspicious(self) -> bool:
        """Whether the last losses may be the beginning of a spike: no state to be kept."""
        return self._above > 0

    def judge(self, loss: float, gradient_norm: float = 0.0) -> str:
        """What is wrong with the run after this step, in words; empty where nothing is.

        A loss counts as too high when it exceeds the median of the usual ones by
        `training.spike_deviations` standard deviations, estimated from the median absolute
        deviation, which odd losses do not move (Hampel, 1974).
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the norm of the gradient is {gradient_norm}"
        if self._deviations and len(self._usual) >= FEWEST:
            middle = statistics.median(self._usual)
            spread = 1.4826 * statistics.median(abs(usual - middle) for usual in self._usual)
            if loss > middle + self._deviations * spread:
                self._above += 1
                if self._above == PATIENCE:
                    return f"the loss is {loss:.3f} for the third time, after {middle:.3f}"
                return ""
        self._above = 0
        self._usual.append(loss)
        return ""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"usual": list(self._usual), "above": self._above, "rollbacks": self.rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self._usual = deque(state["usual"], maxlen=WINDOW)
        self._above, self.rollbacks = state["above"], state["rollbacks"]
