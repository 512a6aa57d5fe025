"""The scanner against the regular expressions that it replaces."""

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import Split

from strata.tokenizer import REGULAR_EXPRESSIONS, split_words
from strata.tokenizer.huggingface import ONIGURUMA
from strata.tokenizer.scanner import (
    LETTER,
    NEWLINE,
    NUMBER,
    OTHER,
    RULES,
    SPACE,
    character_classes,
)

PATTERNS = tuple(RULES)
SCALARS = [*range(0xD800), *range(0xE000, 0x110000)]


def unicode_table() -> ModuleType:
    """The script that made the table of character classes, as a module."""
    path = Path(__file__).parents[1] / "scripts" / "unicode_table.py"
    spec = importlib.util.spec_from_file_location("unicode_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_characters_class_is_tiktokens() -> None:
    script = unicode_table()
    numbers = (script.OTHER, script.LETTER, script.NUMBER, script.SPACE, script.NEWLINE)
    assert numbers == (OTHER, LETTER, NUMBER, SPACE, NEWLINE)
    assert np.array_equal(character_classes(), script.classify_with_tiktoken())


def test_every_characters_class_is_that_of_tokenizers() -> None:
    # All of the planes that have characters, and some of those that have none.
    scalars = [c for c in SCALARS if c < 0x40000 or c >> 16 == 0xE or c % 101 == 0]
    text = "".join(map(chr, scalars))
    expected = np.zeros(0x110000, dtype=np.uint8)
    for kind, pattern in ((LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (SPACE, r"\s+")):
        kept = Split(tokenizers.Regex(pattern), "removed", invert=True).pre_tokenize_str(text)
        expected[[ord(character) for piece, _ in kept for character in piece]] = kind
    expected[[ord("\n"), ord("\r")]] = NEWLINE
    assert np.array_equal(character_classes()[scalars], expected[scalars])


def oracle(pattern: str) -> Split:
    return Split(tokenizers.Regex(ONIGURUMA[pattern]), "isolated")


def split_by_oracle(split: Split, text: str) -> list[str]:
    return [piece for piece, _ in split.pre_tokenize_str(text)]


# One character for every turn that a pattern can take.
TURNS = "aS1 \t\n\r'\u017f!\u00a0\u0301\u6f22\u0664\U0001f600"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_short_sequence_of_classes_is_cut_like_the_expression_cuts_it(pattern: str) -> None:
    split = oracle(pattern)
    for characters in itertools.product(TURNS, repeat=3):
        text = "".join(characters)
        assert split_words(text, pattern) == split_by_oracle(split, text)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=250, deadline=None)
@given(
    text=st.text(
        st.one_of(
            st.sampled_from(TURNS + "tTdDmMlLvVeErR"), st.characters(exclude_categories=["Cs"])
        )
    )
)
def test_any_text_is_cut_like_the_expression_cuts_it(pattern: str, text: str) -> None:
    words = split_words(text, pattern)
    assert words == split_by_oracle(oracle(pattern), text)
    assert "".join(words) == text


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=200, deadline=None)
@given(text=st.text("aS1 \t\n\r'\u017f!.\u00a0\u6f22tTdDmMlLvVeErR", max_size=60))
def test_both_dialects_of_the_expressions_say_the_same(pattern: str, text: str) -> None:
    assert regex.findall(REGULAR_EXPRESSIONS[pattern], text) == split_words(text, pattern)


def test_tiktokens_own_patterns_are_kept_to_the_letter() -> None:
    source = Path(importlib.util.find_spec("tiktoken_ext").submodule_search_locations[0])  # type: ignore[union-attr, index]
    code = (source / "openai_public.py").read_text(encoding="utf-8")
    assert f'r"""{REGULAR_EXPRESSIONS["gpt2"]}"""' in code
    assert f'r"""{REGULAR_EXPRESSIONS["cl100k"]}"""' in code


def test_our_pattern_cuts_numbers_in_twos_with_their_space() -> None:
    assert split_words("x = 12345, y=7", "strata") == [
        "x",
        " =",
        " 12",
        "34",
        "5",
        ",",
        " y",
        "=",
        "7",
    ]
    assert split_words("x = 12345", "cl100k") == ["x", " =", " ", "123", "45"]
    assert split_words("x = 12345", "gpt2") == ["x", " =", " 12345"]


def test_a_text_longer_than_a_batch_of_words_is_cut_whole() -> None:
    text = "word, " * 20_000
    assert split_words(text, "gpt2") == regex.findall(REGULAR_EXPRESSIONS["gpt2"], text)
