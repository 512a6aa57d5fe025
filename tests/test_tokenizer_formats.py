"""Strata's own file: read back, and refused when it is anything else than what was written."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import loaded_or_refused, mutated_bytes, mutated_json
from test_tokenizer import PATTERNS, trained

from strata.tokenizer import Tokenizer


@pytest.mark.parametrize("pattern", PATTERNS)
def test_loading_inverts_saving(pattern: str, tmp_path: Path) -> None:
    tokenizer = trained(pattern)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.identity == tokenizer.identity
    assert (loaded.ranks, loaded.pattern) == (tokenizer.ranks, tokenizer.pattern)
    assert loaded.special_tokens == tokenizer.special_tokens
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_the_file_is_readable(tmp_path: Path) -> None:
    trained("strata").save(tmp_path / "tokenizer.json")
    lines = (tmp_path / "tokenizer.json").read_text(encoding="utf-8").splitlines()
    assert '[97, "a"],' in lines
    assert '[200, "hex", "c8"],' in lines
    assert json.loads("\n".join(lines))["version"] == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 2', "version is 2"),
        ('"format": "strata-tokenizer"', '"format": "other"', "format is 'other'"),
        ('[97, "a"]', '[97, "\u00e4"]', "damaged"),
        ('[97, "a"]', '[97, "hex", "zz"]', "damaged"),
        ('[97, "a"]', "[]", "damaged"),
        ('[97, "a"]', '["x", "a"]', "damaged"),
        ('[97, "a"],\n', "", "damaged"),
        ('[300, "', '[300, "x', "damaged"),
        ('"pattern": "strata"', '"pattern": "gpt2"', "checksum"),
        ('"pattern": "strata"', '"pattern": "gpt5"', "'gpt5'"),
        ('"<|document|>"', '"<|dokument|>"', "checksum"),
        ('"special_tokens": {', '"special_tokens": [{', "damaged"),
        ('"vocab_size": 400', '"vocab_size": 401', "checksum"),
        ('"vocab_size": 400', '"vocab_size": 400.0', "'vocab_size' to be a whole number"),
        ('"vocab_size": 400', '"vocab_size": 400, "vocab_size": 400', "'vocab_size' twice"),
        ('"version": 1', '"version": true', "'version' to be a whole number, found True"),
        ('"version": 1', '"version": NaN', "NaN is no JSON"),
        ('"version": 1', '"version": ' + "9" * 5000, "damaged"),
        ('"version": 1', '"version": ' + "[" * 100_000, "nested too deeply"),
        ('[97, "a"]', '[97, "a"],\n[97, "a"]', "b'a' twice"),
        ('[97, "a"]', '[97, "hex", "61"]', "found"),
        ('[97, "a"]', '[97.0, "a"]', "found"),
        ('[97, "a"]', '[true, "a"]', "found"),
        ('[97, "a"]', '["97", "a"]', "found"),
        ('[97, "a"]', '[-97, "a"]', "between 0"),
        ('[97, "a"]', '[1e999, "a"]', "found"),
        ('[97, "a"]', '[97000000000000000000000, "a"]', "between 0"),
        ('[97, "a"]', '[97, "\\ud800"]', "surrogates"),
        ('[97, "a"]', "[97, null]", "found"),
        ('"<|document|>"', '"\\udfff"', "surrogates"),
        ('"checksum"', '"sum"', "checksum"),
        ("{", "[", "damaged"),
        ("}", "", "damaged"),
    ],
)
def test_a_damaged_file_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    trained("strata").truncate(400).save(path)
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(path)


def test_a_file_cut_short_or_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    trained("strata").save(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"null", b"[1]", b"\xff\xfe", b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tokenizer\.json is no Strata tokenizer"):
            Tokenizer.load(path)


def test_ranks_that_no_merging_makes_are_refused_though_the_checksum_is_theirs(
    tmp_path: Path,
) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    Tokenizer(ranks, "gpt2", {}).save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no .* b'abc', is not a merge"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_message_is_short_however_long_the_fault(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    trained("strata").truncate(300).save(path)
    content = path.read_text(encoding="utf-8")
    for old in ('"strata"', '"strata-tokenizer"', '[97, "a"]'):
        path.write_text(content.replace(old, f'"{"x" * 100_000}"', 1), encoding="utf-8")
        with pytest.raises(ValueError, match="damaged") as caught:
            Tokenizer.load(path)
        assert len(str(caught.value)) < 1_000


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: expected a Strata tokenizer"):
        Tokenizer.load(tmp_path)


SMALL = trained("strata").truncate(270)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_a_file_loads_as_what_was_saved_or_is_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "own.json"
    SMALL.save(path)
    whole = path.read_bytes()
    path.write_bytes(data.draw(st.one_of(mutated_bytes(whole), mutated_json(whole))))
    loaded = loaded_or_refused(lambda: Tokenizer.load(path), "own.json is no Strata tokenizer")
    assert loaded is None or loaded.identity == SMALL.identity


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.load(tmp_path / "nowhere.json")
