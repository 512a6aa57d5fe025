"""`strata doctor`: what this machine can do, what is missing, and which preset fits it.

Everything is asked of the machine or measured on it in a second; the estimate of a training run
is FLOPs over the measured speed of a large matrix product.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from strata.config import Config, TrainingConfig
from strata.data import cache_dir
from strata.model import count_parameters, flops_per_token
from strata.training import choose_runtime
from strata.training.device import Runtime, matmul_flops, peak_flops, processor_name
from strata.training.parallelism import STATE_BYTES, USABLE, activation_bytes
from strata.workbook import REPOSITORY

# Share of a large matrix product's speed that a training step reaches; measured on CPUs with the
# nano preset, and what good GPU trainers report of themselves.
UTILISATION = 0.4
LONGEST_HOURS = 24.0  # a preset that takes longer does not fit
_GB = 1e9


@dataclass(frozen=True)
class Estimate:
    """What a preset would need on this machine."""

    preset: str
    parameters: int
    memory_bytes: float
    hours: float


def estimate(preset: str, flops_per_second: float) -> Estimate:
    """Memory and time of training a preset at a given speed of matrix products.

    Memory: weights, gradients and two moments, and the activations of one micro-batch; see
    `strata.training.parallelism`.
    """
    config = Config.preset(preset)
    model, training = config.model, config.training
    parameters = count_parameters(model)["total"]
    sequences = training.micro_batch_size or training.batch_size
    memory = STATE_BYTES * parameters + activation_bytes(model, sequences)
    tokens = training.max_steps * training.batch_size * model.context_length
    seconds = tokens * flops_per_token(model) / (flops_per_second * UTILISATION)
    return Estimate(preset, parameters, memory, seconds / 3600)


def best_fit(estimates: Sequence[Estimate], memory_bytes: float) -> str:
    """The last preset that fits the memory and takes less than a day; "" if none does."""
    fitting = [
        one.preset
        for one in estimates
        if one.memory_bytes < USABLE * memory_bytes and one.hours < LONGEST_HOURS
    ]
    return fitting[-1] if fitting else ""


def examine() -> None:
    """Print what was found, one line each, and a table of the presets."""
    runtime = choose_runtime(TrainingConfig())
    for name, text in [
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("torch", torch.__version__),
        *_devices(runtime),
        *(("decision", reason) for reason in runtime.reasons),
        ("memory", _memory()),
        ("disk", _disk()),
        ("numba cache", _numba_cache()),
        ("LaTeX", _tool("latexmk", "sudo apt-get install --no-install-recommends latexmk "
                        "texlive-latex-recommended texlive-latex-extra texlive-fonts-recommended")),
        ("rsync", _tool("rsync", "sudo apt-get install rsync")),
        ("ssh", _tool("ssh", "sudo apt-get install openssh-client")),
    ]:  # fmt: skip
        print(f"{name:<12} {text}")
    speed = matmul_flops(runtime)
    peak = peak_flops(runtime)
    share = f", {speed / peak:.0%} of what the chip's data sheet promises" if peak else ""
    print(
        f"{'speed':<12} {speed / 1e12:,.2f} TFLOP/s in matrix products, measured just now{share}\n"
    )
    memory = _device_memory(runtime)
    names = [name for name in Config.presets() if not name.startswith("gpt3")]
    estimates = [estimate(name, speed) for name in names]
    print(f"{'preset':<8} {'parameters':>12} {'memory':>10} {'training':>12}")
    for one in estimates:
        size, time = f"{one.memory_bytes / _GB:,.1f} GB", _hours(one.hours)
        print(f"{one.preset:<8} {one.parameters / 1e6:>10,.1f} M {size:>10} {time:>12}")
    fitting = best_fit(estimates, memory)
    if fitting:
        print(f"\nfits this machine: {fitting} (make run PRESET={fitting})")
    else:
        print("\nno preset fits this machine in memory and within a day; nano comes nearest")


def _devices(runtime: Runtime) -> list[tuple[str, str]]:
    found = [("cpu", f"{processor_name()}, {runtime.threads} threads")]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found.append((f"cuda:{index}", f"{about.name}, {about.total_memory / _GB:,.0f} GB"))
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple's GPU, which shares the machine's memory"))
    return found


def _total_memory() -> float:
    """Bytes of memory of this machine, or of the container it runs in if that has less."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, float(text)) if text.isdigit() else total


def _memory() -> str:
    text = f"{_total_memory() / _GB:,.1f} GB"
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable"):
                text += f", {int(line.split()[1]) * 1024 / _GB:,.1f} GB of it free"
    return text


def _device_memory(runtime: Runtime) -> float:
    if runtime.device.type == "cuda":
        return float(torch.cuda.get_device_properties(runtime.device).total_memory)
    return _total_memory()


def _disk() -> str:
    places = {"runs": REPOSITORY, "cache": cache_dir()}
    texts = []
    for what, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        texts.append(f"{shutil.disk_usage(there).free / _GB:,.0f} GB free for {what} in {place}")
    return "; ".join(texts)


def _numba_cache() -> str:
    """Whether compiled kernels can be kept, which saves seconds at every start."""
    folder = os.environ.get("NUMBA_CACHE_DIR") or str(Path(__file__).parent / "tokenizer")
    try:
        with tempfile.TemporaryFile(dir=folder):
            return f"kept under {folder}"
    except OSError:
        return f"{folder} cannot be written: set NUMBA_CACHE_DIR to a folder that can"


def _tool(command: str, remedy: str) -> str:
    path = shutil.which(command)
    if path is None:
        return f"missing ({remedy})"
    asked = subprocess.run(
        [command, "-V" if command == "ssh" else "--version"], capture_output=True, text=True
    )
    lines = [line for line in (asked.stdout + asked.stderr).splitlines() if line.strip()]
    return lines[0].strip() if lines else path


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{max(1, round(60 * hours))} min"
    return f"{hours:,.0f} h" if hours < 72 else f"{hours / 24:,.0f} days"
