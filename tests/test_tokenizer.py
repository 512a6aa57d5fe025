"""Encoding and decoding, against tiktoken with the same ranks and regular expression."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

import strata
from strata.tokenizer import REGULAR_EXPRESSIONS, SPECIAL_TOKENS, Tokenizer, merge_steps

PATTERNS = ("strata", "cl100k", "gpt2")

NASTY = [
    "",
    " ",
    "\n",
    "a",
    "\x00\x00 \x00a",
    "\x1c\x1d\x1e\x1f\x85\u00a0x\u2028y\u3000",
    "  leading, trailing  ",
    "\t\tif x:\r\n\r\n\n    return  1 \n \n",
    "   \n  \n   x\n\n",
    "don't DON'T I'Ll we'VE y'all 'twas 'S'T'M'D'RE'x ''s '\u017f '\u017fx '\u212a",
    "1 12 123 1234 12345678901 x=1, y = -22.50e10 0x1F",
    "\u0661\u0662\u0663\u0664 \u00bd\u00b2\u2167 \u0967\u096a \U0001d7d9\U0001d7da\U0001d7db",
    "e\u0301 n\u0303 \u0939\u093f\u0928\u094d\u0926\u0940 \u0645\u0631\u062d\u0628\u0627",
    "\u6f22\u5b57\u304b\u306a\u4ea4\u3058\u308a\u6587\u3002 \ud55c\uad6d\uc5b4 \u05e9\u05dc\u05d5",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea\u2708\ufe0f",
    "\ufffd\ufeff\U0010ffff\ue000\U000e0001",
    "f(x)(y)[z]; a->b /* c */ //d\n#!/bin/sh\n\n\n}\n\t}\n",
    "<|document|> and <|reserved_1|>",
    "a" * 200,
    " " * 200,
    "\n" * 200,
    "=" * 200,
    "7" * 200,
    "ab" * 100 + "\u00e9" * 100 + "x" * 63 + " " + "y" * 64 + " " + "z" * 65,
]


def sources(n_bytes: int) -> list[str]:
    """Text that is on every machine: sources of the standard library, and the nasty strings."""
    texts, total = list(NASTY), 0
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        texts.append(path.read_text(encoding="utf-8"))
        total += len(texts[-1])
        if total > n_bytes:
            break
    return texts


@cache
def trained(pattern: str) -> Tokenizer:
    return Tokenizer.train(sources(500_000), 4_000, pattern)


@cache
def oracle(pattern: str) -> tiktoken.Encoding:
    tokenizer = trained(pattern)
    return tiktoken.Encoding(
        pattern,
        pat_str=REGULAR_EXPRESSIONS[pattern],
        mergeable_ranks=tokenizer.ranks,
        special_tokens=tokenizer.special_tokens,
    )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_are_tiktokens(pattern: str) -> None:
    for text in [*NASTY, *sources(1_000_000)]:
        assert trained(pattern).encode(text) == oracle(pattern).encode_ordinary(text)


# Characters at which the patterns take different turns, and any others.
TURNS = st.sampled_from(
    "aZ1\u0664 \t\n\r\u00a0\u2028\x0b'sStTlLvVeErR\u017f\u0301\u6f22!-\x00\U0001f600"
)
TEXTS = st.text(st.one_of(TURNS, st.characters(exclude_categories=["Cs"])), max_size=200)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=250, deadline=None)
@given(text=TEXTS)
def test_ids_are_tiktokens_for_any_text(pattern: str, text: str) -> None:
    tokenizer = trained(pattern)
    ids = tokenizer.encode(text)
    assert ids == oracle(pattern).encode_ordinary(text)
    assert tokenizer.decode(ids, errors="strict") == text


@settings(max_examples=150, deadline=None)
@given(word=st.text("ab\u00e9", min_size=50, max_size=300))
def test_long_words_are_merged_like_short_ones(word: str) -> None:
    assert trained("strata").encode(word) == oracle("strata").encode_ordinary(word)


@settings(max_examples=100, deadline=None)
@given(word=st.text("ab", min_size=1, max_size=100), seed=st.integers(0, 1000))
def test_random_ranks_merge_as_defined(word: str, seed: int) -> None:
    # Ranks that no corpus would give, so that merges compete.
    shuffle = random.Random(seed)
    tokens = [bytes([byte]) for byte in range(256)]
    parts = [b"a", b"b"]
    while len(parts) < 30:
        token = shuffle.choice(parts) + shuffle.choice(parts)
        if token not in parts:
            ranks = {t: i for i, t in enumerate([*tokens, *parts[2:]])}
            if len(merge_steps(token.decode(), ranks)[-1]) == 2:
                parts.append(token)
    ranks = {token: index for index, token in enumerate([*tokens, *parts[2:]])}
    expected = [ranks[part] for part in merge_steps(word, ranks)[-1]]
    if word.encode() in ranks:
        expected = [ranks[word.encode()]]
    assert Tokenizer.from_ranks(ranks, "cl100k").encode(word) == expected


@pytest.mark.parametrize(
    "word",
    [
        "a" * 200_000,
        " " * 200_000,
        "".join(random.Random(0).choices("abcde", k=200_000)),
        "\u00e9" * 1_000_000,
        "".join(random.Random(0).choices("etaoinshrdlu", k=1_000_000)),
        "".join(random.Random(0).choices("abcdefghijklmnoPQRSTUVWXYZ0123456789+/", k=10_000_000)),
    ],
    ids=[
        "a letter",
        "spaces",
        "letters",
        "a letter of two bytes",
        "a megabyte",
        "10 MB without a space",
    ],
)
def test_long_words_take_no_quadratic_time(word: str) -> None:
    tokenizer = trained("strata")
    ids = tokenizer.encode(word)
    assert tokenizer.decode(ids) == word
    assert ids == oracle("strata").encode_ordinary(word)


def test_a_lone_surrogate_is_read_as_tiktoken_reads_it() -> None:
    for text in ("a\ud800b", "\udc00", "\ud83d\ude00!"):
        assert trained("gpt2").encode(text) == oracle("gpt2").encode_ordinary(text)


def test_texts_encoded_in_threads_are_texts_encoded_one_by_one() -> None:
    tokenizer = trained("strata")
    texts = sources(300_000) * 3
    one_by_one = [tokenizer.encode(text) for text in texts]
    for threads in (None, 1, 4):
        arrays = tokenizer.encode_batch(texts, threads=threads)
        assert all(array.dtype == np.uint32 for array in arrays)
        assert [array.tolist() for array in arrays] == one_by_one


def test_words_are_remembered_rightly_when_they_crowd_one_another_out() -> None:
    tokenizer = trained("gpt2").truncate(300)
    shuffle = random.Random(1)
    words = [
        "".join(shuffle.choices("etaoin\u00fc", k=shuffle.randint(5, 40))) for _ in range(40_000)
    ]
    text = " ".join(words + words[::-1])
    fresh = tiktoken.Encoding(
        "small",
        pat_str=REGULAR_EXPRESSIONS["gpt2"],
        mergeable_ranks=tokenizer.ranks,
        special_tokens={},
    )
    assert tokenizer.encode(text) == fresh.encode_ordinary(text)


# --- decoding ---------------------------------------------------------------------------------


@given(data=st.binary(max_size=100))
def test_any_bytes_can_be_decoded(data: bytes) -> None:
    tokenizer = trained("strata")
    assert tokenizer.decode_bytes(list(data)) == data
    assert tokenizer.decode(list(data)) == data.decode(errors="replace")


def test_broken_characters_are_replaced_unless_decoding_is_strict() -> None:
    ids = trained("strata").truncate(264).encode("\u6f22")[:2]
    assert trained("strata").decode(ids) == "\ufffd"
    with pytest.raises(UnicodeDecodeError):
        trained("strata").decode(ids, errors="strict")
    with pytest.raises(ValueError, match="'ignore'"):
        trained("strata").decode(ids, errors="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [4_000, -1, 2**40, 2**70])
def test_an_id_that_is_no_token_is_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"^{bad} \(at position 1\)"):
        trained("strata").decode([65, bad])


@pytest.mark.parametrize("bad", [b"abc", "abc", [1.5], ["a"], None, 5, [[1]], np.array([True])])
def test_what_is_no_sequence_of_ids_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="sequence of integers"):
        trained("strata").decode(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [None, b"abc", 5])
def test_what_is_no_text_is_refused(bad: object) -> None:
    tokenizer = trained("strata")
    with pytest.raises(ValueError, match="must be a str"):
        tokenizer.encode_array(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be a str"):
        tokenizer.encode_batch(["text", bad])  # type: ignore[list-item]


def test_one_text_is_not_taken_for_many() -> None:
    with pytest.raises(ValueError, match="not one str"):
        trained("strata").encode_batch("text")
    with pytest.raises(ValueError, match="not one str"):
        Tokenizer.train("text", 300)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads={threads}"):
        trained("strata").encode_batch(["text"], threads)


def test_ids_may_be_arrays_of_any_integers() -> None:
    tokenizer = trained("strata")
    ids = tokenizer.encode_array("some text\n" * 10)
    for dtype in (np.uint16, np.int32, np.int64, np.uint64):
        assert tokenizer.decode(ids.astype(dtype)) == "some text\n" * 10
    assert tokenizer.decode([]) == ""
    with pytest.raises(ValueError, match="integers"):
        tokenizer.decode([1.5])  # type: ignore[list-item]


# --- special tokens ---------------------------------------------------------------------------


def test_special_tokens_never_come_from_plain_text() -> None:
    tokenizer = trained("strata")
    specials = set(tokenizer.special_tokens.values())
    for text in (" ".join(SPECIAL_TOKENS), SPECIAL_TOKENS[0] * 3, "<|document|"):
        assert not specials & set(tokenizer.encode(text))
        assert not specials & set(tokenizer.encode_array(text).tolist())
        assert not specials & set(tokenizer.encode_batch([text, text])[0].tolist())


def test_special_tokens_are_recognised_where_allowed() -> None:
    tokenizer, reference = trained("cl100k"), oracle("cl100k")
    text = "a <|document|>  b<|reserved_1|><|reserved_2|>\n"
    for allowed in ({"<|document|>"}, {"<|reserved_1|>", "<|document|>"}, set(SPECIAL_TOKENS)):
        expected = reference.encode(text, allowed_special=allowed, disallowed_special=())
        assert tokenizer.encode(text, allowed_special=allowed) == expected
        assert tokenizer.decode(expected) == text
    assert tokenizer.encode(text, "all") == reference.encode(text, allowed_special="all")
    with pytest.raises(ValueError, match="<\\|nonsense\\|>"):
        tokenizer.encode(text, allowed_special={"<|nonsense|>"})


def test_the_longest_special_token_wins() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokenizer = Tokenizer.from_ranks(ranks, "gpt2", {"<a>": 256, "<a><a>": 257})
    assert tokenizer.encode("<a><a><a>", "all") == [257, 256]


# --- what a tokenizer knows of itself ---------------------------------------------------------


def test_the_vocabulary_is_bytes_then_merges_then_special_tokens() -> None:
    tokenizer = trained("strata")
    assert tokenizer.vocab_size == 4_000
    assert [tokenizer.token_bytes(byte) for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]
    assert list(tokenizer.ranks.values()) == list(range(3_992))
    assert tokenizer.special_tokens == {name: 3_992 + i for i, name in enumerate(SPECIAL_TOKENS)}
    assert tokenizer.document_separator == 3_992
    for index, (left, right) in enumerate(tokenizer.merges, start=256):
        assert max(left, right) < index
        joined = tokenizer.token_bytes(left) + tokenizer.token_bytes(right)
        assert joined == tokenizer.token_bytes(index)


def test_byte_lengths_add_up_to_the_text() -> None:
    tokenizer = trained("strata")
    ids = tokenizer.encode_array("".join(sources(100_000)))
    assert tokenizer.byte_lengths[ids].sum() == len(tokenizer.decode_bytes(ids))
    assert tokenizer.byte_lengths.dtype == np.int32
    assert tokenizer.byte_lengths.shape == (4_000,)
    assert not tokenizer.byte_lengths[-8:].any()


def test_a_truncated_tokenizer_is_the_same_with_fewer_merges() -> None:
    tokenizer = trained("strata")
    small = tokenizer.truncate(1_000)
    assert small.vocab_size == 1_000
    assert small.ranks == dict(list(tokenizer.ranks.items())[:992])
    assert list(small.special_tokens.items()) == [
        (n, 992 + i) for i, n in enumerate(SPECIAL_TOKENS)
    ]
    assert small.identity == Tokenizer.train(sources(500_000), 1_000).identity
    assert small.identity != tokenizer.identity
    assert tokenizer.truncate(4_000).identity == tokenizer.identity
    assert tokenizer.truncate(264).encode("ab") == [97, 98]
    for too_few_or_many in (263, 4_001):
        with pytest.raises(ValueError, match=str(too_few_or_many)):
            tokenizer.truncate(too_few_or_many)


def test_identity_tells_tokenizers_apart() -> None:
    tokenizer = trained("strata")
    ranks, specials = tokenizer.ranks, tokenizer.special_tokens
    identities = {
        tokenizer.identity,
        Tokenizer.from_ranks(ranks, "cl100k", specials).identity,
        Tokenizer.from_ranks(ranks, "strata").identity,
        tokenizer.truncate(3_999).identity,
    }
    assert len(identities) == 4
    assert Tokenizer.from_ranks(ranks, "strata", specials).identity == tokenizer.identity


def test_published_vocabularies_with_other_byte_order_and_gaps_work() -> None:
    # GPT-2's ids give the bytes another order, and cl100k's leave an id unused.
    own = trained("gpt2")
    order = random.Random(0).sample(range(256), 256)
    ranks = {bytes([byte]): index for index, byte in enumerate(order)}
    ranks |= {token: index for token, index in own.ranks.items() if index >= 256}
    tokenizer = Tokenizer.from_ranks(ranks, "gpt2", {"<|endoftext|>": 4_100})
    reference = tiktoken.Encoding(
        "other",
        pat_str=REGULAR_EXPRESSIONS["gpt2"],
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 4_100},
    )
    for text in sources(200_000):
        assert tokenizer.encode(text) == reference.encode_ordinary(text)
    assert tokenizer.vocab_size == 4_101
    assert tokenizer.document_separator == 4_100
    with pytest.raises(ValueError, match="4050"):
        tokenizer.decode([4_050])
    with pytest.raises(ValueError, match="special tokens"):
        _ = Tokenizer.from_ranks(ranks, "gpt2").document_separator


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ranks: ranks.pop(b"a"), "lack 1 of the 256 bytes, first 97"),
        (lambda ranks: ranks.update({b"ab": 97}), "two tokens have the id 97"),
        (lambda ranks: ranks.update({b"ab": -1}), "between 0"),
        (lambda ranks: ranks.update({b"": 256}), "empty"),
        (lambda ranks: ranks.update({b"abc": 256}), "b'abc', is not a merge of two"),
    ],
)
def test_ranks_that_make_no_sense_are_refused(change: object, message: str) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    change(ranks)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_ranks(ranks, "gpt2")


def test_an_unknown_pattern_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'gpt5' is none of 'gpt2', 'cl100k', 'strata'"):
        Tokenizer.train(["text"], 300, "gpt5")


# --- teaching ---------------------------------------------------------------------------------


def test_merge_steps_end_where_encoding_ends() -> None:
    tokenizer = trained("strata")
    steps = merge_steps(" tokenizers", tokenizer.ranks)
    assert steps[0] == [bytes([byte]) for byte in b" tokenizers"]
    assert [len(parts) for parts in steps] == list(range(11, 11 - len(steps), -1))
    assert all(b"".join(parts) == b" tokenizers" for parts in steps)
    assert [tokenizer.ranks[part] for part in steps[-1]] == tokenizer.encode(" tokenizers")


# --- starting ---------------------------------------------------------------------------------


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def test_importing_compiles_nothing() -> None:
    code = """
