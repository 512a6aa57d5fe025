"""Finished runs as an ablation sees them, read back from their folders.

A run's folder holds all there is to know (`summary.json`, `metrics.jsonl`, `config.toml`,
`provenance.json`); `summarise` reads one, `load_suite` a folder of them, and the functions below
sort them into what `analysis`, `multipliers` and `scaling` take. `strata/ablations/stored.py` keeps
the same in one small file, from which all of it can be had when the folders are gone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from strata.ablations.multipliers import Count, LearningCurve, SizeCurve
from strata.ablations.variants import Suite
from strata.config import Config
from strata.training import read_metrics


@dataclass(frozen=True)
class RunSummary:
    """What an ablation needs to know of one finished run.

    provenance: its `provenance.json`: commit, code, packages, machine, corpus, tokenizer, date.
    record: its `summary.json`: what the run came to; the properties below read it.
    memory_bytes: at most in use, as the run recorded it: of a CUDA device what tensors took, else
        what its process held. A process that makes several runs keeps its highest mark, so on a CPU
        the number is a bound from above; 0 where the system did not say.
    folder: where it was read from, None if it was read from a file of stored runs.
    """

    variant: str
    seed: int
    config: Config
    provenance: Mapping[str, Any]
    record: Mapping[str, Any]
    memory_bytes: int
    curve: LearningCurve
    folder: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The name of its folder: variant and seed."""
        return f"{self.variant}-seed{self.seed}"

    @property
    def config_hash(self) -> str:
        """The hash of the configuration as the run had it.

        As it was recorded: in stored runs a corpus may have another path than it had.
        """
        return str(self.record.get("config_hash") or self.config.hash())

    @property
    def parameters(self) -> int:
        """All parameters, embeddings included."""
        return int(self.record["parameters"])

    @property
    def body_parameters(self) -> int:
        """Parameters without embeddings and head."""
        return int(self.record["body_parameters"])

    @property
    def flops_per_token(self) -> float:
        """Operations of training on one token, at the whole context."""
        return float(self.record["flops_per_token"])

    @property
    def tokens(self) -> float:
        """Trained on, in all."""
        return float(self.record["tokens"])

    @property
    def flops(self) -> float:
        """Spent in training, in all."""
        return float(self.record["flops"])

    @property
    def bits_per_byte(self) -> float:
        """Of the validation text, after the last update."""
        return float(self.record["validation_bits_per_byte"])

    @property
    def seconds(self) -> float:
        """Clock of its updates, and of its validations beside them."""
        return float(sum(self.record["timing"].values()))

    @property
    def stopped(self) -> str:
        """Why it ended before its last step; empty for a run that did not."""
        return str(self.record.get("stopped", ""))


class WithoutResult(ValueError):
    """A run came to its end with a loss that is no number."""


def summarise(folder: str | Path) -> RunSummary:
    """Read a finished run's folder, named `<variant>-seed<k>`.

    Raises FileNotFoundError where the run is not finished, WithoutResult where its loss is not
    finite, ValueError where its name does not say variant and seed.
    """
    folder = Path(folder)
    variant, _, seed = folder.name.rpartition("-seed")
    if not variant or not seed.isdigit():
        raise ValueError(f"{folder}: expected a folder named <variant>-seed<number>")
    path = folder / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the run is not finished")
    record = json.loads(path.read_text(encoding="utf-8"))
    if not math.isfinite(record["validation_bits_per_byte"]):
        raise WithoutResult(f"{folder}: its final loss is not finite, the run diverged")
    lines = read_metrics(folder)
    return RunSummary(
        variant=variant,
        seed=int(seed),
        config=Config.load(folder / "config.toml"),
        provenance=json.loads((folder / "provenance.json").read_text(encoding="utf-8")),
        record=record,
        memory_bytes=max((line["timing"].get("memory_bytes", 0) for line in lines), default=0),
        curve=_curve(lines, float(record["flops_per_token"])),
        folder=folder,
    )


