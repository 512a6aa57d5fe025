"""The transformer: from token ids to the probabilities of the next token.

    tokens -> embedding -> n_layers x (attention, feed-forward) -> norm -> head -> logits

One class is both recipes. GPT-3's (Brown et al., 2020, section 2.1) adds learned positions to the
embedding and normalises with LayerNorm; Strata's turns queries and keys by their position,
normalises with RMSNorm, and lets each block mix the input embedding back in. Which it is stands
in `ModelConfig` and nowhere else, and `initialise` shows the whole starting point.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from strata.config import Config, ModelConfig
from strata.model.attention import Attention, KeyValueCache, Rotation, rotation
from strata.model.layers import FeedForward, make_norm
from strata.model.loss import IGNORED, chunked_cross_entropy, score_targets, soft_cap
from strata.model.masks import Mask, Tree, boolean_mask, make_masks, row_masks, sees_whole


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to the stream (pre-normalised)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.width)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = make_norm(config, config.width)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        turn: Rotation | None,
        cache: KeyValueCache | None = None,
        mask: Mask = None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn, cache, mask)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))  # (batch, time, width)
        return out


class Transformer(nn.Module):
    """A decoder-only transformer.

    Shapes: tokens and targets are (batch, time) integers, time at most `context_length`. So are
    documents, where they are given: which document of its row a token belongs to. No position then
    reads from another document.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        if config.residual_scalars:
            # block i starts from stream_mix[i] * stream + input_mix[i] * input embedding
            self.stream_mix = nn.Parameter(torch.empty(config.n_layers))
            self.input_mix = nn.Parameter(torch.empty(config.n_layers))
        self.final_norm = make_norm(config, config.width)
        if not config.tie_embeddings:
            self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if not self.embedding.weight.is_meta:  # which has shapes and no values
            initialise(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def head_weight(self) -> Tensor:
        """The output head (vocab, width), which may be the embedding itself."""
        return self.embedding.weight if self.config.tie_embeddings else self.head.weight

    def hidden(
        self,
        tokens: Tensor,
        cache: KeyValueCache | None = None,
        documents: Tensor | None = None,
        tree: Tree | None = None,
    ) -> Tensor:
        """What the head reads: (batch, time, width).

        Args:
            tree: how the rows branch; a row may then be longer than the context, while none of its
                depths may.

        Raises:
            ValueError: if the tokens, with those in the cache, exceed the context; if documents are
                not as the tokens are, or come with a cache, which does not know its documents.
        """
        if documents is not None and (cache is not None or documents.shape != tokens.shape):
            with_cache = " and no cache" if cache is not None else ""
            raise ValueError(
                f"documents {tuple(documents.shape)}: expected the shape of the tokens, "
                f"{tuple(tokens.shape)}{with_cache}"
            )
        time, past = tokens.shape[1], cache.length if cache else 0
        positions = self._positions(tokens, cache) if tree is None else tree.depths
        x, turn = self._embed(tokens, positions)
        if positions.dim() == 2 and tree is None:
            masks = row_masks(self.config, positions, past + time)
        else:
            masks = make_masks(self.config, time, past, tokens.device, documents, tree)
        x0 = x
        for layer, block in enumerate(self.blocks):
            mask = masks.whole if sees_whole(self.config, layer) else masks.windowed
            x = block(self._mix(layer, x, x0), turn, cache, mask)
        if cache is not None:
            cache.advance(time)
        normalised: Tensor = self.final_norm(x)
        return normalised

    def forward(
        self,
        tokens: Tensor,
        cache: KeyValueCache | None = None,
        last_only: bool = False,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits of the next token, float32 (batch, time, vocab).

        Args:
            cache: continue after the positions it holds, and add these to it.
            last_only: only each row's last position's logits, (batch, 1, vocab).
            lengths: how many tokens of each row count, where the others behind them are padding.
                Nothing reads from padding, and the cache forgets it; it has to be empty before.
        """
        x = self.hidden(tokens, cache)
        if lengths is not None and cache is not None:
            cache.lengths = list(lengths)
        if last_only and lengths is not None:
            last = torch.tensor(lengths, device=x.device) - 1
            x = x[torch.arange(len(x), device=x.device), last][:, None]  # (batch, 1, width)
        elif last_only:
            x = x[:, -1:]
        return soft_cap(F.linear(x, self.head_weight).float(), self.config.logit_softcap)

    def loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats, a scalar; targets of -100 are left out."""
        hidden = self.hidden(tokens, documents=documents).flatten(0, 1)  # (batch * time, width)
        return chunked_cross_entropy(
            hidden, self.head_weight, targets.flatten(), self.config.logit_softcap
        )

    @torch.no_grad()
    def score(
        self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Nats of each target, and whether it is the most likely token: both (batch, time).

        Targets of -100 are left out: 0 nats, False.
        """
        places = (targets.flatten() != IGNORED).nonzero()[:, 0]
        nats = torch.zeros(targets.shape, device=targets.device)
        correct = torch.zeros(targets.shape, device=targets.device, dtype=torch.bool)
        hidden = self.hidden(tokens, documents=documents).flatten(0, 1)
        nats.view(-1)[places], correct.view(-1)[places] = score_targets(
            hidden, self.head_weight, places, targets.flatten()[places], self.config.logit_softcap
        )
        return nats, correct

    @torch.no_grad()
    def score_branches(
        self, tokens: Tensor, tree: Tree, places: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Nats of targets after places of rows that branch, and whether each is the most likely.

        Args:
            tokens: (batch, time); `tree` says how they branch.
            places: (n,) the token that is read last, as a place in all rows, one after another:
                row * time + column; ascending, and the same one as often as is asked of it.
            targets: (n,) token ids.

        Returns:
            nats (n,) in float32 and a boolean (n,).
        """
        hidden = self.hidden(tokens, tree=tree).flatten(0, 1)
        return score_targets(hidden, self.head_weight, places, targets, self.config.logit_softcap)

    def new_cache(self, batch_size: int = 1, capacity: int = 0) -> KeyValueCache:
        """An empty cache for `batch_size` sequences, in the type that autocast computes in.

        Args:
            capacity: positions that a sequence has room for; 0 = the whole context.
        """
        kind = self.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else self.embedding.weight.dtype
        return KeyValueCache(self.config, batch_size, self.device, dtype, capacity)

    @torch.no_grad()
    def for_few_rows(self) -> "Transformer":
        """The same model, faster at reading one token at a time on a CPU; elsewhere itself.

        A product of a matrix with few rows takes the time of reading the matrix, and PyTorch reads
        at the speed of memory only what lies there column by column. So the copy has its matrices
        transposed in memory, and in nothing else differs.
        """
        whole = all(type(weight) is nn.Parameter for weight in self.parameters())
        if self.device.type != "cpu" or not whole:  # or shared out among processes
            return self
        model = _without_values(self.config)
        weights = {
            name: weight.t().contiguous().t() if weight.dim() == 2 else weight
            for name, weight in self.state_dict().items()
        }
        model.load_state_dict(weights, assign=True)
        return model.train(self.training)

    @torch.no_grad()
    def attention_pattern(self, tokens: Tensor, layer: int, head: int) -> Tensor:
        """One head's weights on the first sequence: (time, time), each row a distribution."""
        x, turn = self._embed(tokens, self._positions(tokens))
        x0 = x
        for index, block in enumerate(self.blocks):
            x = self._mix(index, x, x0)
            window = 0 if sees_whole(self.config, index) else self.config.window_length
            seen = boolean_mask(tokens.shape[1], 0, tokens.device, window)
            if index == layer:
                assert isinstance(block, Block)
                return block.attention.weights(block.attention_norm(x), turn, seen)[0, head]
            x = block(x, turn, mask=seen if window else None)
        raise ValueError(f"layer = {layer}: expected 0 to {self.config.n_layers - 1}")

    @classmethod
    def load(cls, run_dir: str | Path, device: str | torch.device = "cpu") -> "Transformer":
        """The finished model of a run folder, from its `config.toml` and `model.safetensors`.

        Raises:
            FileNotFoundError: if the run has no final weights yet.
        """
        weights = Path(run_dir) / "model.safetensors"
        config = Config.load(Path(run_dir) / "config.toml")
        if not weights.is_file():
            raise FileNotFoundError(
                f"{weights}: no such file; the run has not finished training, and "
                f"strata train --run-dir {run_dir} goes on with it"
            )
        model = cls(config.model)
        model.load_state_dict(safetensors.torch.load_file(weights))
        return model.to(device).eval()

    def _positions(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Where the tokens stand: (time,), or (batch, time) after rows of unequal lengths."""
        time = tokens.shape[1]
        end, room = time, self.config.context_length
        if cache is not None:
            end, room = cache.length + time, cache.capacity
        if end > room:
            source = "model.context_length" if cache is None else "the cache's capacity"
            raise ValueError(f"{end} tokens: expected at most {source} = {room}")
        return torch.arange(time, device=tokens.device) if cache is None else cache.place(time)

    def _embed(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Rotation | None]:
        """Embeddings (batch, time, width) of tokens at positions (time,) or (batch, time), and
        their turns."""
        config = self.config
        x: Tensor = self.embedding(tokens)
        if config.residual_scalars:
            x = F.rms_norm(x, (config.width,))
        if config.positions == "learned":
            return x + self.positions(positions), None
        return x, rotation(positions, config.head_size, config.rotary_base)

    def _mix(self, layer: int, x: Tensor, x0: Tensor) -> Tensor:
        if not self.config.residual_scalars:
            return x
        return self.stream_mix[layer] * x + self.input_mix[layer] * x0


@torch.no_grad()
def initialise(model: Transformer) -> None:
    """Set every parameter to its starting value, from PyTorch's global generator.

    - Matrices that read from the stream: normal, with standard deviation 1 / sqrt(width) in the
      Strata recipe (each output starts at unit size on a normalised input), 0.02 in GPT-2's and
      GPT-3's (Radford et al., 2019, section 2.3).
    - Projections back into the stream: zero in the Strata recipe, so that each block starts as
      the identity; in GPT's, normal scaled down by sqrt(2 * n_layers), the number of additions.
    - Embeddings: normal, 0.02; an untied head zero or as a matrix that reads from the stream.
    - Gains one, biases zero; the mix is all stream and a tenth of the input embedding.
    """
    config = model.config
    std = 1 / math.sqrt(config.width) if config.zero_init_projections else 0.02
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "norm" in name or name == "stream_mix":
            parameter.fill_(1.0)
        elif name == "input_mix":
            parameter.fill_(0.1)
        elif "embedding" in name or "positions" in name:
            parameter.normal_(0.0, 0.02)
        elif "project" in name or name == "head.weight":
            if config.zero_init_projections:
                parameter.zero_()
            else:
                scale = math.sqrt(2 * config.n_layers) if "project" in name else 1.0
                parameter.normal_(0.0, std / scale)
        else:
            parameter.normal_(0.0, std)


class _Undrawn(TorchFunctionMode):
    """Leaves weights undrawn: on the meta device, drawing imports TorchDynamo, for a second."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (nn.init.normal_, nn.init.kaiming_uniform_, nn.init.uniform_):
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


def _without_values(config: ModelConfig) -> Transformer:
    """The model's shapes."""
    with torch.device("meta"), _Undrawn():
        return Transformer(config)


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters in the "embedding" (tokens, positions), "head" (0 if tied), "body", "total"."""
    model = _without_values(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(sizes.values())
    head = sizes.get("head.weight", 0)
    embedding = sizes["embedding.weight"] + sizes.get("positions.weight", 0)
    return {
        "total": total,
        "embedding": embedding,
        "head": head,
        "body": total - embedding - head,
    }


def flops_per_token(config: ModelConfig) -> float:
    """Floating-point operations of training on one token, forward and backward.

    6 for each weight of a matrix product, the head among them, and 12 * n_heads * head_dim for each
    position that one reads from, in each layer (Chowdhery et al., 2022, "PaLM", appendix B). In a
    layer that sees the whole context these are context_length positions (like there, the half of
    the scores that causality hides is counted), in a windowed one window_length, as all tokens of
    a row but its first few have. What document masks hide depends on the text and is not taken off.
    """
    inner = config.n_heads * config.head_size
    matrices = config.n_layers * config.width * (4 * inner + 2 * config.mlp_width)
    head = config.width * config.vocab_size
    read = sum(
        config.context_length
        if sees_whole(config, layer)
        else min(config.window_length, config.context_length)
        for layer in range(config.n_layers)
    )
    return float(6 * (matrices + head) + 12 * inner * read)
