"""Texts of one kind: code, prose and numbers, and the paragraph in many languages."""

import unicodedata

import pytest

from strata.data.passages import (
    KINDS,
    documentation_strings,
    number_lines,
    parallel_passages,
    texts_by_kind,
    without_lines,
)

MODULE = '''"""A module with one function, whose documentation is a sentence of its own."""


def double(x):
    """Returns twice what it was given, which may be any number at all.

    >>> double(21) and then some more words that make this line a long one.
    42

    Parameters
    ----------
    x : float, the number that is doubled, described in more than eight words.
    """
    text = "not documentation, though it is a string of several words."
    return 2 * x  # twice


TABLE = [1024, 2048, 4096]
'''


def test_documentation_leaves_the_code_and_becomes_prose() -> None:
    texts = texts_by_kind([MODULE])
    (code,), (prose,) = texts["code"], texts["prose"]
    assert "Returns twice" not in code
    assert "not documentation" in code
    assert "# twice" in code
    assert prose.split("\n\n") == [
        "A module with one function, whose documentation is a sentence of its own.",
        "Returns twice what it was given, which may be any number at all.",
    ]


def test_a_form_feed_does_not_shift_the_lines_that_are_cut() -> None:
    source = 'a = 1\n\x0c\nclass B:\n    """Words of a class."""\n\n    c = 2\n'
    strings = documentation_strings(source)
    assert strings is not None
    assert without_lines(source, strings) == "a = 1\n\x0c\nclass B:\n\n    c = 2\n"


def test_a_document_that_is_no_python_is_prose_whole() -> None:
    assert texts_by_kind(["It rains today."]) == {
        "code": [],
        "prose": ["It rains today."],
        "numbers": [],
    }


def test_a_line_full_of_digits_counts_as_numbers() -> None:
    assert (
        number_lines("x = 1\n1976, 192\na long line with the number 100 in it\n") == "1976, 192\n"
    )
    assert texts_by_kind([MODULE])["numbers"] == ["TABLE = [1024, 2048, 4096]\n"]
    assert tuple(texts_by_kind([])) == KINDS


def test_the_paragraph_has_the_same_sentences_in_every_language() -> None:
    passages = parallel_passages()
    assert len(passages) == 11
    for language, text in passages.items():
        ends = sum(text.count(end) for end in ".。।")
        assert ends == 6, language
        assert text == unicodedata.normalize("NFC", text) == text.strip(), language


@pytest.mark.parametrize(
    ("language", "script"),
    [
        ("Russian", "CYRILLIC"),
        ("Arabic", "ARABIC"),
        ("Hindi", "DEVANAGARI"),
        ("Chinese", "CJK"),
        ("Korean", "HANGUL"),
        ("Turkish", "LATIN"),
    ],
)
def test_a_paragraph_is_written_in_its_own_script(language: str, script: str) -> None:
    letters = [c for c in parallel_passages()[language] if c.isalpha()]
    assert all(unicodedata.name(letter).startswith(script) for letter in letters)