import json
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    import strata.tokenizer
print(json.dumps(len(recorder.buffer)))
"""
    assert json.loads(run_python(code)) == 0


COUNT_WORDS = "from strata.tokenizer import split_words; print(len(split_words('a b c', 'gpt2')))"


def a_copy_of_the_package(folder: Path, **environment: str) -> tuple[Path, dict[str, str]]:
    """The folder of the tokenizer in a copy of Strata, and the environment that imports it."""
    caches = shutil.ignore_patterns("__pycache__")
    package = shutil.copytree(Path(strata.__file__).parent, folder / "strata", ignore=caches)
    return package / "tokenizer", {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1", **environment}


def test_machine_code_is_kept_by_the_hash_of_its_sources(tmp_path: Path) -> None:
    package, where = a_copy_of_the_package(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert run_python(COUNT_WORDS, **where) == "3\n"
    # Numba alone looks at the time of the kernel's own file, and would not notice this.
    scanner = package / "scanner.py"
    before = scanner.stat()
    source = scanner.read_text("utf-8").replace("digits > 0", "digits > 1")
    scanner.write_text(source, "utf-8")
    os.utime(scanner, ns=(before.st_atime_ns, before.st_mtime_ns))
    digits = "from strata.tokenizer import split_words; print(split_words('123', 'cl100k'))"
    assert run_python(digits, **where) == "['12', '3']\n"
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    obstacle = tmp_path / "file"
    obstacle.touch()
    assert run_python(COUNT_WORDS, NUMBA_CACHE_DIR=str(obstacle)) == "3\n"
    package, where = a_copy_of_the_package(tmp_path, NUMBA_CACHE_DIR="", STRATA_CACHE=str(tmp_path))
    (package / "__pycache__").touch()
    assert run_python(COUNT_WORDS, **where) == "3\n"
    assert len(list((tmp_path / "kernels").iterdir())) == 1
    assert run_python(COUNT_WORDS, **{**where, "STRATA_CACHE": str(obstacle)}) == "3\n"


def test_a_full_disk_is_no_obstacle(tmp_path: Path) -> None:
    limited = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
    assert run_python(limited + COUNT_WORDS, NUMBA_CACHE_DIR=str(tmp_path)) == "3\n"


def test_a_pickled_tokenizer_holds_nothing_that_can_be_derived() -> None:
    tokenizer = trained("strata").truncate(400)
    size = len(pickle.dumps(tokenizer))
    tokenizer.encode("text")
    assert len(pickle.dumps(tokenizer)) == size
    assert pickle.loads(pickle.dumps(tokenizer)).encode("text") == tokenizer.encode("text")
