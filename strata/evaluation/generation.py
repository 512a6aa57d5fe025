"""The model writes: one token at a time, each drawn from what it finds probable.

    prompts → one pass over all their tokens → logits of the next → `sampling` → a token → …

The keys and values of what has been read stay in the model's cache, so that every further step
reads one token. Several prompts are written side by side: rows of one batch, each with its own
length, random stream and end, so that, but for rounding, no text depends on which others it is
written with. `generate_steps` shows one text token by token, `generate` and `generate_batch` give
results.

A prompt begins a document: the document separator stands before it, and the prompt None asks for
a document of the model's own. When the model writes the separator, its document has ended, and
generation stops. When the context is full, the window slides: the later half of it is read anew and
writing goes on, so the price of reading again falls once in half a context.

On a CPU, `model.for_few_rows()` is the same model, and a step reads its weights twice as fast.
"""

from __future__ import annotations

import codecs
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Unpack

import torch
from torch import Tensor

from strata.evaluation.sampling import Sampling, SamplingOptions, penalize, sample

if TYPE_CHECKING:
    from strata.model import KeyValueCache, Transformer
    from strata.tokenizer import Tokenizer


class GenerationStep(NamedTuple):
    """One token more.

    token: its id.
    probability: what the model itself gave it, before penalty, temperature and truncation.
    text: all that is written so far, without the prompt. Bytes that may still become a
        character, and characters that may still become a stop string, are held back; the last
        step holds back nothing.
    alternatives: the likeliest tokens and the probabilities that the model itself gave them, the
        likeliest first; as many as were asked for.
    """

    token: int
    probability: float
    text: str
    alternatives: tuple[tuple[int, float], ...] = ()


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str | None,
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    stop: Sequence[str] = (),
    **sampling: Unpack[SamplingOptions],
) -> str:
    """What the model writes after the prompt, without the prompt.

    Arguments and errors as `generate_steps`'.
    """
    texts = generate_batch(
        model,
        tokenizer,
        [prompt],
        max_new_tokens=max_new_tokens,
        seed=seed,
        stop=stop,
        **sampling,
    )
    return texts[0]


def generate_batch(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str | None],
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    stop: Sequence[str] = (),
    batch_size: int = 32,
    **sampling: Unpack[SamplingOptions],
) -> list[str]:
    """What the model writes after each prompt; the same as `generate` writes after it alone.

    A prompt that is given several times is continued differently each time.

    Args:
        batch_size: prompts that are continued at once; the memory that is taken grows with it.

    Other arguments and errors as `generate_steps`'.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts = {prompts!r}: expected a list of prompts; generate takes one")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: expected 1 or more")
    rule = Sampling(**sampling)
    texts = [""] * len(prompts)
    rows = _rows(model, tokenizer, prompts, max_new_tokens, seed, stop)
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        for row, step in _write(model, tokenizer, some, max_new_tokens, rule, None):
            texts[row.index] = step.text
    return texts


def generate_steps(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str | None,
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    stop: Sequence[str] = (),
    alternatives: int = 0,
    **sampling: Unpack[SamplingOptions],
) -> Iterator[GenerationStep]:
    """Write token by token; ends after `max_new_tokens`, at a stop string or at a document's end.

    Args:
        prompt: what is continued; None = nothing, a document of the model's own.
        max_new_tokens: at most so many.
        seed: of the draws; the same seed gives the same text on the same machine.
        stop: strings that end the text and are not part of it.
        alternatives: how many of the likeliest tokens a step names.
        sampling: temperature, top_k, top_p, min_p, repetition_penalty: the fields of `Sampling`.

    Raises:
        ValueError: an argument out of its range, named with its value; an empty prompt, or one
            longer than the model's context; weights that are not numbers.
    """
    if not 0 <= alternatives <= tokenizer.vocab_size:
        raise ValueError(
            f"alternatives = {alternatives}: expected 0 to the {tokenizer.vocab_size} tokens"
        )
    rule = Sampling(**sampling)
    rows = _rows(model, tokenizer, [prompt], max_new_tokens, seed, stop)
    written = _write(model, tokenizer, rows, max_new_tokens, rule, alternatives)
    return (step for _, step in written)


class _Row:
    """A text that is being written.

    tokens: what it may still be read from: the prompt with the separator before it, and what
        follows.
    held: every token of it, prompt included; not the separator, which may come at any length.
    writer: its words, without the prompt.
    points: where its uniform numbers come from.
    """

    def __init__(self, index: int, tokens: list[int], writer: _Writer, points: random.Random):
        self.index, self.tokens, self.writer, self.points = index, tokens, writer, points
        self.held = set(tokens[1:])


def _rows(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str | None],
    max_new_tokens: int,
    seed: int,
    stop: Sequence[str],
) -> list[_Row]:
    """The texts before anything is written, once all arguments are in order."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens = {max_new_tokens}: expected 0 or more")
    if isinstance(stop, str) or "" in stop:
        raise ValueError(f"stop = {stop!r}: expected a sequence of strings, none of them empty")
    rows, times = [], Counter[str | None]()
    for index, prompt in enumerate(prompts):
        try:
            tokens = prompt_tokens(prompt, tokenizer, model.config.context_length)
        except ValueError as error:
            which = f"prompt {index + 1} of {len(prompts)}: " if len(prompts) > 1 else ""
            raise ValueError(f"{which}{error}") from None
        # a stream that knows only the text's own prompt, and how often it came before
        points = random.Random(f"{seed} {times[prompt]} {tokens}")
        times[prompt] += 1
        rows.append(_Row(index, tokens, _Writer(tuple(stop)), points))
    return rows


