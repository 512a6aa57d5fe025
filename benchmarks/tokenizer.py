"""The tokenizer beside tiktoken, tokenizers and rustbpe: encoding, decoding, training, growth.

    python benchmarks/tokenizer.py                                 # on the embedded corpus
    python benchmarks/tokenizer.py --english "files:texts/*.parquet"

All encode with the same 86,400 ranks and the same pattern, learnt from nine documents of ten; the
tenth documents are what is encoded. Whether all gave the same ids is checked before the clock
starts. Strata begins every round with a tokenizer that remembers no words. Training runs in a
process of its own for each measurement, which also gives its peak memory beyond the text (Linux
only). The report goes to benchmarks/results/. On two cores it takes about ten minutes without and
twenty-five with English text.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import rustbpe
import tiktoken
import tokenizers
from measuring import RESULTS, Seconds, machine, ratio, table, take_turns
from tokenizers import models, pre_tokenizers, trainers

from strata import Corpus, Tokenizer
from strata.tokenizer import REGULAR_EXPRESSIONS
from strata.tokenizer.huggingface import ONIGURUMA

VOCABULARY = 86_400
PATTERN = "strata"
TRAINERS = ("Strata", "rustbpe", "tokenizers")
MEGABYTE = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--english", help="a second corpus, as strata's --corpus names it")
    parser.add_argument("--rounds", type=int, default=7, help="of encoding and decoding")
    parser.add_argument("--training-rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the report")
    parser.add_argument("--train", choices=TRAINERS, help=argparse.SUPPRESS)
    parser.add_argument("--megabytes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train_and_tell(options.train, options.english, options.megabytes, options.threads)
        return

    corpora = {"embedded": "installed"}
    if options.english:
        corpora["English"] = options.english
    parts = [f"# The tokenizer beside its peers, {date.today()}\n"]
    packages = ("numba", "numpy", "tiktoken", "tokenizers", "rustbpe")
    parts.append(f"{machine(packages)} Shared with others; medians of alternating rounds.\n")
    for name, spec in corpora.items():
        counted = Corpus.open(spec).summary("train")
        n_bytes = sum(part.bytes for part in counted) / MEGABYTE
        parts.append(
            f"{name} corpus: {sum(part.documents for part in counted):,} documents of "
            f"{n_bytes:.0f} MB.\n"
        )
    for name, spec in corpora.items():
        learnt, held_out = split(spec)
        tokenizer = Tokenizer.train(learnt, VOCABULARY, PATTERN)
        rust = rustbpe.Tokenizer()
        size = VOCABULARY - len(tokenizer.special_tokens)
        rust.train_from_iterator(iter(learnt), size, pattern=REGULAR_EXPRESSIONS[PATTERN])
        del learnt
        print(f"{name}: encoding and decoding", file=sys.stderr)
        parts.append(encoding_report(name, tokenizer, rust, held_out, options.rounds))
        parts.append(decoding_report(name, tokenizer, held_out, options.rounds))
        parts.append(short_texts_report(name, tokenizer, held_out))
    sizes = [10, 100, 300] if options.english else [10, 100]
    parts.append(training_report(sizes, options.english, options.training_rounds))
    name = f"tokenizer-{date.today()}"
    figure = options.output / f"{name}.png"
    parts.append(growth_report(sizes, options.english, figure))
    path = options.output / f"{name}.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    print(path)


# --- texts ------------------------------------------------------------------------------------


def split(spec: str) -> tuple[list[str], list[str]]:
    """Nine documents of ten of a corpus, and the tenth ones."""
    documents = list(Corpus.open(spec).documents("train"))
    held_out = documents[::10]
    del documents[::10]
    return documents, held_out


def texts_of(megabytes: int, english: str | None) -> list[str]:
    """So much text of both corpora, shuffled: a part has the same mixture as the whole."""
    documents = list(Corpus.open("installed").documents("train"))
    if english:
        documents += Corpus.open(english).documents("train")
    random.Random(0).shuffle(documents)
    n_bytes = 0
    for i, document in enumerate(documents, start=1):
        n_bytes += len(document.encode())
        if n_bytes >= megabytes * MEGABYTE:
            return documents[:i]
    raise SystemExit(f"there are only {n_bytes / MEGABYTE:.0f} MB of text, not {megabytes}")


def megabytes_of(documents: Sequence[str]) -> float:
    return sum(len(document.encode()) for document in documents) / MEGABYTE


# --- encoding and decoding --------------------------------------------------------------------


def peers(tokenizer: Tokenizer) -> tuple[tiktoken.Encoding, tokenizers.Tokenizer]:
    """The same tokenizer in tiktoken and in tokenizers."""
    encoding = tiktoken.Encoding(
        "strata",
        pat_str=REGULAR_EXPRESSIONS[PATTERN],
        mergeable_ranks=tokenizer.ranks,
        special_tokens=tokenizer.special_tokens,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.to_huggingface(path)
        return encoding, tokenizers.Tokenizer.from_file(str(path))


class Fresh:
    """Encodes with tokenizers that remember no words: one a round, made before the clock starts."""

    def __init__(self, tokenizer: Tokenizer, rounds: int) -> None:
        self._waiting = [tokenizer.truncate(VOCABULARY) for _ in range(rounds)]
        for fresh in self._waiting:
            fresh.encode_array("builds its tables")

    def take(self) -> Tokenizer:
        return self._waiting.pop()


def use_threads(n: int) -> None:
    """tokenizers asks the environment, at each call, whether it may use its threads."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if n > 1 else "false"


