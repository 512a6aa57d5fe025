"""How much of the questions the training corpus holds: n-gram overlap, as GPT-3 measured its own.

After Brown et al. 2020 (arXiv 2005.14165), section 4 and appendix C. An item is *dirty* when N
words in a row of it, case, punctuation and white space ignored, stand in any training document;
else it is *clean*. N is a task's own: the 5th percentile of its items' lengths in words, at least 8
(fewer words coincide by chance) and at most 13. Frequent phrases count like all others, as theirs
do in this analysis; only when they filtered the corpus did they pass over 13-grams of more than ten
documents. An item shorter than N words cannot be found and counts as clean; how many there are is
told.

Of an item its context and its true answer are looked for as the model is asked them, "Question:"
and "Answer:" included: so the N of nine tasks are those of GPT-3's Table C.1 (COPA's is 8, not 9).
Dirty does not mean cheated: a passage from Wikipedia may be in the corpus, and the question about
it not. So the scores of clean and dirty items stand beside each other, and a score that leans on
what was seen shows in the difference.

What is found is kept by the items' fingerprints, so that results made before or after can be split.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strata.data.progress import building
from strata.evaluation.comparison import score_interval
from strata.evaluation.embedded import Item
from strata.evaluation.items import how_to_get, load_items
from strata.evaluation.ngrams import NGramFinder, count_words
from strata.evaluation.results import ItemResult, TaskResult, columns
from strata.evaluation.suite import MOST_DOCUMENTS
from strata.evaluation.tasks import EMBEDDED, TASKS, ZERO_SHOT_ONLY, find_task
from strata.storage import write_whole

if TYPE_CHECKING:
    from strata.data import Corpus

FEWEST_WORDS, MOST_WORDS = 8, 13


@dataclass(frozen=True)
class TaskOverlap:
    """What the corpus holds of one task's items.

    n_words: N, the words of an n-gram.
    too_short: items of fewer words; they are among the clean ones.
    dirty: fingerprints of the dirty items, each with the n-gram that was found first.
    clean: fingerprints of the others.
    """

    n_words: int
    too_short: int
    dirty: dict[str, str]
    clean: tuple[str, ...]

    @property
    def dirty_share(self) -> float:
        """Of different items; 0 to 1."""
        return len(self.dirty) / (len(self.dirty) + len(self.clean))


@dataclass(frozen=True)
class Overlap:
    """What a corpus holds of some tasks.

    corpus, identity: the corpus' spec and hash.
    n_documents, n_bytes: of the training split, which was read whole.
    """

    corpus: str
    identity: str
    n_documents: int
    n_bytes: int
    tasks: dict[str, TaskOverlap]


def corpus_overlap(
    corpus: Corpus,
    tasks: Sequence[str] = (),
    *,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    shots: int = 0,
    progress: bool = False,
) -> Overlap:
    """What a corpus' training split holds of the tasks' items.

    Args:
        corpus: its held-out split makes the embedded tasks.
        tasks: their names; none = all whose data is there.
        data_dir: folder with the tasks' files; None = where downloads go.
        limit: items of an embedded task; of the others all are looked for, since a limited
            evaluation asks some of them.
        seed, shots: as the evaluation has them, whose items are to be known again.
        progress: show a bar, and a line afterwards.

    Raises:
        ValueError: an unknown task, or one without data, with how to get it; no task at all.
    """
    for name in tasks:
        find_task(name)  # a misspelt one is found before any work is done
    held_out = list(islice(corpus.documents("validation"), MOST_DOCUMENTS))
    items: dict[str, list[Item]] = {}
    asked: dict[str, list[Item]] = {}
    for name in tasks or TASKS:
        settings: dict[str, Any] = {
            "data_dir": data_dir,
            "limit": limit if name in EMBEDDED else None,
            "documents": held_out,
            "seed": seed,
        }
        found = load_items(name, **settings)
        if found is None:
            if tasks:
                raise ValueError(how_to_get(name, data_dir))
            continue
        items[name] = found
        if shots and name not in ZERO_SHOT_ONLY:
            asked[name] = load_items(name, **settings, shots=shots) or found
    if not items:
        raise ValueError("no task has data to look for; strata data tasks fetches it")
    return find_overlap(
        corpus.documents("train"),
        items,
        asked,
        corpus=corpus.spec,
        identity=corpus.identity,
        expected_bytes=corpus.expected_bytes("train"),
        progress=progress,
    )


def find_overlap(
    documents: Iterable[str],
    items: Mapping[str, Sequence[Item]],
    asked: Mapping[str, Sequence[Item]] | None = None,
    *,
    corpus: str = "",
    identity: str = "",
    expected_bytes: int | None = None,
    progress: bool = False,
) -> Overlap:
    """Which items the documents hold n-grams of.

    Args:
        documents: the training texts, read once; a few at a time are in memory.
        items: of every task, one or more.
        asked: the same items as the model is asked them, where that is with solved examples before
            each; then their fingerprints are kept, and what is looked for is the item alone.
        corpus, identity: of the documents, for the record.
        expected_bytes: of the documents, for the progress bar.
        progress: show it, and a line afterwards.
    """
    texts = {name: [example_text(item) for item in found] for name, found in items.items()}
    lengths = {name: count_words(texts[name]) for name in items}
    sizes = {name: ngram_size(lengths[name].tolist()) for name in items}
    finder = NGramFinder(
        [text for name in items for text in texts[name]],
        [sizes[name] for name in items for _ in texts[name]],
    )
    n_documents = n_bytes = 0
    with building("looking for n-grams", expected_bytes, progress=progress) as advance:
        for document in documents:
            size = finder.read(document)
            n_documents += 1
            n_bytes += size
            advance(size)
    found = iter(finder.found)
    tasks = {}
    for name in items:
        known = (asked or {}).get(name, items[name])
        ngrams = {item.fingerprint: next(found) for item in known}
        tasks[name] = TaskOverlap(
            n_words=sizes[name],
            too_short=int((lengths[name] < sizes[name]).sum()),
            dirty={key: ngram for key, ngram in ngrams.items() if ngram},
            clean=tuple(key for key, ngram in ngrams.items() if not ngram),
        )
    return Overlap(corpus, identity, n_documents, n_bytes, tasks)


def example_text(item: Item) -> str:
    """What is looked for of an item: its context and its true answer."""
    context, answer = item.requests[item.label]
    return context + answer


def ngram_size(lengths: Sequence[int]) -> int:
    """N of a task whose items have so many words: their 5th percentile, from 8 to 13.

    Raises:
        ValueError: no items.
    """
    if not lengths:
        raise ValueError("n-gram overlap of a task without items: expected one or more")
    percentile = float(np.percentile(lengths, 5))
    return min(max(round(percentile), FEWEST_WORDS), MOST_WORDS)


def save_overlap(overlap: Overlap, path: str | Path) -> None:
    """Write it as JSON, whole or not at all."""
    write_whole(Path(path), json.dumps(asdict(overlap), indent=1, ensure_ascii=False) + "\n")


def load_overlap(path: str | Path) -> Overlap:
    """Read what `save_overlap` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        tasks = {
            name: TaskOverlap(**{**task, "clean": tuple(task["clean"])})
            for name, task in fields["tasks"].items()
        }
        return Overlap(**{**fields, "tasks": tasks})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what strata data overlap writes ({error}); make it anew"
        ) from None


