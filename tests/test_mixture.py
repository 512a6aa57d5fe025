"""Mixtures: how they are written, whose turn it is, and that each corpus gets its share."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strata.cli import main
from strata.config import Config, DataConfig
from strata.data import Corpus, Loader, TokenShards, absolute_spec, measure_packing, prepare
from strata.data.loader import spread_windows
from strata.data.mixture import interleave, parse_mixture, whole_shares
from strata.data.order import apportion, turns
from strata.data.packing import BestFitRows
from strata.storage import cache_dir
from strata.tokenizer import Tokenizer
from strata.training import Trainer
from strata.training.folder import recall_data
from strata.transfer.contents import shard_files

VOCAB_SIZE = 300
SHARES = st.lists(st.integers(1, 50), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("installed", []),
        ("files:a.txt", []),
        ("files:one + two/*.txt,C++ + notes.md", []),  # pluses in the names of files
        (
            "0.7 installed + 0.3 files:data/*.parquet",
            [("0.7", "installed"), ("0.3", "files:data/*.parquet")],
        ),
        (
            " 2  files:a b.txt,c.txt  +  1e-1 hub:me/set@main:*.parquet + 1/3 installed ",
            [("2", "files:a b.txt,c.txt"), ("1e-1", "hub:me/set@main:*.parquet"),
             ("1/3", "installed")],
        ),
        ("1 nonsense + 2 installed", [("1", "nonsense"), ("2", "installed")]),
    ],
)  # fmt: skip
def test_a_mixture_is_weights_and_corpora_between_pluses(
    spec: str, parts: list[tuple[str, str]]
) -> None:
    assert parse_mixture(spec) == parts


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("installed + 0.3 files:a.txt", "installed"),
        ("0.7 installed + files:a.txt", "files:a.txt"),
        ("0.7 installed + files:a b.txt", "files:a b.txt"),
        ("0 installed + 1 files:a.txt", "0 installed"),
        ("-1 installed + 1 files:a.txt", "-1 installed"),
        ("nan installed + 1 files:a.txt", "nan installed"),
        ("1/0 installed + 1 files:a.txt", "1/0 installed"),
    ],
)
def test_a_part_without_a_weight_is_refused_by_name(spec: str, part: str) -> None:
    message = f'the part "{part}" of a mixture has no weight: expected a positive number before'
    with pytest.raises(ValueError, match="^" + message):
        Corpus.open(spec)


def test_an_unknown_corpus_in_a_mixture_is_refused() -> None:
    with pytest.raises(ValueError, match='no corpus is called "nonsense"'):
        Corpus.open("1 nonsense + 2 installed")


def test_shares_are_the_smallest_whole_numbers_of_that_ratio() -> None:
    assert whole_shares(["0.7", "0.3"]) == [7, 3]
    assert whole_shares(["70", "30"]) == [7, 3]
    assert whole_shares(["1/3", "1/3", "1/3"]) == [1, 1, 1]
    assert whole_shares(["1e-3", "0.999"]) == [1, 999]


@given(SHARES, st.integers(0, 10_000))
def test_every_turn_is_one_corpus_and_the_next_of_its_own_rows(
    shares: list[int], position: int
) -> None:
    before, after = apportion(position, shares), apportion(position + 1, shares)
    ((corpus, place),) = turns(position, 1, shares)
    assert place == before[corpus]
    before[corpus] += 1
    assert before == after


@given(SHARES, st.integers(0, 10_000))
def test_shares_are_kept_exactly_and_nearly_so_at_any_moment(
    shares: list[int], position: int
) -> None:
    assert apportion(position * sum(shares), shares) == [position * share for share in shares]
    for count, share in zip(apportion(position, shares), shares, strict=True):
        assert abs(count - position * share / sum(shares)) <= (len(shares) - 1) / 2


def test_documents_come_in_turn_by_size_and_none_is_lost() -> None:
    long, short = ["a" * 100] * 30, ["b" * 10] * 40
    mixed = list(interleave([(3, iter(long)), (1, iter(short))]))
    assert Counter(mixed) == Counter(long + short)
    n_long = n_short = 0
    for text in mixed[:40]:
        n_long += len(text) * (text[0] == "a")
        n_short += len(text) * (text[0] == "b")
        assert abs(n_long - 3 * n_short) <= 100 + 30


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two corpora, of 60 and of 25 documents, and a cache of their own."""
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    paths = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, count, words in zip(paths, (60, 25), ("a few words", "something"), strict=True):
        lines = [{"text": f"{words}, {number} times.\n" * (3 + number)} for number in range(count)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


def data_config(corpora: tuple[Path, Path]) -> DataConfig:
    return DataConfig(
        corpus=f"0.6 files:{corpora[0]} + 0.4 files:{corpora[1]}",
        tokenizer_vocab_size=340,
        validation_fraction=0.2,
        shard_tokens=1024,
    )


def corpora_of_next(shards: TokenShards, loader: Loader, count: int) -> list[int]:
    """From which corpus each of the next examples is, told by where its ids lie."""
    sequence = shards.window(0, shards.n_tokens).tobytes()
    corpora = []
    for row in loader.next(count).tokens.numpy().astype("<u4"):
        place = sequence.index(row.tobytes()) // 4
        corpora.append(int(place >= shards.parts[1].start))
    return corpora


def test_a_mixture_is_prepared_corpus_by_corpus(corpora: tuple[Path, Path]) -> None:
    data = data_config(corpora)
    prepared = prepare(data, VOCAB_SIZE, progress=False)
    for split, shards in (("train", prepared.train), ("validation", prepared.validation)):
        assert [part.share for part in shards.parts] == [3, 2]
        for path, part in zip(corpora, shards.parts, strict=True):
            alone = Corpus.open(f"files:{path}", validation_fraction=0.2)
            documents = list(alone.documents(split))
            text = prepared.tokenizer.decode(shards.window(part.start, part.n_tokens))
            assert text == "".join(f"<|document|>{document}" for document in documents)
            assert part.n_documents == len(documents)
            assert part.corpus == f"files:{path}"
    ids = prepared.train.window(0, prepared.train.n_tokens)
    # two mixtures may have the same ids, but they are not the same stream
    assert prepared.train.identity != hashlib.sha256(ids.tobytes()).hexdigest()
    again = prepare(data, VOCAB_SIZE, progress=False)
    assert again.train.folder == prepared.train.folder


def test_a_mixed_corpus_has_the_documents_of_all_in_turn(corpora: tuple[Path, Path]) -> None:
    data = data_config(corpora)
    mixed = Corpus.open(data.corpus, validation_fraction=0.2)
    alone = [Corpus.open(f"files:{path}", validation_fraction=0.2) for path in corpora]
    for split in ("train", "validation"):
        expected = Counter(text for corpus in alone for text in corpus.documents(split))
        assert Counter(mixed.documents(split)) == expected
        rows = [row for corpus in alone for row in corpus.summary(split)]
        assert sorted(mixed.summary(split)) == sorted(rows)
        assert mixed.expected_bytes(split) == sum(row.bytes for row in rows)
    assert mixed.spec == data.corpus
    other = Corpus.open(data.corpus.replace("0.6", "0.5"), validation_fraction=0.2)
    assert other.identity != mixed.identity
    first = [text.startswith("some") for text in mixed.documents("train")][:10]
    assert True in first
    assert False in first


def test_no_text_is_held_out_of_one_corpus_and_learnt_from_another(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    texts = sorted((f"text {number}" for number in range(40)), key=digest)
    shared = texts[20]
    (tmp_path / "large.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    # Of its two texts the small corpus holds out the one that both have, the large one another.
    (tmp_path / "small.jsonl").write_text(f'{{"text": "{shared}"}}\n{{"text": "{texts[39]}"}}\n')
    small = Corpus.open(f"files:{tmp_path}/small.jsonl")
    assert list(small.documents("validation")) == [shared]
    large = Corpus.open(f"files:{tmp_path}/large.jsonl")
    assert shared in large.documents("train")
    mixed = Corpus.open(f"1 files:{tmp_path}/small.jsonl + 3 files:{tmp_path}/large.jsonl")
    assert shared in mixed.documents("validation")
    assert shared not in mixed.documents("train")


@pytest.mark.parametrize("packing", ["stream", "best-fit"])
def test_each_corpus_has_its_share_and_epochs_of_its_own(
    corpora: tuple[Path, Path], packing: str
) -> None:
    shards = prepare(data_config(corpora), VOCAB_SIZE, progress=False).train
    loader = Loader(shards, batch_size=5, context_length=24, seed=1, packing=packing)
    alone = [n_rows_alone(shards, index, packing) for index in (0, 1)]
    assert loader.n_windows == sum(alone) == measure_packing(shards, 24, packing).n_rows
    seen: tuple[list[bytes], list[bytes]] = ([], [])
    n_batches = 2 * alone[0] // 3 + 1  # two epochs of the larger one
    for _ in range(n_batches):
        batch = loader.next()
        whose = turns(loader.position - 5, 5, [3, 2])
        for (corpus, _), row in zip(whose, batch.tokens.numpy(), strict=True):
            seen[corpus].append(row.tobytes())
    assert (len(seen[0]), len(seen[1])) == (3 * n_batches, 2 * n_batches)
    for rows, n_rows, epochs in zip(seen, alone, loader.epochs, strict=True):
        assert epochs == len(rows) // n_rows >= 2
        first, second = rows[:n_rows], rows[n_rows : 2 * n_rows]
        assert Counter(first) == Counter(second)
        assert first != second
    assert loader.epoch == min(loader.epochs)


def n_rows_alone(shards: TokenShards, index: int, packing: str) -> int:
    """Rows that one corpus alone would make."""
    part = shards.parts[index]
    if packing == "stream":
        return part.n_tokens // 25
    return BestFitRows(shards, part, 24).n_rows


def test_turns_are_told_by_where_the_text_lies(corpora: tuple[Path, Path]) -> None:
    shards = prepare(data_config(corpora), VOCAB_SIZE, progress=False).train
    loader = Loader(shards, batch_size=20, context_length=24, seed=1)
    assert corpora_of_next(shards, loader, 20) == [corpus for corpus, _ in turns(0, 20, [3, 2])]


def test_a_mixture_goes_on_from_its_position_in_any_number_of_processes(
    corpora: tuple[Path, Path],
) -> None:
    shards = prepare(data_config(corpora), VOCAB_SIZE, progress=False).train
    options = {"context_length": 24, "seed": 1, "prefetch": 0}
    alone = Loader(shards, batch_size=4, **options)
    for _ in range(300):
        alone.next()
    pair = [Loader(shards, batch_size=2, rank=rank, world_size=2, **options) for rank in (0, 1)]
    for rank in pair:
        rank.load_state_dict(alone.state_dict())
    whole = alone.next()
    assert torch.equal(torch.cat([rank.next().tokens for rank in pair]), whole.tokens)


def test_a_corpus_too_small_for_its_share_of_a_batch_is_named(corpora: tuple[Path, Path]) -> None:
    shards = prepare(data_config(corpora), VOCAB_SIZE, progress=False).train
    n_rows = shards.parts[1].n_tokens // 25
    Loader(shards, batch_size=n_rows * 5 // 2, context_length=24, seed=1)
    with pytest.raises(ValueError, match=rf"corpus files:{corpora[1]} is smaller than one batch"):
        Loader(shards, batch_size=(n_rows + 2) * 5 // 2, context_length=24, seed=1)


def test_validation_takes_its_windows_by_share(corpora: tuple[Path, Path]) -> None:
    shards = prepare(data_config(corpora), VOCAB_SIZE, progress=False).validation
    boundary = shards.parts[1].start
    windows = spread_windows(shards, 10, 7)
    assert len(windows) == len(set(windows)) == 10
    assert sum((window + 1) * 8 <= boundary for window in windows) == 6
    assert sum(window * 8 >= boundary for window in windows) == 4


def test_a_run_of_a_mixture_recalls_and_sends_its_shards(
    corpora: tuple[Path, Path], tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config.override(
        {
            "data.corpus": data_config(corpora).corpus,
            "data.tokenizer_vocab_size": 340,
            "training.max_steps": 2,
            "training.validate_every": 2,
        }
    )
    Trainer(config, tmp_path / "run", progress=False).fit()
    for path in corpora:
        path.unlink()  # a run goes on with the text it was begun with
    prepared = recall_data(tmp_path / "run")
    assert prepared is not None
    assert isinstance(prepared.tokenizer, Tokenizer)
    assert [part.share for part in prepared.train.parts] == [3, 2]
    sent = shard_files(tmp_path / "run")
    for shards in (prepared.train, prepared.validation):
        assert str((shards.folder / "manifest.json").relative_to(cache_dir())) in sent


def test_the_command_line_prepares_a_mixture_and_says_what_is_in_it(
    corpora: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_config(corpora)
    options = ["--tokenizer-vocab-size", "340", "--validation-fraction", "0.2"]
    assert main(["data", "prepare", "--corpus", data.corpus, *options]) == 0
    printed = capsys.readouterr().out
    shards = prepare(data, 340, progress=False).train
    for path, part in zip(corpora, shards.parts, strict=True):
        counts = f"{part.n_documents:,} documents, {part.n_tokens:,} tokens"
        assert f"{counts} of files:{path}" in printed
    assert f"train      {shards.n_documents:,} documents" in printed


def test_relative_paths_of_a_mixture_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = absolute_spec("0.7 installed + 3e-1 files:a.txt,s3://b/c.txt")
    assert spec == f"0.7 installed + 3e-1 files:{tmp_path}/a.txt,s3://b/c.txt"
