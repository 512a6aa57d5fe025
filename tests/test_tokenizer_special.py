"""Special tokens in text, against tiktoken."""

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.tokenizer import REGULAR_EXPRESSIONS, SPECIAL_TOKENS, Tokenizer

# No name begins with another, for tiktoken tries names in no fixed order and takes the first.
NAMES = {
    "<|a|>": 300,
    "<|ab|>": 301,
    "|><|": 302,
    "x y": 303,
    "\n\n ": 304,
    "\u00e9\U0001f600": 305,
}
RANKS = {bytes([byte]): byte for byte in range(256)} | {b"<|": 256, b"a|": 257, b"\n\n": 258}
TOKENIZER = Tokenizer.from_ranks(RANKS, "cl100k", NAMES)
REFERENCE = tiktoken.Encoding(
    "small",
    pat_str=REGULAR_EXPRESSIONS["cl100k"],
    mergeable_ranks=RANKS,
    special_tokens=NAMES,
)

PIECES = [*NAMES, "<", "|", ">", "a", "ab", "<|", "|>", " ", "x", "y", "\n", "\u00e9", "\U0001f600"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
CHOICES = st.one_of(st.just("all"), st.frozensets(st.sampled_from(sorted(NAMES))))


@settings(max_examples=400, deadline=None)
@given(text=TEXTS, allowed=CHOICES, disallowed=CHOICES)
def test_special_tokens_are_recognised_and_refused_as_tiktoken_does(
    text: str, allowed: frozenset[str], disallowed: frozenset[str]
) -> None:
    try:
        expected = REFERENCE.encode(text, allowed_special=allowed, disallowed_special=disallowed)
    except ValueError:
        with pytest.raises(ValueError, match="the text holds the special token"):
            TOKENIZER.encode(text, allowed, disallowed)
    else:
        assert TOKENIZER.encode(text, allowed, disallowed) == expected
        assert TOKENIZER.decode(expected) == text


def test_nothing_is_allowed_or_disallowed_by_default() -> None:
    text = "".join(NAMES)
    assert TOKENIZER.encode(text) == REFERENCE.encode_ordinary(text)
    assert max(TOKENIZER.encode(text)) < 300


def test_the_longest_of_overlapping_names_counts_whatever_their_order() -> None:
    names = ["<a>", "<a><a>", "<a><a><a>"]
    for order in (names, names[::-1]):
        special_tokens = {name: 300 + len(name) for name in order}
        tokenizer = Tokenizer.from_ranks(RANKS, "gpt2", special_tokens)
        assert tokenizer.encode("<a>" * 5, "all") == [309, 306]
        assert tokenizer.encode("<a>" * 5, {"<a>", "<a><a>"}) == [306, 306, 303]
        assert tokenizer.encode("<a><a>", {"<a>"}) == [303, 303]


def test_a_refusal_names_the_token_its_place_and_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"'<\|a\|>' at position 4.*allowed_special=\{'<\|a\|>'\}"):
        TOKENIZER.encode("abc <|a|>", disallowed_special="all")
    assert TOKENIZER.encode("<|a|>", {"<|a|>"}, "all") == [300]
    with pytest.raises(ValueError, match="holds the special token"):
        TOKENIZER.encode("<|a|>", {"<|a|>"}, {"<|a|>"})


@pytest.mark.parametrize("name", ["<|a|>", "", "ALL"])
def test_a_string_is_no_set_of_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"allowed_special=.* is one string: expected a set"):
        TOKENIZER.encode("text", allowed_special=name)
    with pytest.raises(ValueError, match=r"disallowed_special=.* is one string: expected a set"):
        TOKENIZER.encode("text", disallowed_special=name)


def test_a_name_that_the_tokenizer_does_not_know_is_refused_with_those_it_knows() -> None:
    for option in ("allowed_special", "disallowed_special"):
        with pytest.raises(ValueError, match=r"'<\|b\|>' is no special token.*<\|ab\|>"):
            TOKENIZER.encode("text", **{option: ["<|b|>"]})


def test_lists_and_tuples_of_names_are_names() -> None:
    assert TOKENIZER.encode("<|a|>|><|", ["<|a|>"], ("x y",)) == [
        300,
        *TOKENIZER.encode("|><|"),
    ]


def test_room_for_the_special_tokens_is_part_of_the_vocabulary_size() -> None:
    documents = ["one two three four five six seven eight " * 9]
    tokenizer = Tokenizer.train(documents, 280)
    assert tokenizer.vocab_size == 280
    assert tokenizer.special_tokens == {name: 272 + i for i, name in enumerate(SPECIAL_TOKENS)}
    assert tokenizer.document_separator == 272
