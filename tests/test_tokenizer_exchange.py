"""The files of tiktoken and GPT-2: written for that library, read as that library reads them."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiktoken
import tiktoken.load
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import loaded_or_refused, mutated_bytes, mutated_json
from test_tokenizer import NASTY, PATTERNS, sources, trained

from strata.tokenizer import REGULAR_EXPRESSIONS, Tokenizer
from strata.tokenizer.exchange import printable, unprintable


@pytest.fixture(scope="module", autouse=True)
def uncached() -> Iterator[None]:
    """Has tiktoken read the file that is there, and not its copy of one that was there once."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TIKTOKEN_CACHE_DIR", "")
    yield
    patch.undo()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_tiktoken_reads_its_format_and_gives_the_same_ids(pattern: str, tmp_path: Path) -> None:
    tokenizer = trained(pattern)
    tokenizer.to_tiktoken(tmp_path / "ranks.tiktoken")
    ranks = tiktoken.load.load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken"))
    assert ranks == tokenizer.ranks
    encoding = tiktoken.Encoding(
        "exported",
        pat_str=REGULAR_EXPRESSIONS[pattern],
        mergeable_ranks=ranks,
        special_tokens=tokenizer.special_tokens,
    )
    assert encoding.n_vocab == tokenizer.vocab_size
    for text in NASTY:
        assert encoding.encode_ordinary(text) == tokenizer.encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_reading_a_file_of_ranks_inverts_writing_it(pattern: str, tmp_path: Path) -> None:
    tokenizer, path = trained(pattern), tmp_path / "ranks.tiktoken"
    tokenizer.to_tiktoken(path)
    back = Tokenizer.from_tiktoken(path, pattern, tokenizer.special_tokens)
    assert back.identity == tokenizer.identity
    assert Tokenizer.from_tiktoken(path, pattern).special_tokens == {}


def ranks_file(change: Callable[[list[str]], object] = lambda lines: None) -> bytes:
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    lines.append(f"{base64.b64encode(b'ab').decode()} 256")
    change(lines)
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lack 256 of the 256 bytes"),
        (ranks_file(lambda lines: lines.pop(97)), "lack 1 of the 256 bytes, first 97"),
        (ranks_file(lambda lines: lines.append("YWI= 257")), "line 258 holds the token b'ab'"),
        (ranks_file(lambda lines: lines.append("YWFh 257")), "b'aaa', is not a merge of two"),
        (ranks_file(lambda lines: lines.append("YWE= 256")), "two tokens have the id 256"),
        (ranks_file(lambda lines: lines.append("YWE 257")), "line 258: .*padding"),
        (ranks_file(lambda lines: lines.append("Y*E= 257")), "line 258"),
        (ranks_file(lambda lines: lines.append("YWE= -1")), "line 258: expected a token"),
        (ranks_file(lambda lines: lines.append("YWE= 1.0")), "line 258: expected a token"),
        (ranks_file(lambda lines: lines.append("YWE= 257 0")), "line 258: expected a token"),
        (ranks_file(lambda lines: lines.append("YWE= " + "9" * 30)), "between 0"),
        (ranks_file(lambda lines: lines.append("YWE= " + "9" * 9999)), "line 258"),
        (b"\x80\x04\x95 import os", "line 1"),
    ],
)
def test_a_damaged_file_of_ranks_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ranks.tiktoken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"ranks\.tiktoken is no file of .*{message}"):
        Tokenizer.from_tiktoken(path, "gpt2")


