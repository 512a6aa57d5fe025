"""An update of the weights alone: Strata's optimizers beside torch.optim's; its share of a step.

    python benchmarks/optimizer.py                       # one CPU thread, some three minutes
    python benchmarks/optimizer.py --device cuda --rounds 21

The model has 6 layers, a width of 384 and 86,400 tokens: 33 million parameters in the embedding, 11
million in the blocks. All contestants update the same weights from the same gradients, in turn;
Strata's time contains the clipping that a training step has, torch.optim's its `clip_grad_norm_`.
Memory is what an optimizer keeps between updates, and what one update needs beyond that, each in a
process of its own (on a CPU read from Linux). torch.optim's Muon computes in bfloat16 and takes
part where that is fast. The share is of whole training steps, 16 sequences of
256 tokens. The report goes to benchmarks/results/.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from measuring import RESULTS, machine, ratio, table, take_turns
from torch import nn

from strata import Config, Transformer
from strata.config import OptimizerConfig
from strata.training import build_optimizer, choose_runtime, train_step
from strata.training.device import Runtime, apply_runtime, synchronize
from strata.training.groups import role_of

CONFIG = Config.preset("micro").override(
    {"model.vocab_size": 86_400, "model.context_length": 256, "training.batch_size": 16}
)
SEQUENCES = 16
MEGABYTE = 1_000_000

STRATAS = {
    "Strata muon": OptimizerConfig(),
    "Strata muon, even rows, cautious": OptimizerConfig(
        normalise_rows=True, cautious_decay=True, weight_decay=0.1
    ),
    **{
        f"Strata {name}": OptimizerConfig(name=name, learning_rate=1e-3, weight_decay=0.1)
        for name in ("adamw", "lion", "sgd", "adafactor")
    },
}
PYTORCHS = (
    "torch.optim Muon and fused AdamW",
    "torch.optim AdamW",
    "torch.optim fused AdamW",
    "torch.optim SGD",
    "torch.optim Adafactor",
)
PAIRS = (
    ("Strata muon", "torch.optim Muon and fused AdamW"),
    ("Strata adamw", "torch.optim AdamW"),
    ("Strata adamw", "torch.optim fused AdamW"),
    ("Strata sgd", "torch.optim SGD"),
    ("Strata adafactor", "torch.optim Adafactor"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="whole training steps, after one more")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the report")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    training = {"training.device": options.device, "training.threads": options.threads}
    config = CONFIG.override(training)
    runtime = choose_runtime(config.training)
    apply_runtime(runtime)
    if options.memory_of:
        print(json.dumps(memory_of(options.memory_of, runtime)))
        return

    model = model_with_gradients(runtime)
    names = [*STRATAS, *PYTORCHS]
    if runtime.dtype != torch.bfloat16:  # which theirs computes in: where it is emulated, a minute
        names = [name for name in names if "optim Muon" not in name]
    updates = {name: contestant(name, model, runtime) for name in names}

    def waiting(update: Callable[[], object]) -> Callable[[], object]:
        return lambda: (update(), synchronize(runtime.device))

    for update in updates.values():
        update()  # makes its moments, and compiles where that is done
    seconds = take_turns({name: waiting(u) for name, u in updates.items()}, options.rounds)
    del updates, model
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = []
    for name in medians:
        command = [sys.executable, __file__, "--memory-of", name, "--device", options.device]
        command += ["--threads", str(options.threads)]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append((name, 1e3 * medians[name], *json.loads(told.splitlines()[-1])))
    step = step_seconds(config, runtime, options.steps)
    share = 100 * medians["Strata muon"] / step
    report = (
        f"# An update of the weights, {date.today()}\n\n"
        f"{machine(['torch'])} {options.device}, {options.threads} threads, "
        f"{str(runtime.dtype).removeprefix('torch.')} products. Shared with others; medians of "
        f"{options.rounds} alternating rounds.\n\n"
        + table(("", "milliseconds", "keeps, MB", "needs beyond that, MB"), rows)
        + "\n"
        + table(
            ("", "beside", "times as fast"),
            [(a, b, ratio(seconds, a, b)) for a, b in PAIRS if b in seconds],
        )
        + f"\nA whole training step of {SEQUENCES} x {config.model.context_length} tokens takes "
        f"{step:.3g} s; Strata's muon is {share:.1f} % of it (target: at most 8 % of a bfloat16 "
        "step).\n"
    )
    path = options.output / f"optimizer-{date.today()}.md"
    path.write_text(report, encoding="utf-8")
    print(path)


def model_with_gradients(runtime: Runtime) -> Transformer:
    """The model, its gradients random and of the norm that clipping leaves."""
    torch.manual_seed(0)
    model = Transformer(CONFIG.model).to(runtime.device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return model


def contestant(name: str, model: Transformer, runtime: Runtime) -> Callable[[], object]:
    """A function that clips the gradients and makes one update."""
    if name in STRATAS:
        optimizer = build_optimizer(model, STRATAS[name], runtime.compile, runtime.dtype)
        return lambda: (optimizer.clip(1.0), optimizer.step())
    named = list(model.named_parameters())
    everything = [parameter for _, parameter in named]
    matrices = [parameter for key, parameter in named if role_of(key, parameter) == "matrix"]
    rest = [parameter for key, parameter in named if role_of(key, parameter) != "matrix"]
    fused = "fused" in name
    theirs: list[torch.optim.Optimizer]
    if "Muon" in name:
        theirs = [
            torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
            torch.optim.AdamW(rest, lr=1e-3, fused=fused),
        ]
    elif "AdamW" in name:
        theirs = [torch.optim.AdamW(everything, lr=1e-3, fused=fused)]
    elif "SGD" in name:
        theirs = [torch.optim.SGD(everything, lr=1e-3, momentum=0.95, nesterov=True)]
    else:
        theirs = [torch.optim.Adafactor(everything, lr=1e-3)]

    def update() -> None:
        nn.utils.clip_grad_norm_(everything, 1.0)
        for one in theirs:
            one.step()

    return update


def memory_of(name: str, runtime: Runtime) -> tuple[float, float]:
    """Megabytes that an optimizer keeps, and that an update needs beyond all that is kept."""
    model = model_with_gradients(runtime)
    before = resident(runtime)
    update = contestant(name, model, runtime)
    update()
    kept = resident(runtime)
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    update()
    return kept - before, resident(runtime, peak=True) - kept


def resident(runtime: Runtime, peak: bool = False) -> float:
    """Memory in use, or the most that was, in megabytes."""
    if runtime.device.type == "cuda":
        read = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
        return read() / MEGABYTE
    kind = "VmHWM" if peak else "VmRSS"
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(kind)) * 1024 / MEGABYTE


def step_seconds(config: Config, runtime: Runtime, steps: int) -> float:
    """The median time of a whole training step."""
    torch.manual_seed(0)
    model = Transformer(config.model).to(runtime.device)
    optimizer = build_optimizer(model, config.optimizer, runtime.compile, runtime.dtype)
    shape = (SEQUENCES, config.model.context_length + 1)
    tokens = torch.randint(config.model.vocab_size, shape, device=runtime.device)
    loss = torch.compile(model.loss) if runtime.compile else model.loss
    times = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        train_step(loss, optimizer, [(tokens[:, :-1], tokens[:, 1:])], config.training)
        synchronize(runtime.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