def prompt_tokens(prompt: str | None, tokenizer: Tokenizer, context_length: int) -> list[int]:
    """What the model reads of a prompt: the separator, and the prompt's tokens.

    Raises:
        ValueError: an empty prompt, or one that the context has no room for.
    """
    if prompt == "":
        raise ValueError(
            "the prompt is empty: give some text to continue, or ask for a document of the model's "
            "own (prompt=None, --unprompted)"
        )
    tokens = [tokenizer.document_separator, *(tokenizer.encode(prompt) if prompt else [])]
    if len(tokens) > context_length:
        raise ValueError(
            f"the prompt has {len(tokens):,} tokens with the separator before it; the model's "
            f"context holds {context_length:,}: give a shorter one, for example the end of it"
        )
    return tokens


def _write(
    model: Transformer,
    tokenizer: Tokenizer,
    rows: list[_Row],
    max_new_tokens: int,
    sampling: Sampling,
    alternatives: int | None,
) -> Iterator[tuple[_Row, GenerationStep]]:
    """Every row's steps, side by side; without probabilities where `alternatives` is None."""
    if max_new_tokens == 0:
        return
    # the model has never seen the special tokens that are kept for later use
    reserved = [
        token
        for token in tokenizer.special_tokens.values()
        if token != tokenizer.document_separator
    ]
    with torch.inference_mode():
        longest = max(len(row.tokens) for row in rows)
        # the last token that is written is not read
        cache = model.new_cache(
            len(rows), min(longest + max_new_tokens - 1, model.config.context_length)
        )
        logits = _read_prompts(model, cache, rows)  # (rows, vocab)
        if bool(logits.isnan().any()):
            raise ValueError("the model's logits are not numbers: its weights hold nan or inf")
    for count in range(1, max_new_tokens + 1):
        with torch.inference_mode():
            logits[:, reserved] = -torch.inf
            adjusted = logits
            if sampling.repetition_penalty != 1.0:
                held = [row.held for row in rows]
                adjusted = penalize(logits, held, sampling.repetition_penalty)
            chosen = sample(adjusted, sampling, [row.points.random() for row in rows])  # (rows,)
            tokens = chosen.tolist()
            shown = _look(logits, chosen, alternatives)
        ended = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.tokens.append(token)
            row.held.add(token)
            separator = token == tokenizer.document_separator
            part = b"" if separator else tokenizer.token_bytes(token)
            text = row.writer.write(part, last=separator or count == max_new_tokens)
            yield row, GenerationStep(token, shown[place][0], text, shown[place][1])
            if separator or row.writer.stopped:
                ended.append(place)
        if len(ended) == len(rows) or count == max_new_tokens:
            return
        with torch.inference_mode():
            for place in reversed(ended):
                cache.drop(place)
                rows[place] = rows[-1]
                rows = rows[:-1]
            logits = _read_last(model, cache, rows)


def _read_prompts(model: Transformer, cache: KeyValueCache, rows: Sequence[_Row]) -> Tensor:
    """Read all tokens in one pass; the logits (rows, vocab) of what follows them."""
    lengths = [len(row.tokens) for row in rows]
    # padding stands behind a text, where a causal model cannot see it
    tokens = torch.zeros(len(rows), max(lengths), dtype=torch.long)  # (rows, time)
    for place, row in enumerate(rows):
        tokens[place, : lengths[place]] = torch.tensor(row.tokens)
    logits: Tensor = model(tokens.to(model.device), cache=cache, last_only=True, lengths=lengths)
    return logits[:, -1]


def _read_last(model: Transformer, cache: KeyValueCache, rows: Sequence[_Row]) -> Tensor:
    """Read each row's last token; the logits (rows, vocab) of what follows it."""
    for place, row in enumerate(rows):
        if cache.lengths[place] == cache.capacity:
            # the window slides: with the last token, half a context will have been read
            row.tokens = row.tokens[-max(1, cache.capacity // 2) :]
            anew = cache.row(place)
            if len(row.tokens) > 1:
                past = torch.tensor([row.tokens[:-1]], device=model.device)
                model(past, cache=anew, last_only=True)
            cache.lengths[place] = anew.length
    tokens = torch.tensor([row.tokens[-1:] for row in rows], device=model.device)  # (rows, 1)
    logits: Tensor = model(tokens, cache=cache, last_only=True)
    return logits[:, -1]


def _look(
    logits: Tensor, chosen: Tensor, alternatives: int | None
) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
    """For each row the probability of the chosen token, and the likeliest ones with theirs."""
    if alternatives is None:
        return [(0.0, ())] * len(chosen)
    shares = logits.softmax(dim=-1)
    probabilities = shares.gather(1, chosen[:, None])[:, 0].tolist()
    best, ids = shares.topk(alternatives, dim=-1)
    ranked = zip(ids.tolist(), best.tolist(), strict=True)
    pairs = [tuple(zip(*row, strict=True)) for row in ranked]
    return list(zip(probabilities, pairs, strict=True))


class _Writer:
    """The text so far, and what is held back of it."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop = stop
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.text = ""
        self.stopped = False

    def write(self, part: bytes, last: bool) -> str:
        """Add a token's bytes; the text that can be shown after it."""
        start = max(0, len(self.text) - max(map(len, self.stop), default=1) + 1)
        self.text += self.decoder.decode(part, final=last)
        found = [at for at in (self.text.find(word, start) for word in self.stop) if at >= 0]
        if found:
            self.stopped = True
            self.text = self.text[: min(found)]
            return self.text
        return self.text if last else self.text[: len(self.text) - self._pending()]

    def _pending(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        for length in range(max(map(len, self.stop), default=1) - 1, 0, -1):
            if any(len(w) > length and self.text.endswith(w[:length]) for w in self.stop):
                return length
        return 0
