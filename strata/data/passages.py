"""Texts of one kind, to measure a tokenizer on: code, prose, numbers, and other languages.

A tokenizer that was learnt from source code is good at source code; how good it is at anything else
has to be asked separately. `texts_by_kind` takes held-out documents apart. The prose of a corpus of
Python files is in their documentation strings; that is English as programmers write it, and of the
kind that the tokenizer was learnt from too. `parallel_passages` is one paragraph in eleven
languages.
"""

import ast
import inspect
import re
import tomllib
import warnings
from collections.abc import Iterable
from pathlib import Path

KINDS = ("code", "prose", "numbers")
FEWEST_WORDS = 8  # of a paragraph of prose; shorter ones are headings and types
MOST_SIGNS = 0.08  # of prose: characters other than letters, white space and common punctuation
MOST_DIGITS = 0.15  # a line with a larger share of digits is full of numbers

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def texts_by_kind(documents: Iterable[str]) -> dict[str, list[str]]:
    """The texts of each of `KINDS` in some documents, one or none a document and kind.

    code: Python files without their documentation strings.
    prose: the paragraphs of those that are sentences; or a document that is no Python, whole.
    numbers: the lines, of whatever document, of which more than `MOST_DIGITS` are digits.
    """
    texts: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for document in documents:
        parts = {"prose": document, "numbers": number_lines(document)}
        strings = documentation_strings(document)
        if strings is not None:
            parts["code"] = without_lines(document, strings)
            parts["prose"] = "\n\n".join(prose_paragraphs(strings))
        for kind, text in parts.items():
            if text.strip():
                texts[kind].append(text)
    return texts


def documentation_strings(source: str) -> list[ast.Constant] | None:
    """The documentation strings of a Python file, None if it is none."""
    try:
        with warnings.catch_warnings():  # about escapes that Python will not take one day
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    found = []
    for node in ast.walk(tree):
        if isinstance(node, Documented) and ast.get_docstring(node, clean=False) is not None:
            statement = node.body[0]
            assert isinstance(statement, ast.Expr)
            assert isinstance(statement.value, ast.Constant)
            found.append(statement.value)
    return found


def without_lines(source: str, strings: Iterable[ast.Constant]) -> str:
    """A Python file without the lines that these strings take."""
    lines = re.split(r"(?<=\n)", source)  # not splitlines, which breaks at form feeds too
    for string in strings:
        end = string.end_lineno or string.lineno
        lines[string.lineno - 1 : end] = [""] * (end - string.lineno + 1)
    return "".join(lines)


def prose_paragraphs(strings: Iterable[ast.Constant]) -> list[str]:
    """The paragraphs of documentation strings that are sentences: no examples, no tables."""
    paragraphs = []
    for string in strings:
        for paragraph in inspect.cleandoc(str(string.value)).split("\n\n"):
            paragraph = paragraph.strip()
            signs = len(re.findall(r"[^A-Za-z\s.,;:'()-]", paragraph))
            if (
                re.match(r"[A-Z][\w' ]", paragraph)
                and paragraph.endswith(".")
                and "--" not in paragraph
                and len(paragraph.split()) >= FEWEST_WORDS
                and signs <= MOST_SIGNS * len(paragraph)
            ):
                paragraphs.append(paragraph)
    return paragraphs


def number_lines(text: str) -> str:
    """The lines of a text with at least three digits that make more than `MOST_DIGITS` of it."""
    kept = []
    for line in text.splitlines(keepends=True):
        digits = sum(character.isdigit() for character in line)
        if digits > 2 and digits > MOST_DIGITS * len(line.strip()):
            kept.append(line)
    return "".join(kept)


def parallel_passages() -> dict[str, str]:
    """One paragraph on how rain forms, by language: the same six sentences in each of eleven."""
    passages: dict[str, str] = tomllib.loads(
        Path(__file__).with_name("parallel.toml").read_text(encoding="utf-8")
    )
    return passages
