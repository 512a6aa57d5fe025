"""How should text be cut into words? Split patterns by measurement, at equal vocabulary.

Each variant changes one switch of the pattern "strata" (see strata/tokenizer/scanner.py); the
patterns of GPT-2 and GPT-4 stand beside them. For each, a tokenizer learns from the training split,
and two questions are asked of it.

1. How many bytes does a token stand for, on held-out code, prose and lines full of numbers, with
   the whole vocabulary and with its beginning?
2. How well does a model learn with it? A small transformer of the Strata recipe is trained for the
   same number of updates on the same number of tokens, and scored on the same held-out text in
   bits per byte. Seeds are paired: with one seed all variants begin with the same weights.

The second question decides, for tokens that are few may still be hard to predict. Equal updates
are equal compute; a variant with longer tokens reads more text for it, and is meant to.

    python benchmarks/patterns.py --output benchmarks/results/patterns-2026-11-23.md
    python benchmarks/patterns.py --corpus "files:english/*.parquet" --steps 100
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measuring import machine
from numpy.typing import NDArray

from strata import Config, Corpus, Tokenizer, Transformer
from strata.ablations.analysis import mean_interval
from strata.data import Loader, TokenShards, build_shards, read_windows, spread_windows
from strata.data.passages import texts_by_kind
from strata.model import bits_per_byte
from strata.tokenizer.scanner import RULES, UNLIMITED, Rules
from strata.training import build_optimizer, choose_runtime, rate_ratio, train_step
from strata.training.device import apply_runtime

SCORED_BYTES = 300_000  # of the held-out text, what the models are scored on

STRATA = RULES["strata"]
VARIANTS: dict[str, tuple[Rules, str]] = {
    "strata": (STRATA, "the pattern as it is: at most two digits, a space may lead them"),
    "one digit": (STRATA._replace(digits=1), "every digit by itself"),
    "three digits": (STRATA._replace(digits=3), "at most three digits"),
    "any digits": (STRATA._replace(digits=UNLIMITED), "a number is one word however long"),
    "digits alone": (STRATA._replace(space_leads_number=False), "no space leads a number"),
    "one digit alone": (
        STRATA._replace(digits=1, space_leads_number=False),
        "every digit by itself, no space before it",
    ),
    "line ends apart": (
        STRATA._replace(newlines_follow_other=False),
        "line ends do not join the punctuation before them",
    ),
    "white space whole": (
        STRATA._replace(break_after_newline=False),
        "white space is not cut after its last line end",
    ),
    "space leads": (
        STRATA._replace(any_leads_letters=False),
        "of all characters only a space may lead letters",
    ),
    "cl100k": (RULES["cl100k"], "GPT-4's: at most three digits, no space leads them"),
    "gpt2": (RULES["gpt2"], "GPT-2's"),
}


class Run(NamedTuple):
    """One model to train."""

    variant: str
    config: Config  # its seed included
    shards: Path  # folder of the folders `train` and `validation`
    byte_lengths: NDArray[np.int32]  # of the tokens, (vocab_size,)


def main() -> None:
    """Measure, and write what was found."""
    arguments = parse_arguments()
    started = time.monotonic()
    unknown = set(arguments.variants) - VARIANTS.keys()
    if unknown:
        raise SystemExit(f"no variant {unknown.pop()!r}: expected some of {', '.join(VARIANTS)}")
    RULES.update({name: rules for name, (rules, _) in VARIANTS.items()})
    corpus = Corpus.open(arguments.corpus, validation_fraction=arguments.held_out)
    held_out = list(corpus.documents("validation"))
    kinds = {kind: texts for kind, texts in texts_by_kind(held_out).items() if texts}
    lines = header(arguments, corpus, kinds)
    with tempfile.TemporaryDirectory() as folder:
        compression, runs = {}, []
        for name in arguments.variants:
            documents = first_bytes(corpus.documents("train"), arguments.training_bytes)
            tokenizer = Tokenizer.train(documents, max(arguments.vocabularies), pattern=name)
            for size in arguments.vocabularies:
                compression[name, size] = bytes_per_token(tokenizer.truncate(size), kinds)
            if arguments.steps:
                runs += plan_runs(arguments, name, tokenizer, corpus, held_out, Path(folder))
            print(f"tokenizer {name}: done after {time.monotonic() - started:.0f} s", flush=True)
        for size in arguments.vocabularies:
            lines += ["", f"## Bytes a token, vocabulary of {size:,}", ""]
            lines += compression_table(arguments.variants, size, compression, list(kinds))
        if runs:
            runs.sort(key=lambda run: run.config.training.seed)
            scores: dict[str, list[float]] = {name: [] for name in arguments.variants}
            workers = os.cpu_count() or 1
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                for run, score in zip(runs, pool.map(bits_of_run, runs), strict=True):
                    scores[run.variant].append(score)
                    seed = run.config.training.seed
                    print(
                        f"model {run.variant}, seed {seed}: {score:.4f} bits per byte", flush=True
                    )
            lines += ["", *model_section(arguments, scores, runs[0].config)]
    lines += ["", f"Measured in {(time.monotonic() - started) / 60:.1f} minutes.", ""]
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines), encoding="utf-8")
        print(f"written: {arguments.output}")


def parse_arguments() -> argparse.Namespace:
    """What is asked for on the command line."""
    parser = argparse.ArgumentParser(
        description="Compare split patterns: bytes a token, and bits per byte of small models.",
        epilog="variants: " + "; ".join(f"{name} ({text})" for name, (_, text) in VARIANTS.items()),
    )
    add = parser.add_argument
    add("--corpus", default="installed", help='"installed", "files:GLOB" or "hub:OWNER/NAME"')
    add("--held-out", type=float, default=0.02, help="share of the documents to measure on")
    add("--training-bytes", type=int, default=100_000_000, help="most text a tokenizer reads")
    add("--vocabularies", type=int, nargs="+", default=[86_400, 4_096], help="sizes to measure")
    add("--model-vocabulary", type=int, default=4_096, help="tokens that the models know")
    add("--variants", nargs="+", default=list(VARIANTS), help="the first is compared with")
    add("--steps", type=int, default=150, help="updates of a model; 0 trains none")
    add("--batch", type=int, default=4, help="sequences of 128 tokens an update")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two")
    add("--output", type=Path, help="the file to write; else the result is only printed")
    return parser.parse_args()


def first_bytes(documents: Iterable[str], limit: int) -> Iterator[str]:
    """Documents until so many bytes were read."""
    for document in documents:
        yield document
        limit -= len(document.encode())
        if limit <= 0:
            return


def bytes_per_token(tokenizer: Tokenizer, kinds: dict[str, list[str]]) -> list[float]:
    """How much text of each kind a token stands for."""
    return [
        sum(len(text.encode()) for text in texts) / sum(map(len, tokenizer.encode_batch(texts)))
        for texts in kinds.values()
    ]


def plan_runs(
    arguments: argparse.Namespace,
    name: str,
    tokenizer: Tokenizer,
    corpus: Corpus,
    held_out: list[str],
    folder: Path,
) -> list[Run]:
    """The runs of one variant, for which its tokens are written to disk.

    The models read a small part of the text, so no more than that is written.
    """
    small = tokenizer.truncate(arguments.model_vocabulary)
    needed = 16 * arguments.steps * arguments.batch * 128  # bytes, far more than tokens
    place = folder / name.replace(" ", "-")
    for split, documents in (
        ("train", first_bytes(corpus.documents("train"), max(needed, 20_000_000))),
        ("validation", first_bytes(held_out, SCORED_BYTES)),
    ):
        build_shards(
            documents, small, place / split, corpus_identity=corpus.identity, progress=False
        )
    base = Config.preset("nano").override(
        {
            "model.n_layers": 2,
            "model.n_heads": 3,
            "model.width": 96,
            "model.vocab_size": arguments.model_vocabulary,
            "model.context_length": 128,
            "training.max_steps": arguments.steps,
            "training.warmup_steps": arguments.steps // 10,
            "training.batch_size": arguments.batch,
            "training.micro_batch_size": 0,
            "training.threads": 1,
        }
    )
    return [
        Run(name, base.override({"training.seed": seed}), place, small.byte_lengths)
        for seed in arguments.seeds
    ]


def bits_of_run(run: Run) -> float:
    """Trains one model and scores it on held-out text, in bits per byte."""
    config = run.config
    runtime = choose_runtime(config.training)
    apply_runtime(runtime)
    length = config.model.context_length
    loader = Loader(
        TokenShards(run.shards / "train"),
        batch_size=config.training.batch_size,
        context_length=length,
        seed=config.training.seed,
    )
    torch.manual_seed(config.training.seed)
    model = Transformer(config.model).to(runtime.device)
    optimizer = build_optimizer(model, config.optimizer)
    for step in range(1, config.training.max_steps + 1):
        batch = loader.next()
        optimizer.set_rate(rate_ratio(step, config.training))
        train_step(model, optimizer, [(batch.tokens, batch.targets)], config.training)

    shards = TokenShards(run.shards / "validation")
    windows = spread_windows(shards, shards.n_tokens, length)  # all there are
    byte_lengths = torch.from_numpy(run.byte_lengths.astype(np.int64))
    nats, n_bytes = 0.0, 0
    with torch.no_grad(), runtime.autocast():
        for start in range(0, len(windows), 16):
            tokens, targets = read_windows(shards, windows[start : start + 16], length)
            losses, _ = model.score(tokens.to(runtime.device), targets.to(runtime.device))
            nats += losses.double().sum().item()
            n_bytes += int(byte_lengths[targets].sum())
    return bits_per_byte(nats, n_bytes)


def header(arguments: argparse.Namespace, corpus: Corpus, kinds: dict[str, list[str]]) -> list[str]:
    """Title, date, machine, versions, and what the texts are."""
    texts = ", ".join(
        f"{kind} {sum(len(text.encode()) for text in texts) / 1e6:.3f} MB"
        for kind, texts in kinds.items()
    )
    training = min(arguments.training_bytes, corpus.expected_bytes("train")) / 1e6
    held_out = corpus.expected_bytes("validation") / 1e6
    return [
        f"# Split patterns, {date.today()}",
        "",
        "`benchmarks/patterns.py`, " + machine(("torch", "numba", "numpy")),
        "",
        f"Tokenizers learn from {training:.0f} MB of the training split of "
        f"the corpus `{corpus.spec.partition(':')[0]}`; {held_out:.2f} MB are held out, of which: "
        f"{texts}.",
        "",
        *[f"- **{name}**: {VARIANTS[name][1]}" for name in arguments.variants],
    ]


def compression_table(
    names: list[str], size: int, compression: dict[tuple[str, int], list[float]], kinds: list[str]
) -> list[str]:
    """Bytes a token of each variant, and in brackets the difference from the first in per cent."""
    lines = [f"| pattern | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    first = compression[names[0], size]
    for name in names:
        cells = [
            f"{value:.3f} ({100 * (value / reference - 1):+.1f} %)"
            for value, reference in zip(compression[name, size], first, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def model_section(
    arguments: argparse.Namespace, scores: dict[str, list[float]], config: Config
) -> list[str]:
    """Bits per byte of each variant, and its differences from the first, seed by seed."""
    tokens = arguments.steps * arguments.batch * config.model.context_length
    lines = [
        f"## Bits per byte, vocabulary of {arguments.model_vocabulary:,}",
        "",
        f"{config.model.n_layers} layers, width {config.model.width}, context "
        f"{config.model.context_length}, {arguments.steps} updates, {tokens:,} tokens; seeds "
        f"{', '.join(map(str, arguments.seeds))}; scored on {SCORED_BYTES / 1e6:.1f} MB of the "
        "held-out text. Less is better. The interval is Student's t, 95 %, of the paired "
        "differences.",
        "",
        f"| pattern | mean | difference from {arguments.variants[0]} | interval | by seed |",
        "|---|---|---|---|---|",
    ]
    first = np.array(scores[arguments.variants[0]])
    for name in arguments.variants:
        values = np.array(scores[name])
        differences = values - first
        interval = mean_interval(differences) if len(differences) > 1 else None
        spread = f"{interval.low:+.4f} to {interval.high:+.4f}" if interval else "one seed"
        each = ", ".join(f"{difference:+.4f}" for difference in differences)
        if name == arguments.variants[0]:
            spread, each = "", ", ".join(f"{value:.4f}" for value in values)
        lines.append(
            f"| {name} | {values.mean():.4f} | {differences.mean():+.4f} | {spread} | {each} |"
        )
    return lines


if __name__ == "__main__":
    main()
