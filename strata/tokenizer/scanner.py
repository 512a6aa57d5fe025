r"""Cutting text into words: what a pattern of regular expressions does, byte by byte.

Byte-pair encoding never merges across the border of a word, so what counts as a word decides what
a token can be. GPT-2 (Radford et al. 2019, section 2.2) drew the borders with a regular
expression, and everyone since has refined it. Strata knows three such patterns:

gpt2      `'s` and the like | letters | numbers | other characters | white space. A single space
          belongs to the word that follows it.
cl100k    GPT-4's: contractions in any case; any one character may lead a word of letters (`(word`,
          `\tword`); numbers in groups of at most three; punctuation takes the line ends that follow
          it; white space breaks after its last line end, so that indentation is a word of its own.
strata    cl100k with two changes, both to numbers. Groups of at most two digits: 110 numbers
          to learn rather than 1,110. And a space leads a number as it leads a word: `x = 1` is
          three words, not four. Text full of numbers takes 12 % fewer tokens so; models of two
          layers learnt no better and no worse (benchmarks/results/patterns-2026-11-23.md).

All three are one procedure with a few switches (`Rules`). It reads UTF-8 directly, looks at eight
bytes at a time where they are likely to be letters or spaces, and never goes back more than one run
of white space. The regular expressions that it stands for are kept below: files for other programs
need them, and the tests compare the two.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strata.tokenizer.memory import (
    HIGH_BITS,
    LOW_BITS,
    MIXER,
    THIRTY_TWO,
    Word,
    inner,
    kernel,
    load_byte,
    load_word,
    padded,
    repeated,
    text_bytes,
    trailing_zeros,
)

# What a character is to the patterns: see scripts/unicode_table.py, which made the table.
OTHER, LETTER, NUMBER, SPACE, NEWLINE = range(5)
NOTHING = 5  # beyond the end of the text

# What the comparisons of eight bytes at once and the hash need.
SPACES, FROM_A, BEYOND_Z = repeated(0x20), repeated(0x80 - ord("a")), repeated(0x7F - ord("z"))
ZERO, SEVEN = Word(0), Word(7)
FIRST_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)
OTHER_MIXER = Word(0x2545F4914F6CDD1C)  # even, so that the sum with MIXER is odd


# The ASCII characters besides the space that may lead letters, and `'` only may begin more.
LEADS = np.array([32 != c < 128 and chr(c) not in "\r\n'0123456789" for c in range(256)])


class Rules(NamedTuple):
    """How the patterns differ."""

    any_leads_letters: bool  # any one character but a line end may lead letters; else only a space
    space_leads_number: bool  # a space may lead a number
    digits: int  # how many characters a number has at most
    newlines_follow_other: bool  # line ends belong to the punctuation before them
    break_after_newline: bool  # white space is cut after its last line end
    any_case: bool  # contractions in capitals too


UNLIMITED = 1 << 62
RULES = {
    "gpt2": Rules(False, True, UNLIMITED, False, False, False),
    "cl100k": Rules(True, False, 3, True, True, True),
    "strata": Rules(True, True, 2, True, True, True),
}

# The same as regular expressions, in the dialect of tiktoken (Rust's fancy-regex; Python's `regex`
# reads it too). The first two are tiktoken's own.
REGULAR_EXPRESSIONS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "strata": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++| ?\p{N}{1,2}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
}


def check_pattern(pattern: str) -> str:
    """Returns `pattern`; raises ValueError if there is no such pattern."""
    if pattern not in RULES:
        raise ValueError(f"pattern {pattern!r} is none of {', '.join(map(repr, RULES))}")
    return pattern


@cache
def character_classes() -> NDArray[np.uint8]:
    """The class of every code point, (0x110000,)."""
    with np.load(Path(__file__).with_name("unicode_classes.npz")) as table:
        starts, classes = table["starts"], table["classes"]
    return np.repeat(classes, np.diff(starts, append=0x110000))


def split_words(text: str, pattern: str) -> list[str]:
    """The words of `text` under a pattern, in order.

    Joined they are the text again, but for lone surrogates, which UTF-8 cannot say: U+FFFD.
    """
    rules = RULES[check_pattern(pattern)]
    data = text_bytes(text)
    ends = np.empty(len(data), dtype=np.int64)
    hashes = np.empty(len(data), dtype=np.int64)
    stops = np.array([len(data)])
    n_words, _, _ = find_words_of_documents(
        padded(data), 0, stops, 0, rules, character_classes(), ends, hashes
    )
    borders = [0, *ends[:n_words].tolist()]
    return [data[a:b].decode() for a, b in pairwise(borders)]


@kernel
def find_words_of_documents(
    source: NDArray[np.uint8],
    position: int,
    stops: NDArray[np.int64],
    document: int,
    rules: Rules,
    classes: NDArray[np.uint8],
    ends: NDArray[np.int64],
    hashes: NDArray[np.int64],
) -> tuple[int, int, int]:
    """`find_words` from `position`, in `document`, on, until `ends` is full or no document is left.

    Document i ends at stops[i], where the next one starts. To call a kernel takes longer than to
    find the words of a document of a few lines, so they are not found one document a call.

    Returns the number of words and where to go on: the position, and the document that it is in.
    """
    n_found = 0
    while document < len(stops) and n_found < len(ends):
        n_words, position = find_words(
            source, position, stops[document], rules, classes, ends[n_found:], hashes[n_found:]
        )
        n_found += n_words
        if position == stops[document]:
            document += 1
    return n_found, position, document


@inner
def find_words(
    text: NDArray[np.uint8],
    start: int,
    stop: int,
    rules: Rules,
    classes: NDArray[np.uint8],
    ends: NDArray[np.int64],
    hashes: NDArray[np.int64],
) -> tuple[int, int]:
    """Cuts text[start:stop] into words until `ends` is full.

    Writes where each word ends and the hash of its bytes. Returns the number of words and the
    position after the last: `stop`, or where to go on. `stop` is the end of the document.
    """
    base = text.ctypes.data
    stop += base
    position = base + start
    n_words = 0
    while position < stop and n_words < len(ends):
        # Most words are ASCII letters, led perhaps by one other character.
        letters = np.int64(letter_bits(load_word(position)) >> SEVEN)
        first = load_byte(position)
        if letters & 1:
            end = letters_end(position, stop, classes)
        elif letters & 0x100 and (first == 0x20 or (rules.any_leads_letters and LEADS[first])):
            end = letters_end(position + 1, stop, classes)
        else:
            end = word_end(position, stop, rules, classes)
        ends[n_words] = end - base
        hashes[n_words] = hash_bytes(position, end - position)
        n_words += 1
        position = end
    return n_words, position - base


@inner
def word_end(position: int, stop: int, rules: Rules, classes: NDArray[np.uint8]) -> int:
    """Where the word ends that begins at `position`, whatever its characters are."""
    first, width = character_at(position)
    kind = classes[first]
    after = position + width
    next_kind = NOTHING
    if after < stop:
        next_kind = classes[character_at(after)[0]]
    space_leads = first == 0x20

    if kind == LETTER:
        return letters_end(after, stop, classes)
    if first == 0x27:
        end = contraction_end(after, stop, rules.any_case)
        if end > after:
            return end
    if next_kind == LETTER and (
        space_leads or (rules.any_leads_letters and kind != NUMBER and kind != NEWLINE)
    ):
        return letters_end(after, stop, classes)
    if kind == NUMBER:
        return number_end(position, stop, classes, rules.digits)
    if next_kind == NUMBER and space_leads and rules.space_leads_number:
        return number_end(after, stop, classes, rules.digits)
    if kind == OTHER or (next_kind == OTHER and space_leads):
        end = run_end(after, stop, classes, OTHER)
        if rules.newlines_follow_other:
            end = run_end(end, stop, classes, NEWLINE)
        return end
    return white_space_end(position, stop, classes, rules.break_after_newline)


@inner
def character_at(address: int) -> tuple[int, int]:
    """The code point that starts at this address, and how many bytes it takes (RFC 3629)."""
    first = load_byte(address)
    if first < 0x80:
        return first, 1
    second = load_byte(address + 1) & 0x3F
    if first < 0xE0:
        return (first & 0x1F) << 6 | second, 2
    third = load_byte(address + 2) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, 3
    fourth = load_byte(address + 3) & 0x3F
    return (first & 0x07) << 18 | second << 12 | third << 6 | fourth, 4


@inner
def letter_bits(word: Word) -> Word:
    """The highest bit of every byte of `word` that is an ASCII letter, all other bits 0.

    Eight bytes are compared at once: adding 0x1F carries a byte into its highest bit from `a` on,
    adding 0x05 from the one after `z` on, and no sum of seven bits runs into the next byte.
    """
    low = (word | SPACES) & LOW_BITS  # capitals become small
    return (low + FROM_A) & ~(low + BEYOND_Z) & ~word & HIGH_BITS


@inner
def letters_end(address: int, stop: int, classes: NDArray[np.uint8]) -> int:
    """Where the letters that start at `address` end."""
    while True:
        others = letter_bits(load_word(address)) ^ HIGH_BITS
        address += trailing_zeros(others) >> 3  # by eight if there is none
        if address >= stop:
            return stop
        if others == ZERO:
            continue
        character, width = character_at(address)
        if character < 0x80 or classes[character] != LETTER:
            return address
        address += width


@inner
def spaces_end(address: int, stop: int) -> int:
    """Where the spaces (U+0020) that start at `address` end."""
    while True:
        word = load_word(address) ^ SPACES  # a space becomes a byte of zeros
        others = (((word & LOW_BITS) + LOW_BITS) | word) & HIGH_BITS
        address += trailing_zeros(others) >> 3
        if address >= stop:
            return stop
        if others != ZERO:
            return address


@inner
def run_end(address: int, stop: int, classes: NDArray[np.uint8], kind: int) -> int:
    """Where the characters of one class that start at `address` end."""
    while address < stop:
        character, width = character_at(address)
        if classes[character] != kind:
            break
        address += width
    return address


@inner
def number_end(address: int, stop: int, classes: NDArray[np.uint8], digits: int) -> int:
    """Where at most `digits` characters of class NUMBER end."""
    while address < stop and digits > 0:
        character, width = character_at(address)
        if classes[character] != NUMBER:
            break
        address += width
        digits -= 1
    return address


@inner
def white_space_end(
    address: int, stop: int, classes: NDArray[np.uint8], break_after_newline: bool
) -> int:
    """Where the word ends that begins with the white space at `address`.

    At the end of the document it is all of the white space. Else it ends after the last line end
    in it, if the pattern breaks there; else it leaves its last character to the word that follows,
    unless it has but one.
    """
    begin = address
    last = address  # where the last character of the white space begins
    after_newline = address
    while address < stop:
        character, width = character_at(address)
        if classes[character] != SPACE and classes[character] != NEWLINE:
            break
        last = address
        address += width
        if classes[character] == NEWLINE:
            after_newline = address
        elif character == 0x20:
            address = spaces_end(address, stop)
            last = address - 1
    if address == stop:
        return address
    if break_after_newline and after_newline > begin:
        return after_newline
    if last > begin:
        return last
    return address


@inner
def contraction_end(address: int, stop: int, any_case: bool) -> int:
    """Where s, d, m, t, ll, ve or re ends that starts at `address`; `address` if none does."""
    available = stop - address
    one = load_byte(address) if available > 0 else 0
    two = load_byte(address + 1) if available > 1 else 0
    if any_case:
        if one == 0xC5 and two == 0xBF:  # ſ, which Unicode's case folding makes an s
            return address + 2
        if 0x41 <= one <= 0x5A:
            one += 0x20
        if 0x41 <= two <= 0x5A:
            two += 0x20
    if one == 0x73 or one == 0x64 or one == 0x6D or one == 0x74:  # s d m t
        return address + 1
    if (one == 0x6C and two == 0x6C) or (two == 0x65 and (one == 0x76 or one == 0x72)):  # ll ve re
        return address + 2
    return address


@inner
def hash_bytes(address: int, length: int) -> np.int64:
    """A 64-bit hash of a word.

    Words of up to eight bytes with equal hash and length are equal, since MIXER + OTHER_MIXER is
    odd; so are words of up to sixteen bytes with equal `last_bytes` too, since MIXER is.
    """
    first = load_word(address) & FIRST_BYTES[min(length, 8)]
    mixed = first * MIXER + last_bytes(address, length) * OTHER_MIXER
    for between in range(address + 8, address + length - 8, 8):
        mixed = (mixed ^ mixed >> THIRTY_TWO ^ load_word(between)) * MIXER
    return np.int64(mixed ^ mixed >> THIRTY_TWO)


@inner
def last_bytes(address: int, length: int) -> Word:
    """The last eight bytes of a word, or all of a shorter one."""
    return load_word(address + length - 8) >> Word(max(64 - 8 * length, 0))
