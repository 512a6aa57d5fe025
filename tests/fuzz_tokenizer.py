"""Throws random texts at the tokenizer and compares with tiktoken, for as long as one likes.

    python tests/fuzz_tokenizer.py --inputs 10000000 --seed 1

Every text is encoded under the three patterns by both, has to come back from decoding, and the
first that differs is printed, cut down to what still differs. Not part of the test run, which has
its own, shorter tests of the same kind.
"""

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np
import tiktoken
from test_tokenizer import PATTERNS, sources

from strata.tokenizer import REGULAR_EXPRESSIONS, Tokenizer

BATCH = 20_000
# The characters at which a pattern can take a turn, and some of every class around them.
TURNS = (
    "asStTdDmMlLvVeErR\u017f\u212a'\u2019 \t\n\r\x0b\x0c\x1c\x85\u00a0\u2028\u3000019\u0664\u00bd"
    '\u2167!-_=.,(/\\"#\x00\x7f\u0301\u200d\u20ac\u00e9\u6f22\uac00\u05d0\u0627\u0939\U0001f600'
    "\U0001d7d9\U0010ffff"
)


def texts(random: np.random.Generator, n: int) -> list[str]:
    """Short texts, each of characters from one to three kinds of alphabet."""
    turns = np.array([ord(character) for character in TURNS], dtype=np.uint32)
    ascii_characters = np.arange(128, dtype=np.uint32)
    common = np.array([ord(c) for c in "etaoin shrdlu  ETA\n0123'"], dtype=np.uint32)
    scalars = np.r_[np.arange(0xD800), np.arange(0xE000, 0x110000)].astype(np.uint32)
    basic = scalars[scalars < 0x3000]
    alphabets = (turns, ascii_characters, common, basic, scalars)

    lengths = random.geometric(0.05, n)
    total = int(lengths.sum())
    drawn = np.stack([random.choice(alphabet, total) for alphabet in alphabets])
    # Of each text, which alphabets its characters come from.
    weights = np.repeat(random.dirichlet(np.full(len(alphabets), 0.3), n), lengths, axis=0)
    which = (random.random((total, 1)) > np.cumsum(weights, axis=1)).sum(axis=1)
    which = np.minimum(which, len(alphabets) - 1)
    characters = drawn[which, np.arange(total)]
    # Runs: now and then a character is the one before it, many times.
    repeats = random.random(total) < np.repeat(random.choice([0, 0, 0, 0.3, 0.9], n), lengths)
    sources = np.maximum.accumulate(np.where(repeats, 0, np.arange(total)))
    joined = characters[sources].astype("<u4").tobytes().decode("utf-32-le")
    ends = np.cumsum(lengths).tolist()
    return [joined[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def pair(pattern: str) -> tuple[Tokenizer, tiktoken.Encoding]:
    """A tokenizer with merges of odd characters too, and the same in tiktoken."""
    documents = sources(500_000) + texts(np.random.default_rng(1), 50_000)
    tokenizer = Tokenizer.train(documents, 8_000, pattern)
    return tokenizer, tiktoken.Encoding(
        pattern,
        pat_str=REGULAR_EXPRESSIONS[pattern],
        mergeable_ranks=tokenizer.ranks,
        special_tokens={},
    )


def differs(text: str, tokenizer: Tokenizer, reference: tiktoken.Encoding) -> bool:
    ids = tokenizer.encode(text)
    return ids != reference.encode_ordinary(text) or tokenizer.decode(ids, "strict") != text


def shortened(text: str, tokenizer: Tokenizer, reference: tiktoken.Encoding) -> str:
    """A shortest part of a text that differs, by leaving out characters one by one."""
    place = 0
    while place < len(text):
        shorter = text[:place] + text[place + 1 :]
        if differs(shorter, tokenizer, reference):
            text = shorter
        else:
            place += 1
    return text


def batches(seed: int, inputs: int) -> Iterator[list[str]]:
    random = np.random.default_rng(seed)
    for start in range(0, inputs, BATCH):
        yield texts(random, min(BATCH, inputs - start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tools = [(pattern, *pair(pattern)) for pattern in PATTERNS]
    done = n_characters = 0
    started = time.monotonic()
    for batch in batches(options.seed, options.inputs):
        for pattern, tokenizer, reference in tools:
            arrays = tokenizer.encode_batch(batch, threads=1)
            for text, ids in zip(batch, arrays, strict=True):
                if ids.tolist() != reference.encode_ordinary(text):
                    found = shortened(text, tokenizer, reference)
                    sys.exit(
                        f"{pattern} differs for {found!r}:\n  {tokenizer.encode(found)}\n"
                        f"  {reference.encode_ordinary(found)} (tiktoken)"
                    )
            joined = tokenizer.decode(np.concatenate(arrays), "strict")
            if joined != "".join(batch):
                sys.exit(f"{pattern}: a batch of seed {options.seed} does not come back")
        done += len(batch)
        n_characters += sum(map(len, batch))
        if done % 1_000_000 < BATCH:
            rate = done / (time.monotonic() - started)
            print(f"{done:,} texts, {rate:,.0f} a second", flush=True)
    print(
        f"{done:,} texts of {n_characters:,} characters in all, seed {options.seed}: under each of "
        f"{', '.join(PATTERNS)} the ids are tiktoken's, and decoding gives the text back"
    )


if __name__ == "__main__":
    main()
