"""A task's items: from the lines of its file, or from held-out documents.

    file → Record → Item → the items asked for → with `shots` solved examples before each

`load_items` is what the rest calls. A folder with the files is given as `data_dir`; without one the
folder that `sources` downloads to is looked in. A file may be plain JSON lines or gzip-compressed.
Whatever is wrong with one is an error that names file and line.

Few-shot (Brown et al. 2020, section 2.4): every item gets examples of its own, drawn from the
task's training file where the folder has one (``<task>_train.jsonl``), else from the other items
of the same file. An example is a context with its right continuation; examples and item are parted
by an empty line, as in lm-evaluation-harness. Where all that is too long for the model, it loses
its beginning, as any context does (`scoring`), so that the first example may be cut in two.
"""

from __future__ import annotations

import codecs
import gzip
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from strata.evaluation.embedded import Item, cloze_items, continuation_items
from strata.evaluation.sources import SOURCES, evaluation_folder, existing_file
from strata.evaluation.tasks import EMBEDDED, find_task

# An embedded task has so many items unless told.
EMBEDDED_ITEMS = 500


def load_items(
    name: str,
    *,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    documents: Iterable[str] | None = None,
    seed: int = 0,
    shots: int = 0,
) -> list[Item] | None:
    """A task's items, or None where its data is absent; `how_to_get` says what would bring it.

    Args:
        name: of a task in `TASKS`.
        data_dir: folder with the tasks' files; None or "" = where downloads go.
        limit: how many items; None or 0 = all of a file, 500 of an embedded task.
        documents: held-out texts, of which the embedded tasks are made.
        seed: of the choice of the embedded tasks' items, and of the examples.
        shots: solved examples before every item.

    Raises:
        ValueError: an unknown task, with the nearest name; a record that does not fit, with file
            and line; too few items to draw the examples from, or a task that has no few-shot form;
            held-out documents of which no item can be made.
        FileNotFoundError: `data_dir` is no folder.
    """
    find_task(name, shots)
    if limit is not None and limit < 0:
        raise ValueError(f"limit = {limit}: expected 0 or more items")
    if name in EMBEDDED:
        if documents is None:
            return None
        make = cloze_items if name == "cloze" else continuation_items
        items = pool = make(documents, limit or EMBEDDED_ITEMS, seed)
        if not items:
            raise ValueError(
                f"task {name!r}: the held-out documents are too few or too short to make an item of"
            )
    else:
        path = task_file(name, data_dir)
        if path is None:
            return None
        pool = read_items(name, path)
        items = _first_of_every_group(pool, limit) if limit else pool
        training = existing_file(path.parent, f"{name}_train") if shots else None
        if training is not None:
            pool = read_items(name, training)
    return _with_examples(name, items, pool, shots, seed) if shots else items


def _first_of_every_group(items: Sequence[Item], limit: int) -> list[Item]:
    """`limit` items: the first of every group, then the second of every group, ..."""
    turns: Counter[str] = Counter()
    ranked = []
    for item in items:
        ranked.append((turns[item.group], item))
        turns[item.group] += 1
    return [item for _, item in sorted(ranked, key=lambda pair: pair[0])][:limit]


def _with_examples(
    name: str, items: Sequence[Item], pool: Sequence[Item], shots: int, seed: int
) -> list[Item]:
    """The items with examples before their contexts, drawn anew for each.

    No example comes from the item's own document, nor has it the item's text: both are left out by
    drawing as many more as there are of them.
    """

    def origin(item: Item) -> object:
        return item.cluster if item.cluster >= 0 else item.requests

    own = Counter(origin(item) for item in pool)
    prompted = []
    for number, item in enumerate(items):
        of_item = origin(item)
        if len(pool) - own[of_item] < shots:
            raise ValueError(
                f"task {name!r}: {shots} examples were asked for, and there are "
                f"{len(pool) - own[of_item]} items to draw from"
            )
        generator = random.Random(f"examples {seed} {name} {number}")
        drawn = generator.sample(range(len(pool)), shots + own[of_item])
        fit = [pool[index] for index in drawn if origin(pool[index]) != of_item][:shots]
        solved = "".join("".join(other.requests[other.label]) + "\n\n" for other in fit)
        requests = tuple((solved + context, text) for context, text in item.requests)
        prompted.append(replace(item, requests=requests))
    return prompted


