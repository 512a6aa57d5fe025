"""A checkpoint: how long training stands still for it, how large it is, and what memory it takes.

    python benchmarks/checkpoint.py                                # one CPU thread, some minutes
    python benchmarks/checkpoint.py --device cuda --rounds 21 --steps 40 --sequences 32

Beside Strata's stands the checkpoint of nanoGPT's train.py: one `torch.save` of model, optimizer
and settings to the final path, while training waits, with no sync and no sum. Both save the state
of the preset micro, weights and moments, to the same disk, in turn. First alone: until training may
go on, until all is written, and the memory that takes (of the host, read from Linux). Then inside
the same few steps of training: the seconds held, and all by which those steps and the end of the
writing took longer than steps without a save, which contains what the writing takes from them. The
report goes to benchmarks/results/.
"""

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import torch
from measuring import RESULTS, Seconds, machine, ratio, table, take_turns

from strata import Config, Transformer
from strata.training import build_optimizer, choose_runtime, train_step
from strata.training.checkpoint import Checkpoints
from strata.training.device import apply_runtime, synchronize
from strata.training.distributed import Processes
from strata.training.optimizer import Optimizer
from strata.training.state import run_tensors

OURS, PEER, NONE = "Strata", "nanoGPT's way", "no save"
MEGABYTE = 1_000_000
MINUTE = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="of training, around a save")
    parser.add_argument("--sequences", type=int, default=2, help="in a step")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="on the disk to be written; else the system's")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the report")
    options = parser.parse_args()
    config = Config.preset("micro").override(
        {"training.device": options.device, "training.threads": options.threads}
    )
    runtime = choose_runtime(config.training)
    apply_runtime(runtime)
    torch.manual_seed(0)
    model = Transformer(config.model).to(runtime.device)
    optimizer = build_optimizer(model, config.optimizer, runtime.compile, runtime.dtype)
    shape = (options.sequences, config.model.context_length + 1)
    tokens = torch.randint(config.model.vocab_size, shape, device=runtime.device)
    loss = torch.compile(model.loss) if runtime.compile else model.loss

    def train(steps: int) -> None:
        for _ in range(steps):
            train_step(loss, optimizer, [(tokens[:, :-1], tokens[:, 1:])], config.training)
        synchronize(runtime.device)

    train(1)  # makes the moments, and compiles where that is done
    tensors = run_tensors(model, optimizer)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        checkpoints = Checkpoints(folder, Processes(), keep=1)
        step = itertools.count(1)
        saves: dict[str, Callable[[], object]] = {
            OURS: lambda: checkpoints.save(next(step), tensors, {}),
            PEER: lambda: torch.save(as_nanogpt(model, optimizer, config), folder / "ckpt.pt"),
        }
        held, written, memory = save_alone(saves, checkpoints, options.rounds)
        sizes = {
            OURS: sum(file.stat().st_size for file in folder.glob("checkpoints/*/*")),
            PEER: (folder / "ckpt.pt").stat().st_size,
        }
        held_inside, whole = save_inside(saves, checkpoints, train, options.steps, options.rounds)

    state_bytes = sum(tensor.nbytes for tensor in tensors.values())
    excess = {
        name: [b - a for a, b in zip(whole[NONE], whole[name], strict=True)] for name in saves
    }
    median = statistics.median
    report = (
        f"# A checkpoint, {date.today()}\n\n"
        f"{machine(['torch', 'safetensors'])} {options.device}, {options.threads} threads. Shared "
        f"with others; medians of {options.rounds} alternating rounds. The state of micro: "
        f"{state_bytes / MEGABYTE:,.1f} MB of weights and moments.\n\n"
        + table(
            ("alone", "held, s", "written after, s", "MB", "bytes over state", "memory beside, MB"),
            [
                (
                    name,
                    median(held[name]),
                    median(written[name]),
                    sizes[name] / MEGABYTE,
                    f"{sizes[name] / state_bytes:.4f}",
                    median(memory[name]),
                )
                for name in saves
            ],
        )
        + f"\nStrata lets training go on {ratio(held, OURS, PEER):.3g} times as soon. Its file is "
        "synced to disk, read again for its sums and renamed; the other's is left to the page "
        "cache. Bytes over state: target at most 1.05.\n\n"
        + table(
            (
                f"inside {options.steps} steps",
                "held, s",
                "% of a minute",
                "steps and writing took longer by, s",
                "% of a minute",
            ),
            [
                (
                    name,
                    median(held_inside[name]),
                    100 * median(held_inside[name]) / MINUTE,
                    median(excess[name]),
                    100 * median(excess[name]) / MINUTE,
                )
                for name in saves
            ],
        )
        + f"\nA step of {options.sequences} x {config.model.context_length} tokens takes "
        f"{median(whole[NONE]) / options.steps:.3g} s, and {options.steps} of them without a save "
        f"ranged over {max(whole[NONE]) - min(whole[NONE]):.2g} s, which is what the last two "
        "columns are sure to. Target: training held below 2 % of the time at one save a minute.\n"
    )
    path = options.output / f"checkpoint-{date.today()}.md"
    path.write_text(report, encoding="utf-8")
    print(path)


def as_nanogpt(model: Transformer, optimizer: Optimizer, config: Config) -> dict[str, object]:
    """The dictionary that nanoGPT's train.py saves, its optimizer as torch.optim gives it."""
    moments = dict(enumerate(optimizer.state.values()))
    return {
        "model": model.state_dict(),
        "optimizer": {"state": moments, "param_groups": [{"params": list(moments)}]},
        "model_args": config.to_dict()["model"],
        "iter_num": optimizer.updates,
        "best_val_loss": 0.0,
        "config": config.to_dict(),
    }


def save_alone(
    saves: Mapping[str, Callable[[], object]], checkpoints: Checkpoints, rounds: int
) -> tuple[Seconds, Seconds, dict[str, list[float]]]:
    """Seconds until training may go on and until all is written; megabytes that it takes."""
    held: Seconds = {name: [] for name in saves}
    memory: dict[str, list[float]] = {name: [] for name in saves}

    def trial(name: str) -> None:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        started = time.perf_counter()
        saves[name]()
        held[name].append(time.perf_counter() - started)
        checkpoints.wait()
        memory[name].append(resident("VmHWM") - before)

    for name in saves:
        saves[name]()  # the first of each, which imports and opens
    checkpoints.wait()
    written = take_turns({name: functools.partial(trial, name) for name in saves}, rounds)
    return held, written, memory


def save_inside(
    saves: Mapping[str, Callable[[], object]],
    checkpoints: Checkpoints,
    train: Callable[[int], None],
    steps: int,
    rounds: int,
) -> tuple[Seconds, Seconds]:
    """Seconds held after the first of some steps; seconds of all steps and the writing."""
    held: Seconds = {name: [] for name in saves}

    def trial(name: str) -> None:
        train(1)
        if name in saves:
            started = time.perf_counter()
            saves[name]()
            held[name].append(time.perf_counter() - started)
        train(steps - 1)
        checkpoints.wait()

    contestants = {name: functools.partial(trial, name) for name in (NONE, *saves)}
    return held, take_turns(contestants, rounds)


def resident(kind: str) -> float:
    """Megabytes of memory in use ("VmRSS"), or the most that were ("VmHWM")."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(kind)) * 1024 / MEGABYTE


if __name__ == "__main__":
    main()
