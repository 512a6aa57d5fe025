"""Training, merge for merge against rustbpe."""

import json
import os
import random
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rustbpe
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from strata.tokenizer import REGULAR_EXPRESSIONS, Tokenizer, counting, split_words
from strata.tokenizer.counting import Words, count_corpus
from strata.tokenizer.huggingface import ONIGURUMA
from strata.tokenizer.trainer import merge_words, train_merges


def sources() -> list[str]:
    paths = sorted(Path(os.__file__).parent.glob("[a-f]*.py"))
    return [path.read_text(encoding="utf-8") for path in paths]


def tokens_of(merges: list[tuple[int, int]]) -> list[bytes]:
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def tokens_by_rustbpe(documents: list[str], n_merges: int, pattern: str) -> list[bytes]:
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(
        iter(documents), 256 + n_merges, pattern=REGULAR_EXPRESSIONS[pattern]
    )
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])
    return [bytes(token) for token, _ in ranks]


def all_merges(documents: list[str], pattern: str, limit: int) -> list[tuple[int, int]]:
    return merge_words(count_corpus(documents, pattern, threads=1).words, limit)


def counts_of(words: Words) -> dict[bytes, int]:
    text = words.text.tobytes()
    bounds = zip(words.starts.tolist(), words.ends.tolist(), strict=True)
    found = [text[start:end] for start, end in bounds]
    assert len(set(found)) == len(found)
    return dict(zip(found, words.counts.tolist(), strict=True))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("pattern", ["strata", "cl100k", "gpt2"])
def test_merges_are_rustbpes(pattern: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "CHARACTERS_AT_ONCE", 200_000)
    documents = sources()
    merges = train_merges(documents, 8_000, pattern, threads=threads)
    assert tokens_of(merges) == tokens_by_rustbpe(documents, 8_000, pattern)


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(st.text("aab \u00e9\n", max_size=60), max_size=8))
def test_merges_are_rustbpes_where_ties_and_overlaps_abound(documents: list[str]) -> None:
    tokens = tokens_of(all_merges(documents, "gpt2", limit=1_000))
    assert tokens == tokens_by_rustbpe(documents, 1_000, "gpt2")


def count_pairs(words: Counter[bytes], spelled: dict[bytes, list[Any]]) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    for word, parts in spelled.items():
        for pair in pairwise(parts):
            counts[pair] += words[word]
    return counts


def merge_everywhere(spelled: dict[bytes, list[Any]], pair: Any, token: Any) -> None:
    for parts in spelled.values():
        place = 0
        while place + 1 < len(parts):
            if (parts[place], parts[place + 1]) == pair:
                parts[place : place + 2] = [token]
            place += 1


def merges_by_definition(words: Counter[bytes], n_merges: int) -> list[tuple[int, int]]:
    """Byte-pair encoding as a textbook has it: count every pair anew before each merge."""
    spelled: dict[bytes, list[Any]] = {word: list(word) for word in words}
    merges: list[tuple[int, int]] = []
    for token in range(256, 256 + n_merges):
        counts = count_pairs(words, spelled)
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        merge_everywhere(spelled, best, token)
    return merges


@settings(max_examples=100, deadline=None)
@given(text=st.text("aaabcd ", max_size=200))
def test_merges_are_those_of_the_definition(text: str) -> None:
    words = Counter(word.encode() for word in split_words(text, "strata"))
    assert all_merges([text], "strata", limit=60) == merges_by_definition(words, 60)


def merges_by_tokenizers(documents: list[str], n_merges: int) -> list[tuple[bytes, bytes]]:
    """The merges that the trainer of `tokenizers` learns from ASCII text, as bytes."""
    split = pre_tokenizers.Split(Regex(ONIGURUMA["strata"]), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    trainer = trainers.BpeTrainer(
        vocab_size=256 + n_merges,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(documents), trainer)
    decode = decoders.ByteLevel().decode
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(decode([left]).encode(), decode([right]).encode()) for left, right in merges]


def most_frequent_pairs(
    words: Counter[bytes], merges: list[tuple[bytes, bytes]]
) -> list[set[tuple[bytes, bytes]]]:
    """For each of these merges, which pairs are the most frequent before it, all of a tie."""
    spelled: dict[bytes, list[Any]] = {word: [bytes([b]) for b in word] for word in words}
    found = []
    for left, right in merges:
        counts = count_pairs(words, spelled)
        most = max(counts.values())
        found.append({pair for pair, count in counts.items() if count == most})
        merge_everywhere(spelled, (left, right), left + right)
    return found


