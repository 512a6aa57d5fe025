"""What the recipe is made of, judged one thing at a time; and whether rates hold at another width.

    python benchmarks/recipe.py candidates --folder runs/candidates
    python benchmarks/recipe.py candidates --folder runs/english --corpus "files:texts/*.parquet"
    python benchmarks/recipe.py width --folder runs/width

`candidates`: the recipe with one thing changed, at the size of the ablations of chapter 5, several
seeds, paired with the recipe's own run of the same seed. What they are compared with is spelt out
in `BEFORE`, so that the comparison stays the same when the recipe takes one of them up.

`width`: the same rates at several widths. A rate transfers if it is the best, or as good, at all.

Runs that are in the folder already are not made again. The report goes to benchmarks/results/.
"""

import argparse
import dataclasses
from datetime import date
from pathlib import Path

from measuring import RESULTS, machine, table

from strata.ablations import compare, final_losses, load_suite, read_suite, run_suite
from strata.ablations.variants import Changes, Suite, Variant
from strata.config import Config

BEFORE: Changes = {
    "optimizer.beta2": 0.95,
    "optimizer.newton_schulz_steps": 5,
    "optimizer.normalise_rows": False,
}
DECAY: Changes = {"optimizer.weight_decay": 0.1}
CAUTIOUS: Changes = {**DECAY, "optimizer.cautious_decay": True}
TAKEN: Changes = {
    "optimizer.beta2": 0.99,
    "optimizer.newton_schulz_steps": 4,
    "optimizer.normalise_rows": True,
}
CANDIDATES: dict[str, Changes] = {
    "beta2-0.99": {"optimizer.beta2": 0.99},
    "normalised-rows": {"optimizer.normalise_rows": True},
    "newton-schulz-3": {"optimizer.newton_schulz_steps": 3},
    "newton-schulz-4": {"optimizer.newton_schulz_steps": 4},
    "the-three-taken": TAKEN,
    "the-three-rate-0.014": {**TAKEN, "optimizer.learning_rate": 0.014},
    "the-three-rate-0.028": {**TAKEN, "optimizer.learning_rate": 0.028},
    "matrix-rate-0.01": {"optimizer.learning_rate": 0.01},
    "matrix-rate-0.04": {"optimizer.learning_rate": 0.04},
    "embedding-rate-0.005": {"optimizer.embedding_learning_rate": 0.005},
    "embedding-rate-0.02": {"optimizer.embedding_learning_rate": 0.02},
    "decay-0.1": DECAY,
    "cautious-decay": CAUTIOUS,
    "cautious-decay-linear": {**CAUTIOUS, "optimizer.decay_schedule": "linear"},
    "momentum-warm-up": {"optimizer.momentum_start": 0.85, "training.momentum_warmup_steps": 50},
    "rate-falls-for-0.8": {"training.decay_fraction": 0.8},
    "linear-schedule": {"training.schedule": "linear"},
    "softcap-30": {"model.logit_softcap": 30.0},
    "no-softcap": {"model.logit_softcap": 0.0},
    "untied-head": {"model.tie_embeddings": False},
    "windows-of-32": {"model.window_length": 32},
    "best-fit-packing": {"data.packing": "best-fit"},
    "document-masks": {"data.document_masks": True},
    "context-from-32": {
        "training.initial_context_length": 32,
        "training.context_growth_steps": 50,
    },
}
WIDTHS = (64, 192)
MATRIX_RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
EMBEDDING_RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)


def candidates(corpus: str, seeds: tuple[int, ...]) -> Suite:
    """The earlier recipe, and it with each candidate."""
    base = small(corpus).override(BEFORE)
    variants = [Variant("before", {}, "The recipe they are compared with.")]
    variants += [Variant(name, changes, name) for name, changes in CANDIDATES.items()]
    return Suite("candidates", base, tuple(variants), seeds)


def widths(corpus: str, seeds: tuple[int, ...]) -> Suite:
    """Every width with every rate of the matrices, and with every rate of the embedding."""
    variants = []
    for width in WIDTHS:
        size = {"model.width": width, "model.n_heads": width // 32}
        for field, rates in (
            ("optimizer.learning_rate", MATRIX_RATES),
            ("optimizer.embedding_learning_rate", EMBEDDING_RATES),
        ):
            for rate in rates:
                name = f"width{width}-{field.split('.')[1]}={rate:g}"
                variants.append(Variant(name, {**size, field: rate}, name))
    return Suite("width", small(corpus), tuple(variants), seeds)


def small(corpus: str) -> Config:
    """The size of chapter 5's ablations."""
    return read_suite("nano", {"data.corpus": corpus}).base


def report_candidates(suite: Suite, folder: Path) -> str:
    """Each candidate's difference from the recipe before, seed by seed."""
    losses = final_losses(load_suite(folder), [variant.name for variant in suite.variants])
    rows = [
        [
            found.variant,
            f"{found.mean.estimate:.4f}",
            f"{found.difference.estimate:+.4f}",
            f"{found.difference.low:+.4f} to {found.difference.high:+.4f}",
            f"{found.p_adjusted:.3f}",
        ]
        for found in compare(losses, "before")
    ]
    return table(["", "bits per byte", "difference", "95 % interval", "p (Holm)"], rows)


def report_widths(suite: Suite, folder: Path) -> str:
    """Mean loss by width and rate, the best of each width marked."""
    losses = final_losses(load_suite(folder), [variant.name for variant in suite.variants])
    means = {name: sum(by_seed.values()) / len(by_seed) for name, by_seed in losses.items()}
    parts = []
    for field, rates in (
        ("learning_rate", MATRIX_RATES),
        ("embedding_learning_rate", EMBEDDING_RATES),
    ):
        rows = []
        for width in WIDTHS:
            found = [means[f"width{width}-{field}={rate:g}"] for rate in rates]
            best = min(found)
            rows.append([width, *(f"{x:.4f}" + (" *" if x == best else "") for x in found)])
        parts.append(table([f"{field}, width", *(f"{rate:g}" for rate in rates)], rows))
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=["candidates", "width"])
    parser.add_argument("--folder", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--corpus", default="installed", help="as strata's --corpus names it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the report")
    options = parser.parse_args()
    make, report = {
        "candidates": (candidates, report_candidates),
        "width": (widths, report_widths),
    }[options.suite]
    suite = make(options.corpus, tuple(options.seeds))
    run_suite(suite, options.folder)
    model, training = suite.base.model, suite.base.training
    tokens = training.max_steps * training.batch_size * model.context_length
    sizes = dataclasses.asdict(model)
    corpus = "embedded" if options.corpus == "installed" else "English"
    text = (
        f"# The recipe, {options.suite}, {corpus} corpus, {date.today()}\n\n"
        f"{machine(['torch'])}\n\n"
        f"{sizes['n_layers']} layers of width {sizes['width']} unless said, vocabulary "
        f"{sizes['vocab_size']:,}, context {sizes['context_length']}, {tokens:,} tokens in "
        f"{training.max_steps} updates; seeds {options.seeds}; held-out text.\n\n"
        f"{report(suite, options.folder)}"
    )
    name = "" if corpus == "embedded" else "-english"
    path = options.output / f"recipe-{options.suite}{name}-{date.today()}.md"
    path.write_text(text, encoding="utf-8")
    print(text, path, sep="\n")


if __name__ == "__main__":
    main()
