"""How good a prediction is: cross-entropy without ever holding all logits, and bits per byte.

With 86,400 tokens the logits of one sequence of 2,048 tokens take 708 MB in float32, and their
gradient as much again; they would be the largest thing in memory by far. But the loss is a sum
over positions, so a few hundred positions at a time are enough: `chunked_cross_entropy` computes
a chunk's logits, its loss and at once the gradient that the chunk contributes, and drops the
logits before it takes the next chunk. The backward pass then only has to scale what is there.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

# Targets with this value are left out of the loss, as in torch.nn.functional.cross_entropy.
IGNORED = -100

# Bytes of float32 logits held at once: near a CPU's cache, and what fills a GPU.
_CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30, "mps": 256 << 20}
# Each chunk also adds to the gradient of the whole head; with fewer positions that would dominate.
_LEAST_POSITIONS = 256
# Positions and tokens of the vocabulary whose logits a CPU holds at once when it only scores: 2 MB
# of float32 stay in its cache, through product, softcap, exponential and sum.
_CPU_PIECE = 512, 1_024


def chunk_length(vocab_size: int, device_type: str) -> int:
    """Positions whose logits are held at once, at most."""
    return max(_LEAST_POSITIONS, _CHUNK_BYTES[device_type] // (4 * vocab_size))


def _even_chunk(positions: int, most: int) -> int:
    """The length of as few chunks as there can be, of about one size: a short one costs a pass
    over the whole head like any other."""
    if positions <= most:
        return positions
    length = math.ceil(positions / math.ceil(positions / most))
    return min(most, -(-length // 128) * 128)


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap), which keeps them within ±cap (Gemma 2, 2024); 0 = as they are."""
    return cap * torch.tanh(logits / cap) if cap else logits


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type of matrix products here: autocast's where it is on, else that of the input."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear head, with the gradients made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
        dtype = _compute_dtype(hidden)
        head = weight.to(dtype)  # (vocab, width)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        hidden_gradient = torch.empty_like(hidden) if wanted else None
        sums_dtype = _at_least_float32(weight.dtype)
        weight_gradient = torch.zeros_like(weight, dtype=sums_dtype) if wanted else None
        count = (targets != IGNORED).sum().clamp(min=1)
        total = torch.zeros((), device=hidden.device, dtype=_at_least_float32(dtype))
        step = _even_chunk(len(targets), chunk_length(weight.shape[0], hidden.device.type))
        room = _room(step, weight, _at_least_float32(dtype))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), step):
                part = slice(start, start + step)
                wants = targets[part]  # (chunk,)
                kept = wants != IGNORED
                chunk = hidden[part] / cap if cap else hidden[part]
                chunk = chunk.to(dtype)  # (chunk, width)
                nats, sums, gradient = _chunk(chunk, head, wants.clamp(min=0), cap, room)
                total += (nats * kept).sum()
                if hidden_gradient is None or weight_gradient is None:
                    continue
                # what the gradient still lacks is a factor a row, cheaper on the smaller matrices
                rows = (kept / (count * sums))[:, None]  # (chunk, 1)
                gradient = gradient.to(dtype)
                hidden_gradient[part] = (gradient @ head) * rows
                chunk = (chunk * ((cap or 1.0) * rows)).to(dtype)
                if dtype == sums_dtype:
                    weight_gradient.addmm_(gradient.T, chunk)
                else:
                    weight_gradient.add_(gradient.T @ chunk)
        if hidden_gradient is not None and weight_gradient is not None:
            ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return total / count

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        # in place, since a second one of the head's size would be the most memory of a step; who
        # goes backward twice gets PyTorch's error for it
        return hidden_gradient.mul_(upstream[0]), weight_gradient.mul_(upstream[0]), None, None


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type of everything that is summed."""
    return torch.promote_types(dtype, torch.float32)


Room = tuple[Tensor | None, Tensor | None]


def _room(positions: int, weight: Tensor, dtype: torch.dtype) -> Room:
    """Memory for two chunks of logits, used for chunk after chunk.

    On a CPU so large a tensor is fresh memory each time, whose first touch costs as much as
    the arithmetic; a GPU's allocator keeps it by itself.
    """
    if weight.device.type != "cpu":
        return None, None
    shape = positions, weight.shape[0]
    return torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)


def _logits(chunk: Tensor, head: Tensor, place: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The product (chunk, vocab) of (chunk, width) and the head, in memory that may be there."""
    place = None if place is None else place[: len(chunk), : len(head)]
    if head.dtype == dtype:
        return torch.mm(chunk, head.T, out=place)
    product = chunk @ head.T
    return product.to(dtype) if place is None else place.copy_(product)