def test_the_trainer_of_tokenizers_differs_in_ties_alone() -> None:
    documents = [text for text in sources() if text.isascii()][:3]
    words = Counter(word.encode() for text in documents for word in split_words(text, "strata"))
    merges = train_merges(documents, 250, "strata")
    tokens = tokens_of(merges)
    ours = [(tokens[left], tokens[right]) for left, right in merges]
    theirs = merges_by_tokenizers(documents, 250)

    # Both merge a most frequent pair at every step, each in the state that it has itself brought
    # about. Up to where they part that is the same state: there two pairs are equally frequent.
    choices = most_frequent_pairs(words, ours)
    assert all(pair in pairs for pair, pairs in zip(ours, choices, strict=True))
    their_choices = most_frequent_pairs(words, theirs)
    assert all(pair in pairs for pair, pairs in zip(theirs, their_choices, strict=True))
    parted = next(step for step in range(250) if ours[step] != theirs[step])
    assert {ours[parted], theirs[parted]} <= choices[parted]


def test_words_are_counted_once_each_while_the_table_grows() -> None:
    # More words, and more bytes, than the counter has room for at the start: 80,000 of 26 letters,
    # each twice.
    shuffle = random.Random(0)
    distinct = ["".join(shuffle.choices("abcdefgh", k=26)) for _ in range(80_000)]
    lines = distinct + distinct[::-1]
    documents = [" ".join(lines[i : i + 1_000]) for i in range(0, len(lines), 1_000)]
    counted = count_corpus(documents, "strata")
    expected = Counter(word for text in documents for word in split_words(text, "strata"))
    found = counts_of(counted.words)
    assert found == {word.encode(): count for word, count in expected.items()}
    assert list(found) == [word.encode() for word in expected]  # in the order of the text
    assert counted.n_bytes_read == sum(map(len, documents))


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(st.text("ab1 \u00e9\n", max_size=12), max_size=12))
def test_no_word_crosses_the_end_of_a_document(documents: list[str]) -> None:
    expected = Counter(word.encode() for text in documents for word in split_words(text, "strata"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "CHARACTERS_AT_ONCE", 25)  # some documents a batch,
        patch.setattr(counting, "WORDS_AT_ONCE", 3)  # some words a call
        assert counts_of(count_corpus(documents, "strata", threads=1).words) == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_training_streams_its_documents(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "CHARACTERS_AT_ONCE", 10_000)
    texts = [text[start : start + 500] for text in sources() for start in range(0, len(text), 500)]
    alive = most_alive = 0

    class Document(str):
        def __del__(self) -> None:
            nonlocal alive
            alive -= len(self)

    def documents() -> Iterator[str]:
        nonlocal alive, most_alive
        for text in texts:
            alive += len(text)
            most_alive = max(alive, most_alive)
            yield Document(text)

    assert Tokenizer.train(documents(), 1_000, threads=threads).vocab_size == 1_000
    # A batch for each thread, one that waits, one that is being read; and the next document.
    batches = 2 if threads == 1 else threads + 3
    assert most_alive <= batches * 10_500 < sum(map(len, texts)) / 4


def test_counts_are_the_same_whichever_thread_ends_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counting, "CHARACTERS_AT_ONCE", 100_000)
    count_batch = counting.count_batch
    started, ended = count(), []

    def late(*arguments: Any) -> int:
        mine = next(started)
        result = count_batch(*arguments)
        time.sleep(0.02 if mine % 3 == 0 else 0)
        ended.append(mine)
        return result

    documents = sources()
    expected = count_corpus(documents, "strata", threads=1)
    monkeypatch.setattr(counting, "count_batch", late)
    for threads in (2, 5):
        ended.clear()
        counted = count_corpus(documents, "strata", threads=threads)
        assert ended != sorted(ended)
        for column, same in zip(counted.words, expected.words, strict=True):
            assert np.array_equal(column, same)
        assert counted[1:] == expected[1:]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_no_thread_outlives_documents_that_cannot_be_read(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "CHARACTERS_AT_ONCE", 10_000)

    def documents() -> Iterator[str]:
        yield from sources()[:20]
        raise error("the disk is gone")

    threads_before = threading.active_count()
    with pytest.raises(error, match="the disk is gone"):
        Tokenizer.train(documents(), 1_000, threads=3)
    assert threading.active_count() == threads_before


