"""Files changed as an accident or an attacker might change them, for hypothesis to draw."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from strata.tokenizer import Tokenizer

HOSTILE = [
    None, True, -1, 0, 1, 255, 2**21, 2**64, -(2**63), 1.5, float("nan"), float("inf"), "", "a",
    "\ud800", "\u0120", "<|document|>", [], {}, [[]], [0, "a"], {"a": 1},
]  # fmt: skip


@st.composite
def mutated_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with up to three flips, cuts, insertions or repetitions somewhere."""
    changed = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(changed)))
        stop = min(len(changed), start + draw(st.integers(0, 40)))
        match draw(st.sampled_from(["flip", "cut", "end", "insert", "repeat"])):
            case "flip" if start < len(changed):
                changed[start] ^= draw(st.integers(1, 255))
            case "cut":
                del changed[start:stop]
            case "end":
                del changed[start:]
            case "insert":
                changed[start:start] = draw(st.binary(max_size=8))
            case "repeat":
                changed[start:start] = changed[start:stop]
    return bytes(changed)


@st.composite
def mutated_json(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with some value replaced by a hostile one, exchanged with another, or removed."""
    content = json.loads(whole)
    holder: Any = content
    while True:
        places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        place = draw(st.sampled_from(places))
        inner = holder[place]
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            break
        holder = inner
    match draw(st.sampled_from(["hostile", "swap", "remove"])):
        case "hostile":
            holder[place] = draw(st.sampled_from(HOSTILE))
        case "swap":
            other = draw(st.sampled_from(places))
            holder[place], holder[other] = holder[other], holder[place]
        case "remove":
            del holder[place]
    return json.dumps(content).encode()


def loaded_or_refused(load: Callable[[], Tokenizer], file: str) -> Tokenizer | None:
    """What `load` returns, or None if it raises a ValueError that names the file; else fails."""
    try:
        return load()
    except ValueError as error:
        message = str(error)
    assert file in message
    return None
