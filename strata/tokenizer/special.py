"""Special tokens in text: where their names count as tokens, and where they are refused.

A special token stands for something that no text contains, such as the border between documents.
Whoever could write one into a text could forge that border, so a name in a text is text, unless
the caller allows it by name. `tiktoken` goes one step further and refuses, by default, a text in
which a name occurs. Strata leaves that to the caller (`disallowed_special="all"`): its own corpus
is source code, in which such names do occur, and encoding them as text is safe.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

DOCUMENT = "<|document|>"  # begins every document of a corpus
SPECIAL_TOKENS = (DOCUMENT, *(f"<|reserved_{i}|>" for i in range(1, 8)))
SEPARATORS = (DOCUMENT, "<|endoftext|>")  # what tokenizers call the token between documents

Names = Collection[str] | Literal["all"]


def chosen(
    special_tokens: Mapping[str, int], allowed: Names, disallowed: Names
) -> tuple[frozenset[str], frozenset[str]]:
    """The names that are allowed and those that are disallowed, with "all" spelled out.

    All that are disallowed are all that are not allowed.

    Raises:
        ValueError: a name is none of the tokenizer's, or a single string other than "all" was
            given where a set of names belongs.
    """
    everything = frozenset(special_tokens)
    allowed = everything if allowed == "all" else _known(allowed, everything, "allowed_special")
    if disallowed == "all":
        return allowed, everything - allowed
    return allowed, _known(disallowed, everything, "disallowed_special")


def _known(names: Collection[str], special_tokens: frozenset[str], option: str) -> frozenset[str]:
    if isinstance(names, str):
        raise ValueError(
            f"{option}={names!r} is one string: expected a set of names, as in "
            f'{{{names!r}}}, or "all"'
        )
    for name in names:
        if name not in special_tokens:
            known = ", ".join(map(repr, sorted(special_tokens))) or "none"
            raise ValueError(f"{name!r} is no special token; this tokenizer has: {known}")
    return frozenset(names)


def refuse(text: str, disallowed: frozenset[str]) -> None:
    """Raises ValueError if one of these names is in the text, and says where."""
    if disallowed and (found := _any_of(disallowed).search(text)):
        name = found.group()
        raise ValueError(
            f"the text holds the special token {name!r} at position {found.start()}: allow it with "
            f"allowed_special={{{name!r}}} to have it encoded as that token, or take it out of "
            "disallowed_special to have it encoded as text"
        )


def pieces(text: str, allowed: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """The text cut at the allowed names, each piece with whether it is such a name.

    Where several names begin at the same place, the longest counts.
    """
    start = 0
    if allowed:
        for found in _any_of(allowed).finditer(text):
            yield text[start : found.start()], False
            yield found.group(), True
            start = found.end()
    yield text[start:], False


def _any_of(names: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)))
