"""How good the model is, how sure that is, and what it writes. Read in this order:

Asking: `tasks` says what is asked, `sources` fetches its data, `items` reads it, `embedded` makes
two tasks out of held-out documents. `rows` lays requests out so that what they share is read once,
`scoring` asks the model, `journal` keeps its answers as they come, and `suite` turns them into
scores. `monitor` does so while a model trains, and `harness` lets lm-eval ask.

Judging: `comparison` says how sure scores are, `reference` holds what GPT-3 reached, `results`
keeps and compares them, `overlap` (by `ngrams`) finds what the training corpus holds of the
questions, and `tables` writes it all out.

Writing: `sampling` says which token comes next, `generation` lets the model write, and `samples`
has it write while it trains.
"""

from strata.evaluation.comparison import Difference, holm, paired_difference
from strata.evaluation.embedded import Item, cloze_items, continuation_items
from strata.evaluation.generation import (
    GenerationStep,
    generate,
    generate_batch,
    generate_steps,
)
from strata.evaluation.items import load_items
from strata.evaluation.monitor import TaskMonitor
from strata.evaluation.overlap import (
    Overlap,
    corpus_overlap,
    find_overlap,
    load_overlap,
    save_overlap,
    split_result,
)
from strata.evaluation.reference import (
    GPT3_FEW_SHOT,
    GPT3_RESULTS,
    GPT3_SIZES,
    GPT3Size,
    Placement,
    place_in_gpt3,
)
from strata.evaluation.results import (
    ItemResult,
    TaskResult,
    chance_of,
    compare_overall,
    compare_results,
    load_results,
    overall_score,
    place_overall,
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
from strata.evaluation.sources import download_tasks, evaluation_folder
from strata.evaluation.suite import evaluate
from strata.evaluation.tables import comparison_table, gpt3_table, overlap_table, results_table
from strata.evaluation.tasks import TASKS, Task

__all__ = [
    "GPT3_FEW_SHOT",
    "GPT3_RESULTS",
    "GPT3_SIZES",
    "TASKS",
    "Difference",
    "GPT3Size",
    "GenerationStep",
    "Item",
    "ItemResult",
    "Overlap",
    "Placement",
    "SampleWriter",
    "Sampling",
    "SamplingOptions",
    "Task",
    "TaskMonitor",
    "TaskResult",
    "bits_per_byte",
    "chance_of",
    "cloze_items",
    "compare_overall",
    "compare_results",
    "comparison_table",
    "continuation_items",
    "corpus_overlap",
    "download_tasks",
    "evaluate",
    "evaluation_folder",
    "find_overlap",
    "generate",
    "generate_batch",
    "generate_steps",
    "gpt3_table",
    "holm",
    "load_items",
    "load_overlap",
    "load_results",
    "next_token_probabilities",
    "overall_score",
    "overlap_table",
    "paired_difference",
    "place_in_gpt3",
    "place_overall",
    "results_table",
    "save_overlap",
    "save_results",
    "score_continuations",
    "score_texts",
    "split_result",
    "unigram_bits_per_byte",
]
