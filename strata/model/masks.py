"""Which positions a position may read from: its past, a window of it, its own document.

Some rules, and a position is seen where all that apply allow it:

- causal: nothing that comes after;
- window: in most layers only the last `window_length` tokens, the reader included (Beltagy et al.,
  2020, "Longformer", section 3.1), while every n-th layer and the last see everything. What one
  windowed layer cannot reach, the next reads at second hand;
- document: nothing of the other documents that were packed into the same row;
- tree: nothing of the branches that the reader is not on, where texts that begin alike share a row
  and their beginning (`Tree`).

Plain causal attention needs no mask, for the kernels of `scaled_dot_product_attention` know it.
Anything else is made once a forward pass and shared by the layers: on CUDA as a `BlockMask`, with
which FlexAttention (Dong et al., 2024) skips every block of 128 x 128 that holds nothing to be
seen, elsewhere, and for rows of odd lengths, as a boolean matrix.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from strata.config import ModelConfig

# FlexAttention's kernels work on blocks of so many queries and keys, and refuse narrower heads.
# Other lengths, which evaluation brings, would each be compiled anew.
FLEX_BLOCK, FLEX_LEAST_HEAD = 128, 16

# None: causal, or all keys where a single query reads the cache.
Mask = Tensor | BlockMask | None


class Tree(NamedTuple):
    """Rows that branch: texts that begin alike, their beginning written once.

    A row lists its tokens so that whatever continues a token follows it without a gap ("preorder"):
    the texts "a b c" and "a b d e" are the row a b c d e. Both tensors are (batch, time).

    depths: how many tokens stand before a token in its own text: its position.
    ends: the place in the row after the last token that continues it.
    """

    depths: Tensor
    ends: Tensor


class Masks(NamedTuple):
    """One mask for each kind of layer."""

    whole: Mask
    windowed: Mask


def sees_whole(config: ModelConfig, layer: int) -> bool:
    """Whether a layer sees the whole context, and not a window of it."""
    last = layer == config.n_layers - 1
    return not config.window_length or last or (layer + 1) % config.full_attention_every == 0


def masked_kernel(device: torch.device) -> Literal["flex", "sdpa"]:
    """What computes attention under windows or document masks: FlexAttention where it is fast."""
    return "flex" if device.type == "cuda" else "sdpa"


def make_masks(
    config: ModelConfig,
    time: int,
    past: int,
    device: torch.device,
    documents: Tensor | None = None,
    tree: Tree | None = None,
) -> Masks:
    """The masks of one forward pass over `time` tokens, after `past` tokens in a cache.

    Args:
        documents: (batch, time) which document of its row each token is of; not with a cache.
        tree: how the rows branch; not with a cache.
    """
    reach = config.window_length
    windowed = 0 < reach < past + time  # a longer window hides nothing
    fits = past == 0 and time % FLEX_BLOCK == 0 and config.head_size >= FLEX_LEAST_HEAD
    branched = documents is not None or tree is not None
    if fits and masked_kernel(device) == "flex":
        plain = block_mask(time, device, 0, documents, tree) if branched else None
        narrow = block_mask(time, device, reach, documents, tree) if windowed else plain
        return Masks(plain, narrow)
    # SDPA's own causal mask begins at the first key, which is not where these queries stand
    needed = branched or (past > 0 and time > 1)
    whole = boolean_mask(time, past, device, 0, documents, tree) if needed else None
    if not windowed:
        return Masks(whole, whole)
    return Masks(whole, boolean_mask(time, past, device, reach, documents, tree))


def row_masks(config: ModelConfig, positions: Tensor, keys: int) -> Masks:
    """The masks of tokens that follow rows of unequal lengths in a cache, of `keys` places.

    Args:
        positions: (batch, time) of each token in its row.

    Returns:
        Boolean masks (batch, 1, time, keys), for all heads.
    """
    apart = positions[:, :, None] - torch.arange(keys, device=positions.device)
    seen = apart >= 0  # (batch, time, keys)
    reach = config.window_length
    narrow = seen & (apart < reach) if 0 < reach < keys else seen
    return Masks(seen[:, None], narrow[:, None])


def boolean_mask(
    time: int,
    past: int,
    device: torch.device,
    window: int = 0,
    documents: Tensor | None = None,
    tree: Tree | None = None,
) -> Tensor:
    """True where the row's position sees the column's.

    Args:
        window: tokens that are seen, the reader included; 0 = all.

    Returns:
        (time, past + time); with documents or a tree (batch, 1, time, time), for all heads.
    """
    queries = torch.arange(past, past + time, device=device)[:, None]  # (time, 1)
    keys = torch.arange(past + time, device=device)  # (past + time,)
    seen = keys <= queries
    if window:
        # along a branch tokens lie as far apart as their depths do
        depths = None if tree is None else tree.depths
        apart = queries - keys if depths is None else depths[:, :, None] - depths[:, None, :]
        seen = seen & (apart < window)
    if documents is not None:
        seen = seen & (documents[:, :, None] == documents[:, None, :])  # (batch, time, time)
    if tree is not None:
        seen = seen & (queries < tree.ends[:, None, :])  # (batch, time, time)
    return seen[:, None] if seen.dim() == 3 else seen


def block_mask(
    time: int,
    device: torch.device,
    window: int = 0,
    documents: Tensor | None = None,
    tree: Tree | None = None,
) -> BlockMask:
    """The rules of `boolean_mask`, without a past, as FlexAttention takes them."""

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = key <= query
        if window and tree is None:
            allowed = allowed & (query - key < window)
        if documents is not None:
            allowed = allowed & (documents[batch, query] == documents[batch, key])
        if tree is not None:
            allowed = allowed & (query < tree.ends[batch, key])
            if window:
                allowed = allowed & (tree.depths[batch, query] - tree.depths[batch, key] < window)
        return allowed

    rows = next((len(one) for one in (documents, *(tree or ())) if one is not None), None)
    return create_block_mask(seen, rows, None, time, time, device=device)
