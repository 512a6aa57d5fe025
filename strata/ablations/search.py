"""What a search tries: values of fields of a configuration, as text.

    LOW:HIGH        evenly between the two; whole numbers where the field takes those
    LOW:HIGH:STEP   of these, LOW and every STEP-th after it
    log:LOW:HIGH    evenly in the logarithm, for what is known to its order of magnitude
    A,B,C           one of these, for any field but a list

On the command line: `--search optimizer.learning-rate=log:0.001:0.1 --search model.n-layers=2:6`.
"""

import math
import typing
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from strata.config import Config

Space = dict[str, BaseDistribution]

_FORMS = "LOW:HIGH, LOW:HIGH:STEP, log:LOW:HIGH or a list A,B,C"


def split_search(items: Iterable[str]) -> dict[str, str]:
    """`FIELD=WHAT` arguments as a mapping.

    Raises:
        ValueError: if one has no "=", or a field is named twice.
    """
    search: dict[str, str] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--search {item}: expected FIELD=WHAT, and WHAT as {_FORMS}")
        name = name.replace("-", "_")
        if name in search:
            raise ValueError(f"--search {name}: given twice")
        search[name] = text
    return search


def parse_search(search: Mapping[str, str], config: Config) -> Space:
    """What Optuna draws from, by dotted name; dashes in a name may stand for underscores.

    Raises:
        ValueError: for a field that there is not (with the nearest that there is), text that says
            no search, ends that the field does not take, or a field on which no weight depends.
    """
    if not search:
        raise ValueError("nothing to search: name a field, as in optimizer.learning_rate=0.01:0.1")
    space: Space = {}
    for field, text in search.items():
        name = field.replace("-", "_")
        section, _, key = name.partition(".")
        if key not in config.to_dict().get(section, {}):
            config.override({name: None})  # says that there is no such field, and which is near
        kind = typing.get_type_hints(type(getattr(config, section)))[key]
        space[name] = _distribution(name, text, kind)
        changed = [config.override({name: end}) for end in _ends(space[name])]
        if len({one.hash() for one in changed}) == 1:
            raise ValueError(f"{name}: no weight depends on it, so there is nothing to search")
    return space


def base_values(space: Space, config: Config) -> dict[str, Any] | None:
    """The configuration's own values of what is searched; None if one lies outside the search."""
    tree = config.to_dict()
    values = {name: tree[name.split(".")[0]][name.split(".")[1]] for name in space}
    inside = all(_contains(space[name], value) for name, value in values.items())
    return values if inside else None


def _distribution(name: str, text: str, kind: Any) -> BaseDistribution:
    wrong = ValueError(f"{name}={text}: expected {_FORMS}, with LOW below HIGH")
    if kind not in (int, float) or "," in text:
        choices = [_value(name, part, kind) for part in text.split(",")]
        if len(set(choices)) < max(2, len(choices)):
            raise ValueError(f"{name}={text}: expected several different values, as A,B,C")
        return CategoricalDistribution(choices)
    log = text.startswith("log:")
    parts = [_value(name, part, kind) for part in text.removeprefix("log:").split(":")]
    if not 2 <= len(parts) <= 3 or not all(map(math.isfinite, parts)):
        raise wrong
    low, high, *steps = parts
    if low >= high or (log and (steps or low <= 0)) or (steps and steps[0] <= 0):
        raise wrong
    step = steps[0] if steps else None
    if step is not None:  # so that the end is one that is tried; decimal, for 0:0.3:0.1
        start, width = Decimal(str(low)), Decimal(str(step))
        high = kind(start + (Decimal(str(high)) - start) // width * width)
    if kind is int:
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def _value(name: str, text: str, kind: Any) -> Any:
    """One value, read as the field's type; which values it takes, the field itself says."""
    if kind is bool:
        if text in ("true", "false"):
            return text == "true"
        raise ValueError(f"{name}: {text!r} is neither true nor false")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{name}: {text!r} is not {what}; expected {_FORMS}") from None
    if typing.get_origin(kind) is tuple:
        raise ValueError(f"{name}: a list of names cannot be searched")
    return text


def _ends(distribution: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low, distribution.high


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    steps = (value - distribution.low) / (distribution.step or 1)
    on_grid = distribution.step is None or abs(steps - round(steps)) < 1e-6
    return distribution.low <= value <= distribution.high and on_grid
