"""A tokenizer as a file of Strata's own: JSON, made to be looked at.

One token a line, as text where it is text. The file says its version, and its checksum is the
tokenizer's identity, so that a file that was cut short or edited is noticed. Reading takes nothing
for granted: whatever a file holds, `read_json` returns the tokenizer that was saved or raises
ValueError. exchange.py and huggingface.py, for the files of other libraries, share the means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar, cast

if TYPE_CHECKING:
    from strata.tokenizer.tokenizer import Tokenizer

FORMAT = "strata-tokenizer"
VERSION = 1
LONGEST_FAULT = 500  # characters

Value = TypeVar("Value")


def write_json(tokenizer: Tokenizer, path: Path) -> None:
    """Writes a tokenizer in Strata's own format, which `read_json` reads.

    A token is `[id, text]`, or `[id, "hex", bytes in hex]` if its bytes are not whole characters.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "pattern": tokenizer.pattern,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": tokenizer.special_tokens,
        "checksum": tokenizer.identity,
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in header.items()]
    tokens = [
        json.dumps([index, *spelled(token)], ensure_ascii=False)
        for token, index in tokenizer.ranks.items()
    ]
    lines.append('"tokens": [\n' + ",\n".join(tokens) + "\n]")
    write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")


def spelled(token: bytes) -> list[str]:
    """A token as its text, or, if that is not whole characters, as "hex" and its bytes in hex."""
    try:
        return [token.decode()]
    except UnicodeDecodeError:
        return ["hex", token.hex()]


def read_json(make: type[Tokenizer], path: Path) -> Tokenizer:
    """The tokenizer, made by `make`, in a file that `write_json` wrote.

    Raises FileNotFoundError, or ValueError for anything else than such a file.
    """
    with reading(path, "Strata tokenizer"):
        content = parse(path)
        if (found := field(content, "format", str)) != FORMAT:
            raise ValueError(f"its format is {found!r}, not {FORMAT!r}")
        if (version := field(content, "version", int)) != VERSION:
            raise ValueError(f"its version is {version}, and this reads {VERSION}")
        checksum = field(content, "checksum", str)
        vocab_size = field(content, "vocab_size", int)
        special_tokens = token_ids(field(content, "special_tokens", dict))
        ranks: dict[bytes, int] = {}
        for entry in field(content, "tokens", list):
            token, index = read_token(entry)
            if token in ranks:
                raise ValueError(f"it holds the token {token!r} twice")
            ranks[token] = index
        tokenizer = make.from_ranks(ranks, field(content, "pattern", str), special_tokens)
        if (tokenizer.vocab_size, tokenizer.identity) != (vocab_size, checksum):
            raise ValueError("its checksum does not match its content")
        return tokenizer


def read_token(entry: object) -> tuple[bytes, int]:
    """The bytes and id of one entry of "tokens". Raises ValueError unless it is as written."""
    match entry:
        case [int(index), str(text)] if type(index) is int:
            return text.encode(), index
        case [int(index), "hex", str(digits)] if type(index) is int:
            token = bytes.fromhex(digits)
            if spelled(token) == ["hex", digits]:
                return token, index
    raise ValueError(f'expected [id, text] or [id, "hex", digits], found {shown(entry)}')


# --- reading without trust ------------------------------------------------------------------------


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Has whatever is wrong with the file's content raise ValueError that names the file.

    Raises FileNotFoundError if there is no such file.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a {what}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}: expected a {what}")
    try:
        yield
    except RecursionError as error:
        raise ValueError(f"{path} is no {what}: it is nested too deeply") from error
    except ValueError as error:
        fault = str(error)
        if len(fault) > LONGEST_FAULT:  # it quotes the file, where something may be of any length
            fault = f"{fault[:LONGEST_FAULT]}…"
        raise ValueError(f"{path} is no {what}, or it is damaged: {fault}") from error


def parse(path: Path) -> dict[str, object]:
    """The object in a JSON file; what it takes in memory is proportional to the file.

    Raises ValueError for anything else, and for what JSON does not know: NaN, or a name twice.
    """
    content = json.loads(
        path.read_bytes().decode("utf-8"),
        object_pairs_hook=without_repetition,
        parse_constant=no_constant,
    )
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {shown(content)}")
    return content


def without_repetition(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """A JSON object as a dictionary, of which no key may be given twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(a for a, b in pairwise(names) if a == b)
        raise ValueError(f"it holds the name {twice!r} twice")
    return content


def no_constant(name: str) -> NoReturn:
    """Refuses NaN and Infinity, which Python's reader takes for numbers."""
    raise ValueError(f"{name} is no JSON")


def field(content: object, name: str, kind: type[Value]) -> Value:
    """What `content`, a JSON object, holds under `name`. Raises ValueError if it is no `kind`."""
    if not isinstance(content, dict):
        raise ValueError(f"expected an object with {name!r}, found {shown(content)}")
    value = content.get(name)
    if type(value) is not kind:  # exactly: true is no number here
        raise ValueError(f"expected {name!r} to be {KINDS[kind]}, found {shown(value)}")
    return value


KINDS = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}


def token_ids(content: dict[str, object]) -> dict[str, int]:
    """`content` once it is clear that all its values are whole numbers; else raises ValueError."""
    for name, index in content.items():
        if type(index) is not int:
            raise ValueError(f"expected the id of {name!r} to be a number, found {shown(index)}")
    return cast(dict[str, int], content)


def shown(value: object) -> str:
    """A value out of a file, short enough for a message."""
    return f"{value!r:.60}" if value is not None else "nothing"


def write_whole(path: Path, content: str) -> None:
    """Writes a file so that it appears whole or not at all, whoever else writes it meanwhile."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(content, encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
