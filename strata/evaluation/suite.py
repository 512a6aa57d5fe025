"""A list of tasks, from their items to their results.

    task → items → requests → log-likelihoods → the choice that each rule takes → score, interval

`evaluate` is the chapter's main function.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from strata.evaluation.comparison import score_interval
from strata.evaluation.embedded import Item
from strata.evaluation.items import how_to_get, load_items
from strata.evaluation.results import ItemResult, TaskResult, columns
from strata.evaluation.scoring import Answer, score_continuations, score_texts
from strata.evaluation.tasks import EMBEDDED, find_task

if TYPE_CHECKING:
    from strata.model import Transformer
    from strata.tokenizer import Tokenizer

# The embedded tasks look at so many documents at most.
MOST_DOCUMENTS = 5_000


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Iterable[str] | Mapping[str, Sequence[Item]],
    *,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    documents: Iterable[str] | None = None,
    seed: int = 0,
    batch_tokens: int = 8_192,
    bootstrap_samples: int = 2_000,
    confidence: float = 0.95,
    progress: bool = True,
) -> dict[str, TaskResult]:
    """The model's scores on the named tasks, in their order.

    A task whose data is absent is left out, and one line on stderr says how to get it.

    Args:
        model: scored on the device it is on.
        tokenizer: the one it was trained with.
        tasks: names of `TASKS`; a mapping gives the items of each, so that none are made here.
        data_dir: folder with the files of the tasks that need some; None or "" = none.
        limit: items a task; None or 0 = all of a file, 500 of an embedded task.
        documents: held-out texts, of which the embedded tasks are made.
        seed: of the choice of the embedded tasks' items, and of the bootstrap.
        batch_tokens: tokens in one forward pass, padding counted.
        bootstrap_samples, confidence: of the intervals.
        progress: show a bar for each task.

    Raises:
        ValueError: an unknown task, with the nearest name; a record that does not fit, with file
            and line; held-out documents of which no item can be made.
        FileNotFoundError: `data_dir` is no folder.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    for name in names:
        find_task(name)  # a misspelt one is found before any work is done
    made: Mapping[str, Sequence[Item]] = tasks if isinstance(tasks, Mapping) else {}
    held_out: list[str] | None = None
    if documents is not None and any(name in EMBEDDED for name in names):
        held_out = list(islice(documents, MOST_DOCUMENTS))

    results = {}
    for name in names:
        items = made.get(name) or load_items(
            name, data_dir=data_dir, limit=limit, documents=held_out, seed=seed
        )
        if items is None:
            print(how_to_get(name, data_dir), file=sys.stderr)
            continue
        metrics, scored = _score_items(model, tokenizer, name, items, batch_tokens, progress)
        task = find_task(name)
        values, weights, clusters = columns(scored)
        results[name] = TaskResult(
            task=name,
            score=metrics[task.metric],
            interval=score_interval(values, weights, clusters, bootstrap_samples, confidence, seed),
            confidence=confidence,
            n_items=len(scored),
            metric=task.metric,
            chance=task.chance,
            higher_is_better=task.metric != "bits_per_byte",
            metrics=metrics,
            items=scored,
        )
    return results


def _score_items(
    model: Transformer,
    tokenizer: Tokenizer,
    name: str,
    items: Sequence[Item],
    batch_tokens: int,
    progress: bool,
) -> tuple[dict[str, float], tuple[ItemResult, ...]]:
    """The metrics of a task and how each item went."""
    metric = find_task(name).metric
    if metric == "bits_per_byte":
        texts = [item.requests[0][1] for item in items]
        nats = score_texts(
            model, tokenizer, texts, batch_tokens=batch_tokens, progress=progress, label=name
        )
        return _text_results(items, nats)

    pairs = [pair for item in items for pair in item.requests]
    pairs += [(item.unconditional, text) for item in items for _, text in item.requests
              if item.unconditional]  # fmt: skip
    answers = score_continuations(
        model, tokenizer, pairs, batch_tokens=batch_tokens, progress=progress, label=name
    )
    stream = iter(answers)
    asked = [list(islice(stream, len(item.requests))) for item in items]
    alone = [list(islice(stream, len(item.requests))) if item.unconditional else []
             for item in items]  # fmt: skip

    totals: dict[str, list[float]] = {}
    results = []
    for index, item in enumerate(items):
        predictions = _predictions(item, asked[index], alone[index])
        prediction = predictions[metric]
        for rule, choice in predictions.items():
            totals.setdefault(rule, []).append(float(choice == item.label))
        if item.group:
            totals.setdefault(f"{metric}/{item.group}", []).append(float(prediction == item.label))
        results.append(
            ItemResult(
                index=index,
                fingerprint=item.fingerprint,
                prediction=prediction,
                correct=prediction == item.label,
                log_likelihoods=tuple(answer.log_likelihood for answer in asked[index]),
                value=float(prediction == item.label),
                cluster=item.cluster,
            )
        )
    metrics = {rule: math.fsum(hits) / len(hits) for rule, hits in totals.items()}
    if metric == "acc_greedy":
        # of the target as a whole, as LAMBADA's is reported
        mean = math.fsum(result.log_likelihoods[0] for result in results) / len(results)
        metrics["perplexity"] = math.exp(min(-mean, 700.0))
    return metrics, tuple(results)


def _predictions(item: Item, asked: list[Answer], alone: list[Answer]) -> dict[str, int]:
    """The choice that each rule takes; of equal ones the first."""
    if len(asked) == 1:
        return {"acc_greedy": 0 if asked[0].greedy else -1}
    nats = np.array([answer.log_likelihood for answer in asked])
    # without the blank or newline that parts context and continuation
    n_bytes = np.array([len(text[1:].encode("utf-8")) or 1 for _, text in item.requests])
    n_tokens = np.array([answer.n_tokens for answer in asked])
    predictions = {
        "acc": int(np.argmax(nats)),
        "acc_norm": int(np.argmax(nats / n_bytes)),
        "acc_per_token": int(np.argmax(nats / n_tokens)),
    }
    if alone:
        base = np.array([answer.log_likelihood for answer in alone])
        predictions["acc_unconditional"] = int(np.argmax(nats - base))
    return predictions


def _text_results(
    items: Sequence[Item], nats: Sequence[float]
) -> tuple[dict[str, float], tuple[ItemResult, ...]]:
    results = tuple(
        ItemResult(
            index=index,
            fingerprint=item.fingerprint,
            prediction=-1,
            correct=False,
            log_likelihoods=(log_likelihood,),
            value=-log_likelihood / math.log(2.0),
            weight=float(item.n_bytes),
            cluster=item.cluster,
        )
        for index, (item, log_likelihood) in enumerate(zip(items, nats, strict=True))
    )
    words = sum(item.n_words for item in items)
    metrics = {
        "bits_per_byte": math.fsum(r.value for r in results) / math.fsum(r.weight for r in results),
        "word_perplexity": math.exp(min(-math.fsum(nats) / words, 700.0)),
    }
    return metrics, results
