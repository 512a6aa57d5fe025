"""Sizes × lengths: the runs behind a scaling law, and runs of equal compute.

A run costs its tokens times the FLOPs of its model a token. So of size, length and compute two fix
the third, and a grid is either sizes × shares of the base's steps, or sizes × computes with the
steps that each can afford: Iso-FLOP curves (Hoffmann et al., 2022, section 3.2). Each length is a
run of its own, with its own decay of the rate, as Hoffmann et al. (section 3.1) found necessary:
the middle of a longer run stands above the end of a shorter one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from strata.ablations.variants import Changes, Variant
from strata.config import Config
from strata.model import flops_per_token


def run_flops(config: Config) -> float:
    """What the updates of a whole run cost, its validations not counted."""
    return config.training.max_steps * _flops_a_step(config)


def steps_for(config: Config, flops: float) -> int:
    """The number of updates that comes nearest to a compute of `flops`; 0 if half of one is more.

    Batch and context stay those of the configuration.
    """
    return round(flops / _flops_a_step(config))


def _flops_a_step(config: Config) -> float:
    tokens = config.training.batch_size * config.model.context_length
    return tokens * flops_per_token(config.model)


def at_length(config: Config, steps: int) -> dict[str, object]:
    """The changes that make a run `steps` updates long.

    Warm-up, growth and validations keep their places in the run, to the nearest whole step.
    """
    training = config.training
    share = steps / training.max_steps
    changes: dict[str, object] = {
        "training.max_steps": steps,
        "training.warmup_steps": round(share * training.warmup_steps),
        "training.validate_every": max(1, round(share * training.validate_every)),
    }
    for name in ("momentum_warmup_steps", "batch_growth_steps", "context_growth_steps"):
        if before := getattr(training, name):
            changes[f"training.{name}"] = max(1, round(share * before))
    return changes


@dataclass(frozen=True)
class Grid:
    """Which sizes are run for how long. Either `shares` of the base's steps or `flops` is given.

    `sizes` are fields of the model by their plain names: {"n_layers": 4, "width": 256, …}. A run
    of fewer updates than `min_steps` or of more than `max_steps` (0 = no limit) is left out.
    """

    sizes: Sequence[Mapping[str, object]]
    shares: Sequence[float] = ()
    flops: Sequence[float] = ()
    min_steps: int = 1
    max_steps: int = 0

    def runs(
        self, base: Config, recipes: Iterable[Variant]
    ) -> tuple[tuple[Variant, ...], tuple[str, ...]]:
        """The grid's runs in each recipe, and a sentence on each that is left out.

        Those of the first recipe are named `width64-steps38`, after the fields of the size; those
        of any other have its name before that. What the recipe is itself is no run of the grid.

        Raises:
            ValueError: for a size or number of steps that makes no configuration.
        """
        made: list[Variant] = []
        left_out = []
        for position, recipe in enumerate(recipes):
            itself = base.override(recipe.changes)
            for size in self.sizes:
                fields = {f"model.{name}": value for name, value in size.items()}
                config = itself.override(fields)
                for steps in self._lengths(config):
                    name = "-".join(
                        [
                            *([recipe.name] if position else []),
                            *(f"{key}{value}" for key, value in size.items() if key != "n_heads"),
                            f"steps{steps}",
                        ]
                    ).replace("n_layers", "layers")
                    if steps < self.min_steps or (self.max_steps and steps > self.max_steps):
                        bounds = f"{self.min_steps:,} to {self.max_steps:,}"
                        left_out.append(
                            f"{name} is left out: {steps:,} updates, the suite takes "
                            + (bounds if self.max_steps else f"{self.min_steps:,} or more")
                        )
                        continue
                    changes: Changes = {**recipe.changes, **fields, **at_length(config, steps)}
                    if base.override(changes) != itself:
                        cost = run_flops(base.override(changes))
                        words = f"{recipe.name}: {_in_words(size)}, {steps:,} updates, {cost:.2g}"
                        made.append(Variant(name, changes, f"{words} FLOP.", recipe.name))
        return tuple(made), tuple(left_out)

    def _lengths(self, config: Config) -> list[int]:
        if self.flops:
            return [steps_for(config, flops) for flops in self.flops]
        return [round(share * config.training.max_steps) for share in self.shares]


def _in_words(size: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in size.items())
