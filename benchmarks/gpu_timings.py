"""How fast is it, and where does the time go? Updates of the presets, the loss head, attention.

Utilisation is model FLOPs (`strata.model.flops_per_token`) a second over the dense bfloat16 peak of
the chip's data sheet, for an update of half a million tokens: its micro-batches and one step of the
optimizer.
"""

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from gpu_bench import (
    Bench,
    LossFunction,
    Row,
    at_least,
    at_most,
    draw_documents,
    draw_tokens,
    free,
)
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from strata.config import Config
from strata.model import Transformer, flops_per_token, loss, masks
from strata.model.float8 import use_float8
from strata.training.device import synchronize
from strata.training.optimizer import build_optimizer

UPDATE_TOKENS = 1 << 19  # of an update of the presets
LARGEST_MICRO_BATCH = 1 << 16  # tokens
TOP_KERNELS = 20


def time_update(
    bench: Bench, name: str, config: Config, goal: float | None = None, float8: bool = False
) -> list[Row]:
    """An update of a model at the largest micro-batch up to 64k tokens that fits the memory.

    Args:
        goal: utilisation to be reached.
    """
    length = config.model.context_length
    rows = 4 if bench.rehearse else LARGEST_MICRO_BATCH // length
    wanted = rows * length
    while rows:
        try:
            return _time_update(bench, name, config, rows, wanted, goal, float8)
        except torch.OutOfMemoryError:
            rows //= 2
        free()
    raise MemoryError(f"{name}: not one row of {length} tokens fits")


def _time_update(
    bench: Bench,
    name: str,
    config: Config,
    rows: int,
    wanted: int,
    goal: float | None,
    float8: bool,
) -> list[Row]:
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = Transformer(config.model)
    if float8:
        use_float8(model)
    runtime = bench.runtime
    optimizer = build_optimizer(model, config.optimizer, runtime.compile, runtime.dtype)
    tokens, targets = (part.to(bench.device) for part in draw_tokens(config.model, rows, seed=3))
    documents = draw_documents(tokens).to(bench.device) if config.model.window_length else None
    loss_function = bench.compile(model.loss)

    def micro_batch() -> None:
        with bench.runtime.autocast():
            value = loss_function(tokens, targets, documents)
        value.backward()

    def step() -> None:
        optimizer.clip(1.0)
        optimizer.step()

    with bench.memory() as gigabytes:
        started = time.perf_counter()
        micro_batch()
        step()
        synchronize(bench.device)
        first = time.perf_counter() - started
        per_micro_batch, per_step = bench.seconds(micro_batch), bench.seconds(step, 5)
    bench.profiles[name] = profile(bench, lambda: (micro_batch(), step()))

    update_tokens = 2 * tokens.numel() if bench.rehearse else UPDATE_TOKENS
    seconds = per_micro_batch * (update_tokens / tokens.numel()) + per_step
    speed = update_tokens / seconds
    used = speed * flops_per_token(config.model) / bench.peak
    label = f"{name}: share of the peak"
    found = [
        Row(f"{name}: tokens a second", speed, "tokens/s"),
        Row(label, used, "") if goal is None else at_least(label, used, "", goal),
        at_least(f"{name}: largest micro-batch", tokens.numel(), "tokens", wanted),
        at_most(f"{name}: optimizer's share of an update", per_step / seconds, "", 0.08),
        Row(f"{name}: first step, compiling", first, "s"),
    ]
    return found + [Row(f"{name}: peak memory", peak, "GB") for peak in gigabytes]


def profile(bench: Bench, run: Callable[[], object]) -> list[dict[str, Any]]:
    """The kernels that take the most time of one call, each with its calls and milliseconds."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        synchronize(bench.device)
    events, which = profiler.key_averages(), "self_cpu_time_total"
    if bench.on_gpu:  # kernels alone: the operators that launched them would count them twice
        which = "self_device_time_total"
        events = [
            event
            for event in events
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        ]
    events = sorted(events, key=lambda event: -getattr(event, which))
    total = sum(getattr(event, which) for event in events) or 1.0
    return [
        {
            "kernel": event.key[:120],
            "calls": event.count,
            "milliseconds": getattr(event, which) / 1e3,
            "share": getattr(event, which) / total,
        }
        for event in events[:TOP_KERNELS]
    ]


def time_small(bench: Bench) -> list[Row]:
    """The preset `small`, compiled, in bfloat16."""
    return time_update(bench, "small", bench.preset("small"), goal=0.5)


def time_large(bench: Bench) -> list[Row]:
    """The preset `large`, compiled, in bfloat16."""
    return time_update(bench, "large", bench.preset("large"), goal=0.6)


def time_float8(bench: Bench) -> list[Row]:
    """The preset `large` with float8 in the blocks; its share is still one of bfloat16's peak."""
    return time_update(bench, "large, float8", bench.preset("large"), float8=True)


