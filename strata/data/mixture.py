"""Mixtures of corpora: how one is written, and in which order its documents come.

    0.7 installed + 0.3 files:texts/*.parquet

A positive number stands before each corpus: its share of the rows that a model is trained on, over
the sum of all. The numbers are taken as they are written, as fractions; 0.7 and 0.3 make 7 and 3
rows of every 10.
"""

import heapq
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

# A plus between two corpora, rather than one in the name of a file.
PLUS = re.compile(r"\s+\+\s*(?=(?:\S+\s+)?(?:installed\b|files:|hub:))")


def parse_mixture(spec: str) -> list[tuple[str, str]]:
    """The weight, as it is written, and the corpus of each part; nothing if there is but one.

    Raises:
        ValueError: a part has no positive number before it.
    """
    parts = PLUS.split(spec.strip())
    if len(parts) == 1:
        return []
    pairs = []
    for part in parts:
        weight, *corpus = part.split(maxsplit=1)
        try:
            positive = Fraction(weight) > 0
        except (ValueError, ZeroDivisionError):
            positive = False
        if not positive or not corpus:
            raise ValueError(
                f'the part "{part}" of a mixture has no weight: expected a positive number before '
                'each corpus, as in "0.7 installed + 0.3 files:texts/*.txt"'
            )
        pairs.append((weight, corpus[0]))
    return pairs


def whole_shares(weights: Sequence[str]) -> list[int]:
    """The smallest whole numbers that stand to each other as the weights do."""
    fractions = [Fraction(weight) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    numbers = [int(fraction * scale) for fraction in fractions]
    divisor = math.gcd(*numbers)
    return [number // divisor for number in numbers]


def interleave(parts: Sequence[tuple[int, Iterable[str]]]) -> Iterator[str]:
    """All documents of several corpora, each given its share of the characters so far.

    When a corpus has no more documents, the others go on without it.
    """
    # The next is of the corpus that was given least for its share.
    waiting = [(0.0, index, iter(documents)) for index, (_, documents) in enumerate(parts)]
    while waiting:
        given, index, documents = waiting[0]
        text = next(documents, None)
        if text is None:
            heapq.heappop(waiting)
            continue
        heapq.heapreplace(waiting, (given + len(text) / parts[index][0], index, documents))
        yield text
