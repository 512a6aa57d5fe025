"""Tasks: the prompts word by word, errors that name file and line, items from held-out texts."""

import gzip
import json
import random
import re

import pytest

from strata.evaluation.embedded import cloze_items, continuation_items
from strata.evaluation.items import how_to_get, read_items, task_file
from strata.evaluation.tasks import EMBEDDED, TASKS, find_task

# One record a task in the format of its file, and the requests it has to become.
RECORDS = {
    "lambada": (
        {"text": "He said\n\n\"Hi, Shane", "context": "", "target": ""},
        [("He said\n\n\"Hi,", " Shane")],
        0,
    ),
    "hellaswag": (
        {"query": "Roof: A man. He", "choices": ["a.", "b.", "c.", "d."], "label": 3},
        [("Roof: A man. He", f" {c}.") for c in "abcd"],
        3,
    ),
    "piqa": (
        {"goal": "how?", "sol1": "so", "sol2": "thus", "label": 1},
        [("Question: how?\nAnswer:", " so"), ("Question: how?\nAnswer:", " thus")],
        1,
    ),
    "arc_easy": (
        {"id": "x", "question": "Why?", "choices": ["a", "b", "c"], "label": 2},
        [("Question: Why?\nAnswer:", f" {c}") for c in "abc"],
        2,
    ),
    "openbookqa": (
        {"id": "x", "question": "Fog is around", "choices": ["a", "b", "c", "d"], "label": 0},
        [("Fog is around", f" {c}") for c in "abcd"],
        0,
    ),
    "winogrande": (
        {"sentence": "Sarah beat Maria so _ won.", "option1": "Sarah", "option2": "Maria",
         "answer": "1"},
        [("Sarah beat Maria so Sarah", " won."), ("Sarah beat Maria so Maria", " won.")],
        0,
    ),
    "boolq": (
        {"question": "is it so", "passage": "It is.", "answer": True},
        [("It is.\nQuestion: is it so?\nAnswer:", " no"),
         ("It is.\nQuestion: is it so?\nAnswer:", " yes")],
        1,
    ),
    "copa": (
        {"premise": "The tap ran.", "choice1": "It filled.", "choice2": "He left.",
         "question": "effect", "label": 1, "idx": 0},
        [("The tap ran therefore", "  it filled."), ("The tap ran therefore", "  he left.")],
        1,
    ),
    "winograd": (
        {"context_options": ["the wall", "the gap"], "continuation": "feared it.", "gold": 1},
        [("the wall", " feared it."), ("the gap", " feared it.")],
        1,
    ),
    "blimp": (
        {"sentence_good": "She runs.", "sentence_bad": "She run.", "uid": "agreement"},
        [("", " She runs."), ("", " She run.")],
        0,
    ),
}  # fmt: skip


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_becomes_the_harness_prompt(name, tmp_path):
    record, requests, label = RECORDS[name]
    (item,) = read_items(name, write(tmp_path / "set.jsonl", record))
    assert list(item.requests) == requests
    assert item.label == label


def test_arc_and_openbookqa_are_normalised_as_gpt3_does(tmp_path):
    for name in ("arc_easy", "openbookqa"):
        (item,) = read_items(name, write(tmp_path / "set.jsonl", RECORDS[name][0]))
        assert item.unconditional == "Answer:"


