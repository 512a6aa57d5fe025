"""All that only a GPU can show, in one command and under nine minutes: is it right, how fast is it,
and where does the time go?

    PYTHONPATH=. python3 benchmarks/gpu.py                 # on a machine with one CUDA GPU
    PYTHONPATH=. python3 benchmarks/gpu.py --rehearse      # toy sizes on the CPU, in a minute

It needs PyTorch 2.11 or later, NumPy and safetensors, and makes its own tokens, so that a machine
without the rest of what Strata depends on can run it. `gpu_checks`, `gpu_asking` and `gpu_timings`
hold the parts, which run in the order of `PARTS`. After each the results are written, so that what
one part breaks costs that part alone; a part for which too little of the time is left is skipped
and said to be. A row holds a number and, where there is one, the target it is held against.
"""

import argparse
import contextlib
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from gpu_asking import check_asking, time_asking, time_writing
from gpu_bench import Bench, Row, free
from gpu_checks import (
    check_checkpoint,
    check_curve,
    check_float8,
    check_gradients,
    check_masks,
)
from gpu_timings import (
    time_attention,
    time_float8,
    time_head,
    time_large,
    time_small,
    time_windows,
)
from measuring import RESULTS, machine, table

from strata.config import TrainingConfig
from strata.storage import write_whole
from strata.training.device import apply_runtime, choose_runtime, matmul_flops, peak_flops

BUDGET = 520.0  # seconds in all; the last part to begin is stopped when they are over

# Each with the seconds that it may need on an H200, most of which go to compiling; what is asked
# for first comes first.
PARTS: list[tuple[Callable[[Bench], list[Row]], float]] = [
    (check_gradients, 45),
    (time_small, 60),
    (time_large, 80),
    (check_curve, 45),
    (check_checkpoint, 15),
    (check_masks, 45),
    (check_float8, 30),
    (check_asking, 30),
    (time_asking, 20),
    (time_writing, 20),
    (time_head, 45),
    (time_attention, 45),
    (time_float8, 80),
    (time_windows, 45),
]


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in the block when the time is over."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError("the time of the whole benchmark is over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_part(bench: Bench, part: Callable[[Bench], list[Row]], remaining: float) -> dict[str, Any]:
    """A part's rows, or what went wrong in it."""
    started = time.perf_counter()
    outcome: dict[str, Any] = {"status": "done"}
    try:
        with time_limit(remaining):
            apply_runtime(bench.runtime)
            outcome["rows"] = [row._asdict() for row in part(bench)]
    except Exception as error:  # one part's failure must not lose the others
        traceback.print_exc()
        outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}"[:2_000]}
    free()
    return outcome | {"seconds": time.perf_counter() - started}


def describe(bench: Bench) -> dict[str, Any]:
    """The machine, in words and in the two peaks that everything else is held against."""
    name = torch.cuda.get_device_name() if bench.on_gpu else "no GPU: a rehearsal on the CPU"
    return {
        "chip": name,
        "about": machine(["torch", "numpy", "safetensors"]),
        "cuda": torch.version.cuda,
        "peak_flops": bench.peak,
        "peak_is": "data sheet" if peak_flops(bench.runtime) else "measured matrix product",
        "measured_matmul_flops": matmul_flops(bench.runtime),
        "decisions": bench.runtime.reasons,
    }


def show(name: str, outcome: dict[str, Any]) -> None:
    """Print one part as a table."""
    reason = outcome.get("error", "")
    print(f"\n## {name}: {outcome['status']} in {outcome['seconds']:.0f} s {reason}\n", flush=True)
    words = {True: "yes", False: "NO", None: ""}
    rows = [
        (
            row["name"],
            "" if row["value"] is None else float(row["value"]),
            row["unit"],
            row["target"],
            words[row["met"]],
        )
        for row in outcome.get("rows", [])
    ]
    if rows:
        print(table(("what", "value", "unit", "target", "met"), rows), flush=True)


def main() -> int:
    """Run every part; 0 if none failed and no target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--output", type=Path, help="the JSON; by default in benchmarks/results/")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds in all")
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here: expected one, or --rehearse")
    deadline = time.monotonic() + arguments.budget
    asked = TrainingConfig(precision="bfloat16", device="cpu" if arguments.rehearse else "cuda")
    runtime = choose_runtime(asked)
    peak = peak_flops(runtime) or matmul_flops(runtime)
    bench = Bench(arguments.rehearse, runtime, peak)
    results: dict[str, Any] = {"date": str(date.today()), "rehearsal": arguments.rehearse}
    results |= {"machine": describe(bench), "parts": {}, "profiles": bench.profiles}
    print(json.dumps(results["machine"], indent=1), flush=True)
    chip = results["machine"]["chip"].removeprefix("NVIDIA ").replace(" ", "-").lower()
    output = arguments.output or RESULTS / f"gpu-{chip}-{date.today()}.json"
    for part, needed in PARTS:
        remaining = deadline - time.monotonic()
        if not arguments.rehearse and remaining < needed:
            outcome = {"status": "skipped", "seconds": 0.0, "error": f"{remaining:.0f} s are left"}
        else:
            outcome = run_part(bench, part, remaining)
        results["parts"][part.__name__] = outcome
        show(part.__name__, outcome)
        if arguments.output or not arguments.rehearse:
            write_whole(output, json.dumps(results, indent=1))
    for name, kernels in bench.profiles.items():
        print(f"\n## where the time of {name} goes\n")
        rows = [(k["kernel"][:80], k["calls"], k["milliseconds"], k["share"]) for k in kernels]
        print(table(("kernel", "calls", "ms", "share"), rows))
    parts = results["parts"].values()
    missed = [row for part in parts for row in part.get("rows", []) if row["met"] is False]
    failed = [part for part in parts if part["status"] != "done"]
    print(f"{len(failed)} parts not done, {len(missed)} targets missed")
    return 1 if failed or (missed and not arguments.rehearse) else 0


if __name__ == "__main__":
    sys.exit(main())
