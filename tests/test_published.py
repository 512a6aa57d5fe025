"""Published vocabularies: fetched once, verified always, and the same ids as tiktoken's."""

import hashlib
from pathlib import Path

import pytest
import tiktoken
import tiktoken.load
from test_tokenizer import NASTY, sources, trained
from test_tokenizer_exchange import gpt2_files

from strata.data import cache_dir, published, published_tokenizer
from strata.data.published import PublishedFile, published_file
from strata.tokenizer import REGULAR_EXPRESSIONS


def described(path: Path) -> PublishedFile:
    return PublishedFile(path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files of the three kinds in a folder that stands for OpenAI's server."""
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    vocab_bpe, encoder_json = gpt2_files(folder)
    trained("cl100k").to_tiktoken(folder / "cl100k_base.tiktoken")
    monkeypatch.setattr(published, "VOCAB_BPE", described(vocab_bpe))
    monkeypatch.setattr(published, "ENCODER_JSON", described(encoder_json))
    monkeypatch.setattr(published, "CL100K", described(folder / "cl100k_base.tiktoken"))
    return folder


def test_a_vocabulary_is_fetched_once_and_then_needs_no_server(source: Path) -> None:
    gpt2, cl100k = published_tokenizer("gpt2"), published_tokenizer("cl100k")
    assert (gpt2.pattern, gpt2.special_tokens) == ("gpt2", {"<|endoftext|>": 1_000})
    assert (cl100k.pattern, cl100k.ranks) == ("cl100k", trained("cl100k").ranks)
    assert cl100k.special_tokens["<|endofprompt|>"] == 100_276
    for path in source.iterdir():
        path.unlink()
    assert published_tokenizer("gpt2").identity == gpt2.identity
    assert published_tokenizer("cl100k").identity == cl100k.identity
    kept = cache_dir() / "vocabularies"
    assert sorted(path.name for path in kept.iterdir()) == [
        "cl100k_base.tiktoken", "encoder.json", "vocab.bpe"
    ]  # fmt: skip


def test_where_nothing_can_be_fetched_one_line_says_which_file_to_put_where(source: Path) -> None:
    (source / "cl100k_base.tiktoken").unlink()
    with pytest.raises(ConnectionError) as caught:
        published_tokenizer("cl100k")
    message = str(caught.value)
    assert published.CL100K.url in message
    assert str(cache_dir() / "vocabularies" / "cl100k_base.tiktoken") in message
    assert "\n" not in message


def test_a_file_that_is_not_the_published_one_is_never_used(source: Path) -> None:
    path = published_file(published.VOCAB_BPE)
    path.write_bytes(path.read_bytes() + b"a b\n")
    with pytest.raises(ValueError, match=rf"expected SHA-256 {published.VOCAB_BPE.sha256}, found"):
        published_tokenizer("gpt2")
    path.unlink()
    (source / "vocab.bpe").write_bytes(b"#version: 0.2\n")
    with pytest.raises(ValueError, match=r"not the published vocab\.bpe.*in what file:.* sent"):
        published_tokenizer("gpt2")
    assert not path.exists()


def test_a_copy_that_tiktoken_keeps_is_used_if_it_is_sound(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = published.CL100K
    copy = tmp_path / "theirs" / hashlib.sha1(file.url.encode()).hexdigest()
    copy.parent.mkdir()
    (source / "cl100k_base.tiktoken").rename(copy)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(copy.parent))
    assert published_tokenizer("cl100k").ranks == trained("cl100k").ranks
    published_file(file).unlink()
    copy.write_bytes(b"")
    with pytest.raises(ConnectionError):
        published_tokenizer("cl100k")


def test_an_unknown_vocabulary_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'gpt5' is no published vocabulary: expected 'gpt2'"):
        published_tokenizer("gpt5")


USERS_CACHE = cache_dir() / "vocabularies"  # the tests have another


def users_copy(file: PublishedFile) -> str:
    path = USERS_CACHE / file.name
    if not path.is_file():
        pytest.skip(f"{path} is not there; strata.data.published_tokenizer fetches it")
    return str(path)


@pytest.mark.parametrize("name", ["gpt2", "cl100k"])
def test_the_published_vocabularies_give_tiktokens_ids(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    if name == "gpt2":
        files = [users_copy(file) for file in (published.VOCAB_BPE, published.ENCODER_JSON)]
        ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(*files)
    else:
        ranks = tiktoken.load.load_tiktoken_bpe(users_copy(published.CL100K))
    monkeypatch.setenv("STRATA_CACHE", str(USERS_CACHE.parent))
    tokenizer = published_tokenizer(name)
    assert tokenizer.ranks == ranks
    assert tokenizer.vocab_size == {"gpt2": 50_257, "cl100k": 100_277}[name]
    reference = tiktoken.Encoding(
        name,
        pat_str=REGULAR_EXPRESSIONS[name],
        mergeable_ranks=ranks,
        special_tokens=tokenizer.special_tokens,
    )
    for text in [*NASTY, *sources(2_000_000), *tokenizer.special_tokens]:
        assert tokenizer.encode(text) == reference.encode_ordinary(text)
        assert tokenizer.encode(text, "all") == reference.encode(text, allowed_special="all")