@dataclass(frozen=True)
class Part:
    """The score of some of a task's items, and its interval."""

    score: float
    interval: tuple[float, float]
    n_items: int


@dataclass(frozen=True)
class Split:
    """A result's clean and dirty items; None where there are none of a kind."""

    clean: Part | None
    dirty: Part | None

    @property
    def dirty_share(self) -> float:
        """Of the result's items; 0 to 1."""
        n_dirty = self.dirty.n_items if self.dirty else 0
        return n_dirty / (n_dirty + (self.clean.n_items if self.clean else 0))


def split_result(
    result: TaskResult,
    overlap: TaskOverlap | None,
    *,
    bootstrap_samples: int = 2_000,
    seed: int = 0,
) -> Split | None:
    """The scores of a result's clean and dirty items; None where one of them was not looked for."""
    if overlap is None:
        return None
    clean = set(overlap.clean)
    parts: tuple[list[ItemResult], list[ItemResult]] = ([], [])
    for item in result.items:
        dirty = item.fingerprint in overlap.dirty
        if not dirty and item.fingerprint not in clean:
            return None
        parts[dirty].append(item)

    def score(items: list[ItemResult]) -> Part | None:
        if not items:
            return None
        values, weights, clusters = columns(items)
        interval = score_interval(
            values, weights, clusters, bootstrap_samples, result.confidence, seed
        )
        return Part(float(values.sum() / weights.sum()), interval, len(items))

    return Split(*map(score, parts))
