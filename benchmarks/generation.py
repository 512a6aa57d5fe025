"""Writing text beside nanochat's engine and nanoGPT's `generate`: tokens a second, first token.

    python benchmarks/generation.py --nanochat ../nanochat --nanogpt ../nanoGPT

Every contestant is a process of its own with one thread and works when it is its turn, on random
weights and the same random prompts. All have six layers of width 384 with six heads, a context of
1,024, 86,400 tokens of vocabulary and float32, and draw at temperature 0.8 from all tokens. Times
are seconds of CPU, which a busy machine stretches less than those of the clock.

- One prompt, at the start of the context and near its end: seconds a token, after the first.
- The first token after a prompt of 1,024, from the prompt's ids to the drawn token.
- 32 prompts at once, against one of the same length.

What is timed is what a user calls: for Strata `generate_steps` and `generate_batch`, with all that
they do besides (text, stop strings, probabilities), for nanochat `Engine.generate`, for nanoGPT
`GPT.generate`, which has no cache and is timed for two tokens. The report goes to
benchmarks/results/.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from measuring import RESULTS, machine, table

LAYERS, WIDTH, HEADS, CONTEXT, VOCABULARY = 6, 384, 6, 1024, 86_400
TEMPERATURE = 0.8
MANY = 32


class Case(NamedTuple):
    """Tokens in each prompt, prompts at once, and tokens to be written after each."""

    length: int
    prompts: int = 1
    tokens: int = 24


EARLY, LATE, FIRST = Case(64), Case(1_000), Case(CONTEXT, tokens=1)
MANY_EARLY, MIDDLE, MANY_MIDDLE = Case(64, MANY), Case(480), Case(480, MANY)
CASES = {
    "Strata": (EARLY, MIDDLE, LATE, FIRST, MANY_EARLY, MANY_MIDDLE),
    "nanochat": (EARLY, MIDDLE, LATE, FIRST, MANY_EARLY, MANY_MIDDLE),
    "nanoGPT": (LATE,),
}
Times = tuple[float, float]  # seconds to the first token of every prompt, and for each one after
Write = Callable[[Case], Times]


class Ids:
    """A tokenizer whose text is a word for an id: the ids are the prompt."""

    vocab_size = VOCABULARY
    document_separator = VOCABULARY - 1
    special_tokens = {"<|document|>": VOCABULARY - 1}  # noqa: RUF012

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def token_bytes(self, token: int) -> bytes:
        return b"%d " % token

    def encode_special(self, name: str) -> int:
        return -1

    def get_bos_token_id(self) -> int:
        return -1


def prompt_ids(length: int, row: int) -> list[int]:
    generator = torch.Generator().manual_seed(row)
    return torch.randint(VOCABULARY - 1, (length,), generator=generator).tolist()


def paced(steps: Iterator[object]) -> Times:
    """CPU seconds to the first step, and for each of those after it."""
    started = time.process_time()
    next(steps)
    first = time.process_time()
    count = sum(1 for _ in steps)
    return first - started, (time.process_time() - first) / max(1, count)


def strata_writer() -> Write:
    from strata.config import Config
    from strata.evaluation import generate_batch, generate_steps
    from strata.model import Transformer
    from strata.training import choose_runtime
    from strata.training.device import apply_runtime

    config = Config().override(
        {
            "model.vocab_size": VOCABULARY,
            "model.n_layers": LAYERS,
            "model.width": WIDTH,
            "model.n_heads": HEADS,
            "model.context_length": CONTEXT,
            "training.threads": 1,
            "training.device": "cpu",
        }
    )
    apply_runtime(choose_runtime(config.training))
    model, tokenizer = Transformer(config.model).eval().for_few_rows(), Ids()

    def write(case: Case) -> Times:
        # the separator stands before a prompt
        texts = [
            " ".join(map(str, prompt_ids(case.length - 1, row))) for row in range(case.prompts)
        ]
        if case.prompts == 1:
            return paced(
                generate_steps(
                    model, tokenizer, texts[0], max_new_tokens=case.tokens, temperature=TEMPERATURE
                )
            )
        times = []
        for count in (1, case.tokens):
            started = time.process_time()
            generate_batch(
                model,
                tokenizer,
                texts,
                max_new_tokens=count,
                temperature=TEMPERATURE,
                batch_size=case.prompts,
            )
            times.append(time.process_time() - started)
        return times[0], (times[1] - times[0]) / (case.tokens - 1)

    return write


def nanochat_writer(checkout: str) -> Write:
    """Its engine over its model, with full attention in every layer.

    It continues one prompt several times, and reads it once.
    """
    os.environ["NANOCHAT_DTYPE"] = "float32"
    sys.path.insert(0, checkout)
    from nanochat.engine import Engine
    from nanochat.gpt import GPT, GPTConfig

    with torch.device("meta"):
        model = GPT(
            GPTConfig(
                sequence_len=CONTEXT,
                vocab_size=VOCABULARY,
                n_layer=LAYERS,
                n_head=HEADS,
                n_kv_head=HEADS,
                n_embd=WIDTH,
                window_pattern="L",
            )
        )
    model.to_empty(device="cpu")
    model.init_weights()
    engine = Engine(model.eval(), Ids())

    def write(case: Case) -> Times:
        return paced(
            engine.generate(
                prompt_ids(case.length, 0),
                num_samples=case.prompts,
                max_tokens=case.tokens,
                temperature=TEMPERATURE,
            )
        )

    return write


def nanogpt_writer(checkout: str) -> Write:
    sys.path.insert(0, checkout)
    from model import GPT, GPTConfig

    model = GPT(
        GPTConfig(
            block_size=CONTEXT,
            vocab_size=VOCABULARY,
            n_layer=LAYERS,
            n_head=HEADS,
            n_embd=WIDTH,
            bias=False,
        )
    ).eval()

    def write(case: Case) -> Times:
        prompt = torch.tensor([prompt_ids(case.length, 0)])
        started = time.process_time()
        with torch.no_grad():
            model.generate(prompt, 2, temperature=TEMPERATURE)
        each = (time.process_time() - started) / 2
        return each, each

    return write


def serve(pipe: Connection, make: Callable[[], Write]) -> None:
    """In a contestant's process: make it, then write each time the pipe asks for it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (peers print their sizes)
    write = make()
    while (asked := pipe.recv()) is not None:
        pipe.send(write(asked))


