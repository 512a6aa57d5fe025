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

from strata.config import TrainingConfig


@dataclass(frozen=True)
class Runtime:
    """The decision: a device, the type of its matrix products, whether to compile, and why."""

    device: torch.device
    dtype: torch.dtype
    compile: bool
    threads: int
    reasons: tuple[str, ...]

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in `dtype`; weights and sums stay in float32."""
        enabled = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


@functools.lru_cache(maxsize=16)
def choose_runtime(training: TrainingConfig) -> Runtime:
    """Decide where and how to compute.

    Raises:
        ValueError: if a device or precision is asked for that this machine does not have.
    """
    reasons = []
    available: dict[Literal["cuda", "mps", "cpu", "auto"], bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kind = training.device
    if kind == "auto":
        kind = next(name for name in available if available[name])
        reasons.append(f"device {kind}: the first of CUDA, MPS and CPU that is here")
    elif not available[kind]:
        raise ValueError(f"training.device = {kind!r}: PyTorch sees no such device here")
    else:
        reasons.append(f"device {kind}: as configured")
    # torchrun gives each process of a machine its own number and so its own GPU
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if kind == "cuda" else kind)

    fast, why = _fast_bfloat16(kind)
    if training.precision == "bfloat16" and kind == "cuda" and not fast:
        raise ValueError(f"training.precision = 'bfloat16': {why}")
    bfloat16 = training.precision == "bfloat16" or (training.precision == "auto" and fast)
    source = "as configured" if training.precision != "auto" else why
    exact = "float32, on CUDA as TF32," if kind == "cuda" else "float32"
    reasons.append(f"{'bfloat16' if bfloat16 else exact} matrix products: {source}")

    compiled = training.compile == "on" or (training.compile == "auto" and kind == "cuda")
    if training.compile != "auto":
        reasons.append(f"torch.compile {training.compile}: as configured")
    elif compiled:
        reasons.append("torch.compile on: fused kernels pay for a minute of compiling on CUDA")
    else:
        reasons.append(f"torch.compile off: on {kind} it gains too little for a short run")

    cores = len(os.sched_getaffinity(0)) if _on_linux() else os.cpu_count() or 1
    # torchrun says how many processes share this machine
    threads = training.threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return Runtime(
        device, torch.bfloat16 if bfloat16 else torch.float32, compiled, threads, tuple(reasons)
    )


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


@functools.lru_cache(maxsize=4)
def matmul_flops(runtime: Runtime) -> float:
    """Operations per second of a large matrix product here: the most a model could reach.

    Measured, not looked up, so that it holds for any device: the best of a few products of
    4,096 (GPU) or 1,024 (CPU) rows.
    """
    apply_runtime(runtime)
    size = 1_024 if runtime.device.type == "cpu" else 4_096
    left, right = torch.rand(2, size, size, device=runtime.device, dtype=runtime.dtype)
    best = float("inf")
    for _ in range(5):
        synchronize(runtime.device)
        start = time.perf_counter()
        left @ right
        synchronize(runtime.device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


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
