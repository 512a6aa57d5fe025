"""Scores while a model trains: a callback that joins tasks to the training loop.

    config = config.override({"training.evaluate_every": 1_000})
    Trainer(config, run_dir, callbacks=[TaskMonitor({"letters": my_letters})]).fit()

Scores and the ends of their intervals become numbers of the update's line in `metrics.jsonl`, and
with that curves of TensorBoard: `task/cloze`, `task/cloze/low`, `task/cloze/high`, and
`bits_per_byte/letters` for texts of one's own. `evaluation.training_tasks` names the tasks; those
that are made from held-out documents ask about the documents of the run's validation shards, and so
need nothing but what training itself needs.

It costs a forward pass over the items. A hundred of each of the two tasks without data cost what
training on 11,000 tokens does (`nano`, one thread of a CPU): 2 % of a run that is scored every
530,000 tokens, which are 260 updates of `nano`.
"""

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Protocol

import numpy as np

from strata.config import Config
from strata.data import Prepared, TokenShards
from strata.data.mixture import interleave
from strata.evaluation.embedded import Item
from strata.evaluation.items import how_to_get, load_items
from strata.evaluation.scoring import Processes, bits_per_byte
from strata.evaluation.suite import MOST_DOCUMENTS, score_items
from strata.evaluation.tasks import EMBEDDED, find_task
from strata.model import Transformer
from strata.tokenizer import Tokenizer

# Held-out tokens that are decoded at once: a few megabytes of text.
BLOCK = 1 << 20


class Runtime(Protocol):
    """Where and in what arithmetic they compute."""

    def autocast(self) -> AbstractContextManager[None]:
        """The arithmetic that the model is trained in."""
        ...


class Training(Protocol):
    """What the monitor needs to see of a trainer."""

    config: Config
    step: int
    model: Transformer
    tokenizer: Tokenizer
    prepared: Prepared
    runtime: Runtime
    processes: Processes


class TaskMonitor:
    """Scores the model on `evaluation.training_tasks` every `training.evaluate_every` updates.

    It does so after update `training.max_steps` as well; a run that another callback ends before
    that keeps the scores of the last interval. Scoring draws no random number of the run's, so a
    run with it has the weights of one without, and one that is interrupted the same lines.

    A task whose data is missing or damaged costs a line on stderr, not the run.

    Args:
        texts: for each name some documents, of which bits per byte are measured too.

    Raises:
        ValueError: if the documents of a name hold no text.
    """

    on_every_process = True

    def __init__(self, texts: Mapping[str, Sequence[str]] | None = None) -> None:
        self.texts = {
            name: [given] if isinstance(given, str) else list(given)
            for name, given in (texts or {}).items()
        }
        for name, documents in self.texts.items():
            if not any(documents):
                raise ValueError(f"texts[{name!r}] holds no text: expected at least one character")
        self._items: dict[str, list[Item]] | None = None

    def check(self, trainer: Training) -> None:
        """Raise ValueError for a task that there is not, or not with `evaluation.shots`, and for
        texts that would never be read."""
        settings = trainer.config.evaluation
        if self.texts and not trainer.config.training.evaluate_every:
            raise ValueError(
                "training.evaluate_every = 0: expected at least 1 where texts are to be measured"
            )
        for name in settings.training_tasks:
            try:
                find_task(name, settings.shots)
            except ValueError as error:
                raise ValueError(f"evaluation.training_tasks: {error}") from None

    def on_metrics(self, trainer: Training, metrics: dict[str, Any]) -> None:
        """Add the scores to the line of an update after which they are due."""
        training = trainer.config.training
        if not training.evaluate_every:
            return
        if self._items is None:  # at the first update, so that what is missing is told early
            self._items = _common_items(trainer)
        if trainer.step % training.evaluate_every and trainer.step != training.max_steps:
            return
        started = time.perf_counter()
        trainer.model.eval()
        with trainer.runtime.autocast():
            metrics |= self._scores(trainer, self._items)
        trainer.model.train()
        metrics["timing"]["evaluation_seconds"] = time.perf_counter() - started

    def _scores(self, trainer: Training, items: dict[str, list[Item]]) -> dict[str, float]:
        settings, numbers = trainer.config.evaluation, dict[str, float]()
        for name in list(items):
            try:
                result = score_items(
                    trainer.model,
                    trainer.tokenizer,
                    name,
                    items[name],
                    batch_tokens=settings.batch_tokens,
                    bootstrap_samples=settings.bootstrap_samples,
                    confidence=settings.confidence,
                    processes=trainer.processes,
                )
            except ValueError as error:  # an item that the model's context does not hold
                _tell(trainer, [f"{name}: skipped; {error}"])
                del items[name]
                continue
            numbers[f"task/{name}"] = result.score
            numbers[f"task/{name}/low"], numbers[f"task/{name}/high"] = result.interval
        for name, documents in self.texts.items():
            numbers[f"bits_per_byte/{name}"] = bits_per_byte(
                trainer.model, trainer.tokenizer, documents, batch_tokens=settings.batch_tokens
            )
        return numbers


def _tell(trainer: Training, problems: Sequence[str]) -> None:
    """A line each, of the first process alone."""
    for problem in problems if trainer.processes.first else ():
        print(problem, file=sys.stderr)


def _common_items(trainer: Training) -> dict[str, list[Item]]:
    """The items of each task of which every process has the same.

    A sharded model runs on all processes or on none, and their folders may differ.
    """
    settings, items, problems = trainer.config.evaluation, dict[str, list[Item]](), list[str]()
    documents: list[str] = []
    if set(EMBEDDED) & set(settings.training_tasks):
        found = _documents(trainer.prepared.validation, trainer.tokenizer)
        documents = list(islice(found, MOST_DOCUMENTS))
    for name in settings.training_tasks:
        try:
            made = load_items(
                name,
                data_dir=settings.data_dir,
                limit=settings.training_limit,
                documents=documents,
                shots=settings.shots,
            )
        except (ValueError, OSError) as error:
            problems.append(f"{name}: skipped; {error}")
            continue
        if made is None:
            problems.append(how_to_get(name, settings.data_dir))
        else:
            items[name] = made
    digests = {name: hashlib.sha256(repr(made).encode()).digest() for name, made in items.items()}
    for elsewhere in trainer.processes.gather(digests):
        for name in [name for name in items if elsewhere.get(name) != digests[name]]:
            problems.append(f"{name}: skipped; not every process finds the same items")
            del items[name]
    _tell(trainer, problems)
    return items


def _documents(shards: TokenShards, tokenizer: Tokenizer) -> Iterator[str]:
    """The texts of a split, from its tokens, in the order of the corpus."""
    return interleave(
        [
            (part.share, _texts(shards, tokenizer, part.start, part.start + part.n_tokens))
            for part in shards.parts
        ]
    )


def _texts(shards: TokenShards, tokenizer: Tokenizer, start: int, stop: int) -> Iterator[str]:
    """The documents of positions `start` to `stop`, each without the separator before it."""
    rest = shards.window(start, 0)
    for position in range(start, stop, BLOCK):
        ids = np.concatenate([rest, shards.window(position, min(BLOCK, stop - position))])
        *whole, rest = np.split(ids, np.flatnonzero(ids == tokenizer.document_separator))
        yield from (tokenizer.decode(document[1:]) for document in whole if len(document))
    yield tokenizer.decode(rest[1:])
