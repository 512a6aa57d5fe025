"""Where a run computes and in which arithmetic: one function decides and says why."""

import functools
import os
import platform
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from strata.config import ModelConfig, TrainingConfig
from strata.model.masks import masked_kernel
from strata.training.parallelism import Parallelism, choose_parallelism

# Width from which the matrices of a model gain by eight bits, with torch.compile. From nanochat's
# measurements on H100s (dev/LOG.md, 2026-02-02): slower at depth 12, width 768; 17 % faster at
# depth 26, width 1,664, though at depth 24 only 5 % to the same loss. Not measured here yet.
FLOAT8_LEAST_WIDTH = 1_664
# Compute capability of the first chips that multiply float8: Ada (8.9) and Hopper (9.0).
FLOAT8_CAPABILITY = (8, 9)

# Dense bfloat16 operations per second that a chip's data sheet promises, by the name that CUDA
# gives it. Where NVIDIA states the figure "with sparsity", this is half of it; of the GeForce cards
# it is that with sums in float32.
PEAK_FLOPS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}

Kind = Literal["cuda", "mps", "cpu"]
Precision = Literal["float32", "bfloat16", "float8"]


@dataclass(frozen=True)
class Runtime:
    """The decision: a device, the type of its matrix products, whether to compile, and why.

    With `float8` the matrices of the blocks multiply in eight bits (`strata.model.float8`), and
    `dtype` is that of the other products.
    """

    device: torch.device
    dtype: torch.dtype
    compile: bool
    threads: int
    reasons: tuple[str, ...]
    parallelism: Parallelism
    float8: bool = False

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in `dtype`; weights and sums stay in float32."""
        enabled = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


@functools.lru_cache(maxsize=16)
def choose_runtime(training: TrainingConfig, model: ModelConfig | None = None) -> Runtime:
    """Decide where and how to compute.

    Args:
        model: what is to be trained; without it "auto" chooses neither float8 nor to shard.

    Raises:
        ValueError: if a device or precision is asked for that this machine does not have.
    """
    kind, device_reason = _choose_device(training)
    compiled, compile_reason = _choose_compile(training, kind)
    precision, precision_reason = _choose_precision(training, kind, compiled, model)
    threads, threads_reason = _choose_threads(training)
    parallelism = choose_parallelism(training, model, kind)
    return Runtime(
        # torchrun gives each process of a machine its own number and so its own GPU
        torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if kind == "cuda" else kind),
        torch.float32 if precision == "float32" else torch.bfloat16,
        compiled,
        threads,
        (
            device_reason,
            precision_reason,
            _attention_reason(kind, precision),
            compile_reason,
            threads_reason,
            parallelism.reason,
        ),
        parallelism,
        float8=precision == "float8",
    )


def _choose_device(training: TrainingConfig) -> tuple[Kind, str]:
    available: dict[Kind, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if training.device == "auto":
        kind = next(name for name in available if available[name])
        return kind, f"device {kind}: the first of CUDA, MPS and CPU that is here"
    if not available[training.device]:
        raise ValueError(f"training.device = {training.device!r}: PyTorch sees no such device here")
    return training.device, f"device {training.device}: as configured"


def _choose_compile(training: TrainingConfig, kind: Kind) -> tuple[bool, str]:
    if training.compile != "auto":
        return training.compile == "on", f"torch.compile {training.compile}: as configured"
    if kind == "cuda":
        return True, "torch.compile on: fused kernels pay for a minute of compiling on CUDA"
    return False, f"torch.compile off: on {kind} it gains too little for a short run"


def _choose_precision(
    training: TrainingConfig, kind: Kind, compiled: bool, model: ModelConfig | None
) -> tuple[Precision, str]:
    asked = training.precision
    sixteen, about_sixteen = _fast_bfloat16(kind)
    eight, about_eight = _has_float8(kind)
    if asked == "bfloat16" and kind == "cuda" and not sixteen:
        raise ValueError(f"training.precision = 'bfloat16': {about_sixteen}")
    if asked == "float8" and not eight:
        raise ValueError(
            f"training.precision = 'float8': {about_eight}; expected a CUDA GPU of compute "
            f"capability {FLOAT8_CAPABILITY[0]}.{FLOAT8_CAPABILITY[1]} or later, or 'bfloat16'"
        )
    wide = model is not None and model.width >= FLOAT8_LEAST_WIDTH
    if asked == "float8" or (asked == "auto" and eight and compiled and wide):
        why = "as configured" if asked != "auto" else about_eight
        slow = "" if compiled else ", though without torch.compile it is slow"
        return "float8", f"float8 matrix products in blocks, bfloat16 elsewhere: {why}{slow}"
    if asked == "bfloat16" or (asked == "auto" and sixteen):
        why = "as configured" if asked != "auto" else about_sixteen
        if asked == "auto" and eight:
            why += f", and float8 pays from a width of {FLOAT8_LEAST_WIDTH:,} on"
        return "bfloat16", f"bfloat16 matrix products: {why}"
    # see `apply_runtime`
    how = {"cuda": ", as TF32", "cpu": "" if sixteen else ", through oneDNN", "mps": ""}
    why = "as configured" if asked != "auto" else about_sixteen
    return "float32", f"float32 matrix products{how[kind]}: {why}"


def _attention_reason(kind: Kind, precision: Precision) -> str:
    """In words what PyTorch and `strata.model.masks` choose by themselves."""
    plain = "scaled_dot_product_attention"
    if kind == "cuda":
        kernels = "memory-efficient" if precision == "float32" else "flash"
        plain += f" with its {kernels} kernels"
    if masked_kernel(torch.device(kind)) == "flex":
        masked = "FlexAttention, which skips what a window or a document hides"
    else:
        masked = "the same with a boolean mask, since FlexAttention trains on CUDA alone"
    return f"attention: {plain}; under windows or document masks {masked}"


def _choose_threads(training: TrainingConfig) -> tuple[int, str]:
    if training.threads:
        return training.threads, f"{training.threads} CPU threads: as configured"
    cores = len(os.sched_getaffinity(0)) if _on_linux() else os.cpu_count() or 1
    # torchrun says how many processes share this machine
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = max(1, cores // processes)
    shared = f" for {processes} processes" if processes > 1 else ""
    return threads, f"{threads} CPU threads: {cores} cores{shared}"


def apply_runtime(runtime: Runtime) -> None:
    """Set PyTorch's process-wide switches: threads, and the faster of the float32 products."""
    if torch.get_num_threads() != runtime.threads:
        torch.set_num_threads(runtime.threads)
    # "high" is TF32 on CUDA. On a CPU "medium" is oneDNN, which beats the default on AMD chips, but
    # would round to bfloat16 where the CPU has it
    if runtime.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    else:
        torch.set_float32_matmul_precision("highest" if _fast_bfloat16("cpu")[0] else "medium")


