"""What a model is asked: every task as one entry of a table.

A task is a file, a function that turns one record of it into an `Item`, and the rule by which
items are scored. `TASKS` declares them all. The prompts are those of EleutherAI's
lm-evaluation-harness; the headline metric of a task is the one nearest to what GPT-3 reports
(Brown et al. 2020, section 2.4), since its scores are put beside GPT-3's:

- ``acc``: the choice whose continuation has the highest probability. Used where the choices share
  their last part (WinoGrande, Winograd: partial scoring after Trinh and Le 2018: the candidates
  stand in the context, and the probability of what follows them is compared), where they are one
  word (BoolQ), for whole sentences of equal length (BLiMP), and for COPA as in the harness.
- ``acc_norm``: the same after dividing the log-likelihood by the continuation's characters, as the
  harness does. HellaSwag, PIQA, `continuation`. ``acc_bytes`` divides by its bytes and
  ``acc_per_token`` by its tokens, as GPT-3 does.
- ``acc_unconditional``: the log-likelihood minus that of the same continuation after "Answer:"
  alone, as GPT-3 does for ARC and OpenBookQA.
- ``acc_greedy``: whether every token of the target is the model's first choice. LAMBADA, `cloze`.
- ``bits_per_byte``: of a text. WikiText-2; lower is better.

A result holds the other accuracies of its task beside the headline, so the harness' numbers are
there too.

The two tasks without a file are made from held-out documents by `embedded`; `items` reads the
files of the others.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from strata.evaluation.embedded import Item

if TYPE_CHECKING:
    from strata.evaluation.items import Record


def _choose(context: str, choices: list[str], label: int, unconditional: str = "") -> Item:
    """Choices that follow one context, parted from it by a blank."""
    requests = tuple((context, " " + choice) for choice in choices)
    return Item(requests, label, unconditional)


def _lambada(record: Record) -> Item:
    # the last word is what follows the last blank, as OpenAI's version of the set is split
    context, blank, target = record.text("text").rpartition(" ")
    if not context:
        raise record.unfit("text", target, "more than one word")
    return Item(((context, blank + target),))


def _hellaswag(record: Record) -> Item:
    return _choose(record.text("query"), record.texts("choices", 4), record.label("label", 4))


def _piqa(record: Record) -> Item:
    context = f"Question: {record.text('goal')}\nAnswer:"
    return _choose(context, [record.text("sol1"), record.text("sol2")], record.label("label", 2))


def _arc(record: Record) -> Item:
    choices = record.texts("choices")
    context = f"Question: {record.text('question')}\nAnswer:"
    return _choose(context, choices, record.label("label", len(choices)), unconditional="Answer:")


def _openbookqa(record: Record) -> Item:
    choices = record.texts("choices")
    label = record.label("label", len(choices))
    return _choose(record.text("question"), choices, label, unconditional="Answer:")


def _winogrande(record: Record) -> Item:
    sentence = record.text("sentence")
    before, gap, after = sentence.partition("_")
    if not gap:
        raise record.unfit("sentence", sentence, "a sentence with a gap, '_'")
    options = [record.text("option1"), record.text("option2")]
    requests = tuple((before + option, " " + after.strip()) for option in options)
    return Item(requests, int(record.text("answer", ("1", "2"))) - 1)


def _boolq(record: Record) -> Item:
    context = f"{record.text('passage')}\nQuestion: {record.text('question')}?\nAnswer:"
    return _choose(context, ["no", "yes"], int(record.truth("answer")))


def _copa(record: Record) -> Item:
    word = {"cause": "because", "effect": "therefore"}[record.text("question", ("cause", "effect"))]
    context = f"{record.text('premise').strip()[:-1]} {word}"  # without its full stop
    choices = [record.text("choice1"), record.text("choice2")]
    # a second blank, beside the one that parts context and choice: so does the harness
    lowered = [" " + choice[:1].lower() + choice[1:] for choice in choices]
    return _choose(context, lowered, record.label("label", 2))


def _winograd(record: Record) -> Item:
    after = record.text("continuation")
    # a full stop or an apostrophe follows without a blank
    after = " " + after if after[:1].isalnum() else after
    options = record.texts("context_options", 2)
    # one blank more, as for COPA: the harness parts context and what follows it by its own
    return Item(tuple((option, " " + after) for option in options), record.label("gold", 2))


def _blimp(record: Record) -> Item:
    pair = [record.text("sentence_good"), record.text("sentence_bad")]
    # the blank is the harness' separator, which it keeps before a sentence without context
    return Item(tuple(("", " " + s) for s in pair), label=0, group=record.text("uid"))


# WikiText's articles were tokenised for models of words. The harness undoes that, so that a model
# reads plain text, and counts the bytes and words of the article as it was.
_WIKITEXT_RULES = (
    (r"s '", "s'"),
    (r" @([-,.])@ ", r"\1"),
    *((rf" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)


def _wikitext(record: Record) -> Item:
    article = text = record.text("text")
    if not article.strip():
        raise record.unfit("text", article, "a text")
    for pattern, replacement in _WIKITEXT_RULES:
        text = re.sub(pattern, replacement, text)
    return Item(
        (("", text),),
        n_bytes=len(article.encode("utf-8")),
        n_words=len(re.split(r"\s+", article)),
    )


@dataclass(frozen=True)
class Task:
    """A task's declaration.

    title: as it is called in a table.
    metric: the headline; see the module's docstring.
    chance: the score of guessing at random.
    read: a record of the file to an item; None for the tasks made from held-out documents.
    file: the file's name without `.jsonl` or `.jsonl.gz`.
    fields: of a record, in words; `read` says what each takes.
    """

    title: str
    metric: str
    chance: float
    read: Callable[[Record], Item] | None = None
    file: str = ""
    fields: str = ""


_QUESTION = "question, choices, label"
TASKS: dict[str, Task] = {
    "cloze": Task("Last-word cloze", "acc_greedy", 0.0),
    "continuation": Task("True continuation", "acc_norm", 0.25),
    "lambada": Task("LAMBADA", "acc_greedy", 0.0, _lambada, "lambada_openai_test", "text"),
    "hellaswag": Task(
        "HellaSwag", "acc_norm", 0.25, _hellaswag, "hellaswag_val", "query, choices, label"
    ),
    "piqa": Task("PIQA", "acc_norm", 0.5, _piqa, "piqa_val", "goal, sol1, sol2, label"),
    "arc_easy": Task("ARC-Easy", "acc_unconditional", 0.25, _arc, "arc_easy_test", _QUESTION),
    "arc_challenge": Task(
        "ARC-Challenge", "acc_unconditional", 0.25, _arc, "arc_challenge_test", _QUESTION
    ),
    "winogrande": Task(
        "WinoGrande",
        "acc",
        0.5,
        _winogrande,
        "winogrande_val",
        "sentence, option1, option2, answer",
    ),
    "boolq": Task("BoolQ", "acc", 0.5, _boolq, "boolq_val", "question, passage, answer"),
    "openbookqa": Task(
        "OpenBookQA", "acc_unconditional", 0.25, _openbookqa, "openbookqa_test", _QUESTION
    ),
    "copa": Task(
        "COPA", "acc", 0.5, _copa, "copa_val", "premise, choice1, choice2, question, label"
    ),
    "winograd": Task(
        "Winograd", "acc", 0.5, _winograd, "winograd_wsc273", "context_options, continuation, gold"
    ),
    "blimp": Task("BLiMP", "acc", 0.5, _blimp, "blimp", "sentence_good, sentence_bad, uid"),
    # No score of guessing: a byte costs 8 bits where nothing is known.
    "wikitext2": Task("WikiText-2", "bits_per_byte", 8.0, _wikitext, "wikitext2_test", "text"),
}

EMBEDDED = ("cloze", "continuation")
# Whole sentences and articles: there is no question before which solved examples could stand.
ZERO_SHOT_ONLY = ("blimp", "wikitext2")


def find_task(name: str, shots: int = 0) -> Task:
    """The declaration of a task.

    Raises:
        ValueError: for a name that `TASKS` does not have, with the nearest that it has; for `shots`
            examples where the task has no few-shot form.
    """
    if name not in TASKS:
        nearest = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(TASKS)}"
        raise ValueError(f"unknown task {name!r}; {hint}")
    if shots < 0 or (shots and name in ZERO_SHOT_ONLY):
        expected = "0 for this task, which has no few-shot form" if shots > 0 else "0 or more"
        raise ValueError(f"task {name!r}, shots = {shots}: expected {expected}")
    return TASKS[name]
