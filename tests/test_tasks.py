"""Tasks: the prompts word by word, errors that name file and line, items from held-out texts."""

import dataclasses
import gzip
import hashlib
import io
import json
import random
import re
import zipfile

import pyarrow as pa
import pytest

from strata.evaluation.embedded import cloze_items, continuation_items
from strata.evaluation.items import how_to_get, load_items, read_items, task_file
from strata.evaluation.sources import SOURCES, download_tasks, evaluation_folder
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
        [("the wall", "  feared it."), ("the gap", "  feared it.")],
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


def test_a_compressed_file_is_found_and_read(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "piqa_val.jsonl.gz", "wt") as file:
        file.write(json.dumps(RECORDS["piqa"][0]) + "\n\n")
    path = task_file("piqa", tmp_path)
    assert path is not None
    assert len(read_items("piqa", path)) == 1
    assert task_file("boolq", tmp_path) is None
    assert task_file("boolq", "") is None
    assert "boolq_val.jsonl" in how_to_get("boolq", tmp_path)
    monkeypatch.setitem(TASKS, "own", dataclasses.replace(TASKS["piqa"], file="own"))
    assert f"no own.jsonl in {tmp_path}; put it there" in how_to_get("own", tmp_path)
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
    path.write_text('{"goal": "\\ud83d", "sol1": "", "sol2": "", "label": 0}')
    with pytest.raises(ValueError, match=r"line 1: field 'goal' is '\\ud83d', expected a string"):
        read_items("piqa", path)
    path = write(tmp_path / "winogrande_val.jsonl", {"sentence": "no gap", "answer": "1"})
    with pytest.raises(ValueError, match="a sentence with a gap"):
        read_items("winogrande", path)
    path = write(tmp_path / "wikitext2_test.jsonl", {"text": " \n"})
    with pytest.raises(ValueError, match=r"line 1: field 'text' is ' \\n', expected a text"):
        read_items("wikitext2", path)


