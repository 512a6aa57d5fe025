"""Models of both recipes, small enough to be computed again in float64, and their tokens."""

import pytest
import torch

from strata.config import Config, ModelConfig
from strata.model import Transformer

VOCABULARY = 300
SIZE = {
    "model.vocab_size": VOCABULARY,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.width": 32,
    "model.context_length": 16,
}
STRATA = Config.preset("nano").override(SIZE).model
GPT3 = Config.preset("gpt3-small").override({**SIZE, "model.head_dim": 0}).model
RECIPES = pytest.mark.parametrize("config", [STRATA, GPT3], ids=["strata", "gpt3"])


def random_model(config: ModelConfig) -> Transformer:
    """A model in which no parameter is zero, as after some training."""
    torch.manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def random_tokens(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCABULARY, (rows, columns), generator=generator)
