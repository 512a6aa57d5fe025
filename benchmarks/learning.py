"""How much text, and how much time, until Strata knows what nanoGPT knows at the end of its run.

    python benchmarks/learning.py --nanogpt ../nanoGPT
    python benchmarks/learning.py --nanogpt ../nanoGPT --corpus "files:texts/*.parquet"

Both models have as many layers, as much width, the same tokens in the same order, and tied
embeddings, so that nanoGPT has a few more parameters, its positions. nanoGPT trains with its own
optimizer and schedule (AdamW, decay 0.1, warm-up, cosine to a tenth) at each of several peak
rates; its best is repeated with further seeds. Strata's recipe, as it is, makes runs of several
lengths, each with its own schedule; between them the length is interpolated at which it would end
where nanoGPT's best ends. Time is that of the CPU, one thread, of the updates alone. What is
compared is bits per byte on the same held-out text. The report goes to benchmarks/results/.
"""

import argparse
import itertools
import math
import multiprocessing
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measuring import RESULTS, machine, table
from torch import Tensor
from training import peer_step

from strata.config import Config
from strata.data import Loader, prepare, read_windows, spread_windows
from strata.model import Transformer, bits_per_byte
from strata.training import build_optimizer, choose_runtime, schedule_at, train_step
from strata.training.device import apply_runtime

VALIDATION_SEQUENCES = 128


class Run(NamedTuple):
    """One run to be made."""

    contestant: str
    rate: float
    seed: int
    steps: int


class Outcome(NamedTuple):
    """What it came to."""

    bits_per_byte: float
    cpu_seconds: float
    tokens: int


