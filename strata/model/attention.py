"""How a position reads from those before it: causal multi-head attention, and its cache.

Each head compares a query of the reading position with the keys of all positions up to it, and
takes the average of their values, weighted by the softmax of the comparisons (Vaswani et al.,
2017, section 3.2). Where a token stands enters either by vectors added to the embedding (GPT-3,
see `transformer`) or by turning queries and keys by an angle proportional to the position, so
that a comparison depends on the distance alone (`rotate`). Where not all of the past is to be
seen, a mask from `masks` says what is.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from strata.config import ModelConfig
from strata.model.masks import Mask, boolean_mask

Rotation = tuple[Tensor, Tensor]


def rotation(positions: Tensor, head_dim: int, base: float) -> Rotation:
    """Cosines and sines of the rotary angles (Su et al., 2021, section 3.2.2).

    Args:
        positions: (time,) whole numbers, or (batch, time) where every row has its own.

    Returns:
        Two float32 tensors (time, head_dim / 2), with rows of their own (batch, 1, time,
        head_dim / 2); pair i turns by positions * base^(-2i/head_dim).
    """
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[..., None] * base ** (-pairs / head_dim)
    if positions.dim() == 2:
        angles = angles[:, None]  # the same for all heads
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Turn dimension i together with dimension i + head_dim / 2.

    Args:
        x: (batch, heads, time, head_dim).
        turn: cosines and sines from `rotation`, for the same positions.
    """
    cos, sin = (part.to(x.dtype) for part in turn)  # ([batch, 1,] time, head_dim / 2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class KeyValueCache:
    """Keys and values of the positions already read, so that generation reads each one once.

    Every row is filled from its first place on, however long the others are.

    Attributes:
        keys, values: (layers, batch, heads, capacity, head_dim).
        lengths: positions filled so far, of each row.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        capacity: int = 0,
    ) -> None:
        capacity = min(capacity or config.context_length, config.context_length)
        shape = (config.n_layers, batch_size, config.n_heads, capacity, config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * batch_size

    @property
    def capacity(self) -> int:
        """Positions that a row has room for."""
        return self.keys.shape[3]

    @property
    def length(self) -> int:
        """Positions filled so far, of the longest row."""
        return max(self.lengths)

    @property
    def even(self) -> bool:
        """Whether all rows are equally long."""
        return min(self.lengths) == self.length

    def place(self, time: int) -> Tensor:
        """Begin a pass over `time` more tokens in every row.

        Returns their positions: (time,), or (batch, time) where the rows differ in length.
        """
        steps = torch.arange(time, device=self.keys.device)
        if self.even:
            self._places = self.length + steps
        else:
            self._places = torch.tensor(self.lengths, device=steps.device)[:, None] + steps
        return self._places

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (batch, heads, time, head_dim) of one layer in their places.

        Returns all keys and values of that layer, up to the end of the longest row.
        """
        end = self.length + keys.shape[2]
        held_keys, held_values = self.keys[layer], self.values[layer]
        if self._places.dim() == 1:
            held_keys[:, :, self.length : end] = keys
            held_values[:, :, self.length : end] = values
        else:
            rows = torch.arange(len(keys), device=keys.device)[:, None]  # (batch, 1)
            held_keys.transpose(1, 2)[rows, self._places] = keys.transpose(1, 2).type_as(held_keys)
            held_values.transpose(1, 2)[rows, self._places] = values.transpose(1, 2)
        return held_keys[:, :, :end], held_values[:, :, :end]

    def advance(self, time: int) -> None:
        """End a pass over `time` tokens: they count as filled."""
        self.lengths = [length + time for length in self.lengths]

    def row(self, index: int) -> "KeyValueCache":
        """One row as an empty cache of its own, which writes into this one's memory."""
        part = copy.copy(self)
        part.keys, part.values = self.keys[:, index : index + 1], self.values[:, index : index + 1]
        part.lengths = [0]
        return part

    def drop(self, index: int) -> None:
        """Take a row out; the last row moves into its place."""
        last = len(self.lengths) - 1
        end = self.lengths[last]
        if index < last:
            self.keys[:, index, :, :end] = self.keys[:, last, :, :end]
            self.values[:, index, :, :end] = self.values[:, last, :, :end]
        self.lengths[index] = end
        self.keys, self.values = self.keys[:, :last], self.values[:, :last]
        self.lengths.pop()


class Attention(nn.Module):
    """Causal multi-head attention of one block."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.head_dim = config.n_heads, config.head_size
        self.qk_norm = config.qk_norm
        inner = config.n_heads * config.head_size
        self.query = nn.Linear(config.width, inner, bias=config.biases)
        self.key = nn.Linear(config.width, inner, bias=config.biases)
        self.value = nn.Linear(config.width, inner, bias=config.biases)
        self.project = nn.Linear(inner, config.width, bias=config.biases)

    def forward(
        self,
        x: Tensor,
        turn: Rotation | None,
        cache: KeyValueCache | None = None,
        mask: Mask = None,
    ) -> Tensor:
        """Read from the positions before; x and the result are (batch, time, width).

        Args:
            cache: keys and values of earlier positions; these are added to it.
            mask: which positions are seen, from `make_masks`; None = all up to the reader.
        """
        queries, keys, values = self.queries_keys_values(x, turn)
        if cache is not None:
            keys, values = cache.append(self.layer, keys, values)
        if isinstance(mask, BlockMask):
            read = _flex(queries, keys, values, mask)
        else:
            # a single query reads every key there is
            causal = mask is None and x.shape[1] > 1
            read = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=causal
            )  # (batch, heads, time, head_dim)
        projected: Tensor = self.project(read.transpose(1, 2).flatten(2))  # (batch, time, width)
        return projected

    def queries_keys_values(self, x: Tensor, turn: Rotation | None) -> tuple[Tensor, ...]:
        """Three tensors (batch, heads, time, head_dim), normalised and turned as configured."""
        batch, time, _ = x.shape
        queries, keys, values = (
            linear(x).view(batch, time, self.n_heads, self.head_dim).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        if turn is not None:
            queries, keys = rotate(queries, turn), rotate(keys, turn)
        if self.qk_norm:
            queries = F.rms_norm(queries, (self.head_dim,))
            keys = F.rms_norm(keys, (self.head_dim,))
        return queries, keys, values

    def weights(self, x: Tensor, turn: Rotation | None, seen: Tensor | None = None) -> Tensor:
        """The weights themselves, softmax(QK' / sqrt(head_dim)): (batch, heads, time, time).

        `forward` never holds them; this is for looking at a head.

        Args:
            seen: a boolean matrix from `boolean_mask`; None = all up to the reader.
        """
        if seen is None:
            seen = boolean_mask(x.shape[1], 0, x.device)
        queries, keys, _ = self.queries_keys_values(x, turn)
        scores = queries @ keys.transpose(-1, -2) / self.head_dim**0.5
        weights: Tensor = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        return weights


def _flex(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask) -> Tensor:
    """FlexAttention; all tensors are (batch, heads, time, head_dim).

    Uncompiled it would hold all scores, so it is compiled by itself where the model is not.
    """
    kernel: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    # under autocast norms give float32 and matrices bfloat16, and the three have to agree
    read: Tensor = kernel(queries.to(values.dtype), keys.to(values.dtype), values, block_mask=mask)
    return read


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention)
