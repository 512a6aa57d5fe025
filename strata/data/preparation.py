"""From a configuration to a tokenizer and token shards, making only what is not there yet.

    corpus ──▶ tokenizer of `data.tokenizer_vocab_size` ──▶ truncated to the model's ──▶ shards

The tokenizer learns from the training split alone and is kept at its full size; any smaller
vocabulary is a prefix of its merges. Every product is named after the hashes of what it was made
from, so a second call with the same configuration opens files and computes nothing.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from strata.config import DataConfig
from strata.data.corpus import Corpus
from strata.data.files import find_files, read_documents
from strata.data.identity import Split
from strata.data.progress import building
from strata.data.shards import MixedDocuments, TokenShards, build_shards
from strata.storage import cache_dir
from strata.tokenizer import SPECIAL_TOKENS, Tokenizer
from strata.tokenizer.counting import Progress

# A vocabulary is settled long before this much text: further words are rarer than its last merges.
TOKENIZER_TRAINING_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Prepared:
    """What training and evaluation need of the data."""

    corpus_identity: str
    tokenizer: Tokenizer
    train: TokenShards
    validation: TokenShards


def prepare(data: DataConfig, vocab_size: int, *, progress: bool = True) -> Prepared:
    """Open, or make and keep, all that `data` asks for, for a model of `vocab_size` tokens.

    Args:
        data: corpus, tokenizer and shards.
        vocab_size: tokens that the model knows, at most `data.tokenizer_vocab_size`.
        progress: for each thing that has to be made, show a progress bar and leave one line.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: as `Corpus.open` does; ValueError also when
            `vocab_size` is larger than the tokenizer, or a split is empty.
    """
    if vocab_size > data.tokenizer_vocab_size:
        raise ValueError(
            f"model.vocab_size = {vocab_size}: expected at most data.tokenizer_vocab_size = "
            f"{data.tokenizer_vocab_size}"
        )
    corpus = Corpus.open(
        data.corpus,
        text_column=data.text_column,
        validation_fraction=data.validation_fraction,
        progress=progress,
    )
    tokenizer = prepare_tokenizer(corpus, data, vocab_size, progress=progress)
    return Prepared(
        corpus_identity=corpus.identity,
        tokenizer=tokenizer,
        train=prepare_shards(corpus, "train", tokenizer, data.shard_tokens, progress=progress),
        validation=prepare_shards(
            corpus, "validation", tokenizer, data.shard_tokens, progress=progress
        ),
    )


def prepare_tokenizer(
    corpus: Corpus, data: DataConfig, vocab_size: int | None = None, *, progress: bool = True
) -> Tokenizer:
    """The tokenizer of `data.tokenizer_vocab_size` tokens that the corpus teaches.

    It learns from the first `TOKENIZER_TRAINING_BYTES` of the training split. With `vocab_size` it
    is truncated to so many tokens, and that is kept as well, since a small file opens sooner.

    Raises:
        ValueError: the corpus is too small for so many tokens, or `vocab_size` is larger than
            `data.tokenizer_vocab_size`.
    """
    folder = cache_dir() / "tokenizers"
    full_name = f"{corpus.identity[:16]}-{data.pattern}-{data.tokenizer_vocab_size}"
    if vocab_size is not None and vocab_size != data.tokenizer_vocab_size:
        path = folder / f"{full_name}-{vocab_size}.json"
        if path.exists():
            return Tokenizer.load(path)
        tokenizer = prepare_tokenizer(corpus, data, progress=progress).truncate(vocab_size)
        tokenizer.save(path)
        return tokenizer

    path = folder / f"{full_name}.json"
    if path.exists():
        return Tokenizer.load(path)
    with ExitStack() as bar:
        tokenizer = Tokenizer.train(
            _first_bytes(corpus.documents("train"), TOKENIZER_TRAINING_BYTES),
            data.tokenizer_vocab_size,
            pattern=data.pattern,
            progress=_show_stages(bar, corpus, data.tokenizer_vocab_size) if progress else None,
        )
    tokenizer.save(path)
    return tokenizer


def _show_stages(bar: ExitStack, corpus: Corpus, vocab_size: int) -> Progress:
    """A callback for `Tokenizer.train` that shows one bar after another, the open one on `bar`."""
    n_bytes = min(TOKENIZER_TRAINING_BYTES, corpus.expected_bytes("train"))
    n_merges = vocab_size - 256 - len(SPECIAL_TOKENS)
    bars = {
        "reading": building("counting words for the tokenizer", n_bytes),
        "merging": building(
            f"training a tokenizer of {vocab_size:,} tokens", n_merges, unit="merges"
        ),
    }
    shown = ""
    done_before = 0
    advance: Callable[[int], None]

    def report(stage: str, done: int, _total: int) -> None:
        nonlocal shown, done_before, advance
        if stage != shown:
            bar.close()
            advance = bar.enter_context(bars[stage])
            shown, done_before = stage, 0
        advance(done - done_before)
        done_before = done

    return report


def _first_bytes(documents: Iterable[str], limit: int) -> Iterator[str]:
    """Documents until they have this many bytes together."""
    n_bytes = 0
    for text in documents:
        yield text
        n_bytes += len(text) if text.isascii() else len(text.encode())
        if n_bytes >= limit:
            return


def prepare_shards(
    corpus: Corpus,
    split: Split,
    tokenizer: Tokenizer,
    shard_tokens: int = DataConfig.shard_tokens,
    *,
    progress: bool = True,
) -> TokenShards:
    """The tokens of one split of the corpus, in shards of `shard_tokens`.

    Raises:
        ValueError: the split is empty, or that of a corpus of a mixture is.
    """
    documents: Iterable[str] | MixedDocuments = corpus.documents(split)
    if corpus.parts:
        documents = MixedDocuments(
            [(part.spec, share, part.documents(split)) for share, part in corpus.parts]
        )
    name = f"{corpus.identity[:16]}-{tokenizer.identity[:16]}-{split}"
    return build_shards(
        documents,
        tokenizer,
        cache_dir() / "shards" / name,
        corpus_identity=corpus.identity,
        name=f"the {split} split of {corpus.spec}",
        shard_tokens=shard_tokens,
        total_bytes=corpus.expected_bytes(split),
        progress=progress,
    )


def encode_files(
    tokenizer: Tokenizer,
    files: str,
    folder: str | Path,
    *,
    text_column: str = DataConfig.text_column,
    shard_tokens: int = DataConfig.shard_tokens,
    threads: int | None = None,
    progress: bool = True,
) -> TokenShards:
    """The token shards of every document in some files, in their order, none held out.

    Args:
        tokenizer: encodes; its separator stands before each document.
        files: globs and URLs as in `Corpus.open("files:…")`, without the `files:`.
        folder: where the shards will lie; if those of the same files and tokenizer are there
            already, they are only opened, of whatever size they are.
        text_column: of JSON lines and Parquet.
        shard_tokens: ids in one shard file.
        threads: of the encoder; None takes all cores.
        progress: show a progress bar and a line.

    Raises:
        FileNotFoundError: a glob matches nothing.
        ValueError: a file cannot be read as what its name says, or `folder` holds other shards.
        Nothing is left behind then.
    """
    found = find_files(files)
    fingerprint = hashlib.sha256(repr([tuple(file) for file in found] + [text_column]).encode())
    shards = build_shards(
        (text for file in found for text in read_documents(file, text_column)),
        tokenizer,
        folder,
        corpus_identity=fingerprint.hexdigest(),
        name=files,
        shard_tokens=shard_tokens,
        threads=threads,
        progress=progress,
    )
    made_of = (shards.corpus_identity, shards.tokenizer_identity)
    if made_of != (fingerprint.hexdigest(), tokenizer.identity):
        raise ValueError(
            f"{folder} holds the shards of other files or of another tokenizer: name another "
            "folder, or delete this one"
        )
    return shards