def _on_linux() -> bool:
    return platform.system() == "Linux"


def _fast_bfloat16(kind: str) -> tuple[bool, str]:
    """Whether bfloat16 products run in hardware, and the reason in words."""
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return fast, f"this GPU {'has' if fast else 'lacks'} them in hardware"
    if kind == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        fast = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
        return fast, f"this CPU {'has' if fast else 'lacks'} AVX512-BF16 or AMX for bfloat16"
    return False, "bfloat16 is not tested on MPS"


def _has_float8(kind: Kind) -> tuple[bool, str]:
    """Whether float8 products run in hardware, and the reason in words."""
    if kind != "cuda":
        return False, f"{kind} does not multiply float8"
    capability = torch.cuda.get_device_capability()
    has = capability >= FLOAT8_CAPABILITY
    found = f"of compute capability {capability[0]}.{capability[1]}"
    return has, f"this GPU, {found}, {'has' if has else 'lacks'} them in hardware"


@functools.lru_cache(maxsize=4)
def matmul_flops(runtime: Runtime) -> float:
    """Operations per second of a large matrix product here: the most a model could reach.

    Measured, not looked up, so that it holds for any device: the best of a few products of
    4,096 (GPU) or 1,024 (CPU) rows, or of as many as are begun within a second, since bfloat16 on
    a CPU without it takes seconds for one.
    """
    apply_runtime(runtime)
    size = 1_024 if runtime.device.type == "cpu" else 4_096
    left, right = torch.rand(2, size, size, device=runtime.device, dtype=runtime.dtype)
    left[:16] @ right  # the first product of all waits for libraries to load
    took: list[float] = []
    while len(took) < 5 and sum(took) < 1.0:
        synchronize(runtime.device)
        start = time.perf_counter()
        left @ right
        synchronize(runtime.device)
        took.append(time.perf_counter() - start)
    return 2 * size**3 / min(took)


def peak_flops(runtime: Runtime) -> float | None:
    """Dense bfloat16 operations per second that the chip's data sheet promises; None if unknown.

    What model FLOPs utilisation is a share of (Chowdhery et al., 2022, "PaLM", section 4.1);
    `matmul_flops` beside it says how much of it a large product reaches in practice.
    """
    if runtime.device.type != "cuda":
        return None
    return PEAK_FLOPS.get(torch.cuda.get_device_name(runtime.device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it, so that the clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int:
    """Bytes at most in use so far: of a CUDA device what tensors took, else what the process has.

    0 where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def processor_name() -> str:
    """What the CPU calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