def _chunk(
    chunk: Tensor, head: Tensor, index: Tensor, cap: float, room: Room
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of one chunk of positions and its gradient, in as few passes as there can be.

    Args:
        chunk: (chunk, width), what the head reads, already divided by `cap` if there is one.
        index: (chunk,) targets.

    Returns:
        nats (chunk,); the sums (chunk,) of the exponentials, s; and s times the gradient of the
        nats by the logits (chunk, vocab).
    """
    powers = None if room[1] is None else room[1][: len(chunk)]
    logits = _logits(chunk, head, room[0], _at_least_float32(head.dtype))
    if cap:  # an exponential of at most cap does not overflow, so no maximum need be found
        powers = torch.mul(logits.tanh_(), cap, out=powers)
    else:
        powers = torch.sub(logits, logits.amax(dim=1, keepdim=True), out=powers)
    chosen = powers.gather(1, index[:, None])  # (chunk, 1)
    sums = powers.exp_().sum(dim=1, keepdim=True)  # (chunk, 1)
    nats = (sums.log() - chosen)[:, 0]
    # d nats / d logits = softmax - one at the target, here times the sum
    powers.scatter_add_(1, index[:, None], -sums)
    if cap:  # d (cap tanh(z / cap)) / dz = 1 - tanh(z / cap)^2
        powers.addcmul_(powers, logits.square_(), value=-1)
    return nats, sums[:, 0], powers


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """Mean cross-entropy in nats of predicting `targets` from `hidden` by a linear head.

    Args:
        hidden: (positions, width).
        weight: (vocab, width), the head.
        targets: (positions,) token ids; -100 leaves a position out.
        cap: softcap of the logits; 0 = none.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets, cap)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def score_targets(
    hidden: Tensor, weight: Tensor, places: Tensor, targets: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    """Each target's negative log-likelihood, and whether it was the most likely token.

    Logits are computed of the places that are asked about, of each once, and of no other. The
    softmax is made piece by piece over the vocabulary (Milakov and Gimelshein, 2018, algorithm 3).

    Args:
        hidden: (positions, width); weight: (vocab, width), the head.
        places: (n,) the position from which each target is predicted, ascending.
        targets: (n,) token ids.
        cap: softcap of the logits; 0 = none.

    Returns:
        nats (n,) in float32 and a boolean (n,).
    """
    dtype = _compute_dtype(hidden)
    precise = _at_least_float32(dtype)
    head = weight.to(dtype)
    nats = torch.empty(len(targets), device=hidden.device, dtype=torch.float32)
    correct = torch.empty(len(targets), device=hidden.device, dtype=torch.bool)
    if not len(targets):
        return nats, correct
    asked, of_asked = torch.unique_consecutive(places, return_inverse=True)
    vocabulary, kind = len(head), hidden.device.type
    most = chunk_length(vocabulary, kind)
    most, width = _CPU_PIECE if kind == "cpu" else (most, vocabulary)
    step = _even_chunk(len(asked), most)
    room = torch.empty(step, width, dtype=precise) if kind == "cpu" else None
    starts = torch.arange(0, len(asked) + step, step, device=hidden.device)
    cuts = torch.searchsorted(of_asked, starts).tolist()
    for number, (first, last) in enumerate(pairwise(cuts)):
        start = number * step
        chunk = hidden[asked[start : start + step]].to(dtype)
        row, wanted = of_asked[first:last] - start, targets[first:last]
        # the largest logit so far, whose it is, and the sum of exponentials beside it
        best = torch.full((len(chunk),), -math.inf, dtype=precise, device=hidden.device)
        choice = torch.zeros_like(best, dtype=torch.long)
        sums, chosen = torch.zeros_like(best), torch.zeros_like(wanted, dtype=precise)
        for left in range(0, vocabulary, width):
            logits = _logits(chunk, head[left : left + width], room, precise)
            if cap:
                logits.div_(cap).tanh_().mul_(cap)
            inside = wanted - left
            found = logits[row, inside.clamp(0, logits.shape[1] - 1)]
            chosen = torch.where((inside >= 0) & (inside < logits.shape[1]), found, chosen)
            largest, whose = logits.max(dim=1)
            choice = torch.where(largest > best, whose + left, choice)
            before, best = best, torch.maximum(best, largest)
            sums = sums * (before - best).exp() + logits.sub_(best[:, None]).exp_().sum(dim=1)
        nats[first:last] = (sums.log() + best)[row] - chosen
        correct[first:last] = choice[row] == wanted
    return nats, correct


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Bits spent on each byte of a text whose tokens took `nats` in all.

    Unlike cross-entropy per token it does not depend on the vocabulary, so that models with
    different tokenizers can be compared.
    """
    return nats / math.log(2) / n_bytes
