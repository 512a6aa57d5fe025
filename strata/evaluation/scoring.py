"""How probable a model finds a text, and a continuation of a context.

    text → tokens → requests → rows that branch → batches → model.score_branches → log-likelihoods

`answer_requests` is the engine. A request is a row of token ids of which the last ones are asked
about. Requests that begin alike share their beginning (`rows`), logits are computed only where
something is asked, and a batch holds a fixed number of tokens, so that memory is bounded. Answers
come as batches are done, and the batches can be shared out among processes.

`score_continuations` asks about continuations of contexts, `score_texts` about whole texts, with a
window that slides over them, and `bits_per_byte` makes the number of it that is comparable
across tokenizers. `unigram_bits_per_byte` is what a model reaches that knows only how frequent each
token is.

A context is the start of a document, as in training: the document separator stands before it. One
too long for the model loses its beginning.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from strata.evaluation.rows import Batch, Request, lay_out, plan_batches
from strata.model.masks import Tree

if TYPE_CHECKING:
    from strata.model import Transformer
    from strata.tokenizer import Tokenizer


class Answer(NamedTuple):
    """What the model makes of a request.

    log_likelihood: of the scored tokens, in nats.
    greedy: every scored token is the model's first choice.
    n_tokens: how many were scored.
    """

    log_likelihood: float
    greedy: bool
    n_tokens: int


def score_continuations(
    model: Transformer,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_tokens: int = 8_192,
    progress: bool = False,
    label: str = "scoring",
) -> list[Answer]:
    """For every (context, continuation), the log-likelihood of the continuation.

    Raises:
        ValueError: an empty continuation, or one that alone is longer than the model's context.
    """
    requests = [
        request_of(context, continuation, tokenizer, model.config.context_length)
        for context, continuation in pairs
    ]
    return score_requests(
        model, requests, batch_tokens=batch_tokens, progress=progress, label=label
    )


def request_of(
    context: str, continuation: str, tokenizer: Tokenizer, context_length: int
) -> Request:
    """The token ids of a context and its continuation, as the tokenizer joins them.

    Blanks at the end of the context go over to the continuation: the tokenizer puts the blank
    before a word into the word's token. The whole is encoded at once and split after as many
    tokens as the context alone has, as lm-evaluation-harness does; where the two have grown
    into one token, each is encoded alone.

    Raises:
        ValueError: an empty continuation, or one that alone is longer than the model's context.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    before = tokenizer.encode(kept)
    after = tokenizer.encode(kept + continuation)[len(before) :] or tokenizer.encode(continuation)
    if not after:
        raise ValueError(f"nothing to score after the context {kept[-40:]!r}")
    if len(after) > context_length:
        raise ValueError(
            f"the continuation {continuation[:40]!r}… has {len(after)} tokens; the model's context "
            f"holds {context_length}"
        )
    tokens = [tokenizer.document_separator, *before, *after]
    return Request(tokens[-(context_length + 1) :], len(after))