def time_windows(bench: Bench) -> list[Row]:
    """The preset `small` with windows in three layers of four and document masks in all."""
    changes = {"model.window_length": 8 if bench.rehearse else 512}
    return time_update(bench, "small, windows", bench.preset("small").override(changes))


def time_head(bench: Bench) -> list[Row]:
    """The loss head alone, forward and backward, at `large`'s width, in chunks of several sizes."""
    config = bench.preset("large").model
    positions = 64 if bench.rehearse else 32_768
    sizes = (16, 32) if bench.rehearse else (1_024, 2_048, 4_096, 8_192)
    torch.manual_seed(0)
    hidden = torch.randn(positions, config.width, device=bench.device, requires_grad=True)
    weight = torch.randn(config.vocab_size, config.width, device=bench.device, requires_grad=True)
    targets = torch.randint(0, config.vocab_size, (positions,), device=bench.device)
    cap, flops = config.logit_softcap, 6.0 * positions * config.width * config.vocab_size

    def whole(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
        return F.cross_entropy(loss.soft_cap(F.linear(hidden, weight).float(), cap), targets)

    def measure(name: str, function: LossFunction) -> list[Row]:
        def run() -> None:
            hidden.grad = weight.grad = None
            with bench.runtime.autocast():
                value = function(hidden, weight, targets, cap)
            value.backward()

        try:
            with bench.memory() as gigabytes:
                seconds = bench.seconds(run)
        except torch.OutOfMemoryError:
            return [Row(f"head, {name}: out of memory", None, "s")]
        return [
            Row(f"head, {name}", seconds, "s"),
            Row(f"head, {name}: share of the peak", flops / seconds / bench.peak, ""),
            *(Row(f"head, {name}: peak memory", peak, "GB") for peak in gigabytes),
        ]

    found = measure("all logits", whole) + measure("all logits, compiled", bench.compile(whole))
    for size in sizes:
        with mock.patch.object(loss, "chunk_length", lambda *_, size=size, **__: size):
            found += measure(f"chunks of {size}", loss.chunked_cross_entropy)
            if size >= sizes[-2]:  # compiling may unroll the chunks, which takes long if many
                torch._dynamo.reset()
                compiled = bench.compile(loss.chunked_cross_entropy)
                found += measure(f"chunks of {size}, compiled", compiled)
    return found


def time_attention(bench: Bench) -> list[Row]:
    """Attention alone at `small`'s shape, forward and backward: SDPA and FlexAttention."""
    config = bench.preset("small").model
    time_length, window = config.context_length, config.context_length // 4
    shape = (2 if bench.rehearse else 16, config.n_heads, time_length, config.head_size)
    parts = [torch.randn(shape, device=bench.device, dtype=bench.runtime.dtype) for _ in range(3)]
    parts = [part.requires_grad_(bench.on_gpu) for part in parts]
    documents = draw_documents(torch.empty(shape[0], time_length)).to(bench.device)
    compiled = bench.compile(flex_attention)

    def measure(name: str, attend: Callable[..., Tensor], **options: Any) -> Row:
        def run() -> None:
            read = attend(*parts, **options)
            if bench.on_gpu:
                read.backward(read.detach())

        return Row(f"attention, {name}", bench.seconds(run), "s")

    plain = F.scaled_dot_product_attention
    matrix = masks.boolean_mask(time_length, 0, bench.device, window, documents)
    found = [
        measure("SDPA, causal", plain, is_causal=True),
        measure("SDPA, boolean mask of windows and documents", plain, attn_mask=matrix),
    ]
    for name, reach, numbers in (
        ("causal", 0, None),
        ("windows", window, None),
        ("documents", 0, documents),
        ("windows and documents", window, documents),
    ):
        mask = masks.block_mask(time_length, bench.device, reach, numbers)
        found.append(measure(f"FlexAttention, {name}", compiled, block_mask=mask))
    made = bench.seconds(lambda: masks.block_mask(time_length, bench.device, window, documents))
    return [*found, Row("attention, making a block mask uncompiled", made, "s")]
