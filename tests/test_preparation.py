"""Preparing: what a configuration asks for is made once, and from then on opened."""

import json
from pathlib import Path

import pytest

from strata.config import DataConfig
from strata.data import Loader, encode_files, prepare, prepare_tokenizer
from strata.data.corpus import Corpus
from strata.tokenizer import Tokenizer

VOCAB_SIZE = 300


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A corpus of 60 documents and a cache of its own."""
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.jsonl"
    lines = [{"text": f"The {number}th document, as short as the others are.\n" * 3}
             for number in range(60)]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataConfig(
        corpus=f"files:{path}",
        tokenizer_vocab_size=340,
        validation_fraction=0.2,
        shard_tokens=1024,
    )


def test_prepared_shards_are_the_splits_encoded(data: DataConfig) -> None:
    prepared = prepare(data, VOCAB_SIZE, progress=False)
    assert prepared.tokenizer.vocab_size == VOCAB_SIZE
    corpus = Corpus.open(data.corpus, validation_fraction=data.validation_fraction)
    assert prepared.corpus_identity == corpus.identity
    separator = "<|document|>"
    for split, shards in (("train", prepared.train), ("validation", prepared.validation)):
        text = prepared.tokenizer.decode(shards.window(0, shards.n_tokens))
        assert text == "".join(separator + document for document in corpus.documents(split))
        assert shards.corpus_identity == corpus.identity
        assert shards.tokenizer_identity == prepared.tokenizer.identity
        byte_lengths = prepared.tokenizer.byte_lengths[shards.window(0, shards.n_tokens)]
        assert byte_lengths.sum() == shards.n_bytes
    Loader(prepared.train, batch_size=2, context_length=16, seed=0).next()


def test_a_second_call_makes_nothing(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(data, VOCAB_SIZE)
    lines = capsys.readouterr().err
    for made in ("reading files:", "training a tokenizer", "the train split", "the validation"):
        assert made in lines
    monkeypatch.setattr(Corpus, "documents", lambda self, split: iter(()))
    monkeypatch.setattr(Tokenizer, "train", None)
    second = prepare(data, VOCAB_SIZE)
    assert capsys.readouterr().err == ""
    assert (second.train.identity, second.validation.identity, second.tokenizer.identity) == (
        first.train.identity, first.validation.identity, first.tokenizer.identity,
    )  # fmt: skip


def test_nothing_is_said_where_no_progress_is_asked_for(
    data: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(data, VOCAB_SIZE, progress=False)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_tokenizer_learns_from_the_training_split_alone(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    documents = Corpus.documents

    def watched(self: Corpus, split: str):  # type: ignore[no-untyped-def]
        asked.append(split)
        return documents(self, split)

    monkeypatch.setattr(Corpus, "documents", watched)
    corpus = Corpus.open(data.corpus, validation_fraction=data.validation_fraction)
    full = prepare_tokenizer(corpus, data, progress=False)
    assert (full.vocab_size, asked) == (340, ["train"])
    assert prepare_tokenizer(corpus, data, VOCAB_SIZE).identity == full.truncate(300).identity


def test_other_vocabularies_and_corpora_have_their_own_shards(data: DataConfig) -> None:
    folders = {
        prepare(data, size, progress=False).train.folder for size in (VOCAB_SIZE, 320, VOCAB_SIZE)
    }
    assert len(folders) == 2


def test_a_vocabulary_larger_than_the_tokenizer_is_refused(data: DataConfig) -> None:
    with pytest.raises(ValueError, match=r"model\.vocab_size = 341.*tokenizer_vocab_size = 340"):
        prepare(data, 341)


def test_files_are_encoded_straight_to_shards(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["some words, some more words"], 270)
    (tmp_path / "one.txt").write_text("some words", encoding="utf-8")
    (tmp_path / "two.jsonl").write_text('{"text": "more"}\n{"text": "words"}\n', encoding="utf-8")
    folder = tmp_path / "shards"
    files = f"{tmp_path}/*.txt,{tmp_path}/two.jsonl"
    shards = encode_files(tokenizer, files, folder, progress=False)
    mark = tokenizer.document_separator
    expected = [
        index
        for text in ("some words", "more", "words")
        for index in (mark, *tokenizer.encode(text))
    ]
    assert shards.window(0, shards.n_tokens).tolist() == expected
    assert encode_files(tokenizer, files, folder, progress=False).identity == shards.identity
    with pytest.raises(ValueError, match="other files or of another tokenizer"):
        encode_files(tokenizer, f"{tmp_path}/one.txt", folder, progress=False)
    with pytest.raises(FileNotFoundError, match=r"three\.txt"):
        encode_files(tokenizer, f"{tmp_path}/three.txt", tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists()
