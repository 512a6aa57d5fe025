"""Small before large: batches and sequences that grow in the first part of a run.

Early gradients are large beside their noise, so small batches learn as much from fewer tokens
(McCandlish et al., 2018; GPT-3 grew its batch over the first 4 to 12 billion tokens, Brown et al.,
2020, appendix B), and a model that does not yet know its neighbours learns nothing from a long
context (Li et al., 2021). Both grow by doubling, in stages of equal length, so that a run has few
shapes to compile.
"""

from torch import Tensor

from strata.config import TrainingConfig


def batch_size_at(step: int, training: TrainingConfig) -> int:
    """Sequences in the batch of an update, which counts from 1."""
    start = training.initial_batch_size or training.batch_size
    return _grown(step, start, training.batch_size, training.batch_growth_steps)


def context_length_at(step: int, training: TrainingConfig, context_length: int) -> int:
    """Tokens in a sequence of an update, up to the model's `context_length`."""
    start = training.initial_context_length or context_length
    return _grown(step, start, context_length, training.context_growth_steps)


def cut_sequences(sequences: Tensor, length: int) -> Tensor:
    """The same tokens in shorter rows: (batch, time) to (batch * time / length, length)."""
    return sequences.reshape(-1, length)


def _grown(step: int, start: int, end: int, growth_steps: int) -> int:
    """`start`, doubled at equal intervals of the first `growth_steps`, until it is `end`."""
    doublings = (end // start).bit_length() - 1
    if step > growth_steps:
        return end
    return start << ((step - 1) * doublings // growth_steps)
