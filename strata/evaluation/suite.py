"""A list of tasks, from their items to their results.

    task → items → requests → log-likelihoods → the choice that each rule takes → score, interval

`evaluate` is the chapter's main function, `score_items` what it does for one task.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from strata.evaluation.comparison import score_interval
from strata.evaluation.embedded import Item
from strata.evaluation.items import how_to_get, load_items
from strata.evaluation.journal import Journal, identity_of, write_answers
from strata.evaluation.results import ItemResult, TaskResult, chance_of, columns
from strata.evaluation.rows import Request
from strata.evaluation.scoring import (
    Answer,
    Processes,
    answer_requests,
    request_of,
    requests_of_texts,
)
from strata.evaluation.tasks import EMBEDDED, find_task

if TYPE_CHECKING:
    from strata.model import Transformer
    from strata.tokenizer import Tokenizer

# The embedded tasks look at so many documents at most.
MOST_DOCUMENTS = 5_000


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Iterable[str],
    *,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    shots: int = 0,
    documents: Iterable[str] | None = None,
    seed: int = 0,
    batch_tokens: int = 8_192,
    bootstrap_samples: int = 2_000,
    confidence: float = 0.95,
    journal: str | Path | None = None,
    weights: str = "",
    processes: Processes | None = None,
    progress: bool = True,
) -> dict[str, TaskResult]:
    """The model's scores on the named tasks, in their order.

    A task whose data is absent is left out, and one line on stderr says how to get it; another says
    how many items of a task the model's context did not hold whole.

    Args:
        model: scored on the device it is on, in the arithmetic of the autocast around the call.
        tokenizer: the one it was trained with.
        tasks: names of `TASKS`.
        data_dir: folder with the tasks' files; None or "" = where downloads go.
        limit: items a task; None or 0 = all of a file, 500 of an embedded task.
        shots: solved examples before each item.
        documents: held-out texts, of which the embedded tasks are made.
        seed: of the choice of the embedded tasks' items and of examples, and of the bootstrap.
        batch_tokens: tokens in one forward pass, padding counted.
        bootstrap_samples, confidence: of the intervals.
        journal: folder that keeps the answers as they come; an evaluation that was interrupted
            goes on from them.
        weights: what the model's weights are called there, as the SHA-256 of their file.
        processes: those that call this together, of which each answers a share of the requests
            and gets all results.
        progress: show a bar for each task.

    Raises:
        ValueError: an unknown task, with the nearest name; a record that does not fit, with file
            and line; held-out documents of which no item can be made; a journal without `weights`;
            a continuation longer than the model's context; log-likelihoods that are not finite;
            processes that do not ask the same.
        FileNotFoundError: `data_dir` is no folder.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    for name in names:
        find_task(name, shots)  # a misspelt one is found before any work is done
    if journal is not None and not weights:
        raise ValueError("a journal holds answers of certain weights: name them (weights=…)")
    held_out: list[str] | None = None
    if documents is not None and any(name in EMBEDDED for name in names):
        held_out = list(islice(documents, MOST_DOCUMENTS))

    results = {}
    for name in names:
        items = load_items(
            name, data_dir=data_dir, limit=limit, documents=held_out, seed=seed, shots=shots
        )
        if items is None:
            if processes is None or processes.first:
                print(how_to_get(name, data_dir), file=sys.stderr)
            continue
        try:
            results[name] = score_items(
                model,
                tokenizer,
                name,
                items,
                shots=shots,
                seed=seed,
                batch_tokens=batch_tokens,
                bootstrap_samples=bootstrap_samples,
                confidence=confidence,
                journal=journal,
                weights=weights,
                processes=processes,
                progress=progress,
            )
        except ValueError as error:
            raise ValueError(f"task {name!r}: {error}") from error
        n_cut = results[name].n_cut
        if n_cut and (processes is None or processes.first):
            print(
                f"{name}: {n_cut:,} of {len(items):,} items are too long for the model's context "
                f"of {model.config.context_length:,} tokens and were asked without their beginning",
                file=sys.stderr,
            )
    return results


