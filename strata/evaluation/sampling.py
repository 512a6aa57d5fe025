"""Which token comes next: from logits to a distribution, and from a distribution to a token.

    logits → repetition penalty → temperature → truncation → softmax → draw

Every truncation keeps the likeliest tokens and differs from the others in how many. So each is a
floor under the logits, the highest floor counts, and nothing has to be sorted back: top-k and top-p
look at the likeliest values alone. Tokens exactly as likely as the last one kept are kept too.

All works on rows of logits at once, on the device where they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling`, as keyword arguments of the functions that write."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    temperature: divides the logits. Below 1 the likely becomes likelier; 0 leaves only the most
        likely token (of equal ones the one of lowest id).
    top_k: keep only the k most likely tokens; 0 = all.
    top_p: of those, keep the smallest set whose probabilities sum to at least top_p: the nucleus
        (Holtzman et al. 2019, arXiv 1904.09751, section 3.1); 1 = all.
    min_p: keep only tokens at least min_p times as likely as the most likely (Nguyen et al. 2024,
        arXiv 2407.01082, section 3); 0 = all.
    repetition_penalty: divides the logits of tokens that the text already holds, the prompt
        included (Keskar et al. 2019, arXiv 1909.05858, section 4.1); negative logits, which
        dividing would raise, are multiplied. 1 = none.

    Raises:
        ValueError: a field out of its range, named with its value.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature}: expected 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k}: expected 0 (all tokens) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p = {self.top_p}: expected more than 0 and at most 1")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p = {self.min_p}: expected 0 (all tokens) to 1")
        if not 0.0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty = {self.repetition_penalty}: expected more than 0; 1 = none"
            )


@torch.no_grad()
def next_token_probabilities(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    """The distribution from which the next token is drawn, (…, vocab), at least float32.

    Args:
        logits: (…, vocab), of one position a row.
        temperature, top_k, top_p, min_p: see `Sampling`.

    Raises:
        ValueError: an argument out of its range, named with its value.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    if sampling.temperature == 0.0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, best, 1.0)
    return truncate(logits, sampling).softmax(dim=-1)


def sample(logits: Tensor, sampling: Sampling, points: list[float]) -> Tensor:
    """One token id a row, (rows,).

    Args:
        logits: (rows, vocab).
        points: a uniform number from [0, 1) for each row.
    """
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1)
    if logits.device.type != "cpu":
        return draw(truncate(logits, sampling).softmax(dim=-1), points)
    # row by row, what is made on the way stays in the processor's cache: 3 times as fast as all
    # at once with 32 rows of 86,400
    chosen = [
        draw(truncate(row[None], sampling).softmax(dim=-1), [point])
        for row, point in zip(logits, points, strict=True)
    ]
    return torch.cat(chosen)


def penalize(logits: Tensor, held: Sequence[Iterable[int]], penalty: float) -> Tensor:
    """The logits (rows, vocab) after the repetition penalty.

    Args:
        held: for each row the tokens, each once, whose logits it lowers.
    """
    pairs = [(row, token) for row, tokens in enumerate(held) for token in tokens]
    places = tuple(torch.tensor(pairs, dtype=torch.long, device=logits.device).view(-1, 2).T)
    before = logits[places]
    adjusted = logits.clone()
    adjusted[places] = torch.where(before > 0, before / penalty, before * penalty)
    return adjusted


def truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (…, vocab) over the temperature, minus infinity where a token is cut off."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    scaled = logits.to(precise)
    # from the largest on, so that no temperature is too small to divide by
    scaled = (scaled - scaled.amax(dim=-1, keepdim=True)) / sampling.temperature
    floors = []
    if 0 < sampling.top_k < scaled.shape[-1]:
        ranked = scaled.topk(sampling.top_k).values  # (…, top_k), the likeliest first
        floors.append(ranked[..., -1:])
    elif sampling.top_p < 1.0:
        ranked = _descending(scaled)
    if sampling.top_p < 1.0:
        floors.append(_nucleus_floor(ranked, sampling.top_p))
    if sampling.min_p > 0.0:
        floors.append(scaled.new_full((1,), math.log(sampling.min_p)))  # the largest is 0
    for floor in floors:
        scaled = scaled.masked_fill_(scaled < floor, -torch.inf)
    return scaled


def _descending(x: Tensor) -> Tensor:
    """The values of each row, the largest first."""
    if x.device.type != "cpu":
        return x.sort(dim=-1, descending=True).values
    # 14 times as fast as PyTorch's, which sorts the places along
    return torch.from_numpy(np.sort(x.numpy(), axis=-1)).flip(-1)


def _nucleus_floor(ranked: Tensor, top_p: float) -> Tensor:
    """The value (…, 1) of the last token that is needed for the nucleus."""
    shares = ranked.softmax(dim=-1)
    # a token stays when those before it do not reach top_p yet
    before = shares.cumsum(dim=-1) - shares
    last = (before < top_p).sum(dim=-1, keepdim=True) - 1
    return ranked.gather(-1, last.clamp(min=0))


def draw(probabilities: Tensor, points: list[float]) -> Tensor:
    """Where a row's running sum passes its point, as a share of the whole: ids (rows,).

    Args:
        probabilities: (rows, vocab); need not sum to 1.
        points: (rows,) from [0, 1).
    """
    # MPS has no float64
    precise = torch.float32 if probabilities.device.type == "mps" else torch.float64
    running = probabilities.cumsum(dim=-1, dtype=precise)
    total = running[:, -1:]
    share = torch.tensor(points, dtype=precise, device=running.device)[:, None] * total
    # below the total, and to the right of equal sums: what has no probability is never drawn
    share = torch.minimum(share, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(running, share, right=True)[:, 0]