def test_an_error_while_counting_reaches_the_caller() -> None:
    threads_before = threading.active_count()
    with pytest.raises(ValueError, match="must be a str, not bytes"):
        Tokenizer.train(["text", b"bytes"], 300, threads=2)  # type: ignore[list-item]
    assert threading.active_count() == threads_before


def test_the_rarest_words_are_dropped_and_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counting, "CHARACTERS_AT_ONCE", 1)  # each document is a batch
    # " c" and " d" come once, " d" later; " b" twice.
    documents = [" a a a b b", " c d", " e e e e e", " d d"]
    with pytest.warns(RuntimeWarning, match="max_words=4 .* 2 words of 2 .* 14.29% of"):
        counted = count_corpus(documents, "strata", threads=1, max_words=4)
    # Five words are one too many: the two rarest go, and " d" is counted anew.
    assert counts_of(counted.words) == {b" a": 3, b" b": 2, b" e": 5, b" d": 2}
    assert counted.dropped == (2, 2, 4)


def test_what_is_dropped_does_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "CHARACTERS_AT_ONCE", 50_000)
    documents = sources()
    every_word = count_corpus(documents, "strata", max_words=None)
    assert every_word.dropped == (0, 0, 0)
    with pytest.warns(RuntimeWarning, match="max_words=5,000"):
        one, two, five = (
            count_corpus(documents, "strata", threads, max_words=5_000) for threads in (1, 2, 5)
        )
    for other in (two, five):
        assert counts_of(other.words) == counts_of(one.words)
        assert other[1:] == one[1:]
    # Each occurrence and each byte is either in a count or reported.
    assert len(one.words.counts) <= 5_000
    assert one.words.counts.sum() + one.dropped.n_occurrences == every_word.words.counts.sum()
    kept_bytes = sum(len(word) * times for word, times in counts_of(one.words).items())
    assert kept_bytes + one.dropped.n_bytes == one.n_bytes_read


def test_no_words_are_dropped_where_there_is_room() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count_corpus([" a b c d"], "strata", max_words=4).dropped == (0, 0, 0)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"max_words": 0}])
def test_a_number_of_threads_or_words_below_one_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="=0: expected a number of at least 1, or None"):
        Tokenizer.train(["text"], 264, **wrong)


def test_more_words_than_can_be_merged_are_refused() -> None:
    one = np.array([1])
    words = Words(np.zeros(8, dtype=np.uint8), 0 * one, (1 << 30) * one, one, one)
    with pytest.raises(ValueError, match="1 distinct words of together 1,073,741,824 bytes"):
        merge_words(words, 1)


def test_a_vocabulary_that_the_corpus_cannot_fill_is_refused() -> None:
    # "aaaa" has the merges aa and aaaa.
    with pytest.raises(ValueError, match="only 2 merges, but the vocabulary asks for 36"):
        Tokenizer.train(["aaaa"], 300)
    with pytest.raises(ValueError, match="only 0 merges"):
        Tokenizer.train([], 300)
    assert Tokenizer.train(["aaaa"], 266).encode("aaaa") == [257]


def test_a_vocabulary_without_room_for_bytes_and_special_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=263 is too small"):
        Tokenizer.train(["text"], 263)
    assert Tokenizer.train([], 264).vocab_size == 264
    assert Tokenizer.train([], 256, special_tokens=()).special_tokens == {}


def test_special_tokens_can_be_named() -> None:
    tokenizer = Tokenizer.train(["aaaa"], 259, special_tokens=["<|endoftext|>"])
    assert tokenizer.special_tokens == {"<|endoftext|>": 258}
    assert tokenizer.document_separator == 258


def test_progress_is_told() -> None:
    seen: list[tuple[str, int, int]] = []
    Tokenizer.train(sources()[:20], 2_000, progress=lambda *report: seen.append(report))
    reading = [done for stage, done, _ in seen if stage == "reading"]
    assert reading == sorted(reading)
    assert reading[-1] == sum(len(text.encode()) for text in sources()[:20])
    assert seen[0] == ("reading", 0, 0)  # from here on there is a rate
    assert ("merging", 0, 1_736) in seen
    assert seen[-1] == ("merging", 1_736, 1_736)
