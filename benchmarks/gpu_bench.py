"""What the parts of the GPU benchmark share: rows, sizes, a stop-watch, tokens and a model."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from strata.config import Config, ModelConfig
from strata.model import Transformer
from strata.training.device import Runtime, synchronize

LossFunction = Callable[..., Tensor]


class Row(NamedTuple):
    """One number that was measured; None where the memory did not suffice."""

    name: str
    value: float | None
    unit: str
    target: str = ""
    met: bool | None = None


def at_least(name: str, value: float, unit: str, bound: float) -> Row:
    return Row(name, value, unit, f"at least {bound:g}", value >= bound)


def at_most(name: str, value: float, unit: str, bound: float) -> Row:
    return Row(name, value, unit, f"at most {bound:g}", value <= bound)


@dataclass
class Bench:
    """What the parts share: the machine, the sizes, and what is kept beside the rows."""

    rehearse: bool
    runtime: Runtime
    peak: float
    profiles: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def preset(self, name: str) -> Config:
        """A preset at its size, or in a rehearsal at the smallest that has all its parts."""
        config = Config.preset(name)
        if self.rehearse:
            config = config.override(
                {
                    "model.vocab_size": 304,
                    "model.n_layers": 2,
                    "model.n_heads": 2,
                    "model.width": 32,
                    "model.context_length": 32,
                }
            )
        return config

    def checked(self, **changes: object) -> ModelConfig:
        """A model small enough for its reference on the CPU in float32."""
        fields = {f"model.{name}": value for name, value in changes.items()}
        if not self.rehearse:
            fields |= {
                "model.vocab_size": 8_192,
                "model.n_layers": 2,
                "model.width": 256,
                "model.n_heads": 4,
                "model.context_length": 512,
            }
        return self.preset("small").override(fields).model

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Inductor on a GPU; a rehearsal only traces, which is where Python can break."""
        return torch.compile(
            function, backend="inductor" if self.on_gpu else "eager", dynamic=False
        )

    def seconds(self, run: Callable[[], object], repeats: int = 10) -> float:
        """Median time of a call, after two to warm up."""
        times = []
        for turn in range(2 + (2 if self.rehearse else repeats)):
            synchronize(self.device)
            started = time.perf_counter()
            run()
            synchronize(self.device)
            if turn >= 2:
                times.append(time.perf_counter() - started)
        return statistics.median(times)

    @contextlib.contextmanager
    def memory(self) -> Iterator[list[float]]:
        """Gigabytes allocated at the peak of a block: a list that it fills; empty on a CPU."""
        found: list[float] = []
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        yield found
        if self.on_gpu:
            found.append(torch.cuda.max_memory_allocated() / 1e9)


def draw_tokens(config: ModelConfig, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets (rows, context_length) on the CPU: token k has a weight of 1 / (k + 1)."""
    weights = 1 / torch.arange(1, config.vocab_size + 1)
    generator = torch.Generator().manual_seed(seed)
    count = rows * (config.context_length + 1)
    ids = torch.multinomial(weights, count, replacement=True, generator=generator)
    ids = ids.view(rows, config.context_length + 1)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def draw_documents(tokens: Tensor) -> Tensor:
    """Document numbers of rows cut at random, into four on average."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(tokens.shape, generator=generator) < 3 / tokens.shape[1]
    return starts.int().cumsum(1, dtype=torch.int32)


def random_model(config: ModelConfig) -> Transformer:
    """A model on the CPU in which no parameter is zero, so that every gradient counts."""
    torch.manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def free() -> None:
    """Give back what the last part held on the device."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
