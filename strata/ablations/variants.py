"""What is compared: variants as differences of configuration, gathered into suites.

A `Variant` is a name and the fields that it changes; applied to the base configuration it gives
the configuration of a run, so nothing about a comparison is hidden in code. A `Suite` is one
experiment: variants × seeds, before them a small search for what must be chosen fairly
(`Tuning`), beside them runs of other sizes and lengths for the scaling law. `nano_suite` is the
one that the workbook runs; `strata/ablations/sweep.py` runs any.

To add a variant, add a line to `INGREDIENTS`, or make your own:

    suite = nano_suite()
    mine = Variant("no-clipping", {"training.gradient_clip": 0.0}, "Gradients are not clipped.")
    suite = dataclasses.replace(suite, variants=(*suite.variants, mine))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from strata.config import Config
from strata.presets import GPT3_RECIPE

Changes = Mapping[str, object]


@dataclass(frozen=True)
class Variant:
    """A recipe as a difference from the base.

    `name` becomes part of a folder's name; `changes` maps dotted field names to values as
    `Config.override` takes them; `description` is one sentence for the table.
    """

    name: str
    changes: Changes
    description: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.@=+-]*", self.name) or "-seed" in self.name:
            raise ValueError(
                f"variant name {self.name!r}: expected letters, digits and any of ._@=+- to make "
                "a folder's name, without '-seed'"
            )

    def apply(self, base: Config, seed: int, choices: Changes | None = None) -> Config:
        """The run's configuration: base, then the changes, then what a tuning chose, then seed.

        Raises ValueError, naming the field, where a change is not a valid configuration.
        """
        return base.override({**self.changes, **(choices or {}), "training.seed": seed})


@dataclass(frozen=True)
class Tuning:
    """A search over one field for one variant, before its runs: each value once, the best kept.

    It is made at the suite's full length with a seed that the reported runs do not use, so that
    the choice does not flatter the result. `field` is a dotted name.
    """

    variant: str
    field: str
    values: tuple[float, ...]
    seed: int = 1_000

    def trials(self, variant: Variant) -> list[Variant]:
        """One variant a value, named for its folder: `gpt3@learning_rate=0.003`."""
        key = self.field.rpartition(".")[2]
        return [
            Variant(
                f"{variant.name}@{key}={value:g}",
                {**variant.changes, self.field: value},
                f"{variant.description} Trial of {self.field} = {value:g}.",
            )
            for value in self.values
        ]


@dataclass(frozen=True)
class Suite:
    """One experiment. The first variant is the one that all others are compared with.

    Raises ValueError, before anything runs, when two variants share a name, a tuning names none
    of them, or a configuration is not valid.
    """

    name: str
    base: Config
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    tunings: tuple[Tuning, ...] = ()
    scaling: tuple[Variant, ...] = ()  # run once, with the first seed

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise ValueError(f"suite {self.name!r} needs at least one variant and one seed")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"suite {self.name!r} repeats a seed: {self.seeds}")
        for tuning in self.tunings:
            if not tuning.values:
                raise ValueError(f"the tuning of {tuning.variant!r} has no values to try")
            if tuning.seed in self.seeds:
                raise ValueError(
                    f"the tuning of {tuning.variant!r} uses seed {tuning.seed}, which is also "
                    "reported; take another"
                )
        everything = [*self.variants, *self.scaling]
        for tuning in self.tunings:
            everything += tuning.trials(self.variant(tuning.variant))
        names = [variant.name for variant in everything]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"suite {self.name!r} has two variants named {name!r}")
        for variant in everything:
            try:
                variant.apply(self.base, self.seeds[0])
            except ValueError as error:
                raise ValueError(f"variant {variant.name!r}: {error}") from error

    def variant(self, name: str) -> Variant:
        """The variant of that name, scaling runs included; ValueError if there is none."""
        for variant in (*self.variants, *self.scaling):
            if variant.name == name:
                return variant
        raise ValueError(
            f"no variant {name!r} in suite {self.name!r}; there are "
            + ", ".join(variant.name for variant in self.variants)
        )


# ------------------------------------------------------------------------------ the recipes

STRATA = Variant("strata", {}, "The full Strata recipe.")

# Everything at once; `strata/presets.py` lists the fields with their sources. Steps, batch,
# warm-up, sizes and data stay those of the base, so the bodies are of one size.
GPT3 = Variant("gpt3", GPT3_RECIPE, "GPT-3's recipe at the same body size.")

# The full recipe with one ingredient put back to what GPT-3 has in its place.
INGREDIENTS: tuple[Variant, ...] = (
    Variant("adamw", {"optimizer.name": "adamw"}, "AdamW instead of Muon for the matrices."),
    Variant(
        "plain-muon",
        {"optimizer.normalise_rows": False},
        "The rows of Muon's updates are not evened out.",
    ),
    Variant("beta2-0.95", {"optimizer.beta2": 0.95}, "AdamW forgets squares as fast as GPT-3's."),
    Variant(
        "learned-positions",
        {"model.positions": "learned"},
        "Learned position embeddings instead of rotary ones.",
    ),
    Variant("gelu", {"model.activation": "gelu"}, "GELU instead of squared ReLU."),
    Variant("layernorm", {"model.norm": "layernorm"}, "LayerNorm instead of RMSNorm."),
    Variant("no-qk-norm", {"model.qk_norm": False}, "Queries and keys are not normalised."),
    Variant(
        "no-zero-init",
        {"model.zero_init_projections": False},
        "Every matrix starts as GPT-2's does, none at zero.",
    ),
    Variant(
        "no-residual-scalars",
        {"model.residual_scalars": False},
        "No normalised embedding mixed into the stream at every block.",
    ),
    Variant("no-softcap", {"model.logit_softcap": 0.0}, "Logits are not capped."),
)
UNTIED = Variant("untied-head", {"model.tie_embeddings": False}, "A head of its own.")
TIED = Variant("tied-head", {"model.tie_embeddings": True}, "The embedding is the head.")


def leave_one_out(base: Config) -> tuple[Variant, ...]:
    """The base without each of its ingredients, and with the head tied or untied the other way."""
    return (*INGREDIENTS, UNTIED if base.model.tie_embeddings else TIED)


# -------------------------------------------------------------------------- the workbook's suite


NANO_STEPS = 150  # updates of a run


def nano_suite(base: Config | None = None) -> Suite:
    """The suite of the `nano` workbook, for two cores and two to three minutes. The arithmetic:

    A run: 2 layers, width 96, vocabulary 1,024, context 128. Weights in matrix products
    12 · 2 · 96² + 1,024 · 96 = 319k, six operations each: 1.9 MFLOP a token; attention
    12 · 2 · 96 · 128 = 0.3; together 2.2 MFLOP. 150 updates of 2 × 128 tokens are 38k tokens and
    0.085 TFLOP; ten validations of 4k tokens, forward alone, add a third.

    Runs: 13 variants × 3 seeds, 4 + 3 trials for the rates of the AdamW recipes, and for the
    scaling law 3 widths × 3 lengths but the one that the base is already: 8 runs of about half
    the work. In all 50 times 0.11 TFLOP = 5.5 TFLOP. Matrices this small reach some 20 GFLOP/s on a
    core, so two cores, one run on each, take about 140 seconds.

    Small batches, because updates are what the GPT-3 recipe lacks here: with twice the batch and
    half the updates it ended where a unigram model does, at every rate tried. Even so, this is
    the very beginning of learning; what it says of recipes holds there and has to be measured
    again at scale.

    `base` lends its data and device; sizes, lengths and rates are those of the suite.
    """
    changes: dict[str, object] = {
        "model.n_layers": 2,
        "model.n_heads": 3,
        "model.width": 96,
        "model.head_dim": 0,
        "model.vocab_size": 1_024,
        "model.context_length": 128,
        "training.max_steps": NANO_STEPS,
        "training.warmup_steps": NANO_STEPS // 10,
        "training.batch_size": 2,
        "training.micro_batch_size": 0,
        "training.validate_every": NANO_STEPS // 10,
        "training.validation_sequences": 32,
        "training.checkpoint_every": 0,  # a run of seconds is sooner begun again
        "training.sample_every": 0,
        "training.threads": 1,
    }
    base = (base or Config.preset("nano")).override(changes)
    return Suite(
        name="nano",
        base=base,
        variants=(STRATA, GPT3, *leave_one_out(base)),
        seeds=(0, 1, 2),
        tunings=(
            Tuning("gpt3", "optimizer.learning_rate", (1e-3, 2e-3, 4e-3, 8e-3)),
            Tuning("adamw", "optimizer.learning_rate", (1e-3, 3e-3, 1e-2)),
        ),
        scaling=scaling_grid(base, widths=(64, 96, 128), shares=(0.25, 0.5, 1.0)),
    )


def scaling_grid(
    base: Config, widths: tuple[int, ...], shares: tuple[float, ...]
) -> tuple[Variant, ...]:
    """Every width with every share of the base's steps, the base itself left out.

    Heads keep their width, so their number follows; warm-up and validations keep their place in
    the run. Each length is a run of its own, with its own decay of the rate, as Hoffmann et al.
    (2022, section 3.1) found necessary: the middle of a longer run stands above the end of a
    shorter one.
    """
    head, steps = base.model.head_size, base.training.max_steps
    grid = []
    for width in widths:
        for share in shares:
            if (width, share) == (base.model.width, 1.0):
                continue
            changes = {
                "model.width": width,
                "model.n_heads": width // head,
                "training.max_steps": round(share * steps),
                "training.warmup_steps": round(share * base.training.warmup_steps),
                "training.validate_every": max(1, round(share * base.training.validate_every)),
            }
            name = f"width{width}-steps{changes['training.max_steps']}"
            description = f"Width {width}, {share:.0%} of the steps."
            grid.append(Variant(name, changes, description))
    return tuple(grid)