def score_items(
    model: Transformer,
    tokenizer: Tokenizer,
    name: str,
    items: Sequence[Item],
    *,
    shots: int = 0,
    seed: int = 0,
    batch_tokens: int = 8_192,
    bootstrap_samples: int = 2_000,
    confidence: float = 0.95,
    journal: str | Path | None = None,
    weights: str = "",
    processes: Processes | None = None,
    progress: bool = False,
) -> TaskResult:
    """The model's score on the items of one task; arguments and errors as `evaluate`'s.

    Args:
        items: from `load_items`.
        shots: how many examples stand before each item already.
    """
    task = find_task(name)
    context_length = model.config.context_length
    owners: list[int] = []
    n_cut = 0
    if task.metric == "bits_per_byte":
        texts = [item.requests[0][1] for item in items]
        requests, owners = requests_of_texts(tokenizer, texts, context_length)
    else:
        pairs = [pair for item in items for pair in item.requests]
        pairs += [(item.unconditional, text) for item in items for _, text in item.requests
                  if item.unconditional]  # fmt: skip
        requests = [request_of(*pair, tokenizer, context_length) for pair in pairs]
        # a whole context begins with the separator
        cut = iter([request.tokens[0] != tokenizer.document_separator for request in requests])
        n_cut = sum(any(list(islice(cut, len(item.requests)))) for item in items)

    folder = None if journal is None else Path(journal)
    answers = _answers(model, requests, name, batch_tokens, folder, weights, processes, progress)
    if task.metric == "bits_per_byte":
        nats = [0.0] * len(items)
        for owner, answer in zip(owners, answers, strict=True):
            nats[owner] += answer.log_likelihood
        metrics, scored = _text_results(items, nats)
    else:
        metrics, scored = _choice_results(items, iter(answers), task.metric)
    values, sizes, clusters = columns(scored)
    return TaskResult(
        task=name,
        score=metrics[task.metric],
        interval=score_interval(values, sizes, clusters, bootstrap_samples, confidence, seed),
        confidence=confidence,
        n_items=len(scored),
        metric=task.metric,
        chance=task.chance if task.metric == "bits_per_byte" else chance_of(scored),
        higher_is_better=task.metric != "bits_per_byte",
        metrics=metrics,
        items=scored,
        shots=shots,
        n_cut=n_cut,
    )


def _answers(
    model: Transformer,
    requests: Sequence[Request],
    name: str,
    batch_tokens: int,
    folder: Path | None,
    weights: str,
    processes: Processes | None,
    progress: bool,
) -> list[Answer]:
    """The answers to all requests, from the journal or from the model."""
    answers: dict[int, Answer] = {}
    kept = None
    if folder is not None or processes is not None:
        kind = model.device.type
        arithmetic = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        asked = identity_of(requests, weights, model.config, batch_tokens, kind, arithmetic)
        # answers to other requests, or of other weights, must not be mixed with those of this one
        if processes is not None and len(set(processes.gather(asked))) > 1:
            raise ValueError(
                "the processes have different items or weights; give all of them "
                "the same data, and a run that is not being trained meanwhile"
            )
    if folder is not None:
        kept = Journal(folder, name, asked, len(requests), processes)
        answers |= kept.known
    mine: dict[int, Answer] = {}
    with kept.open() if kept else nullcontext() as file:
        for batch in answer_requests(
            model,
            requests,
            batch_tokens=batch_tokens,
            known=answers.keys(),
            processes=processes,
            progress=progress,
            label=name,
        ):
            mine.update(batch)
            if file is not None:
                write_answers(file, batch)
    for others in processes.gather(mine) if processes else [mine]:
        answers |= others
    ordered = [answers[number] for number in range(len(requests))]
    # where nothing is a number the first choice would be taken, which is always right in some tasks
    if not all(math.isfinite(answer.log_likelihood) for answer in ordered):
        raise ValueError("the model's log-likelihoods are not finite: see its weights")
    return ordered


def _choice_results(
    items: Sequence[Item], answers: Iterator[Answer], metric: str
) -> tuple[dict[str, float], tuple[ItemResult, ...]]:
    """Metrics and items of a task whose answers are right or wrong."""
    asked = [list(islice(answers, len(item.requests))) for item in items]
    alone = [list(islice(answers, len(item.requests))) if item.unconditional else []
             for item in items]  # fmt: skip
    totals: dict[str, list[float]] = {}
    results = []
    for index, item in enumerate(items):
        predictions = predict(item, asked[index], alone[index])
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


def predict(item: Item, asked: Sequence[Answer], alone: Sequence[Answer] = ()) -> dict[str, int]:
    """The choice that each rule takes; of equal ones the first.

    Args:
        asked: the answers to the item's requests.
        alone: to the same continuations after `item.unconditional`; none where it has none.
    """
    if len(asked) == 1:
        return {"acc_greedy": 0 if asked[0].greedy else -1}
    nats = np.array([answer.log_likelihood for answer in asked])
    # without the blank or newline that parts context and continuation
    texts = [continuation[1:] for _, continuation in item.requests]
    predictions = {
        "acc": nats,
        "acc_norm": nats / [len(text) or 1 for text in texts],
        "acc_bytes": nats / [len(text.encode("utf-8")) or 1 for text in texts],
        "acc_per_token": nats / [answer.n_tokens for answer in asked],
    }
    if alone:
        predictions["acc_unconditional"] = nats - [answer.log_likelihood for answer in alone]
    return {rule: int(np.argmax(values)) for rule, values in predictions.items()}


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
