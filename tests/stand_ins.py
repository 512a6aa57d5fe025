"""A model and a tokenizer small enough to be computed by hand, with the interface of the real ones.

`BigramModel` knows the probability of each token given the one before it, and nothing else.
`ByteTokenizer` has one token a byte, and two special tokens.
"""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch


class ByteTokenizer:
    vocab_size = 258
    document_separator = 256
    special_tokens = {"<|document|>": 256, "<|reserved_1|>": 257}  # noqa: RUF012
    byte_lengths = np.array([1] * 256 + [0, 0], dtype=np.int32)

    def encode(self, text):
        return list(text.encode("utf-8"))

    def token_bytes(self, token):
        return bytes([token])


class BigramModel:
    """probabilities: (vocab, vocab), a row for the token before, a column for the next one."""

    def __init__(self, probabilities, context_length=32):
        self.logits = torch.as_tensor(probabilities, dtype=torch.float64).log()
        self.config = SimpleNamespace(context_length=context_length)
        self.device = torch.device("cpu")
        self.rows = []  # the shape of every batch that was scored
        self.passes = []  # how many tokens every forward pass read

    @classmethod
    def uniform(cls, vocab_size=258, **kwargs):
        return cls(torch.full((vocab_size, vocab_size), 1.0 / vocab_size), **kwargs)

    @classmethod
    def that_writes(cls, text, vocab_size=258, likely=0.9, **kwargs):
        """Each byte of the text is followed by the next one with probability `likely`."""
        others = (1.0 - likely) / (vocab_size - 1)
        table = torch.full((vocab_size, vocab_size), others, dtype=torch.float64)
        ids = [256, *text.encode("utf-8"), 256]
        for before, after in pairwise(ids):
            table[before] = others
            table[before, after] = likely
        return cls(table, **kwargs)

    def score_branches(self, tokens, tree, places, targets):
        assert int(tree.depths.max()) < self.config.context_length
        self.rows.append(tuple(tokens.shape))
        logits = self.logits[tokens.flatten()[places]]
        nats = -logits.gather(1, targets[:, None])[:, 0]
        return nats.float(), logits.argmax(-1) == targets

    def new_cache(self, batch_size, capacity=0):
        return BigramCache(batch_size, capacity or self.config.context_length)

    def __call__(self, tokens, cache=None, last_only=False, lengths=None):
        self.passes.append(tokens.shape[1])
        cache.lengths = lengths or [length + tokens.shape[1] for length in cache.lengths]
        assert max(cache.lengths) <= cache.capacity <= self.config.context_length
        if last_only:
            last = torch.tensor(lengths or [tokens.shape[1]] * len(tokens)) - 1
            tokens = tokens.gather(1, last[:, None])
        return self.logits[tokens].float()


class BigramCache:
    """How much has been read, in as many rows; there is nothing else to remember."""

    def __init__(self, batch_size, capacity):
        self.lengths, self.capacity = [0] * batch_size, capacity

    @property
    def length(self):
        return max(self.lengths)

    def row(self, index):
        return BigramCache(1, self.capacity)

    def drop(self, index):
        self.lengths[index] = self.lengths[-1]
        self.lengths.pop()
