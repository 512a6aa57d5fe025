"""From paragraphs to a corpus: what is kept of the cleaned works, and on which side of the split.

The order matters: paragraphs with an address go, then repeats, then what an evaluation set holds,
then whatever document is left too short or is not English. All of it is a function of the works
in the order of the list, so two runs over the same files give the same corpus.
"""

import hashlib
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

SHORTEST_DOCUMENT = 800  # characters
REPEATED_PARAGRAPH = 120  # characters: shorter ones (headings, refrains) may come again
SEQUENCE = 13  # words that a paragraph and an evaluation set may not have in common
LARGEST_LOSS = 0.3  # of a document to repeats and evaluation sets, before all of it goes
HELD_OUT_IN_A_THOUSAND = 5
ORDER_SEED = 1234
ADDRESS = re.compile(r"https?://|www\.")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits well mixed
WORD = re.compile(r"\w+")
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "the of and to in a is that it for as was with be by on not he his but are this or had at"
        " from you i which have an they were",
    )
)


def held_out(work: str) -> bool:
    """Whether a work is for validation: five in a thousand, by the hash of its name."""
    digest = hashlib.sha256(f"holdout:{work}".encode()).hexdigest()
    return int(digest[:8], 16) % 1000 < HELD_OUT_IN_A_THOUSAND


def sequences(text: str) -> NDArray[np.uint64]:
    """Every run of 13 words, in lower case and without punctuation, as a 64-bit hash."""
    # A word's hash is Python's own: it differs from process to process, equality does not.
    words = np.array([hash(word) for word in WORD.findall(text.lower())], np.int64)
    words = words.view(np.uint64)
    count = max(0, len(words) - SEQUENCE + 1)
    found = np.zeros(count, np.uint64)
    for offset in range(SEQUENCE):
        found = found * MULTIPLIER + words[offset : offset + count]  # modulo 2^64
    return found


def held_by(wanted: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of `wanted` are in `ordered`, which ascends and is not empty."""
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return ordered[places] == wanted


def is_english(text: str) -> bool:
    """Enough stop words, enough letters, few characters outside ASCII."""
    words = WORD.findall(text.lower())
    if not words:
        return False
    visible = [character for character in text if not character.isspace()]
    letters = sum(character.isalpha() for character in visible) / len(visible)
    foreign = sum(not character.isascii() for character in visible) / len(visible)
    stop_words = sum(word in STOP_WORDS for word in words) / len(words)
    return stop_words > 0.15 and letters > 0.6 and foreign < 0.2


class Filter:
    """Drops what must not be in the corpus, and remembers what it has seen and why things went.

    Attributes:
        dropped: how many paragraphs and documents went, by reason.
    """

    def __init__(self, evaluation: Iterable[str] = ()) -> None:
        """Forbid every sequence of 13 words of the texts in `evaluation`."""
        self.dropped: dict[str, int] = {}
        forbidden = [sequences(text) for text in evaluation]
        self._forbidden = np.unique(np.concatenate(forbidden or [sequences("")]))
        self._paragraphs: set[bytes] = set()
        self._documents: set[bytes] = set()

    def document(self, paragraphs: list[str], *, addresses: bool) -> str | None:
        """The document's text, or None if it goes; `addresses`: paragraphs may hold a URL."""
        paragraphs = [unicodedata.normalize("NFC", paragraph) for paragraph in paragraphs]
        if not addresses:
            paragraphs = [p for p in paragraphs if not self._goes("with an address", p, ADDRESS)]
        before = sum(map(len, paragraphs))
        paragraphs = [p for p in paragraphs if not self._repeated(p) and not self._evaluated(p)]
        text = "\n\n".join(paragraphs)
        if before and 1 - sum(map(len, paragraphs)) / before > LARGEST_LOSS:
            return self._drop("documents of which over 30 % went")
        if len(text) < SHORTEST_DOCUMENT:
            return self._drop("documents under 800 characters")
        if not is_english(text):
            return self._drop("documents not in English")
        digest = hashlib.sha256(text.encode()).digest()
        if digest in self._documents:
            return self._drop("repeated documents")
        self._documents.add(digest)
        return text

    def _goes(self, reason: str, paragraph: str, pattern: re.Pattern[str]) -> bool:
        if pattern.search(paragraph) is None:
            return False
        self._drop(f"paragraphs {reason}")
        return True

    def _repeated(self, paragraph: str) -> bool:
        if len(paragraph) < REPEATED_PARAGRAPH:
            return False
        digest = hashlib.sha256(paragraph.encode()).digest()
        if digest not in self._paragraphs:
            self._paragraphs.add(digest)
            return False
        self._drop("repeated paragraphs")
        return True

    def _evaluated(self, paragraph: str) -> bool:
        if not len(self._forbidden) or not held_by(sequences(paragraph), self._forbidden).any():
            return False
        self._drop("paragraphs of an evaluation set")
        return True

    def _drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


def in_order(texts: Iterable[str]) -> Iterator[int]:
    """Positions of the texts in the corpus's order: by SHA-256, then shuffled with a fixed seed."""
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    positions = sorted(range(len(digests)), key=digests.__getitem__)
    random.Random(ORDER_SEED).shuffle(positions)
    yield from positions