def test_a_file_that_is_no_text_or_is_cut_off_is_named(tmp_path):
    path = tmp_path / "piqa_val.jsonl"
    path.write_bytes(json.dumps(RECORDS["piqa"][0]).encode() + b'\n{"goal": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"piqa_val.jsonl, line 2: expected UTF-8, found .* 0xe9"):
        read_items("piqa", path)
    lines = (json.dumps({**RECORDS["piqa"][0], "goal": f"goal {i}"}) + "\n" for i in range(5_000))
    whole = gzip.compress("".join(lines).encode())
    for content in (
        whole[: len(whole) // 2],
        b"no gzip",
        whole[:2_000] + bytes(99) + whole[2_099:],
    ):
        damaged = path.with_suffix(".jsonl.gz")
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match=r"piqa_val.jsonl.gz: damaged gzip data"):
            read_items("piqa", damaged)


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
    write(tmp_path / "blimp.jsonl", *pairs)
    items = load_items("blimp", data_dir=tmp_path, limit=6)
    assert sorted(item.group for item in items) == list("aabbcc")
    with pytest.raises(ValueError, match="limit = -1"):
        load_items("blimp", data_dir=tmp_path, limit=-1)


def test_every_task_says_its_chance_and_where_its_data_is():
    for name, task in TASKS.items():
        assert (task.read is None) == (name in EMBEDDED) == (task.file == "")
        assert task.metric in {
            "acc", "acc_norm", "acc_unconditional", "acc_greedy", "bits_per_byte"
        }  # fmt: skip


# --- solved examples before an item ---------------------------------------------------------------


@pytest.fixture
def questions(tmp_path):
    """A folder with 40 questions whose right answer is their number."""
    records = [
        {"question": f"q{i}", "choices": ["no", f"{i}"], "label": 1, "id": str(i)}
        for i in range(40)
    ]
    write(tmp_path / "arc_easy_test.jsonl", *records)
    return tmp_path


def examples_of(item):
    """The numbers of the questions in an item's prompt, after checking every answer."""
    context = item.requests[0][0]
    assert all(other == context for other, _ in item.requests)
    *examples, question = context.split("\n\n")
    assert re.fullmatch(r"Question: q\d+\nAnswer:", question)
    found = [re.fullmatch(r"Question: q(\d+)\nAnswer: (\d+)", text) for text in examples]
    assert all(match[1] == match[2] for match in found)
    return [int(match[1]) for match in found]


def test_examples_are_other_items_solved_and_drawn_anew_for_each(questions):
    items = load_items("arc_easy", data_dir=questions, shots=3)
    plain = load_items("arc_easy", data_dir=questions)
    assert len(items) == len(plain) == 40
    drawn = [examples_of(item) for item in items]
    for number, (item, alone, numbers) in enumerate(zip(items, plain, drawn, strict=True)):
        assert len(set(numbers)) == 3
        assert number not in numbers
        assert [text for _, text in item.requests] == [text for _, text in alone.requests]
        assert (item.label, item.unconditional) == (alone.label, "Answer:")
        assert item.fingerprint != alone.fingerprint
    assert len({tuple(numbers) for numbers in drawn}) > 30
    assert len({number for numbers in drawn for number in numbers}) > 35


def test_the_same_seed_draws_the_same_examples_however_many_items_are_asked(questions):
    items = load_items("arc_easy", data_dir=questions, shots=2)
    assert load_items("arc_easy", data_dir=questions, shots=2, limit=5) == items[:5]
    assert load_items("arc_easy", data_dir=questions, shots=2, seed=1) != items


def test_examples_come_from_the_training_file_where_there_is_one(questions):
    record = {"question": "q77", "choices": ["77", "no"], "label": 0}
    write(questions / "arc_easy_train.jsonl", record, {**record, "question": "q77"})
    for item in load_items("arc_easy", data_dir=questions, shots=1):
        assert examples_of(item) == [77]


def test_an_item_that_stands_twice_in_a_file_is_no_example_of_itself(tmp_path):
    twin, other = ({"text": f"{word} {word}"} for word in ("one", "two"))
    write(tmp_path / "lambada_openai_test.jsonl", twin, other, twin)
    first, second, third = load_items("lambada", data_dir=tmp_path, shots=1)
    assert first.requests == third.requests == (("two two\n\none", " one"),)
    assert second.requests == (("one one\n\ntwo", " two"),)
    with pytest.raises(ValueError, match="2 examples were asked for, and there are 1 items"):
        load_items("lambada", data_dir=tmp_path, shots=2)


def test_partial_scoring_keeps_one_solved_text_before_both_candidates(tmp_path):
    record = RECORDS["winogrande"][0]
    write(
        tmp_path / "winogrande_val.jsonl", record, {**record, "sentence": "An _ b.", "answer": "2"}
    )
    first, second = load_items("winogrande", data_dir=tmp_path, shots=1)
    assert first.requests[1] == ("An Maria b.\n\nSarah beat Maria so Maria", " won.")
    assert second.requests[0] == ("Sarah beat Maria so Sarah won.\n\nAn Sarah", " b.")


def test_items_from_documents_have_examples_from_other_documents():
    plain = load_items("cloze", documents=documents(6), limit=60)
    clusters = {"".join(item.requests[0]): item.cluster for item in plain}
    for item in load_items("cloze", documents=documents(6), limit=60, shots=2):
        *examples, _ = item.requests[0][0].split("\n\n")
        assert len(examples) == 2
        assert item.cluster not in {clusters[example] for example in examples}


@pytest.mark.parametrize("name", ["blimp", "wikitext2"])
def test_a_task_of_whole_texts_has_no_few_shot_form(name, tmp_path):
    with pytest.raises(ValueError, match=rf"task '{name}', shots = 1: expected 0 for this task"):
        load_items(name, data_dir=tmp_path, shots=1)
    with pytest.raises(ValueError, match=r"shots = -1: expected 0 or more"):
        find_task("piqa", -1)


# --- fetching the data ---------------------------------------------------------------------------


def served(monkeypatch, folder, name, content):
    """Have a task's source lie in a folder, with that content."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(SOURCES, name, SOURCES[name]._replace(url=path.as_uri(), sha256=digest))
    return path


def arrow(records):
    table = pa.Table.from_pylist(records)
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def zipped(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return stream.getvalue()


def requests_as_published(record):
    """A question as the lists of requests hold it: a line for every choice, all of them twice."""
    query = f"Question: {record['question']}\nAnswer:"
    document = {"id": "x", "query": query, "choices": record["choices"], "gold": record["label"]}
    lines = [{"doc": document, "request": {"continuation": c}} for c in record["choices"]]
    return gzip.compress("\n".join(json.dumps(line) for line in lines * 2).encode())


PAIR = RECORDS["blimp"][0]
PUBLISHED = {
    "lambada": json.dumps({"text": RECORDS["lambada"][0]["text"]}).encode(),
    "hellaswag": json.dumps(
        {"activity_label": "Roof", "ctx_a": "A man.", "ctx_b": "he", "endings": list("abcd"),
         "label": "3", "ind": 1}
    ).encode(),
    "piqa": arrow([RECORDS["piqa"][0]]),
    "arc_easy": requests_as_published(RECORDS["arc_easy"][0]),
    "openbookqa": requests_as_published(RECORDS["openbookqa"][0]),
    "winogrande": arrow([RECORDS["winogrande"][0]]),
    "boolq": arrow([RECORDS["boolq"][0]]),
    "copa": arrow([RECORDS["copa"][0]]),
    "winograd": json.dumps(RECORDS["winograd"][0]).encode(),
    "blimp": zipped(
        {
            "data/set.jsonl": json.dumps({**PAIR, "UID": PAIR["uid"]}) + "\n",
            "__MACOSX/data/._set.jsonl": "\0",
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_fetched_becomes_the_same_items(name, tmp_path, monkeypatch):
    served(monkeypatch, tmp_path / "server", name, PUBLISHED[name])
    (path,) = download_tasks([name], tmp_path / "data")
    assert path == tmp_path / "data" / f"{TASKS[name].file}.jsonl"
    (item,) = load_items(name, data_dir=tmp_path / "data")
    _, requests, label = RECORDS[name]
    if name == "hellaswag":
        requests = [("Roof: A man. He", f" {letter}") for letter in "abcd"]
    assert (list(item.requests), item.label) == (requests, label)


def test_wikitext_is_cut_before_every_title_and_nowhere_else(tmp_path, monkeypatch):
    articles = [
        " \n = One = \n \n Text . \n \n = = Part = = \n \n More . \n \n ",
        " = Two = \n \n = 1 / s and = C = \n Text . \n ",
    ]
    served(monkeypatch, tmp_path / "server", "wikitext2", ("\n".join(articles) + "\n").encode())
    (path,) = download_tasks(["wikitext2"], tmp_path / "data")
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == articles


def test_data_is_fetched_once_to_where_tasks_look_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    source = served(monkeypatch, tmp_path / "server", "copa", PUBLISHED["copa"])
    assert load_items("copa") is None
    assert f"no copa_val.jsonl in {evaluation_folder()}; `strata data tasks copa`" in how_to_get(
        "copa", None
    )
    (path,) = download_tasks(["copa"])
    assert path.parent == evaluation_folder()
    source.unlink()
    assert download_tasks(["copa"]) == [path]
    assert len(load_items("copa")) == 1


def test_what_is_not_the_file_expected_is_never_used(tmp_path, monkeypatch):
    served(monkeypatch, tmp_path / "server", "copa", PUBLISHED["copa"]).write_bytes(b"another")
    with pytest.raises(ValueError, match=r"copa did not send the file .* nothing was kept"):
        download_tasks(["copa"], tmp_path / "data")
    (tmp_path / "server" / "copa").unlink()
    with pytest.raises(ConnectionError, match=r"put copa_val\.jsonl into .*data, one JSON object"):
        download_tasks(["copa"], tmp_path / "data")
    assert not (tmp_path / "data").exists()
    with pytest.raises(ValueError, match="'cloze' has no data"):
        download_tasks(["cloze"])


def test_every_source_is_a_file_at_a_full_commit():
    assert set(SOURCES) == set(TASKS) - set(EMBEDDED)
    for source in SOURCES.values():
        assert re.match(
            r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}/", source.url
        )
        assert re.fullmatch("[0-9a-f]{64}", source.sha256)


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
