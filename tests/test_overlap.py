"""N-grams found again, against sets of tuples in plain Python, and what is made of them."""

import os
import re
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.data import Corpus
from strata.evaluation import (
    Item,
    ItemResult,
    TaskResult,
    corpus_overlap,
    find_overlap,
    load_items,
    load_overlap,
    overlap_table,
    results_table,
    save_overlap,
)
from strata.evaluation import ngrams as kernels
from strata.evaluation.ngrams import NGramFinder, count_words
from strata.evaluation.overlap import example_text, ngram_size, split_result


def words_of(text):
    """Plain words, by Unicode's categories and Python's own splitting."""
    kept = (c if unicodedata.category(c)[0] in "LN" or c.isspace() else "" for c in text.lower())
    return "".join(kept).split()


def ngrams_of(text, size):
    words = words_of(text)
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def is_found(texts, sizes, documents):
    finder = NGramFinder(texts, sizes)
    for document in documents:
        finder.read(document)
    return finder.found


# few words and many marks, so that much coincides and nothing is only ASCII
TEXTS = st.lists(
    st.sampled_from(
        ["a", "b", "A", "É", "é", "straße", "中", "文", "12", "½", "don't", "—", "!", " ", "  ",
         "\n", "\t", "\u00a0", "\u3000", "e\u0301", "İ", "👍", "x-y", "."]
    ),
    max_size=40,
).map(" ".join) | st.text(alphabet="ab Bé.'\n—中 ", max_size=60)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.integers(1, 4)), min_size=1, max_size=6), st.lists(TEXTS))
def test_what_is_found_is_what_sets_of_tuples_find(sought, documents):
    texts, sizes = [text for text, _ in sought], [size for _, size in sought]
    assert count_words(texts).tolist() == [len(words_of(text)) for text in texts]
    for (text, size), ngram in zip(sought, is_found(texts, sizes, documents), strict=True):
        seen = set().union(*(ngrams_of(document, size) for document in documents), set())
        shared = ngrams_of(text, size) & seen
        assert (ngram is not None) == bool(shared)
        assert ngram is None or tuple(ngram.split(" ")) in shared


def random_words(n, seed):
    generator = np.random.default_rng(seed)
    return [f"w{number}" for number in generator.integers(0, 5_000, n)]


def test_planted_overlaps_are_found_and_none_invented():
    corpus = random_words(60_000, 0)
    texts, sizes, planted = [], [], []
    for number in range(300):
        own, size = random_words(30, 1_000 + number), 8 + number % 6
        # a run of N words is planted, or one word less
        length = size - number % 2
        start = 150 * number
        own[10 : 10 + length] = corpus[start : start + length]
        texts.append(" ".join(own))
        sizes.append(size)
        planted.append(number % 2 == 0)
    documents = [" ".join(corpus[i : i + 20_000]) for i in range(0, 60_000, 20_000)]
    found = is_found(texts, sizes, documents)
    assert [ngram is not None for ngram in found] == planted
    for number, ngram in enumerate(found):
        assert ngram is None or ngram.split() == corpus[150 * number :][: sizes[number]]


def test_case_punctuation_and_white_space_make_no_difference():
    text = "The QUICK brown-fox, (it's said) jumps\nover: Élan!"
    document = "… and the quick brownfox its “said”\u2003jumps — over élan; so they say"
    assert is_found([text], [8], [document]) == ["the quick brownfox its said jumps over élan"]
    assert is_found([text], [8], ["the quick brown fox its said jumps over élan"]) == [None]


def test_words_of_two_documents_or_of_two_texts_do_not_join():
    assert is_found(["a b c d"], [4], ["a b", "c d"]) == [None]
    assert is_found(["a b", "c d"], [4, 4], ["a b c d"]) == [None, None]


