"""How well held-out text is predicted, in the middle of a run."""

from torch import Tensor

from strata.config import Config
from strata.data import TokenShards, document_numbers, read_windows, spread_windows
from strata.model import Transformer, bits_per_byte
from strata.training.device import Runtime
from strata.training.distributed import Processes

ROWS = 16  # sequences in a forward pass


def check_held_out(shards: TokenShards, config: Config) -> None:
    """Raise ValueError if the held-out text does not fill one context."""
    if shards.n_tokens <= config.model.context_length:
        raise ValueError(
            f"the corpus {config.data.corpus!r} holds out {shards.n_tokens} tokens: expected more "
            f"than model.context_length = {config.model.context_length}; raise "
            "data.validation_fraction or use more text"
        )


def validate(
    model: Transformer,
    shards: TokenShards,
    sequences: int,
    byte_lengths: Tensor,
    runtime: Runtime,
    processes: Processes,
    separator: int | None = None,
) -> dict[str, float]:
    """Loss in nats a token and bits per byte on sequences spread evenly over the held-out text.

    Args:
        sequences: how many of `context_length` tokens, shared among the processes.
        byte_lengths: (vocab,) bytes that each token stands for.
        separator: stands before each document; given, tokens read from their own one alone.
    """
    length = model.config.context_length
    windows = spread_windows(shards, sequences, length)
    numbers = windows[processes.rank :: processes.size]
    nats, n_tokens, n_bytes = 0.0, 0, 0
    model.eval()
    # as many passes on every process: those of a sharded model need all of them
    for start in range(0, -(-len(windows) // processes.size), ROWS):
        mine = numbers[start : start + ROWS]
        tokens, targets = read_windows(shards, mine if len(mine) else windows[:1], length)
        there = tokens.to(runtime.device)
        documents = None if separator is None else document_numbers(there, separator)
        with runtime.autocast():
            losses, _ = model.score(there, targets.to(runtime.device), documents)
        if not len(mine):
            continue
        nats += losses.cpu().double().sum().item()  # MPS has no float64
        n_tokens += targets.numel()
        n_bytes += int(byte_lengths[targets].sum())
    model.train()
    nats, tokens_seen, bytes_seen = processes.total(nats, n_tokens, n_bytes)
    return {
        "validation_loss": nats / tokens_seen,
        "validation_bits_per_byte": bits_per_byte(nats, int(bytes_seen)),
    }
