"""How good the model is, how sure that is, and what it writes. Read in this order:

`tasks` says what is asked, `items` reads it from files, `embedded` makes two tasks out of held-out
documents, `scoring` asks the model, `suite` turns its answers into scores, `comparison` says how
sure they are, `results` keeps and compares them, and `reference` holds what GPT-3 reached. Then
`sampling` says which token comes next, `generation` lets the model write, `decoding` makes its
steps fast on a CPU, and `samples` has it write while it trains.
"""

from strata.evaluation.comparison import Difference, paired_difference
from strata.evaluation.embedded import Item, cloze_items, continuation_items
from strata.evaluation.generation import (
    GenerationStep,
    generate,
    generate_batch,
    generate_steps,
)
from strata.evaluation.items import load_items
from strata.evaluation.reference import (
    GPT3_RESULTS,
    GPT3_SIZES,
    GPT3Size,
    Placement,
    place_in_gpt3,
)
from strata.evaluation.results import (
    ItemResult,
    TaskResult,
    compare_results,
    comparison_table,
    load_results,
    results_table,
    save_results,
)
from strata.evaluation.samples import SampleWriter
from strata.evaluation.sampling import Sampling, SamplingOptions, next_token_probabilities
from strata.evaluation.scoring import (
    bits_per_byte,
    score_continuations,
    score_texts,
    unigram_bits_per_byte,
)
from strata.evaluation.suite import evaluate
from strata.evaluation.tasks import TASKS, Task

__all__ = [
    "GPT3_RESULTS",
    "GPT3_SIZES",
    "TASKS",
    "Difference",
    "GPT3Size",
    "GenerationStep",
    "Item",
    "ItemResult",
    "Placement",
    "SampleWriter",
    "Sampling",
    "SamplingOptions",
    "Task",
    "TaskResult",
    "bits_per_byte",
    "cloze_items",
    "compare_results",
    "comparison_table",
    "continuation_items",
    "evaluate",
    "generate",
    "generate_batch",
    "generate_steps",
    "load_items",
    "load_results",
    "next_token_probabilities",
    "paired_difference",
    "place_in_gpt3",
    "results_table",
    "save_results",
    "score_continuations",
    "score_texts",
    "unigram_bits_per_byte",
]
