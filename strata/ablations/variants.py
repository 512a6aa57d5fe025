"""What is compared: variants as differences of configuration, gathered into suites.

A `Variant` is a name and the fields that it changes; applied to the base configuration it gives
the configuration of a run, so nothing about a comparison is hidden in code. A `Suite` is one
experiment: variants × seeds, before them what must be chosen fairly (`Tuning`, which tries given
values, and `Search`, which looks for some), beside them runs of other sizes and lengths for the
scaling law. Suites are read from files (`strata/ablations/suites.py`) and run by
`strata/ablations/sweep.py`. To add a variant to one:

    suite = read_suite("nano")
    mine = Variant("no-clipping", {"training.gradient_clip": 0.0}, "Gradients are not clipped.")
    suite = dataclasses.replace(suite, variants=(*suite.variants, mine))
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from strata.config import Config

Changes = Mapping[str, object]


@dataclass(frozen=True)
class Variant:
    """A recipe as a difference from the base.

    `name` becomes part of a folder's name; `changes` maps dotted field names to values as
    `Config.override` takes them; `description` is one sentence for the table. `recipe` is given
    for runs of a scaling law: the variant that this is one of at another size or length.
    """

    name: str
    changes: Changes
    description: str
    recipe: str = ""

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
    """Values of one field, tried for one variant before its runs: each once, the best kept.

    They are tried with a seed that the reported runs do not use, so that the choice does not
    flatter the result, and for as many updates as the suite's runs, or for `steps`. `field` is a
    dotted name. `also` are patterns of names: variants that take the value chosen too, each where
    it had the same value as `variant` before.
    """

    variant: str
    field: str
    values: tuple[float, ...]
    seed: int = 1_000
    steps: int = 0
    also: tuple[str, ...] = ()

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

    @property
    def fields(self) -> tuple[str, ...]:
        """Dotted names of what is chosen."""
        return (self.field,)


@dataclass(frozen=True)
class Search:
    """A search over any fields for one variant before its runs, as `strata tune` makes it.

    `space` says what to try, by dotted name, as `strata/ablations/search.py` reads it; `trials`
    are made in all. The rest is as for `Tuning`.
    """

    variant: str
    space: Mapping[str, str]
    trials: int
    seed: int = 1_000
    steps: int = 0
    also: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Dotted names of what is chosen."""
        return tuple(self.space)

    @property
    def folder_name(self) -> str:
        """Where its trials lie in the suite's folder."""
        return f"search-{self.variant}"


@dataclass(frozen=True)
class Suite:
    """One experiment. The first variant is the one that all others are compared with.

    `scaling` are runs of other sizes and lengths, made once, with the first seed; `left_out` says
    which the file asked for in vain.

    Raises ValueError, before anything runs, when two variants share a name, a tuning names none
    of them, or a configuration is not valid.
    """

    name: str
    base: Config
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    tunings: tuple[Tuning | Search, ...] = ()
    scaling: tuple[Variant, ...] = ()
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise ValueError(f"suite {self.name!r} needs at least one variant and one seed")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"suite {self.name!r} repeats a seed: {self.seeds}")
        everything = [*self.variants, *self.scaling]
        for tuning in self.tunings:
            everything += self._check_tuning(tuning)
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

    def named(self, patterns: Sequence[str]) -> set[str]:
        """The names of variants, scaling runs included, that fit any of some patterns: `gpt3+*`.

        Raises ValueError for a pattern that none fits.
        """
        names = [variant.name for variant in (*self.variants, *self.scaling)]
        found = set()
        for pattern in patterns:
            if not (fitting := {name for name in names if fnmatchcase(name, pattern)}):
                self.variant(pattern)  # says that there is none, and which there are
            found |= fitting
        return found

    def _check_tuning(self, tuning: Tuning | Search) -> list[Variant]:
        """The trials of a tuning that are known beforehand, if nothing is wrong with it."""
        variant, what = self.variant(tuning.variant), f"the tuning of {tuning.variant!r}"
        self.named(tuning.also)
        if tuning.seed in self.seeds:
            raise ValueError(
                f"{what} uses seed {tuning.seed}, which is also reported; take another"
            )
        others = [one for one in self.tunings if one is not tuning and one.variant == variant.name]
        if isinstance(tuning, Tuning):
            if not tuning.values:
                raise ValueError(f"{what} has no values to try")
            return tuning.trials(variant)
        if others:
            raise ValueError(f"{what} is a search; put all its fields into one")
        if tuning.trials < 1:
            raise ValueError(f"{what}: trials = {tuning.trials}: expected at least 1")
        from strata.ablations.search import parse_search  # needs Optuna, as suites seldom do

        try:
            parse_search(tuning.space, variant.apply(self.base, tuning.seed))
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
        return []