def encoding_report(
    name: str,
    tokenizer: Tokenizer,
    rust: rustbpe.Tokenizer,
    documents: list[str],
    rounds: int,
) -> str:
    """Encoding on one thread and on all."""
    encoding, exported = peers(tokenizer)
    if any(tokenizer.encode(document) != rust.encode(document) for document in documents[::20]):
        raise SystemExit("the ids are not rustbpe's")
    for document in documents:
        if tokenizer.encode(document) != encoding.encode_ordinary(document):
            raise SystemExit("the ids are not tiktoken's")
    sample = documents[::20]
    exported.encode_special_tokens = True
    for document in sample:
        if tokenizer.encode(document) != exported.encode(document).ids:
            raise SystemExit("the ids are not those of tokenizers")

    arrays, lists = Fresh(tokenizer, rounds), Fresh(tokenizer, rounds)
    one, all_cores = Fresh(tokenizer, rounds), Fresh(tokenizer, rounds)
    n_cores = os.cpu_count() or 1

    def each(encode: Callable[[str], object]) -> None:
        for document in documents:
            encode(document)

    def to_numpy(text: str) -> object:
        return encoding.encode_to_numpy(text, disallowed_special=())

    pool = ThreadPoolExecutor(n_cores)

    def by_tokenizers(threads: int) -> None:
        use_threads(threads)
        exported.encode_batch_fast(documents, add_special_tokens=False)

    seconds = take_turns(
        {
            "Strata, arrays": lambda: each(arrays.take().encode_array),
            "Strata, lists": lambda: each(lists.take().encode),
            "tiktoken `encode_ordinary`": lambda: each(encoding.encode_ordinary),
            "tiktoken `encode_to_numpy`": lambda: each(to_numpy),
            "tokenizers `encode_batch_fast`": lambda: by_tokenizers(1),
            "rustbpe `encode`": lambda: each(rust.encode),
            "Strata `encode_batch`, 1 thread": lambda: one.take().encode_batch(documents, 1),
            "Strata `encode_batch`, all cores": lambda: all_cores.take().encode_batch(documents),
            "tiktoken `encode_ordinary_batch`, all cores": lambda: encoding.encode_ordinary_batch(
                documents, num_threads=n_cores
            ),
            "tiktoken `encode_to_numpy`, all cores": lambda: list(pool.map(to_numpy, documents)),
            "tokenizers `encode_batch_fast`, all cores": lambda: by_tokenizers(n_cores),
        },
        rounds,
    )
    targets = [
        ("Strata, arrays", "tiktoken `encode_ordinary`", 10.0),
        ("Strata, arrays", "tiktoken `encode_to_numpy`", 5.0),
        ("Strata, arrays", "tokenizers `encode_batch_fast`", 25.0),
        ("Strata, lists", "tiktoken `encode_ordinary`", 4.5),
        ("Strata `encode_batch`, all cores", "Strata `encode_batch`, 1 thread", 1.8),
        ("Strata, arrays", "rustbpe `encode`", None),
        ("Strata `encode_batch`, all cores", "tiktoken `encode_ordinary_batch`, all cores", None),
        ("Strata `encode_batch`, all cores", "tiktoken `encode_to_numpy`, all cores", None),
        ("Strata `encode_batch`, all cores", "tokenizers `encode_batch_fast`, all cores", None),
    ]
    return report(f"Encoding, {name} corpus", documents, seconds, targets)


