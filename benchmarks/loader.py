"""The loader beside PyTorch's DataLoader, and beside what a training step needs.

    python benchmarks/loader.py
    python benchmarks/loader.py --rounds 21 --steps 60

All read the shards of the embedded corpus as the preset `nano` tokenises it. Strata gives its rows
in the order of an epoch: from the stream, packed by best fit, and from a mixture of the corpus's
halves; each with a thread that reads ahead and without. The peer is the usual way to feed a small
GPT, that of nanoGPT's `get_batch`: windows at random places of one memory-mapped array; as a plain
function, and as a data set in torch.utils.data.DataLoader. What a step needs is measured on real
training steps of `nano`, and so is how long such a step waits for its batch. The report goes to
benchmarks/results/. It takes about three minutes on two cores.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
from measuring import RESULTS, machine, ratio, table, take_turns
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from strata import Config, Transformer
from strata.data import Batch, Loader, TokenShards, measure_packing, prepare
from strata.data.packing import plan_rows
from strata.data.shards import MANIFEST
from strata.training import build_optimizer, choose_runtime, train_step
from strata.training.device import apply_runtime

TARGET = 50.0  # times what a step needs
TOKENS_A_TURN = 1 << 19
SHAPES = ((8, 256), (32, 2_048))  # examples, tokens of each: that of `nano`, and 64k tokens

Take = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="of every comparison")
    parser.add_argument("--steps", type=int, default=30, help="training steps for each measurement")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the report")
    options = parser.parse_args()

    config = Config.preset("nano")
    apply_runtime(choose_runtime(config.training))
    shards = prepare(config.data, config.model.vocab_size).train
    need, waits = training_steps(config, shards, options.steps)
    parts = [
        f"# The loader beside its peers, {date.today()}\n",
        f"{machine(('torch', 'numpy'))} Shared with others; medians of alternating rounds.\n",
        f"The embedded corpus: {shards.n_documents:,} documents, {shards.n_tokens:,} tokens. "
        f"A training step of `nano` ({config.training.batch_size} × {config.model.context_length} "
        f"tokens) takes {need:,.0f} tokens per second.\n",
        waits,
    ]
    with tempfile.TemporaryDirectory() as folder:
        mixed = halves(shards, Path(folder))
        parts += [speeds(shards, mixed, *shape, need, options.rounds) for shape in SHAPES]
    parts += [packing_report(shards), planning_report(options.rounds)]
    path = options.output / f"loader-{date.today()}.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    print(path)


# --- what a step needs ------------------------------------------------------------------------


def training_steps(config: Config, shards: TokenShards, steps: int) -> tuple[float, str]:
    """Tokens per second of training steps of `nano`, and how long each waits for its batch."""
    torch.manual_seed(0)
    model = Transformer(config.model).to(choose_runtime(config.training).device)
    optimizer = build_optimizer(model, config.optimizer)
    rows, needs = [], []
    for name, prefetch in (("read ahead", 2), ("read when asked for", 0)):
        loader = Loader(
            shards,
            batch_size=config.training.batch_size,
            context_length=config.model.context_length,
            seed=0,
            prefetch=prefetch,
        )
        waited, stepped = [], []
        for _ in range(steps):
            started = time.perf_counter()
            tokens, targets = loader.next()
            given = time.perf_counter()
            train_step(model, optimizer, [(tokens, targets)], config.training).item()
            waited.append(given - started)
            stepped.append(time.perf_counter() - given)
        loader.close()
        wait, step = statistics.median(waited), statistics.median(stepped)
        rows.append((name, 1e6 * wait, 1e3 * step, 100 * wait / step))
        needs.append(tokens.numel() / step)
    header = ("batches", "wait for a batch, µs", "step without it, ms", "wait, % of the step")
    return max(needs), f"## In training: {steps} steps of `nano`\n\n" + table(header, rows)


# --- reading ----------------------------------------------------------------------------------


class Windows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Windows of one memory-mapped array, each at a random place whatever its number."""

    def __init__(self, path: Path, context_length: int) -> None:
        self.tokens = np.memmap(path, dtype="<u4", mode="r")
        self.context_length = context_length

    def __len__(self) -> int:
        return len(self.tokens) - self.context_length

    def __getitem__(self, _: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = int(torch.randint(len(self), ()))
        window = self.tokens[start : start + self.context_length + 1].astype(np.int64)
        return torch.from_numpy(window[:-1]), torch.from_numpy(window[1:])


def random_windows(tokens: NDArray[np.uint32], examples: int, context_length: int) -> Batch:
    """A batch as nanoGPT takes it: random places, inputs and targets read and stacked apart."""
    places = torch.randint(len(tokens) - context_length, (examples,)).tolist()

    def stacked(offset: int) -> torch.Tensor:
        ends = ((place + offset, place + offset + context_length) for place in places)
        return torch.stack([torch.from_numpy(tokens[a:b].astype(np.int64)) for a, b in ends])

    return Batch(stacked(0), stacked(1))


def without_end(batches: DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[object]:
    while True:
        yield from batches


def halves(shards: TokenShards, folder: Path) -> TokenShards:
    """The same files as a mixture: 7 rows of 10 from the first half of the documents."""
    manifest = json.loads((shards.folder / MANIFEST).read_text("utf-8"))
    ids = shards.window(0, shards.n_tokens)
    starts = np.flatnonzero(ids == ids[0])
    middle = len(starts) // 2
    start = int(starts[middle])
    manifest["parts"] = [
        {"corpus": "first", "share": 7, "start": 0, "n_tokens": start, "n_documents": middle},
        {
            "corpus": "second",
            "share": 3,
            "start": start,
            "n_tokens": shards.n_tokens - start,
            "n_documents": len(starts) - middle,
        },
    ]
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for shard in manifest["shards"]:
        (folder / shard["name"]).symlink_to(shards.folder.absolute() / shard["name"])
    return TokenShards(folder)


def speeds(
    shards: TokenShards,
    mixed: TokenShards,
    examples: int,
    context_length: int,
    need: float,
    rounds: int,
) -> str:
    """Tokens per second of every way to get batches of one shape."""
    path = max(shards.folder.glob("shard-*.bin"), key=lambda path: path.stat().st_size)
    plain = np.memmap(path, dtype="<u4", mode="r")
    takes: dict[str, Take] = {}
    loaders = []
    for name, source, packing in (
        ("stream", shards, "stream"),
        ("best-fit", shards, "best-fit"),
        ("mixture", mixed, "stream"),
        ("mixture, best-fit", mixed, "best-fit"),
    ):
        for ahead, prefetch in (("ahead", 2), ("when asked", 0)):
            loader = Loader(
                source,
                batch_size=examples,
                context_length=context_length,
                seed=0,
                packing=packing,
                prefetch=prefetch,
            )
            loaders.append(loader)
            takes[f"Strata, {name}, {ahead}"] = loader.next
    takes["random windows, plain"] = lambda: random_windows(plain, examples, context_length)
    for workers in (0, 2):
        batches = DataLoader(
            Windows(path, context_length), batch_size=examples, num_workers=workers
        )
        takes[f"DataLoader, {workers} workers"] = without_end(batches).__next__

    turns = max(1, TOKENS_A_TURN // (examples * context_length))

    def repeat(take: Take) -> None:
        for _ in range(turns):
            take()

    for take in takes.values():
        take()
    seconds = take_turns(
        {name: lambda take=take: repeat(take) for name, take in takes.items()}, rounds
    )
    for loader in loaders:
        loader.close()
    n_tokens = turns * examples * context_length
    rows = []
    for name, times in seconds.items():
        speed = n_tokens / statistics.median(times)
        beside = [
            ratio(seconds, name, peer)
            for peer in ("random windows, plain", "DataLoader, 0 workers")
        ]
        rows.append((name, speed / 1e6, speed / need, *beside))
    header = ("", "million tokens/s", "× a step of `nano`", "× plain", "× DataLoader")
    least = min(n_tokens / statistics.median(times) / need for name, times in seconds.items()
                if name.startswith("Strata"))  # fmt: skip
    return (
        f"## Batches of {examples} × {context_length:,}\n\n{table(header, rows)}\n"
        f"Target: at least {TARGET:g} times a step's need. The slowest of Strata's ways: "
        f"{least:,.0f} times.\n"
    )


# --- packing ----------------------------------------------------------------------------------


def packing_report(shards: TokenShards) -> str:
    """What each way of packing costs."""
    rows = []
    for context_length in (256, 1_024, 2_048):
        for packing in ("stream", "best-fit"):
            cost = measure_packing(shards, context_length, packing)
            shares = (100 * cost.padding, 100 * cost.dropped, 100 * cost.cut)
            rows.append((f"{context_length:,}", packing, f"{cost.n_rows:,}", *shares))
    header = ("context", "packing", "rows", "padding, %", "dropped, %", "documents cut, %")
    return "## What packing costs, on the embedded corpus\n\n" + table(header, rows)


def planning_report(rounds: int) -> str:
    """How long a plan for a million documents takes."""
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 1_000_000).astype(np.int64) + 1
    starts = np.cumsum(lengths) - lengths
    seconds = take_turns({"plan": lambda: plan_rows(starts, lengths, 2_049)}, rounds)["plan"]
    return (
        f"Planning the rows of a million documents of log-normal length ({lengths.sum():,} tokens, "
        f"context 2,048): {statistics.median(seconds):.2f} s.\n"
    )


if __name__ == "__main__":
    main()
