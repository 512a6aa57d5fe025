"""The two recipes, and the ingredients in which they differ, each stated once.

An `Ingredient` is what Strata does otherwise than GPT-3: the fields and GPT-3's values of them.
Read in one direction that is an ablation (`leave_one_out`: Strata with one thing put back), in the
other an addition (`add_one_in`: GPT-3's recipe with one thing of Strata's). The two need not tell
the same: what is worth much alone may be worth little where another ingredient does its work.

To add an ingredient, add it to `INGREDIENTS`; a test holds that they are all that differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from strata.ablations.variants import Changes, Variant
from strata.config import Config
from strata.fields import nearest
from strata.presets import GPT3_RECIPE

STRATA = Variant("strata", {}, "The full Strata recipe.")

# Everything at once; `strata/presets.py` lists the fields with their sources. Steps, batch,
# warm-up, sizes and data stay those of the base, so the bodies are of one size.
GPT3 = Variant("gpt3", GPT3_RECIPE, "GPT-3's recipe at the same body size.")


@dataclass(frozen=True)
class Ingredient:
    """One difference between the recipes, to be taken out of one or put into the other.

    `without` names the variant of Strata that lacks it, `gpt3` holds the fields with GPT-3's
    values, `left_out` is that variant's description. `name` and `added` are those of the variant
    `gpt3+<name>`. `needs` are further fields that it takes along into GPT-3's recipe, at the
    values of the base, because it does not work, or does nothing, without them.
    """

    without: str
    gpt3: Changes
    left_out: str
    name: str
    added: str
    needs: tuple[str, ...] = ()


# Muon's update has a size of its own, whatever the gradient's, so AdamW's rates are not its rates;
# nor is the decay, which is a share of the rate.
_MUON = (
    "optimizer.learning_rate",
    "optimizer.embedding_learning_rate",
    "optimizer.head_learning_rate",
    "optimizer.scalar_learning_rate",
    "optimizer.weight_decay",
)

_SCHEDULE = ("training.schedule", "training.decay_fraction", "training.final_rate_ratio")

INGREDIENTS: tuple[Ingredient, ...] = (
    Ingredient(
        "adamw",
        {"optimizer.name": "adamw"},
        "AdamW instead of Muon for the matrices.",
        "muon",
        "Muon for the matrices, at Strata's rates, without decay",
        _MUON,
    ),
    Ingredient(
        "plain-muon",
        {"optimizer.normalise_rows": False},
        "The rows of Muon's updates are not evened out.",
        "even-muon",
        "Muon at Strata's rates, the rows of its updates evened out",
        ("optimizer.name", *_MUON),
    ),
    Ingredient(
        "beta2-0.95",
        {"optimizer.beta2": 0.95},
        "AdamW forgets squares as fast as GPT-3's.",
        "slow-beta2",
        "AdamW's longer memory of squares",
    ),
    Ingredient(
        "learned-positions",
        {"model.positions": "learned"},
        "Learned position embeddings instead of rotary ones.",
        "rotary",
        "rotary position embeddings",
    ),
    Ingredient(
        "gelu",
        {"model.activation": "gelu"},
        "GELU instead of squared ReLU.",
        "squared-relu",
        "squared ReLU",
    ),
    Ingredient(
        "layernorm",
        {"model.norm": "layernorm"},
        "LayerNorm instead of RMSNorm.",
        "rmsnorm",
        "RMSNorm",
    ),
    Ingredient(
        "no-qk-norm",
        {"model.qk_norm": False},
        "Queries and keys are not normalised.",
        "qk-norm",
        "queries and keys normalised",
    ),
    Ingredient(
        "no-zero-init",
        {"model.zero_init_projections": False},
        "Every matrix starts as GPT-2's does, none at zero.",
        "zero-init",
        "projections that start at zero",
    ),
    Ingredient(
        "no-residual-scalars",
        {"model.residual_scalars": False},
        "No normalised embedding mixed into the stream at every block.",
        "residual-scalars",
        "the normalised embedding mixed into the stream at every block",
    ),
    Ingredient(
        "no-softcap",
        {"model.logit_softcap": 0.0},
        "Logits are not capped.",
        "softcap",
        "logits capped",
    ),
    Ingredient("biases", {"model.biases": True}, "Biases.", "no-biases", "no biases"),
    Ingredient(
        "weight-decay",
        {"optimizer.weight_decay": 0.1},
        "GPT-3's weight decay.",
        "no-decay",
        "no weight decay",
    ),
    Ingredient(
        "cosine",
        {name: GPT3_RECIPE[name] for name in _SCHEDULE},
        "GPT-3's cosine schedule instead of a trapezoid.",
        "trapezoid",
        "a trapezoid for the learning rate, down to zero",
    ),
)
# Of the head the recipes say the same, but a larger vocabulary may want another, so both are tried.
UNTIED = Variant("untied-head", {"model.tie_embeddings": False}, "A head of its own.")
TIED = Variant("tied-head", {"model.tie_embeddings": True}, "The embedding is the head.")


def leave_one_out(base: Config, names: Sequence[str] = ()) -> tuple[Variant, ...]:
    """The base without each of its ingredients, and with the head tied or untied the other way.

    `names` picks some of them. Raises ValueError for one that there is not.
    """
    made = [Variant(one.without, one.gpt3, one.left_out) for one in INGREDIENTS]
    return _picked([*made, UNTIED if base.model.tie_embeddings else TIED], names)


def add_one_in(base: Config, names: Sequence[str] = ()) -> tuple[Variant, ...]:
    """GPT-3's recipe with each ingredient at its value in `base`, as variants `gpt3+<name>`.

    What the base has in common with GPT-3's recipe is no addition and is left out. `names` picks
    some of them. Raises ValueError for one that there is not.
    """
    ingredients = [*INGREDIENTS]
    if not base.model.tie_embeddings:
        ingredients.append(
            Ingredient(TIED.name, TIED.changes, TIED.description, UNTIED.name, "an untied head")
        )
    tree = base.to_dict()

    def value(field: str) -> object:
        section, _, key = field.partition(".")
        return tree[section][key]

    made = [
        Variant(
            f"{GPT3.name}+{one.name}",
            {**GPT3_RECIPE, **{field: value(field) for field in (*one.gpt3, *one.needs)}},
            f"GPT-3's recipe with {one.added}.",
        )
        for one in ingredients
        if any(value(field) != theirs for field, theirs in one.gpt3.items())
    ]
    return _picked(made, names)


def _picked(variants: Sequence[Variant], names: Sequence[str]) -> tuple[Variant, ...]:
    known = {variant.name: variant for variant in variants}
    for name in names:
        if name not in known:
            raise ValueError(
                f"no ingredient {name!r}; there are {', '.join(known)}{nearest(name, list(known))}"
            )
    return tuple(known[name] for name in names) if names else tuple(variants)