def test_a_file_of_ranks_may_hold_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "ranks.tiktoken"
    path.write_bytes(ranks_file().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert Tokenizer.from_tiktoken(path, "gpt2").encode("abc") == [256, 99]


@settings(max_examples=200, deadline=None)
@given(content=mutated_bytes(ranks_file()))
def test_whatever_is_changed_a_file_of_ranks_is_read_as_tiktoken_does_or_refused(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "ranks.tiktoken"
    path.write_bytes(content)
    tokenizer = loaded_or_refused(
        lambda: Tokenizer.from_tiktoken(path, "gpt2"), "ranks.tiktoken is no file of tiktoken ranks"
    )
    if tokenizer is not None:
        assert tokenizer.ranks == tiktoken.load.load_tiktoken_bpe(str(path))


def test_a_missing_file_a_folder_and_an_unknown_pattern_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere: expected a file of"):
        Tokenizer.from_tiktoken(tmp_path / "nowhere", "gpt2")
    with pytest.raises(ValueError, match="is a folder: expected a file of tiktoken ranks"):
        Tokenizer.from_tiktoken(tmp_path, "gpt2")
    with pytest.raises(ValueError, match="'gpt5' is none of"):
        Tokenizer.from_tiktoken(tmp_path, "gpt5")


# --- GPT-2's own files ----------------------------------------------------------------------------


def gpt2_files(tmp_path: Path) -> tuple[Path, Path]:
    """A trained vocabulary as GPT-2's was published: other byte order, the end of text inside."""
    own = trained("gpt2").truncate(1_008)
    order = sorted(range(256), key=lambda byte: printable(bytes([byte])))
    names = [printable(bytes([byte])) for byte in order]
    names += [printable(token) for token in list(own.ranks)[256:]]
    merges = [
        f"{printable(own.token_bytes(left))} {printable(own.token_bytes(right))}"
        for left, right in own.merges
    ]
    vocabulary = {name: index for index, name in enumerate([*names, "<|endoftext|>"])}
    vocab_bpe, encoder_json = tmp_path / "vocab.bpe", tmp_path / "encoder.json"
    vocab_bpe.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    encoder_json.write_text(json.dumps(vocabulary), encoding="utf-8")
    return vocab_bpe, encoder_json


def test_the_files_of_gpt2_are_read_as_tiktoken_reads_them(tmp_path: Path) -> None:
    vocab_bpe, encoder_json = gpt2_files(tmp_path)
    tokenizer = Tokenizer.from_gpt2(vocab_bpe, encoder_json)
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(str(vocab_bpe), str(encoder_json))
    assert tokenizer.ranks == ranks
    assert tokenizer.special_tokens == {"<|endoftext|>": 1_000}
    reference = tiktoken.Encoding(
        "small",
        pat_str=REGULAR_EXPRESSIONS["gpt2"],
        mergeable_ranks=ranks,
        special_tokens=tokenizer.special_tokens,
    )
    for text in sources(200_000):
        assert tokenizer.encode(text) == reference.encode_ordinary(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#version: 0.2\n", "", "expected #version in the first line"),
        ("\n", "\na\n", "expected a merge of two tokens, found 'a'"),
        ("\n", "\nz\u0120 q\n", "'z\u0120' is no token"),
        ("\n", "\n\u6f22 q\n", "is no token"),
        ("\n", "\n<|endof text|>\n", "is no token"),
    ],
)
def test_merges_that_do_not_fit_are_refused(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    vocab_bpe, encoder_json = gpt2_files(tmp_path)
    text = vocab_bpe.read_text(encoding="utf-8")
    vocab_bpe.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"vocab\.bpe is no list .*{message}"):
        Tokenizer.from_gpt2(vocab_bpe, encoder_json)


def test_merges_in_another_order_than_the_ids_or_missing_are_refused(tmp_path: Path) -> None:
    vocab_bpe, encoder_json = gpt2_files(tmp_path)
    header, first, second, *others = vocab_bpe.read_text(encoding="utf-8").split("\n")
    vocab_bpe.write_text("\n".join([header, second, first, *others]), encoding="utf-8")
    with pytest.raises(ValueError, match="makes token 256, after one that makes token 257"):
        Tokenizer.from_gpt2(vocab_bpe, encoder_json)
    vocab_bpe.write_text("\n".join([header, second, *others]), encoding="utf-8")
    with pytest.raises(ValueError, match="it has no merge of"):
        Tokenizer.from_gpt2(vocab_bpe, encoder_json)


def test_a_vocabulary_with_tokens_that_no_merge_makes_is_refused(tmp_path: Path) -> None:
    vocab_bpe, encoder_json = gpt2_files(tmp_path)
    vocabulary = json.loads(encoder_json.read_text(encoding="utf-8"))
    encoder_json.write_text(json.dumps({**vocabulary, "<|other|>": 1_001}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"b'<\|other\|>', is not a merge of two earlier"):
        Tokenizer.from_gpt2(vocab_bpe, encoder_json)
    encoder_json.write_text(json.dumps({**vocabulary, "\u6f22": 1_001}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"encoder\.json .*stands for no byte"):
        Tokenizer.from_gpt2(vocab_bpe, encoder_json)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_gpt2s_files_are_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    files = gpt2_files(folder)
    changed = data.draw(st.sampled_from(files))
    whole = changed.read_bytes()
    strategies = [mutated_bytes(whole)]
    if changed.suffix == ".json":
        strategies.append(mutated_json(whole))
    changed.write_bytes(data.draw(st.one_of(strategies)))
    tokenizer = loaded_or_refused(lambda: Tokenizer.from_gpt2(*files), "encoder.json")
    assert tokenizer is None or tokenizer.vocab_size > 256


@given(token=st.binary(max_size=20))
def test_every_byte_has_a_visible_character_of_its_own(token: bytes) -> None:
    name = printable(token)
    assert unprintable(name) == token
    assert len(name) == len(token)
    assert name.isprintable()
    assert " " not in name