def decoding_report(name: str, tokenizer: Tokenizer, documents: list[str], rounds: int) -> str:
    """Decoding to text and to bytes, on one thread."""
    encoding, exported = peers(tokenizer)
    arrays = tokenizer.encode_batch(documents)
    lists = [array.tolist() for array in arrays]

    def each(decode: Callable[..., object], ids: Sequence[object]) -> None:
        for document in ids:
            decode(document)

    seconds = take_turns(
        {
            "Strata, arrays to text": lambda: each(tokenizer.decode, arrays),
            "Strata, lists to text": lambda: each(tokenizer.decode, lists),
            "tiktoken `decode`": lambda: each(encoding.decode, lists),
            "tokenizers `decode`": lambda: each(exported.decode, lists),
            "Strata, arrays to bytes": lambda: each(tokenizer.decode_bytes, arrays),
            "Strata, lists to bytes": lambda: each(tokenizer.decode_bytes, lists),
            "tiktoken `decode_bytes`": lambda: each(encoding.decode_bytes, lists),
        },
        rounds,
    )
    targets = [
        ("Strata, arrays to text", "tiktoken `decode`", 3.0),
        ("Strata, lists to text", "tiktoken `decode`", 3.0),
        ("Strata, arrays to bytes", "tiktoken `decode_bytes`", 6.0),
        ("Strata, lists to bytes", "tiktoken `decode_bytes`", 6.0),
    ]
    return report(f"Decoding, {name} corpus", documents, seconds, targets)


def short_texts_report(name: str, tokenizer: Tokenizer, documents: list[str]) -> str:
    """One call for texts of different lengths: where calling costs more than encoding."""
    encoding, _ = peers(tokenizer)
    whole = "".join(documents[:50])
    rows = []
    for length in (10, 100, 1_000, 10_000):
        texts = [whole[start : start + length] for start in range(0, 50 * length, length)]
        ids = [tokenizer.encode(text) for text in texts]
        seconds = take_turns(
            {
                "encode": lambda texts=texts: [tokenizer.encode(text) for text in texts],
                "their encode": lambda texts=texts: [encoding.encode_ordinary(t) for t in texts],
                "decode": lambda ids=ids: [tokenizer.decode(part) for part in ids],
                "their decode": lambda ids=ids: [encoding.decode(part) for part in ids],
            },
            rounds=51,
        )
        microseconds = [1e6 * statistics.median(times) / len(texts) for times in seconds.values()]
        rows.append((f"{length:,}", *microseconds))
    header = ("characters", "Strata `encode`", "tiktoken", "Strata `decode`", "tiktoken")
    return f"## Short texts, {name} corpus: microseconds a call\n\n" + table(header, rows)


def report(
    title: str,
    documents: Sequence[str],
    seconds: Seconds,
    targets: Sequence[tuple[str, str, float | None]],
) -> str:
    """Speeds, and ratios beside their targets."""
    megabytes = megabytes_of(documents)
    speeds = [(name, megabytes / statistics.median(times)) for name, times in seconds.items()]
    ratios = [
        (ours, peer, ratio(seconds, ours, peer), "–" if target is None else f"≥ {target:g}")
        for ours, peer, target in targets
    ]
    return (
        f"## {title}: {megabytes:.1f} MB in {len(documents):,} documents\n\n"
        + table(("", "MB/s"), speeds)
        + "\n"
        + table(("", "beside", "times as fast", "target"), ratios)
    )


# --- training ---------------------------------------------------------------------------------


def train_and_tell(trainer: str, english: str | None, megabytes: int, threads: int) -> None:
    """Trains once and prints the seconds and the megabytes of memory it took beyond the text."""
    small = ["warms up what is compiled or started once, in some 20 words"] * 3
    train(trainer, small, 270, threads)
    documents = texts_of(megabytes, english)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    started = time.perf_counter()
    train(trainer, documents, VOCABULARY, threads)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "memory": memory("VmHWM") - before}))


def train(trainer: str, documents: list[str], vocab_size: int, threads: int) -> None:
    if trainer == "Strata":
        Tokenizer.train(documents, vocab_size, PATTERN, threads=threads)
    elif trainer == "rustbpe":
        pattern = REGULAR_EXPRESSIONS[PATTERN]
        rustbpe.Tokenizer().train_from_iterator(iter(documents), vocab_size, pattern=pattern)
    else:
        model = tokenizers.Tokenizer(models.BPE())
        words = pre_tokenizers.Split(tokenizers.Regex(ONIGURUMA[PATTERN]), "isolated")
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        model.train_from_iterator(
            iter(documents),
            trainers.BpeTrainer(
                vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
            ),
        )