def test_a_compressed_file_is_found_and_read(tmp_path):
    with gzip.open(tmp_path / "piqa_val.jsonl.gz", "wt") as file:
        file.write(json.dumps(RECORDS["piqa"][0]) + "\n\n")
    path = task_file("piqa", tmp_path)
    assert path is not None
    assert len(read_items("piqa", path)) == 1
    assert task_file("boolq", tmp_path) is None
    assert task_file("boolq", "") is None
    assert "boolq_val.jsonl" in how_to_get("boolq", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        task_file("piqa", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, r"line 2: field 'label' is None, expected an integer from 0 to 3"),
        ({"label": 4}, r"line 2: field 'label' is 4, expected an integer from 0 to 3"),
        ({"label": True}, r"line 2: field 'label' is True"),
        ({"choices": ["a"]}, r"line 2: field 'choices' is \['a'\], expected a list of 4 strings"),
        ({"query": 5}, r"line 2: field 'query' is 5, expected a string"),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_file_and_line(tmp_path, change, message):
    good = RECORDS["hellaswag"][0]
    path = write(tmp_path / "hellaswag_val.jsonl", good, {**good, **change})
    with pytest.raises(ValueError, match="hellaswag_val.jsonl, " + message):
        read_items("hellaswag", path)


def test_a_missing_field_and_a_broken_line_are_named(tmp_path):
    path = write(tmp_path / "piqa_val.jsonl", {"goal": "g", "sol1": "s", "label": 0})
    with pytest.raises(ValueError, match=r"line 1: no field 'sol2'; its fields are: goal, sol1"):
        read_items("piqa", path)
    path.write_text('{"goal": \n')
    with pytest.raises(ValueError, match=r"line 1: not a JSON value"):
        read_items("piqa", path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no records"):
        read_items("piqa", path)
    path = write(tmp_path / "winogrande_val.jsonl", {"sentence": "no gap", "answer": "1"})
    with pytest.raises(ValueError, match="a sentence with a gap"):
        read_items("winogrande", path)


def test_a_misspelt_task_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown task 'helaswag'; did you mean 'hellaswag'"):
        find_task("helaswag")
    with pytest.raises(ValueError, match="expected one of cloze, continuation"):
        find_task("zzz")


def test_a_limit_takes_as_many_of_every_group(tmp_path):
    pairs = [
        {"sentence_good": f"{uid} {i}", "sentence_bad": "x", "uid": uid}
        for uid in "abc"
        for i in range(5)
    ]
    items = read_items("blimp", write(tmp_path / "blimp.jsonl", *pairs), limit=6)
    assert sorted(item.group for item in items) == list("aabbcc")


def test_every_task_says_its_chance_and_where_its_data_is():
    for name, task in TASKS.items():
        assert (task.read is None) == (name in EMBEDDED) == (task.file == "")
        assert task.metric in {
            "acc", "acc_norm", "acc_unconditional", "acc_greedy", "bits_per_byte"
        }  # fmt: skip


# --- tasks made from held-out documents --------------------------------------------------------


def documents(count=30, seed=5):
    """Texts of lines and sentences over a vocabulary small enough for words to come again."""
    generator = random.Random(seed)
    vocabulary = ["".join(generator.choices("abcdefgh", k=6)) for _ in range(60)]
    texts = []
    for _ in range(count):
        lines = [
            " " * generator.choice([0, 0, 4]) + " ".join(generator.choices(vocabulary, k=8))
            for _ in range(60)
        ]
        texts.append(".\n".join(lines) + ".\n")
    return texts


def test_a_cloze_target_stands_earlier_in_the_passage_but_not_in_its_last_sentence():
    items = cloze_items(documents(), n_items=100)
    assert len(items) == 100
    for item in items:
        ((passage, continuation),) = item.requests
        assert re.fullmatch(r" \w{4,}", continuation)
        words = re.split(r"[.\n]", passage)
        assert continuation.strip() in passage
        assert continuation.strip() not in words[-1].split()
        assert 150 < len(passage) <= 400


def test_a_cloze_comes_from_the_text_as_it_stands():
    texts = documents(3)
    for item in cloze_items(texts, n_items=20):
        ((passage, continuation),) = item.requests
        assert passage + continuation + "." in texts[item.cluster]


def test_a_continuation_is_the_true_one_and_the_others_come_from_elsewhere():
    texts = documents()
    items = continuation_items(texts, n_items=80)
    assert len(items) == 80
    for item in items:
        assert len(item.requests) == len({text for _, text in item.requests}) == 4
        for index, (context, text) in enumerate(item.requests):
            assert (context + text in texts[item.cluster]) == (index == item.label)


def test_neither_length_nor_indentation_gives_the_continuation_away():
    items = continuation_items(documents(60), n_items=200)
    longest = shortest = 0
    for item in items:
        texts = [text for _, text in item.requests]
        assert len({re.match(r"\s*", text).group() for text in texts}) == 1
        longest += texts[item.label] == max(texts, key=len)
        shortest += texts[item.label] == min(texts, key=len)
    assert longest < 100
    assert shortest < 100
    labels = [item.label for item in items]
    assert all(30 <= labels.count(label) <= 70 for label in range(4))


@pytest.mark.parametrize("make", [cloze_items, continuation_items])
def test_the_same_seed_draws_the_same_items(make):
    texts = documents(10)
    assert make(texts, n_items=30, seed=1) == make(iter(texts), n_items=30, seed=1)
    assert make(texts, n_items=30, seed=1) != make(texts, n_items=30, seed=2)


@pytest.mark.parametrize("make", [cloze_items, continuation_items])
def test_every_document_gives_items_in_its_turn(make):
    items = make([documents(1)[0] * 20, *documents(9, seed=6)], n_items=10)
    assert len({item.cluster for item in items}) >= 8


@pytest.mark.parametrize("make", [cloze_items, continuation_items])
def test_documents_too_short_give_nothing(make):
    assert make(["", "short", "\n\n\n", "x" * 5_000]) == []