def test_an_overlap_across_the_border_of_two_pieces_is_found(monkeypatch):
    corpus = random_words(3_000, 7)
    texts = [" ".join(corpus[i : i + 13]) for i in range(0, 2_900, 9)]
    # marks that are no words stand between the words: stepping back counts words
    document = " — ".join(corpus)
    for piece in (1, 50, 300, 1_000):
        monkeypatch.setattr(kernels, "PIECE", piece)
        assert None not in is_found(texts, [13] * len(texts), [document])
        assert is_found(["never there at all"], [2], [document, "x" * 5_000, " ", ""]) == [None]


def test_equal_hashes_of_different_words_find_nothing(monkeypatch):
    # every window has the same key
    monkeypatch.setattr(
        kernels, "_window_keys", lambda prefix, firsts, *_: np.zeros(len(firsts), np.uint64)
    )

    def every_window(prefix, n_words, sizes, powers, bits, shift, slots, keys, settled, *hits):
        hit_words, hit_keys = hits
        hit_words[:n_words], hit_keys[:n_words] = np.arange(n_words), 0
        return n_words

    monkeypatch.setattr(kernels, "_look_up", every_window)
    found = is_found(["a b c", "c d e", "x y z"], [3, 3, 3], ["a b x y d e", "q c d e f"])
    assert found == [None, "c d e", None]


def test_a_word_of_any_length_is_a_word():
    long = "y" * 100_000
    assert is_found([f"a {long} b"], [3], [f"a {long} b"]) == [f"a {long} b"]
    assert is_found([f"a {long} b"], [3], [f"a {long}y b"]) == [None]


def test_sizes_that_do_not_fit_are_refused():
    for texts, sizes in [([], []), (["a"], [0]), (["a"], [1, 2])]:
        with pytest.raises(ValueError, match="at least one text"):
            NGramFinder(texts, sizes)


# --- tasks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "size"),
    [([5] * 100, 8), ([11] * 100, 11), ([50] * 100, 13), ([9] * 6 + [40] * 94, 9), ([3], 8)],
)
def test_n_is_the_fifth_percentile_from_8_to_13(lengths, size):
    assert ngram_size(lengths) == size


def test_a_task_without_items_is_refused():
    with pytest.raises(ValueError, match="one or more"):
        find_overlap([], {"piqa": []})


def numbered(start, n=10):
    return " ".join(f"n{number}" for number in range(start, start + n))


@pytest.fixture
def items():
    """Ten of twelve words: the last two are the answer; and one of four words."""
    asked = [
        Item(((numbered(100 * i), " no no"), (numbered(100 * i), f" a{i} b{i}")), label=1)
        for i in range(10)
    ]
    return [*asked, Item((("too", " few words here"),))]


def test_items_are_dirty_by_their_context_and_true_answer(items):
    documents = [
        f"before {numbered(300).upper()} a3 b3 after",  # item 3, whole
        f"{numbered(501, 7)} no",  # seven words of item 5
        f"{numbered(702, 8)} a7 no",  # eight of item 7's, and its answer's first word
        f"{numbered(904, 6)} no no",  # item 9 with the wrong answer
    ]
    overlap = find_overlap(documents, {"piqa": items}, corpus="files:x", identity="abc")
    task = overlap.tasks["piqa"]
    assert (task.n_words, task.too_short) == (8, 1)
    assert set(task.dirty) == {items[3].fingerprint, items[7].fingerprint}
    assert task.dirty[items[3].fingerprint] == numbered(300, 8)
    assert task.dirty_share == pytest.approx(2 / 11)
    assert (overlap.n_documents, overlap.corpus) == (4, "files:x")
    assert overlap.n_bytes == sum(len(document) for document in documents)


def test_items_asked_with_examples_are_known_by_what_was_asked(items):
    # the examples stand in the corpus, and say nothing of the item
    examples = numbered(5_000, 40)
    asked = [
        replace(item, requests=tuple((f"{examples}\n\n{c}", text) for c, text in item.requests))
        for item in items
    ]
    overlap = find_overlap([examples, numbered(300)], {"piqa": items}, {"piqa": asked})
    assert set(overlap.tasks["piqa"].dirty) == {asked[3].fingerprint}
    assert split_result(result_of(asked, [1] * 11), overlap.tasks["piqa"]).dirty.n_items == 1


