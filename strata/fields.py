"""How the fields of a configuration are declared with their bounds, and checked against them."""

import difflib
import math
import typing
from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any, Literal

# Update rules written out in training/rules.py.
OPTIMIZER_RULES = ("muon", "adamw", "lion", "sgd", "adafactor")
# Classes of torch.optim that the training loop cannot use, and why.
_UNUSABLE = {
    "LBFGS": "it evaluates the loss again and again within a step",
    "Muon": "it takes matrices alone; 'muon' is Strata's",
    "SparseAdam": "it takes sparse gradients alone",
}


def number(default: float, low: float | None = None, high: float | None = None) -> Any:
    """A field whose value must lie in [low, high]."""
    return field(default=default, metadata={"low": low, "high": high})


def positive(default: float) -> Any:
    """A field whose value must be greater than zero."""
    return field(default=default, metadata={"above": 0})


def check_section(section: Any, prefix: str) -> None:
    """Check each field of a section against its type and bounds; widen integers to floats.

    Raises:
        ValueError: with the dotted name of the field, the value, and what is allowed.
    """
    hints = typing.get_type_hints(type(section))
    for item in fields(section):
        name, value, expected = f"{prefix}.{item.name}", getattr(section, item.name), None
        hint = hints[item.name]
        if typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            if value not in choices:
                expected = "one of " + ", ".join(repr(choice) for choice in choices)
        elif hint is bool:
            expected = None if isinstance(value, bool) else "true or false"
        elif hint is str:
            expected = None if isinstance(value, str) else "text"
        elif typing.get_origin(hint) is tuple:
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(section, item.name, value)
            if not (isinstance(value, tuple) and all(isinstance(part, str) for part in value)):
                expected = "a list of names"
        else:
            kind = "a whole number" if hint is int else "a number"
            allowed = (int,) if hint is int else (int, float)
            if not isinstance(value, allowed) or isinstance(value, bool):
                expected = kind
            elif not math.isfinite(value):
                expected = f"{kind} that is finite"
            else:
                low, high = item.metadata.get("low"), item.metadata.get("high")
                above = item.metadata.get("above")
                if above is not None and value <= above:
                    expected = f"{kind} greater than {above}"
                elif low is not None and high is not None and not low <= value <= high:
                    expected = f"{kind} from {low} to {high}"
                elif low is not None and value < low:
                    expected = f"{kind} of at least {low}"
                if hint is float:
                    object.__setattr__(section, item.name, float(value))
        if expected:
            raise ValueError(f"{name} = {value!r}: expected {expected}")


def check_doubling(name: str, start: int, end: int) -> None:
    """Raise ValueError where `training.initial_<name>` does not grow into `end` by doubling."""
    if start and (end % start or (end // start).bit_count() != 1):
        raise ValueError(
            f"training.initial_{name} = {start}: expected {end} divided by a power of two, since "
            "it grows by doubling"
        )


def check_optimizer_name(name: str) -> None:
    """Check that a name is one of ours or of a class of torch.optim that can be used here.

    Raises:
        ValueError: with all that is allowed, and the nearest of it.
    """
    if name in OPTIMIZER_RULES:
        return
    from torch import optim  # here, since it is slow to load and few names need it

    classes = {
        known
        for known, kind in vars(optim).items()
        if isinstance(kind, type) and issubclass(kind, optim.Optimizer)
    }
    usable = sorted(classes - {"Optimizer", *_UNUSABLE})
    if name not in usable:
        why = f" ({_UNUSABLE[name]})" if name in _UNUSABLE else ""
        raise ValueError(
            f"optimizer.name = {name!r}{why}: expected one of {', '.join(OPTIMIZER_RULES)}, or of "
            f"torch.optim's {', '.join(usable)}{nearest(name, (*OPTIMIZER_RULES, *usable))}"
        )


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