class Processes(Protocol):
    """Those that work together; `strata.training.distributed` has them."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and tells."""
        ...

    @property
    def rank(self) -> int:
        """The number of this one."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """What every one has, in the order of their ranks."""
        ...


def answer_requests(
    model: Transformer,
    requests: Sequence[Request],
    *,
    batch_tokens: int = 8_192,
    known: Collection[int] = (),
    processes: Processes | None = None,
    progress: bool = False,
    label: str = "scoring",
) -> Iterator[list[tuple[int, Answer]]]:
    """Batch by batch, the numbers of requests and their answers.

    Args:
        model: has `score_branches`, as a `Transformer` does.
        requests: none with more than context_length + 1 tokens; at least one token of each is not
            asked about.
        batch_tokens: tokens in one forward pass, padding counted; a longer row goes alone.
        known: requests that need no answer; a batch of such alone is left out.
        processes: of which this one answers its share. A sharded model runs on all of them or on
            none, so each makes as many forward passes.
    """
    batches = [
        rows
        for rows in plan_batches(requests, batch_tokens)
        if any(number not in known for numbers in rows for number in numbers)
    ]
    rank, size = (processes.rank, processes.size) if processes else (0, 1)
    mine = batches[rank::size]
    total = sum(len(numbers) for rows in mine for numbers in rows)
    with tqdm(
        total=total, desc=label, unit="req", disable=not (progress and total) or rank > 0
    ) as bar:
        for rows in mine:
            answers = _answer_batch(model, lay_out(requests, rows))
            yield answers
            bar.update(len(answers))
    if len(mine) < -(-len(batches) // size):
        _answer_batch(model, lay_out(requests, batches[-1]))


def _answer_batch(model: Transformer, batch: Batch) -> list[tuple[int, Answer]]:
    tokens, depths, ends, places, targets = (
        torch.from_numpy(part).to(model.device) for part in batch[:5]
    )
    losses, hits = model.score_branches(tokens, Tree(depths, ends), places, targets)
    nats, greedy = losses.cpu().double().numpy(), hits.cpu().numpy()  # MPS has no float64
    return [
        (number, Answer(-float(nats[asked].sum()), bool(greedy[asked].all()), len(asked)))
        for number, asked in zip(batch.numbers, batch.questions, strict=True)
    ]


def score_requests(
    model: Transformer,
    requests: Sequence[Request],
    *,
    batch_tokens: int = 8_192,
    progress: bool = False,
    label: str = "scoring",
) -> list[Answer]:
    """The answers, in the order of the requests; arguments as for `answer_requests`."""
    answers: dict[int, Answer] = {}
    for batch in answer_requests(
        model, requests, batch_tokens=batch_tokens, progress=progress, label=label
    ):
        answers.update(batch)
    return [answers[number] for number in range(len(requests))]


def windows_of(
    tokens: Sequence[int], prefix: int, context_length: int, stride: int
) -> Iterator[Request]:
    """Requests that together ask once about every one of the tokens.

    The first window asks about up to `context_length` tokens, each next one about `stride` more,
    of which the first sees `context_length` - `stride` + 1 tokens before it. A stride of
    `context_length` asks each row about all it holds (lm-evaluation-harness' rolling windows);
    a smaller one gives every token a longer past and costs as many times more.

    Args:
        tokens: the text's ids.
        prefix: the id that stands before the first, so that it too has a past.
    """
    ids = [prefix, *tokens]
    stop = 1  # ids[:stop] are asked about already, the prefix never
    while stop < len(ids):
        n_scored = min(context_length if stop == 1 else stride, len(ids) - stop)
        stop += n_scored
        yield Request(ids[max(0, stop - context_length - 1) : stop], n_scored)


def requests_of_texts(
    tokenizer: Tokenizer, texts: Sequence[str], context_length: int, stride: int = 0
) -> tuple[list[Request], list[int]]:
    """Windows over texts that are documents of their own, and the number of each window's text.

    Args:
        stride: by how many tokens the window moves; 0 = by the model's context length.

    Raises:
        ValueError: a stride out of range.
    """
    if not 0 <= stride <= context_length:
        raise ValueError(f"stride = {stride}: expected 1 to {context_length}, or 0 for the latter")
    requests: list[Request] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        windows = windows_of(
            tokenizer.encode(text),
            tokenizer.document_separator,
            context_length,
            stride or context_length,
        )
        for window in windows:
            requests.append(window)
            owners.append(number)
    return requests, owners


def score_texts(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    stride: int = 0,
    batch_tokens: int = 8_192,
    progress: bool = False,
    label: str = "scoring",
) -> list[float]:
    """The log-likelihood of each text as a document of its own, in nats.

    Args:
        stride: by how many tokens the window moves; 0 = by the model's context length.

    Raises:
        ValueError: a stride out of range.
    """
    requests, owners = requests_of_texts(tokenizer, texts, model.config.context_length, stride)
    answers = score_requests(
        model, requests, batch_tokens=batch_tokens, progress=progress, label=label
    )
    totals = [0.0] * len(texts)
    for owner, answer in zip(owners, answers, strict=True):
        totals[owner] += answer.log_likelihood
    return totals


def bits_per_byte(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Iterable[str],
    *,
    stride: int = 0,
    batch_tokens: int = 8_192,
    progress: bool = False,
) -> float:
    """Bits the model needs for a byte of the documents: their negative log2-likelihood over bytes.

    Every document is scored from its own separator on; the separators themselves are not asked
    about. (Training's validation figure runs over the packed stream and counts them.)

    Args: as for `score_texts`. Half the context length is a usual stride.

    Raises:
        ValueError: documents without a byte; a stride out of range.
    """
    texts = list(documents)
    n_bytes = sum(len(text.encode("utf-8")) for text in texts)
    if n_bytes == 0:
        raise ValueError("bits per byte of no text at all: expected at least one byte")
    nats = score_texts(
        model,
        tokenizer,
        texts,
        stride=stride,
        batch_tokens=batch_tokens,
        progress=progress,
        label="bits per byte",
    )
    return -math.fsum(nats) / math.log(2.0) / n_bytes


def unigram_bits_per_byte(
    train_counts: NDArray[np.integer],
    validation_tokens: NDArray[np.integer],
    byte_lengths: NDArray[np.integer],
) -> float:
    """Bits per byte of a model that knows only how often each token occurs in the training text.

    Its probability of a token is (count + 1) / (all counts + vocabulary), Laplace's add-one rule,
    so that a token never seen costs something finite.

    Args:
        train_counts: (vocab,) how often each token occurs.
        validation_tokens: (n,) token ids.
        byte_lengths: (vocab,) bytes that each id stands for; 0 for special tokens, whose bits
            count all the same.

    Raises:
        ValueError: the two tables differ in length, or the validation tokens hold no byte.
    """
    if len(train_counts) != len(byte_lengths):
        raise ValueError(
            f"train_counts has {len(train_counts)} entries, byte_lengths {len(byte_lengths)}: "
            "expected the vocabulary's size for both"
        )
    found = np.bincount(
        np.asarray(validation_tokens, dtype=np.int64), minlength=len(train_counts)
    ).astype(np.float64)
    n_bytes = float(found @ byte_lengths.astype(np.float64))
    if n_bytes == 0.0:
        raise ValueError("bits per byte of no text at all: expected at least one byte")
    smoothed = train_counts.astype(np.float64) + 1.0
    bits = -np.log2(smoothed / smoothed.sum())  # (vocab,)
    return float(found @ bits) / n_bytes
