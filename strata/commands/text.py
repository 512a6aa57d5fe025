"""Commands of text: tokenizers, token shards, and the data of the evaluation tasks."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from strata.commands import load_tokenizer, open_corpus, print_table
from strata.config import Config, DataConfig

TokenizerPath = Annotated[Positional[Path], arg(help="A tokenizer's file, or the folder of a run.")]
# A section of the configuration as options of their own, without a prefix for the whole.
Data = Annotated[DataConfig, arg(name="")]


def tokenizer_train(data: Data, output: Path = Path("tokenizer.json")) -> None:
    """Train a byte-level BPE tokenizer on a corpus.

    Example: strata tokenizer train --corpus "files:texts/*.txt" --tokenizer-vocab-size 8192

    Args:
        output: The file to write.
    """
    from strata.data import prepare_tokenizer

    tokenizer = prepare_tokenizer(open_corpus(data), data)
    output.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(output)
    print(f"{tokenizer.vocab_size:,} tokens: {output}")


def tokenizer_encode(
    tokenizer: TokenizerPath,
    text: Positional[str] = "-",
    files: str = "",
    output: Path | None = None,
) -> None:
    """Turn text into token ids, on one line or, with --output, as a NumPy array of uint32.

    Example: strata tokenizer encode runs/nano "import numpy as np"

    Files to shards: strata tokenizer encode runs/nano --files "texts/*.txt" --output shards

    Args:
        text: The text itself; - reads it from the standard input.
        files: Text, JSON lines or Parquet to encode instead, as globs or URLs.
        output: The .npy file to write, or of --files, the folder of the shards.
    """
    tool = load_tokenizer(tokenizer)
    if files:
        from strata.data import encode_files

        if output is None:
            raise ValueError("--files needs --output, the folder to write the token shards to")
        shards = encode_files(tool, files, output)
        print(f"{shards.n_documents:,} documents, {shards.n_tokens:,} ids: {output}")
        return
    ids = tool.encode_array(sys.stdin.read() if text == "-" else text)
    if output is None:
        print(*ids.tolist())
        return
    import numpy as np

    with output.open("wb") as file:
        np.save(file, ids)
    print(f"{len(ids):,} ids: {output}")


def tokenizer_export(
    tokenizer: TokenizerPath,
    output: Positional[Path],
    format: Literal["tiktoken", "huggingface"],
) -> None:
    """Write a tokenizer in a format that other libraries read.

    Example: strata tokenizer export runs/nano nano.tiktoken --format tiktoken

    Args:
        output: What to write: a file of ranks (tiktoken) or a tokenizer.json (huggingface).
        format: Which of the two.
    """
    tool = load_tokenizer(tokenizer)
    output.parent.mkdir(parents=True, exist_ok=True)
    if format == "tiktoken":
        tool.to_tiktoken(output)
    else:
        tool.to_huggingface(output)
    print(f"{tool.vocab_size:,} tokens: {output}")


def tokenizer_import(
    source: Positional[str],
    format: Literal["published", "huggingface", "tiktoken"],
    pattern: Literal["cl100k", "gpt2", "strata"] | None = None,
    special_tokens: dict[str, int] | None = None,
    output: Path = Path("tokenizer.json"),
) -> None:
    """Take over a byte-level BPE tokenizer from elsewhere, with its ids.

    Example: strata tokenizer import gpt2 --format published --output gpt2.json

    From a file: strata tokenizer import their/tokenizer.json --format huggingface

    Args:
        source: A file, or the name of a published vocabulary: gpt2 or cl100k.
        format: Where it comes from: OpenAI (fetched once), a tokenizer.json, or a file of ranks.
        pattern: How text is cut into words; for a file of ranks, which does not say, and only then.
        special_tokens: Their names and ids, as NAME ID …; only for a file of ranks.
        output: The file to write.
    """
    from strata.tokenizer import Tokenizer

    if (format == "tiktoken") != (pattern is not None):
        raise ValueError("--pattern belongs to --format tiktoken, whose files do not say theirs")
    if special_tokens and format != "tiktoken":
        raise ValueError("--special-tokens belongs to --format tiktoken; other sources say theirs")
    if format == "published":
        from strata.data import published_tokenizer

        tool = published_tokenizer(source)
    elif format == "huggingface":
        tool = Tokenizer.from_huggingface(source)
    else:
        tool = Tokenizer.from_tiktoken(source, str(pattern), special_tokens)
    if Path(source).exists() and output.exists() and output.samefile(source):
        raise ValueError(f"{output} is the file that is read: name another --output")
    tool.save(output)
    print(f"{tool.vocab_size:,} tokens: {output}")


def data_prepare(data: Data, vocab_size: int = 0) -> None:
    """Train the tokenizer of a corpus and turn its documents into token shards, in the cache.

    Example: strata data prepare --corpus "hub:HuggingFaceFW/fineweb-edu:sample/10BT/*.parquet"

    Args:
        vocab_size: Tokens of the model (model.vocab_size); 0 = all that the tokenizer has.
    """
    from strata.data import cache_dir, prepare

    prepared = prepare(data, vocab_size or data.tokenizer_vocab_size)
    for split, shards in (("train", prepared.train), ("validation", prepared.validation)):
        print(f"{split:<10} {shards.n_documents:,} documents, {shards.n_tokens:,} tokens")
        for part in shards.parts if len(shards.parts) > 1 else ():
            counts = f"{part.n_documents:,} documents, {part.n_tokens:,} tokens"
            print(f"{'':<10} {counts} of {part.corpus}")
    print(f"{'cache':<10} {cache_dir()}")


def data_tasks(tasks: Positional[tuple[str, ...]] = (), folder: Path | None = None) -> None:
    """Fetch the data of evaluation tasks, verify it, and write it where `strata evaluate` looks.

    Example: strata data tasks hellaswag piqa

    Args:
        tasks: Their names; all that have data if none is given.
        folder: Where to; a folder of the cache if it is not given.
    """
    from strata.evaluation.sources import SOURCES, download_tasks

    names = tasks or tuple(SOURCES)
    for name, path in zip(names, download_tasks(names, folder, progress=True), strict=True):
        print(f"{name:<14} {SOURCES[name].licence:<44} {path}")


def data_overlap(
    run: Annotated[Positional[Path | None], arg(help="The folder of a run.")] = None,
    corpus: str = "",
    tasks: tuple[str, ...] = (),
    shots: int = -1,
    limit: int = -1,
    data_dir: str = "",
    output: Path | None = None,
) -> None:
    """Find which questions of the evaluation tasks the training corpus holds parts of.

    Example: strata data overlap runs/nano

    Without a run: strata data overlap --corpus "files:texts/*.txt" --output overlap.json

    Args:
        corpus: Instead of the run's: "installed", files:GLOB or hub:OWNER/NAME:GLOB.
        tasks: Names of tasks; all whose data is there if none are given.
        shots: As strata evaluate has it, so that its items are known again; -1 = the configuration.
        limit: The same, of the tasks that are made from held-out documents.
        data_dir: Folder with the tasks' data; else the configuration's, or where downloads go.
        output: The file to write; RUN/overlap.json if it is not given.
    """
    import dataclasses

    from strata import evaluation

    if run is None and (output is None or not corpus):
        raise ValueError("overlap with what? Name a run, or give --corpus and --output")
    settings = Config() if run is None else Config.load(run / "config.toml")
    data = dataclasses.replace(settings.data, corpus=corpus) if corpus else settings.data
    overlap = evaluation.corpus_overlap(
        open_corpus(data),
        tasks,
        data_dir=data_dir or settings.evaluation.data_dir or None,
        limit=settings.evaluation.limit if limit < 0 else limit,
        shots=settings.evaluation.shots if shots < 0 else shots,
        progress=True,
    )
    print_table("in the training corpus", *evaluation.overlap_table(overlap))
    path = output or Path(str(run)) / "overlap.json"
    evaluation.save_overlap(overlap, path)
    print(f"every item: {path}")
