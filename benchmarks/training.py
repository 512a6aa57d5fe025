"""A training step beside nanoGPT's and litgpt's: time and memory.

    python benchmarks/training.py --nanogpt ../nanoGPT
    python benchmarks/training.py --nanogpt ../nanoGPT --litgpt site-packages-with-litgpt

Every contestant is a process of its own with one thread and takes its step when it is its turn: a
whole update (forward, backward, clipping, optimizer) of the same random tokens, timed in seconds
of CPU, which a busy machine stretches less than those of the clock. All have six layers of width
384 with six heads and a context of 256, and differ in what they are: their layers, their loss,
their optimizer. Peak memory is that of the process less what it had when PyTorch was imported
(Linux only). The report goes to benchmarks/results/. What is learnt from a step is measured by
`learning.py`.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from measuring import RESULTS, machine, table
from torch import Tensor

LAYERS, WIDTH, HEADS, CONTEXT = 6, 384, 6, 256
Step = Callable[[Tensor, Tensor], object]


def strata_step(vocabulary: int, precision: str) -> Step:
    """Strata's recipe as it is."""
    from strata.config import Config
    from strata.model import Transformer
    from strata.training import build_optimizer, choose_runtime, train_step
    from strata.training.device import apply_runtime

    config = Config().override(
        {
            "model.vocab_size": vocabulary,
            "model.n_layers": LAYERS,
            "model.width": WIDTH,
            "model.n_heads": HEADS,
            "model.context_length": CONTEXT,
            "training.precision": precision,
            "training.threads": 1,
            "training.device": "cpu",
        }
    )
    apply_runtime(choose_runtime(config.training))
    model = Transformer(config.model)
    optimizer = build_optimizer(model, config.optimizer)
    return lambda tokens, targets: train_step(
        model, optimizer, [(tokens, targets)], config.training
    )


def nanogpt_step(checkout: str, vocabulary: int, precision: str) -> Step:
    """nanoGPT's model and optimizer, with the steps of its train.py."""
    sys.path.insert(0, checkout)
    from model import GPT, GPTConfig

    model = GPT(
        GPTConfig(
            block_size=CONTEXT,
            vocab_size=vocabulary,
            n_layer=LAYERS,
            n_head=HEADS,
            n_embd=WIDTH,
            bias=False,
        )
    )
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    return peer_step(model, optimizer, lambda tokens, targets: model(tokens, targets)[1], precision)


def litgpt_step(packages: str, vocabulary: int, precision: str) -> Step:
    """litgpt's GPT with rotary embeddings and RMSNorm, its chunked loss, AdamW."""
    sys.path.append(packages)
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=CONTEXT,
        padded_vocab_size=vocabulary,
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=WIDTH,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="GptNeoxMLP",
    )
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight  # as many parameters as the others
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return chunked_cross_entropy(model(tokens, lm_head_chunk_size=128), targets)

    return peer_step(model, optimizer, loss, precision)


def peer_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    precision: str,
) -> Step:
    """An update as trainers in PyTorch write it."""
    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")

    def step(tokens: Tensor, targets: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_function(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def serve(pipe: Connection, make: Callable[[], Step], vocabulary: int, batch: int) -> None:
    """In a contestant's process: make it, then take a step each time the pipe asks for one."""
    torch.set_num_threads(1)
    before = peak_bytes()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (peers print their sizes)
    step = make()
    torch.manual_seed(0)
    tokens = torch.randint(vocabulary, (batch, CONTEXT + 1))
    while pipe.recv():
        started = time.process_time()
        step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        pipe.send((time.process_time() - started, peak_bytes() - before))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(
    makers: dict[str, Callable[[], Step]], vocabulary: int, batch: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """CPU seconds of each contestant's steps, a warm-up left out, and its peak memory in bytes."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, make in makers.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, make, vocabulary, batch), daemon=True).start()
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    memory: dict[str, int] = {}
    names = list(makers)
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            pipes[name].send(True)
            taken, memory[name] = pipes[name].recv()
            if turn:
                seconds[name].append(taken)
    for pipe in pipes.values():
        pipe.send(False)
    return seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--litgpt", help="a folder of packages in which litgpt lies")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[8_192, 86_400])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the report")
    options = parser.parse_args()

    parts = [f"# A training step beside its peers, {date.today()}\n"]
    parts.append(
        f"{machine(['torch'])} One thread each, CPU seconds, medians of {options.rounds}.\n"
    )
    for vocabulary in options.vocabularies:
        for batch in options.batches:
            makers: dict[str, Callable[[], Step]] = {}
            for precision in options.precisions:
                peers = ["float32", "medium"] if precision == "float32" else [precision]
                makers[f"Strata {precision}"] = partial(strata_step, vocabulary, precision)
                for kind in peers:
                    makers[f"nanoGPT {kind}"] = partial(
                        nanogpt_step, options.nanogpt, vocabulary, kind
                    )
                    if options.litgpt:
                        makers[f"litgpt {kind}"] = partial(
                            litgpt_step, options.litgpt, vocabulary, kind
                        )
            seconds, memory = compare(makers, vocabulary, batch, options.rounds)
            ours = f"Strata {options.precisions[0]}"
            rows = [
                [
                    name,
                    batch * CONTEXT / statistics.median(seconds[name]),
                    statistics.median(
                        b / a for a, b in zip(seconds[ours], seconds[name], strict=True)
                    ),
                    memory[name] / 1e9,
                    memory[ours] / memory[name],
                ]
                for name in makers
            ]
            parts.append(f"\n{vocabulary:,} tokens of vocabulary, batch {batch}\n")
            header = ["", "tokens per CPU second", f"{ours} is faster ×", "peak GB", "its share"]
            parts.append(table(header, rows))
            print(parts[-2], parts[-1], sep="\n", flush=True)
    path = options.output / f"training-{date.today()}.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
