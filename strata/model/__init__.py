"""The transformer, in the order of notebook 02.

`layers` normalises and transforms each position by itself, `attention` lets positions read from
each other and `masks` says from which, `transformer` stacks the two and turns the result into a
prediction, and `loss` says how good that prediction is without ever holding all of it. `float8`
trains the same model in eight bits, on chips that have them.
"""

from strata.model.attention import KeyValueCache
from strata.model.loss import bits_per_byte
from strata.model.transformer import Transformer, count_parameters, flops_per_token

__all__ = [
    "KeyValueCache",
    "Transformer",
    "bits_per_byte",
    "count_parameters",
    "flops_per_token",
]
