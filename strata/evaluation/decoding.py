"""One token more for every row, as fast as a processor's memory allows.

A step of writing multiplies each matrix of the model by a few rows: for one row the time is that of
reading the weights once, if nothing else gets in the way. PyTorch, made for large batches, takes
about twice that on a CPU: its products of few rows read slowly, and each of some 450 operations a
step costs microseconds before it begins. So here the step is machine code (Numba's) that does what
`strata.model` does, in float32 and to its rounding, on the model's own weights and cache. It knows
every field of the configuration; a test compares the two for all of them.

GPUs, other types and models in parts on several processes take the model's own forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strata.model import Transformer
from strata.model.attention import rotation
from strata.model.masks import sees_whole
from strata.tokenizer.memory import Function, compiled

if TYPE_CHECKING:
    from strata.model import KeyValueCache

Array = NDArray[np.float32]
# Sums may be reordered, as any vectorised one is; infinities and NaN stay what they are.
REORDER = {"reassoc", "contract", "nsz", "arcp"}
LAYER_NORM, RMS_NORM = np.float32(1e-5), np.finfo(np.float32).eps  # PyTorch's epsilons
NOTHING = np.empty(0, np.float32)  # in place of a bias or a gain that a model does not have
PARTS = (
    "attention_norm", "attention.query", "attention.key", "attention.value", "attention.project",
    "feed_forward_norm", "feed_forward.expand", "feed_forward.project",
)  # fmt: skip
ROWS, COLUMNS = 4, 3  # of a tile of a product: their twelve sums fit AVX2's sixteen registers


def kernel(function: Function) -> Function:
    return compiled(function, nogil=True, fastmath=REORDER, error_model="numpy")


class CompiledStep:
    """Reads one more token in every row of a cache."""

    def __init__(self, model: Transformer) -> None:
        config = model.config
        self.config = config
        weights = {name: one.detach().numpy() for name, one in model.named_parameters()}

        def affine(name: str) -> tuple[Array, Array]:
            return weights.get(f"{name}.weight", NOTHING), weights.get(f"{name}.bias", NOTHING)

        self.embedding = weights["embedding.weight"]
        self.head = weights.get("head.weight", self.embedding)
        self.places = weights.get("positions.weight", NOTHING)
        self.stream_mix = weights.get("stream_mix", NOTHING)
        self.input_mix = weights.get("input_mix", NOTHING)
        self.layers = [
            [affine(f"blocks.{layer}.{part}") for part in PARTS] for layer in range(config.n_layers)
        ]
        self.final_norm = affine("final_norm")
        self.logits: Array | None = None  # memory that is new at each step is slow
        positions = torch.arange(config.context_length)
        turns = rotation(positions, config.head_size, config.rotary_base)
        self.cos, self.sin = (part.numpy() for part in turns)  # (context, head_dim / 2)

    @staticmethod
    def fits(model: object) -> bool:
        """Whether the model's weights are whole, in float32 and in this machine's memory."""
        return (
            isinstance(model, Transformer)
            and not torch.is_autocast_enabled("cpu")
            and all(
                type(one) is nn.Parameter and one.is_cpu and one.dtype == torch.float32
                for one in model.parameters()
            )
        )

    def __call__(self, tokens: Sequence[int], cache: KeyValueCache) -> Tensor:
        """Logits (rows, vocab) of what follows, valid until the next call."""
        if cache.length == cache.capacity:
            raise ValueError(f"the cache is full: its capacity is {cache.capacity} positions")
        rows, threads = len(tokens), torch.get_num_threads()
        keys, values = cache.keys.numpy(), cache.values.numpy()
        lengths = np.array(cache.lengths)
        x = self.embedding[np.array(tokens)]  # (rows, width)
        if self.logits is None or len(self.logits) < rows:
            self.logits = np.empty((rows, len(self.head)), np.float32)
        logits = self.logits[:rows]

        cap = self.config.logit_softcap

        def read(part: slice) -> None:
            x[part] = self._read(x[part], lengths[part], keys[:, part], values[:, part])

        def predict(part: slice) -> None:
            _multiply(self.head, x, logits, part.start, part.stop)
            if cap:
                for row in torch.from_numpy(logits)[:, part]:
                    row.div_(cap).tanh_().mul_(cap)

        _share(read, rows, ROWS, threads)
        _share(predict, len(self.head), 4_096 * COLUMNS, threads)
        cache.advance(1)
        return torch.from_numpy(logits)

    def _read(self, x: Array, lengths: NDArray[np.int64], keys: Array, values: Array) -> Array:
        """From embeddings (rows, width) to what the head reads; `Transformer.hidden` for a token.

        Args:
            lengths: (rows,) where each row's token stands.
            keys, values: (layers, rows, heads, capacity, head_dim), filled up to there.
        """
        config = self.config
        rms = config.norm == "rmsnorm"
        if config.residual_scalars:
            x = _normalise(x, NOTHING, NOTHING, True)
        if config.positions == "learned":
            x = x + self.places[lengths]
        by_head = (len(x), config.n_heads, config.head_size)
        turn = self.cos[lengths][:, None], self.sin[lengths][:, None]  # (rows, 1, head_dim / 2)
        x0 = x
        for layer, weights in enumerate(self.layers):
            norm, query, key, value, project, second_norm, expand, narrow = weights
            if config.residual_scalars:
                x = self.stream_mix[layer] * x + self.input_mix[layer] * x0
            normed = _normalise(x, *norm, rms)
            q, k, v = (_product(normed, *part).reshape(by_head) for part in (query, key, value))
            if config.positions == "rotary":
                q, k = _rotate(q, *turn), _rotate(k, *turn)
            if config.qk_norm:
                q, k = (
                    _normalise(part.reshape(-1, config.head_size), NOTHING, NOTHING, True)
                    .reshape(by_head)
                    for part in (q, k)
                )  # fmt: skip
            whole = sees_whole(config, layer)
            reach = config.context_length if whole else config.window_length
            read = _attend(q, k, v, keys[layer], values[layer], lengths, reach)
            x = x + _product(read.reshape(len(x), -1), *project)
            hidden = _product(_normalise(x, *second_norm, rms), *expand)  # (rows, mlp_width)
            x = x + _product(_bend(hidden, config.activation == "relu2"), *narrow)
        return _normalise(x, *self.final_norm, rms)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _share(work: Callable[[slice], None], size: int, least: int, threads: int) -> None:
    """Call `work` on parts of 0 to `size`, one a thread, each a multiple of `least` long."""
    parts = max(1, min(threads, size // least))
    step = -(-size // (parts * least)) * least if parts > 1 else size
    slices = [slice(first, min(first + step, size)) for first in range(0, size, step)]
    if len(slices) == 1:
        work(slices[0])
    else:
        list(_pool(threads).map(work, slices))


def _product(x: Array, weight: Array, bias: Array) -> Array:
    """x @ weight.T + bias, (rows, columns)."""
    out = np.empty((len(x), len(weight)), np.float32)
    _multiply(weight, x, out, 0, len(weight))
    return out + bias if len(bias) else out


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def _bend(x: Array, relu2: bool) -> Array:
    """The square of ReLU, or GELU in its tanh form."""
    if relu2:
        return np.square(np.maximum(x, np.float32(0.0)))
    inner: Array = np.float32(math.sqrt(2.0 / math.pi)) * (x + np.float32(0.044715) * (x * x * x))
    np.tanh(inner, out=inner)
    return np.float32(0.5) * x * (np.float32(1.0) + inner)


@kernel
def _normalise(x: Array, gain: Array, bias: Array, rms: bool) -> Array:
    """RMSNorm or LayerNorm of each row (rows, width)."""
    rows, width = x.shape
    out = np.empty((rows, width), np.float32)
    for row in range(rows):
        mean = np.float32(0.0)
        if not rms:
            for i in range(width):
                mean += x[row, i]
            mean /= np.float32(width)
        squares = np.float32(0.0)
        for i in range(width):
            squares += (x[row, i] - mean) * (x[row, i] - mean)
        epsilon = RMS_NORM if rms else LAYER_NORM
        scale = np.float32(1.0) / np.sqrt(squares / np.float32(width) + epsilon)
        for i in range(width):
            out[row, i] = (x[row, i] - mean) * scale
            if len(gain):
                out[row, i] *= gain[i]
            if len(bias):
                out[row, i] += bias[i]
    return out


@kernel
def _multiply(w: Array, x: Array, out: Array, first: int, last: int) -> None:
    """Columns first to last of the product x @ w.T, of (rows, inner) and (columns, inner).

    Each weight is read from memory once, whatever the number of rows.
    """
    rows, inner = x.shape
    tiled_rows = rows - rows % ROWS
    tiled = last - (last - first) % COLUMNS if tiled_rows else first
    for i in range(first, tiled, COLUMNS):
        for r in range(0, tiled_rows, ROWS):
            a0 = a1 = a2 = b0 = b1 = b2 = np.float32(0.0)
            c0 = c1 = c2 = d0 = d1 = d2 = np.float32(0.0)
            for j in range(inner):
                w0, w1, w2 = w[i, j], w[i + 1, j], w[i + 2, j]
                a, b, c, d = x[r, j], x[r + 1, j], x[r + 2, j], x[r + 3, j]
                a0 += w0 * a
                a1 += w1 * a
                a2 += w2 * a
                b0 += w0 * b
                b1 += w1 * b
                b2 += w2 * b
                c0 += w0 * c
                c1 += w1 * c
                c2 += w2 * c
                d0 += w0 * d
                d1 += w1 * d
                d2 += w2 * d
            out[r, i], out[r, i + 1], out[r, i + 2] = a0, a1, a2
            out[r + 1, i], out[r + 1, i + 1], out[r + 1, i + 2] = b0, b1, b2
            out[r + 2, i], out[r + 2, i + 1], out[r + 2, i + 2] = c0, c1, c2
            out[r + 3, i], out[r + 3, i + 1], out[r + 3, i + 2] = d0, d1, d2
    for i in range(first, last):
        for r in range(tiled_rows if i < tiled else 0, rows):
            total = np.float32(0.0)
            for j in range(inner):
                total += w[i, j] * x[r, j]
            out[r, i] = total


@kernel
def _attend(
    q: Array, k: Array, v: Array, keys: Array, values: Array, lengths: NDArray[np.int64], reach: int
) -> Array:  # fmt: skip
    """Store a token's key and value, and read for its query: all (rows, heads, head_dim).

    Args:
        keys, values: (rows, heads, capacity, head_dim), filled up to `lengths`.
        reach: how many tokens are seen, the reader included.
    """
    rows, heads, head_dim = q.shape
    read = np.zeros((rows, heads, head_dim), np.float32)
    weights = np.empty(keys.shape[2], np.float32)
    scale = np.float32(1.0 / math.sqrt(head_dim))
    for row in range(rows):
        end = lengths[row] + 1
        start = max(0, end - reach)
        for head in range(heads):
            for i in range(head_dim):
                keys[row, head, end - 1, i] = k[row, head, i]
                values[row, head, end - 1, i] = v[row, head, i]
            largest = np.float32(-np.inf)
            for place in range(start, end):
                product = np.float32(0.0)
                for i in range(head_dim):
                    product += q[row, head, i] * keys[row, head, place, i]
                weights[place] = product * scale
                largest = max(largest, weights[place])
            total = np.float32(0.0)
            for place in range(start, end):
                weights[place] = np.exp(weights[place] - largest)
                total += weights[place]
            # four places at a time, so that the sums are not stored after each
            fourfold = end - (end - start) % 4
            for at in range(start, fourfold, 4):
                w0, w1, w2, w3 = weights[at], weights[at + 1], weights[at + 2], weights[at + 3]
                for i in range(head_dim):
                    read[row, head, i] += (
                        w0 * values[row, head, at, i]
                        + w1 * values[row, head, at + 1, i]
                        + w2 * values[row, head, at + 2, i]
                        + w3 * values[row, head, at + 3, i]
                    )
            for at in range(fourfold, end):
                for i in range(head_dim):
                    read[row, head, i] += weights[at] * values[row, head, at, i]
            for i in range(head_dim):
                read[row, head, i] /= total
    return read