# --- from files --------------------------------------------------------------------------------


def task_file(name: str, data_dir: str | Path | None) -> Path | None:
    """The file that holds a task's data, or None where it is absent.

    Raises:
        FileNotFoundError: `data_dir` is given and is no folder.
    """
    folder = Path(data_dir).expanduser() if data_dir else evaluation_folder()
    if data_dir and not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected the evaluation data there")
    return existing_file(folder, find_task(name).file)


def how_to_get(name: str, data_dir: str | Path | None) -> str:
    """One line that says why a task is skipped and what would bring it back."""
    task = find_task(name)
    if name in EMBEDDED:
        return f"{name}: skipped; it is made from held-out documents, and none were given"
    brings = ""
    if name in SOURCES:  # a task of one's own may have none
        into = f" --folder {data_dir}" if data_dir else ""
        size = f"{SOURCES[name].size / 1e6:.1f} MB"
        brings = f"`strata data tasks {name}{into}` brings it ({size}), or "
    return (
        f"{name}: skipped, no {task.file}.jsonl in {data_dir or evaluation_folder()}; {brings}put "
        f"it there, one JSON object a line with the fields {task.fields}"
    )


def read_items(name: str, path: Path) -> list[Item]:
    """All items of a task's file.

    Raises:
        ValueError: naming file and line, for what is no UTF-8, no JSON object or does not fit the
            task; naming the file, when it is damaged or holds no record.
    """
    read = find_task(name).read
    if read is None:
        raise ValueError(f"task {name!r} has no file; it is made from held-out documents")
    items = [read(Record(line, place)) for place, line in _lines(path)]
    if not items:
        raise ValueError(f"{path}: no records; expected one JSON object a line")
    return items


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every line that is not blank, after the words that say where it stands.

    The file is read whole, since gzip's checksum stands at its end.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip data: {error}") from None
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        place = f"{path}, line {number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            found = f"0x{line[error.start]:02x} ({error.reason})"
            raise ValueError(f"{place}: expected UTF-8, found byte {found}") from None
        if text.strip():
            yield place, text


_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half a character, as JSON can spell it


class Record:
    """One line of a task's file, whose fields are checked as they are read.

    Raises:
        ValueError: naming file and line, when a field is missing, has the wrong type, or is out of
            range.
    """

    def __init__(self, line: str, place: str) -> None:
        self.place = place
        try:
            self.fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not a JSON value: {error}") from None
        if not isinstance(self.fields, dict):
            raise ValueError(f"{place}: expected a JSON object, found {line[:60]!r}")

    def text(self, name: str, allowed: tuple[str, ...] = ()) -> str:
        value = self._field(name)
        if not self._is_text(value) or (allowed and value not in allowed):
            raise self.unfit(name, value, " or ".join(map(repr, allowed)) or "a string")
        return str(value)

    def texts(self, name: str, length: int = 0) -> list[str]:
        """A list of strings: `length` of them, or at least two."""
        value = self._field(name)
        texts = value if isinstance(value, list) else []
        if len(texts) != (length or max(2, len(texts))) or not all(map(self._is_text, texts)):
            raise self.unfit(name, value, f"a list of {length or 'two or more'} strings")
        return texts

    def label(self, name: str, n_choices: int) -> int:
        value = self._field(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n_choices:
            raise self.unfit(name, value, f"an integer from 0 to {n_choices - 1}")
        return value

    def truth(self, name: str) -> bool:
        value = self._field(name)
        if not isinstance(value, bool):
            raise self.unfit(name, value, "true or false")
        return value

    def unfit(self, name: str, value: object, expected: str) -> ValueError:
        return ValueError(f"{self.place}: field {name!r} is {value!r}, expected {expected}")

    def _field(self, name: str) -> object:
        if name not in self.fields:
            found = ", ".join(self.fields) or "none"
            raise ValueError(f"{self.place}: no field {name!r}; its fields are: {found}")
        return self.fields[name]

    @staticmethod
    def _is_text(value: object) -> bool:
        return isinstance(value, str) and not _SURROGATE.search(value)
