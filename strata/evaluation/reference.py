"""What GPT-3 reached: published sizes, compute and results, and a place among them.

Source: Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv 2005.14165. Sizes are its
Table 2.1, compute its Table D.1, results the zero-shot and few-shot columns of its Table H.1. Every
value was taken from memory first and then held against sources of other hands; `CHECKED` says
which. None of them is the paper itself, so a doubtful value is settled by the PDF alone.

Results are fractions (the table prints per cent). GPT-3's evaluation is its own: prompts and
normalisation differ from the field's in places, so a place in its table is a place among
neighbours, to about two points, and not a tie to the last decimal.

**The GPT-3-equivalent size** of a score is where GPT-3's curve over the logarithm of its sizes
first reaches it. The curves of BoolQ, OpenBookQA and COPA fall and rise again; the first crossing
is the smallest claim, and with it a higher score never has a smaller size. So the interval of the
size is made of the places of the score's own ends: placing every draw of a bootstrap gives the
same. It holds the luck of our items; GPT-3's own scores, from the same few items, have theirs too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GPT3Size:
    """One of GPT-3's eight models.

    parameters: from Table D.1, which gives more digits than Table 2.1.
    batch_tokens: tokens in one update; learning_rate: at its peak.
    training_flops: of 300 billion tokens; Table D.1's "total train compute", attention ignored.
    """

    name: str
    parameters: float
    n_layers: int
    width: int
    n_heads: int
    head_dim: int
    batch_tokens: float
    learning_rate: float
    training_flops: float

    @property
    def petaflop_days(self) -> float:
        """Training compute in petaflop/s-days, of 8.64e19 FLOPs each."""
        return self.training_flops / 8.64e19


# The batch sizes are printed as 0.5M, 1M, 2M and 3.2M tokens. 13B's width is printed as 5140 beside
# 40 heads of 128, which make 5120; XL's 24 heads of 128 make 3072 beside a width of 2048.
GPT3_SIZES: tuple[GPT3Size, ...] = (
    GPT3Size("Small", 125e6, 12, 768, 12, 64, 0.5e6, 6.0e-4, 2.25e20),
    GPT3Size("Medium", 356e6, 24, 1024, 16, 64, 0.5e6, 3.0e-4, 6.41e20),
    GPT3Size("Large", 760e6, 24, 1536, 16, 96, 0.5e6, 2.5e-4, 1.37e21),
    GPT3Size("XL", 1_320e6, 24, 2048, 24, 128, 1e6, 2.0e-4, 2.38e21),
    GPT3Size("2.7B", 2_650e6, 32, 2560, 32, 80, 1e6, 1.6e-4, 4.77e21),
    GPT3Size("6.7B", 6_660e6, 32, 4096, 32, 128, 2e6, 1.2e-4, 1.20e22),
    GPT3Size("13B", 12_850e6, 40, 5140, 40, 128, 2e6, 1.0e-4, 2.31e22),
    GPT3Size("175B", 174_600e6, 96, 12288, 96, 128, 3.2e6, 0.6e-4, 3.14e23),
)


def _fractions(*per_cent: float) -> tuple[float, ...]:
    return tuple(round(value / 100.0, 4) for value in per_cent)


# Zero-shot accuracy, one a size, in the order of GPT3_SIZES; names as in `tasks.TASKS`.
GPT3_RESULTS: dict[str, tuple[float, ...]] = {
    "lambada": _fractions(42.7, 54.3, 60.4, 63.6, 67.1, 70.3, 72.5, 76.2),
    "hellaswag": _fractions(33.7, 43.6, 51.0, 54.7, 62.8, 67.4, 70.9, 78.9),
    "piqa": _fractions(64.6, 70.2, 72.9, 75.1, 75.6, 78.0, 78.5, 81.0),
    "arc_easy": _fractions(43.6, 46.5, 53.0, 53.8, 58.2, 60.2, 63.8, 68.8),
    "arc_challenge": _fractions(26.6, 29.5, 31.8, 35.5, 38.0, 41.4, 43.7, 51.4),
    "winogrande": _fractions(52.0, 52.1, 57.4, 58.7, 62.3, 64.5, 67.9, 70.2),
    "boolq": _fractions(49.7, 60.3, 58.9, 62.4, 67.1, 65.4, 66.2, 60.5),
    "openbookqa": _fractions(35.6, 43.2, 45.2, 46.8, 53.0, 50.4, 55.6, 57.6),
    "copa": _fractions(66.0, 68.0, 73.0, 77.0, 76.0, 80.0, 84.0, 91.0),
    "winograd": _fractions(66.3, 72.9, 74.7, 76.9, 82.4, 85.7, 87.9, 88.3),
}

# Few-shot accuracy: how many examples stood in the context, and the scores as above. Not there are
# ARC-Challenge, OpenBookQA and WinoGrande: of them the transcriptions differ in five values.
GPT3_FEW_SHOT: dict[str, tuple[int, tuple[float, ...]]] = {
    "lambada": (15, _fractions(22.0, 40.4, 63.2, 57.0, 78.1, 79.1, 81.3, 86.4)),
    "hellaswag": (20, _fractions(33.5, 43.1, 51.3, 54.9, 62.9, 67.3, 71.3, 79.3)),
    "piqa": (50, _fractions(64.3, 69.4, 72.0, 74.3, 75.4, 77.8, 79.9, 82.3)),
    "arc_easy": (50, _fractions(42.7, 51.0, 58.1, 59.1, 62.1, 65.8, 69.1, 70.1)),
    "boolq": (32, _fractions(43.1, 60.6, 62.0, 64.1, 70.3, 70.0, 70.2, 77.5)),
    "copa": (32, _fractions(67.0, 64.0, 72.0, 77.0, 83.0, 83.0, 86.0, 92.0)),
    "winograd": (7, _fractions(63.4, 67.4, 73.6, 76.9, 84.3, 85.4, 82.4, 88.6)),
}

# Zero-shot perplexity of LAMBADA's last word, from the same table.
GPT3_LAMBADA_PERPLEXITY = (18.6, 9.09, 6.53, 5.44, 4.60, 4.00, 3.56, 3.00)

_BLOG = (
    "EleutherAI, 'On the Sizes of OpenAI API Models' (blog, 2021-05-24), all eight sizes; "
    "sizes from 1.3B also in the README of kingoflolz/mesh-transformer-jax"
)
_HTML = "a machine transcription of the paper's PDF (Table H.1 as HTML, with Chinese notes)"
_NOTES = "a second machine transcription of the PDF (Table H.1 as notes by task)"

_PLAIN = "a third, plain-text transcription"

# Where each row was seen besides memory. A transcription by machine errs now and then, in single
# digits: where the two of them differ, the value kept is the one that memory agrees with. A row of
# few-shot results is kept only where two of them agree in every value.
CHECKED: dict[str, tuple[str, ...]] = {
    "lambada": (_BLOG, _HTML, _NOTES),
    "hellaswag": (_BLOG, _HTML, _NOTES),
    "piqa": (_BLOG, _HTML, _NOTES),
    "winogrande": (_BLOG, _HTML, _NOTES),
    "arc_easy": (_HTML, f"{_NOTES}, but 63.6 for 13B"),
    "arc_challenge": (_HTML, _NOTES),
    "boolq": (_HTML, _NOTES, _PLAIN),
    "openbookqa": (_HTML, f"{_NOTES}, but 51.0 for 2.7B"),
    "copa": (_HTML, _NOTES),
    "winograd": (_HTML, _NOTES),
    "few-shot": (_HTML, f"{_NOTES}; of BoolQ {_PLAIN} in its place"),
    "sizes": ("Table 2.1 in four transcriptions by different hands",),
    "compute": ("Table D.1 in two transcriptions by different hands",),
}


@dataclass(frozen=True)
class Placement:
    """Where a score falls on GPT-3's curve.

    score: a fraction; of several tasks the mean of their centred scores.
    parameters: the size whose score it is, by interpolation; 0 is below the smallest GPT-3,
        infinity above every one.
    interval: the same of the ends of the score's interval, where those are known.
    note: all of it in words.
    """

    score: float
    parameters: float
    interval: tuple[float, float] | None
    note: str


def place_in_gpt3(
    task: str, score: float, interval: tuple[float, float] | None = None, *, shots: int = 0
) -> Placement:
    """The GPT-3-equivalent size of a task's score.

    Args:
        task: one of `GPT3_RESULTS`.
        score: a fraction from 0 to 1.
        interval: of the score.
        shots: examples in the context: with none the place is among GPT-3's zero-shot scores, else
            among its few-shot scores, whose own number of examples `GPT3_FEW_SHOT` says.

    Raises:
        ValueError: GPT-3's table has no such task, or a score is no fraction.
    """
    for value in (score, *(interval or ())):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"score = {value}: expected a fraction from 0 to 1")
    return place_on_curve(score, gpt3_curve(task, shots), interval)


def centred(score: float, chance: float) -> float:
    """How far a score lies on the way from guessing (0) to faultless (1)."""
    return (score - chance) / (1.0 - chance)


def gpt3_curve(task: str, shots: int = 0) -> tuple[float, ...]:
    """GPT-3's scores, one a size: zero-shot, or with any `shots` few-shot.

    Raises:
        ValueError: there are none for this task.
    """
    known = {name: row for name, (_, row) in GPT3_FEW_SHOT.items()} if shots else GPT3_RESULTS
    if task not in known:
        kind = "few-shot " if shots else ""
        raise ValueError(
            f"no {kind}GPT-3 result for task {task!r}; there are results for {', '.join(known)}"
        )
    return known[task]


def place_on_curve(
    score: float, curve: Sequence[float], interval: tuple[float, float] | None = None
) -> Placement:
    """Where a curve over GPT-3's eight sizes first reaches a score and its interval's ends."""
    size = _size_reached(score, curve)
    if size == 0.0:
        smallest = f"{GPT3_SIZES[0].name}, {in_words(GPT3_SIZES[0].parameters)}: {curve[0]:.1%}"
        note = f"below the smallest GPT-3 ({smallest})"
    elif size == math.inf:
        best = GPT3_SIZES[curve.index(max(curve))]
        note = f"above every GPT-3 ({best.name}: {max(curve):.1%})"
    else:
        note = f"as a GPT-3 of {in_words(size)}"
    if interval is None:
        return Placement(score, size, None, note)
    low, high = (_size_reached(end, curve) for end in interval)
    return Placement(score, size, (low, high), f"{note}; interval: {range_in_words(low, high)}")


def _size_reached(score: float, curve: Sequence[float]) -> float:
    """Where a curve over the logarithm of GPT-3's sizes first reaches the score."""
    if score < curve[0]:
        return 0.0
    index = next((index for index, reached in enumerate(curve) if reached >= score), None)
    if index is None:
        return math.inf
    parameters = GPT3_SIZES[index].parameters
    if index > 0:  # then the size before lies below the score
        smaller, before = GPT3_SIZES[index - 1].parameters, curve[index - 1]
        share = (score - before) / (curve[index] - before)
        parameters = smaller * (parameters / smaller) ** share
    return parameters


def size_in_words(parameters: float) -> str:
    """A placement's size: "211M", "below 125M", "above every size"."""
    if parameters == 0.0:
        return f"below {in_words(GPT3_SIZES[0].parameters)}"
    return "above every size" if parameters == math.inf else in_words(parameters)


def range_in_words(low: float, high: float) -> str:
    """A placement's interval: "125M to 400M", "at most 125M", "below 125M", "at least 13B"."""
    if low == 0.0 and high == math.inf:
        return "any size"
    if high == 0.0 or low == math.inf:
        return size_in_words(low)
    if low == 0.0:
        return f"at most {in_words(high)}"
    if high == math.inf:
        return f"at least {in_words(low)}"
    ends = in_words(low), in_words(high)
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def in_words(parameters: float) -> str:
    """A count of parameters as it is written: 125M, 2.7B, 175B."""
    scale, unit = (1e9, "B") if parameters >= 0.9995e9 else (1e6, "M")
    digits = max(0, 1 - math.floor(math.log10(parameters / scale)))
    return f"{round(parameters / scale, digits):g}{unit}"