def _curve(lines: Sequence[Mapping[str, Any]], flops_per_token: float) -> LearningCurve:
    """The validations of a run as a learning curve; its clock counts the updates alone."""
    seconds = np.cumsum([line["timing"]["seconds"] for line in lines])
    measured = [i for i, line in enumerate(lines) if "validation_bits_per_byte" in line]
    tokens = np.array([lines[i]["tokens"] for i in measured], dtype=np.float64)
    losses = [lines[i]["validation_bits_per_byte"] for i in measured]
    return LearningCurve(
        flops=tokens * flops_per_token,
        tokens=tokens,
        seconds=seconds[measured],
        bits_per_byte=np.array(losses, dtype=np.float64),
    )


def load_suite(folder: str | Path) -> list[RunSummary]:
    """Every finished run under `folder`, trials and scaling runs among them, by name and seed.

    Unfinished runs, diverged ones and other folders are passed over. Raises FileNotFoundError
    where there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; run the suite first")
    summaries = []
    for path in folder.glob("*-seed*/summary.json"):
        try:
            summaries.append(summarise(path.parent))
        except ValueError:
            continue
    return sorted(summaries, key=lambda summary: (summary.variant, summary.seed))


def final_losses(
    summaries: Iterable[RunSummary], variants: Sequence[str]
) -> dict[str, dict[int, float]]:
    """Final bits per byte by variant and seed, in the order of `variants`, as `compare` takes."""
    table: dict[str, dict[int, float]] = {name: {} for name in variants}
    for summary in summaries:
        if summary.variant in table:
            table[summary.variant][summary.seed] = summary.bits_per_byte
    return {name: losses for name, losses in table.items() if losses}


def learning_curves(summaries: Iterable[RunSummary], variant: str) -> dict[int, LearningCurve]:
    """The curves of a variant by seed, as `compute_multiplier` takes them."""
    return {summary.seed: summary.curve for summary in summaries if summary.variant == variant}


def size_curves(
    summaries: Iterable[RunSummary], count: Count = "parameters"
) -> dict[int, SizeCurve]:
    """Runs of one recipe at several sizes as size curves by seed, as `parameter_multiplier` takes.

    Args:
        summaries: of that recipe alone, all of equal tokens.
        count: "parameters", embeddings included, or "body_parameters".

    Raises:
        ValueError: if tokens differ, or two runs of a seed are of one size.
    """
    by_seed: dict[int, list[RunSummary]] = {}
    for summary in summaries:
        by_seed.setdefault(summary.seed, []).append(summary)
    curves = {}
    for seed, runs in sorted(by_seed.items()):
        runs.sort(key=lambda run: int(getattr(run, count)))
        for one, other in pairwise(runs):
            if one.tokens != other.tokens:
                raise ValueError(
                    f"{one.name} saw {one.tokens:,.0f} tokens and {other.name} {other.tokens:,.0f}:"
                    " expected sizes of equal tokens"
                )
            if getattr(one, count) == getattr(other, count):
                raise ValueError(
                    f"{one.name} and {other.name} have as many {count}: expected one run a size"
                )
        curves[seed] = SizeCurve(
            sizes=np.array([getattr(run, count) for run in runs], dtype=np.float64),
            bits_per_byte=np.array([run.bits_per_byte for run in runs]),
            tokens=runs[0].tokens,
            count=count,
        )
    return curves


def scaling_runs(
    suite: Suite, summaries: Iterable[RunSummary], recipe: str = ""
) -> list[RunSummary]:
    """The runs for a recipe's scaling law: those of `suite.scaling` that are its, and its own.

    `recipe` names a variant; the first if it is not given.
    """
    first = suite.variants[0].name
    recipe = recipe or first
    names = {recipe, *(one.name for one in suite.scaling if (one.recipe or first) == recipe)}
    return [summary for summary in summaries if summary.variant in names]