def compare(
    makers: dict[str, Callable[[], Write]], rounds: int
) -> dict[tuple[str, Case], list[Times]]:
    """The times of each contestant in each of its cases, one entry a round, after a warm-up."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, make in makers.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, make), daemon=True).start()
        pipes[name].send(Case(64, tokens=4))
        pipes[name].recv()
    found: dict[tuple[str, Case], list[Times]] = {}
    names = list(makers)
    for turn in range(rounds):
        first = turn % len(names)
        for case in CASES["Strata"]:
            for name in names[first:] + names[:first]:
                if case in CASES[name]:
                    pipes[name].send(case)
                    found.setdefault((name, case), []).append(pipes[name].recv())
    for pipe in pipes.values():
        pipe.send(None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanochat", required=True, help="a checkout of karpathy/nanochat")
    parser.add_argument("--nanogpt", required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the report")
    options = parser.parse_args()
    makers: dict[str, Callable[[], Write]] = {
        "Strata": strata_writer,
        "nanochat": partial(nanochat_writer, options.nanochat),
        "nanoGPT": partial(nanogpt_writer, options.nanogpt),
    }
    found = compare(makers, options.rounds)

    def middle(name: str, case: Case, part: int) -> float:
        return statistics.median(times[part] for times in found[name, case])

    def times_as_fast(peer: str, case: Case, part: int) -> float:
        pairs = zip(found["Strata", case], found[peer, case], strict=True)
        return statistics.median(theirs[part] / ours[part] for ours, theirs in pairs)

    parts = [
        f"# Writing beside its peers, {date.today()}\n",
        f"{machine(['torch', 'numba'])} One thread each, CPU seconds, float32, medians of "
        f"{options.rounds} rounds.\n",
        "\nOne prompt: tokens a second, after the first\n",
    ]
    rows = []
    for case in (EARLY, MIDDLE, LATE):
        for name in CASES:
            if case in CASES[name]:
                speed = 1 / middle(name, case, 1)
                rows.append([case.length, name, speed, times_as_fast(name, case, 1)])
    parts.append(table(["prompt", "", "tokens/s", "Strata is faster ×"], rows))
    parts.append(f"\nThe first token after a prompt of {CONTEXT:,}\n")
    rows = [
        [name, middle(name, FIRST, 0), times_as_fast(name, FIRST, 0)]
        for name in ("Strata", "nanochat")
    ]
    parts.append(table(["", "seconds", "Strata is faster ×"], rows))
    parts.append(f"\n{MANY} prompts at once: tokens a second of all, after the first\n")
    rows = []
    for case, alone in ((MANY_EARLY, EARLY), (MANY_MIDDLE, MIDDLE)):
        for name in ("Strata", "nanochat"):
            gains = [
                MANY * one[1] / many[1]
                for one, many in zip(found[name, alone], found[name, case], strict=True)
            ]
            speed = MANY / middle(name, case, 1)
            rows.append([case.length, name, speed, statistics.median(gains)])
    parts.append(table(["prompt", "", "tokens/s", "× one prompt"], rows))
    text = "\n".join(parts)
    print(text)
    path = options.output / f"generation-{date.today()}.md"
    path.write_text(text, encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