def memory(kind: str) -> float:
    """This process's resident memory now ("VmRSS") or at its peak ("VmHWM"), in megabytes."""
    status = Path("/proc/self/status").read_text()
    return next(
        int(line.split()[1]) * 1024 / MEGABYTE
        for line in status.splitlines()
        if line.startswith(kind)
    )


def measure_training(
    trainer: str, english: str | None, megabytes: int, threads: int
) -> dict[str, float]:
    """Seconds and memory of one training, in a process of its own."""
    command = [sys.executable, __file__, "--train", trainer, "--megabytes", str(megabytes)]
    command += ["--threads", str(threads), *(["--english", english] if english else [])]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    environment["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def training_report(sizes: Sequence[int], english: str | None, rounds: int) -> str:
    """Training a vocabulary of 86,400 tokens: seconds and memory."""
    n_cores = os.cpu_count() or 1
    contestants = [("Strata", 1), *((name, n_cores) for name in TRAINERS)]
    rows, ratios = [], []
    for megabytes in sizes:
        measured: dict[tuple[str, int], list[dict[str, float]]] = {c: [] for c in contestants}
        for _ in range(rounds):
            for name, threads in contestants:
                print(f"training: {megabytes} MB, {threads} threads, {name}", file=sys.stderr)
                result = measure_training(name, english, megabytes, threads)
                measured[name, threads].append(result)
        for (name, threads), runs in measured.items():
            medians = [statistics.median(run[key] for run in runs) for key in ("seconds", "memory")]
            rows.append((megabytes, name, threads, *medians))
        seconds = {name: [run["seconds"] for run in measured[name, n_cores]] for name in TRAINERS}
        for name, target in (("rustbpe", "≥ 3"), ("tokenizers", "≥ 6")):
            aimed = target if megabytes >= 100 else "–"
            ratios.append((megabytes, name, ratio(seconds, "Strata", name), aimed))
    return (
        f"## Training {VOCABULARY:,} tokens\n\n"
        + table(("MB", "", "threads", "seconds", "memory beyond the text, MB"), rows)
        + "\n"
        + table(("MB", "beside, all cores", "times as fast", "target"), ratios)
    )


# --- growth -----------------------------------------------------------------------------------


def growth_report(sizes: Sequence[int], english: str | None, figure: Path) -> str:
    """Seconds against bytes, for encoding and training on one thread: both should be lines."""
    rows = list(measure_growth(sizes, english))
    slopes = draw_growth(rows, figure)
    return (
        "## Growth, one thread\n\n"
        + table(("MB", "encoding, s", "training, s"), rows)
        + f"\nExponent of time in bytes: encoding {slopes[0]:.2f}, training {slopes[1]:.2f}.\n"
        + f"\n![Time against size]({figure.name})\n"
    )


def draw_growth(rows: Sequence[tuple[float, float, float]], figure: Path) -> tuple[float, float]:
    """Draws rows of (MB, seconds of encoding, of training); returns both slopes in logarithms."""
    megabytes, encoding, training = (np.array(column) for column in zip(*rows, strict=True))
    slopes = [np.polyfit(np.log(megabytes), np.log(y), 1)[0] for y in (encoding, training)]
    with mpl.rc_context({"font.size": 9}):
        fig, ax = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
        ax.plot(megabytes, encoding, "o-", label=f"encoding, slope {slopes[0]:.2f}")
        ax.plot(megabytes, training, "s-", label=f"training, slope {slopes[1]:.2f}")
        ax.set(xscale="log", yscale="log", xlabel="text (MB)", ylabel="time (s)")
        ax.set_xticks(megabytes, [f"{size:.0f}" for size in megabytes])
        ax.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.set_title("Time grows with the text, not faster")
        ax.legend(frameon=False)
        fig.savefig(figure, dpi=160)
    return slopes[0], slopes[1]


def measure_growth(
    sizes: Sequence[int], english: str | None
) -> Iterator[tuple[float, float, float]]:
    documents = texts_of(max(sizes), english)
    tokenizer = Tokenizer.train(documents, VOCABULARY, PATTERN)
    for size in sizes:
        print(f"growth: {size} MB", file=sys.stderr)
        part = texts_of(size, english)
        trials = []
        for _ in range(3):
            fresh = Fresh(tokenizer, 1).take()
            started = time.perf_counter()
            for document in part:
                fresh.encode_array(document)
            encoded = time.perf_counter()
            Tokenizer.train(part, VOCABULARY, PATTERN, threads=1)
            trials.append((encoded - started, time.perf_counter() - encoded))
        encoding, training = map(statistics.median, zip(*trials, strict=True))
        yield megabytes_of(part), encoding, training


if __name__ == "__main__":
    main()