class NanoGPT:
    """nanoGPT's model, optimizer and schedule."""

    def __init__(self, config: Config, checkout: str, run: Run) -> None:
        sys.path.insert(0, checkout)
        from model import GPT, GPTConfig

        sizes = config.model
        self.model = GPT(
            GPTConfig(
                block_size=sizes.context_length,
                vocab_size=sizes.vocab_size,
                n_layer=sizes.n_layers,
                n_head=sizes.n_heads,
                n_embd=sizes.width,
                bias=False,
            )
        )
        self.optimizer = self.model.configure_optimizers(0.1, run.rate, (0.9, 0.95), "cpu")
        # the faster of PyTorch's ways to float32 products on a CPU, as Strata takes it
        self.precision = "medium" if config.training.precision == "float32" else "bfloat16"
        self.update = peer_step(self.model, self.optimizer, self.loss, self.precision)
        self.run = run

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.model(tokens, targets)[1]

    def step(self, number: int, tokens: Tensor, targets: Tensor) -> None:
        warmup = max(1, self.run.steps // 20)
        done = (number - warmup) / (self.run.steps - warmup)
        height = min(1.0, number / warmup)
        if done > 0:
            height = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.rate * height
        self.update(tokens, targets)

    @torch.no_grad()
    def nats(self, tokens: Tensor, targets: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.loss(tokens, targets).item() * targets.numel()


class Strata:
    """Strata's recipe as it is."""

    def __init__(self, config: Config, _: str, run: Run) -> None:
        self.config = config.override(
            {
                "training.max_steps": run.steps,
                "training.warmup_steps": max(1, run.steps // 20),
                "training.threads": 1,
                "training.device": "cpu",
            }
        )
        apply_runtime(choose_runtime(self.config.training))
        self.model = Transformer(self.config.model)
        self.optimizer = build_optimizer(self.model, self.config.optimizer)

    def step(self, number: int, tokens: Tensor, targets: Tensor) -> None:
        self.optimizer.set_schedule(schedule_at(number, self.config))
        train_step(self.model, self.optimizer, [(tokens, targets)], self.config.training)

    def nats(self, tokens: Tensor, targets: Tensor) -> float:
        with choose_runtime(self.config.training).autocast():
            return self.model.score(tokens, targets)[0].double().sum().item()


def make_run(config: Config, checkout: str, run: Run) -> Outcome:
    """Train one model and score it on held-out text; in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    data = prepare(config.data, config.model.vocab_size, progress=False)
    contestant = (NanoGPT if run.contestant == "nanoGPT" else Strata)(config, checkout, run)
    length = config.model.context_length
    loader = Loader(
        data.train,
        batch_size=config.training.batch_size,
        context_length=length,
        seed=run.seed,
    )
    cpu_seconds = 0.0
    for number in range(1, run.steps + 1):
        tokens, targets = loader.next()
        started = time.process_time()
        contestant.step(number, tokens, targets)
        cpu_seconds += time.process_time() - started
    contestant.model.eval()
    numbers = spread_windows(data.validation, VALIDATION_SEQUENCES, length)
    byte_lengths = torch.from_numpy(data.tokenizer.byte_lengths.astype(np.int64))
    nats, n_bytes = 0.0, 0
    for start in range(0, len(numbers), 16):
        tokens, targets = read_windows(data.validation, numbers[start : start + 16], length)
        nats += contestant.nats(tokens, targets)
        n_bytes += int(byte_lengths[targets].sum())
    seen = run.steps * config.training.batch_size * length
    return Outcome(bits_per_byte(nats, n_bytes), cpu_seconds, seen)


def length_to_reach(lengths: list[int], losses: list[float], target: float) -> float:
    """The length whose loss is `target`: linear between neighbours, in the logarithms.

    Where all are better it is the shortest, an upper bound; where none is, not a number.
    """
    points = sorted(zip(lengths, losses, strict=True))
    for (short, high), (long, low) in itertools.pairwise(points):
        if high >= target >= low:
            share = (math.log(high) - math.log(target)) / (math.log(high) - math.log(low))
            return math.exp(math.log(short) + share * (math.log(long) - math.log(short)))
    return points[0][0] if points[0][1] < target else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--corpus", default="installed", help="as strata's --corpus names it")
    parser.add_argument("--preset", default="nano", help="the sizes of both models")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=400, help="updates of nanoGPT's run")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 6e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.125, 0.25, 0.375])
    parser.add_argument("--label", default="", help="added to the name of the report")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the report")
    options = parser.parse_args()
    changes = {"data.corpus": options.corpus, "training.precision": options.precision}
    config = Config.preset(options.preset).override(changes)
    prepare(config.data, config.model.vocab_size)  # once, before the clock starts
    made: dict[Run, Outcome] = {}

    def make(run: Run) -> Outcome:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            made[run] = pool.apply(make_run, (config, options.nanogpt, run))
        print(run, made[run], flush=True)
        return made[run]

    first, *others = options.seeds
    trials = {
        rate: make(Run("nanoGPT", rate, first, options.steps)).bits_per_byte
        for rate in options.rates
    }
    best = min(trials, key=lambda rate: trials[rate])
    lengths = [round(share * options.steps) for share in options.shares]
    for seed in options.seeds:
        if seed in others:
            make(Run("nanoGPT", best, seed, options.steps))
        for steps in lengths:
            make(Run("Strata", 0.0, seed, steps))

    rows, token_ratios, time_ratios = [], [], []
    for seed in options.seeds:
        theirs = made[Run("nanoGPT", best, seed, options.steps)]
        ours = [made[Run("Strata", 0.0, seed, steps)] for steps in lengths]
        needed = length_to_reach(lengths, [o.bits_per_byte for o in ours], theirs.bits_per_byte)
        a_step = statistics.median(o.cpu_seconds / s for o, s in zip(ours, lengths, strict=True))
        token_ratios.append(needed / options.steps)
        time_ratios.append(needed * a_step / theirs.cpu_seconds)
        rows.append(
            [
                seed,
                theirs.bits_per_byte,
                *(o.bits_per_byte for o in ours),
                token_ratios[-1],
                time_ratios[-1],
            ]
        )
    parts = [
        f"# Text and time to nanoGPT's final loss, {date.today()}\n",
        f"{machine(['torch'])} One thread; the machine is shared with others.\n",
        f"Sizes of `{options.preset}`, corpus `{Path(options.corpus).name}`, "
        f"{config.training.batch_size * config.model.context_length:,} tokens an update, "
        f"nanoGPT {options.steps} updates. Bits per byte.\n",
        "nanoGPT's peak rates, first seed: "
        + ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in trials.items())
        + f". The best is {best:g}"
        + (", an end of the range" if best in (min(trials), max(trials)) else "")
        + ".\n",
        table(
            [
                "seed",
                "nanoGPT",
                *(f"Strata, {steps} updates" for steps in lengths),
                "share of tokens",
                "share of CPU time",
            ],
            rows,
        ),
        f"Median share of tokens {statistics.median(token_ratios):.3f}, of CPU time "
        f"{statistics.median(time_ratios):.3f}. Where Strata's shortest run is already better, its "
        "length is what is counted.\n",
    ]
    path = options.output / f"learning{options.label}-{date.today()}.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