def result_of(items, correct):
    results = tuple(
        ItemResult(i, item.fingerprint, 0, bool(hit), (0.0, 0.0), float(hit))
        for i, (item, hit) in enumerate(zip(items, correct, strict=True))
    )
    score = float(np.mean(correct))
    return TaskResult("piqa", score, (0.0, 1.0), 0.95, len(items), "acc", 0.5, True, {}, results)


def test_a_result_is_split_by_what_was_found(items):
    overlap = find_overlap([numbered(0, 800)], {"piqa": items})  # items 0 to 7 stand in it
    correct = [1] * 6 + [0, 0] + [1, 0, 0]
    split = split_result(result_of(items, correct), overlap.tasks["piqa"])
    assert (split.dirty.score, split.dirty.n_items) == (0.75, 8)
    assert (split.clean.score, split.clean.n_items) == (pytest.approx(1 / 3), 3)
    assert split.clean.interval[0] <= 1 / 3 <= split.clean.interval[1]
    strange = result_of([*items, Item((("another", " item"),))], [*correct, 1])
    assert split_result(strange, overlap.tasks["piqa"]) is None
    assert split_result(strange, None) is None


def test_what_was_found_stands_beside_the_scores(items):
    overlap = find_overlap([numbered(0, 800)], {"piqa": items})
    results = {"piqa": result_of(items, [1] * 6 + [0, 0] + [1, 0, 0])}
    header, rows = results_table(results, overlap)
    assert header[-2:] == ["dirty, %", "score, clean items"]
    assert rows[0][-2:] == ["72.7", "33.3"]
    header, rows = overlap_table(overlap)
    assert dict(zip(header, rows[0], strict=True)) == {
        "task": "PIQA", "N": "8", "items": "11", "too short": "1", "dirty, %": "72.7"
    }  # fmt: skip
    header, rows = overlap_table(overlap, results)
    assert len(rows[0]) == len(header)
    assert rows[0][5:7] == ["63.6", "33.3"]
    assert rows[0][8] == "75.0"
    assert rows[0][-1] == "-47.6"  # 1/3 against 7/11


def test_an_overlap_survives_the_way_through_a_file(items, tmp_path):
    overlap = find_overlap([numbered(300)], {"piqa": items}, corpus="files:é", identity="abc")
    save_overlap(overlap, tmp_path / "run" / "overlap.json")
    assert load_overlap(tmp_path / "run" / "overlap.json") == overlap


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tasks": {"piqa": {}}}', "[1"])
def test_a_file_that_is_no_overlap_is_named(tmp_path, content):
    path = tmp_path / "overlap.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_overlap(path)


def test_a_misspelt_task_and_one_without_data_are_told(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(f'{{"text": "{numbered(i)}"}}\n' for i in range(200)))
    corpus = Corpus.open(f"files:{path}")
    with pytest.raises(ValueError, match="did you mean 'hellaswag'"):
        corpus_overlap(corpus, ["helaswag"])
    with pytest.raises(ValueError, match="piqa"):
        corpus_overlap(corpus, ["piqa"], data_dir=tmp_path)


EVALUATION_DATA = os.environ.get("STRATA_EVAL_DATA", "")


@pytest.mark.skipif(not EVALUATION_DATA, reason="STRATA_EVAL_DATA names no folder of data")
def test_n_of_the_real_sets_is_that_of_gpt3s_table():
    # Table C.1 of arXiv 2005.14165
    table = {"winograd": 9, "boolq": 13, "lambada": 13, "piqa": 8, "openbookqa": 8, "arc_easy": 11,
             "arc_challenge": 12, "hellaswag": 13, "winogrande": 13}  # fmt: skip
    for name, size in table.items():
        items = load_items(name, data_dir=EVALUATION_DATA)
        assert ngram_size(count_words([example_text(item) for item in items]).tolist()) == size
