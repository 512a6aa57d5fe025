"""How large an update may be, as the run goes on; and its momentum and weight decay."""

import math
from typing import NamedTuple

from strata.config import Config, TrainingConfig


class Settings(NamedTuple):
    """What the schedules say about one update."""

    rate_ratio: float  # learning rate over its peak
    momentum: float
    decay_ratio: float  # weight decay over its peak; the rate multiplies it once more


def schedule_at(step: int, config: Config) -> Settings:
    """Rate, momentum and weight decay of an update; `Optimizer.set_schedule` takes them.

    Momentum rises linearly from `momentum_start` to `momentum` in `momentum_warmup_steps`: a mean
    over few gradients while these still change fast. The weight decay is constant; or follows the
    rate ("rate"), so that weights shrink by the square of it and stay in balance with updates that
    shrink too (Defazio, 2025, "Why Gradients Rapidly Increase Near the End of Training"); or falls
    linearly to zero at the last step ("linear"; nanochat, dev/LOG.md, January 2026).

    Args:
        step: the update, from 1 to `max_steps`.
    """
    optimizer, training = config.optimizer, config.training
    ratio = rate_ratio(step, training)
    momentum = optimizer.momentum
    if step < training.momentum_warmup_steps:
        done = step / training.momentum_warmup_steps
        momentum = optimizer.momentum_start + done * (momentum - optimizer.momentum_start)
    decay = {"constant": 1.0, "rate": ratio, "linear": 1 - step / training.max_steps}
    return Settings(ratio, momentum, decay[optimizer.decay_schedule])


def rate_ratio(step: int, training: TrainingConfig) -> float:
    """The learning rate of an update over its peak.

    All schedules rise linearly in `warmup_steps`. Then "cosine" falls along half a cosine until
    `decay_fraction` of the run is over and stays there (Brown et al., 2020, appendix B); "wsd"
    stays at the peak and falls linearly in the last `decay_fraction` of the run, which makes it a
    trapezoid (Hu et al., 2024, "MiniCPM", section 4); "linear" falls from the end of the warm-up
    to the last step (Bergsma et al., 2025, "Straight to Zero"); "constant" stays.

    Args:
        step: the update, from 1 to `max_steps`.
    """
    if step <= training.warmup_steps:
        return step / training.warmup_steps
    if training.schedule == "constant":
        return 1.0
    decay_steps = training.decay_fraction * training.max_steps
    if training.schedule == "linear":
        decay_steps = training.max_steps - training.warmup_steps
    if training.schedule == "cosine":
        done = (step - training.warmup_steps) / max(1.0, decay_steps - training.warmup_steps)
        height = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    else:
        remaining = training.max_steps - step
        height = min(1.0, remaining / max(1.0, decay_steps))
    return training.final_rate_ratio + (1 - training.final_rate_ratio) * height
