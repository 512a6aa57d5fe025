"""A task's items: from the lines of its file, or from held-out documents.

    file → Record → Item → load_items

`load_items` is what the rest calls. A folder with the files is given as `data_dir`; a file may be
plain JSON lines or gzip-compressed. A record that does not fit its task is an error that names file
and line.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from strata.evaluation.embedded import Item, cloze_items, continuation_items
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
) -> list[Item] | None:
    """A task's items, or None where its data is absent. Arguments and errors as `evaluate`'s."""
    find_task(name)
    if name not in EMBEDDED:
        path = task_file(name, data_dir)
        return None if path is None else read_items(name, path, limit)
    if documents is None:
        return None
    make = cloze_items if name == "cloze" else continuation_items
    items = make(documents, limit or EMBEDDED_ITEMS, seed)
    if not items:
        raise ValueError(
            f"task {name!r}: the held-out documents are too few or too short to make an item of"
        )
    return items


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
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise self.unfit(name, value, " or ".join(map(repr, allowed)) or "a string")
        return value

    def texts(self, name: str, length: int = 0) -> list[str]:
        """A list of strings: `length` of them, or at least two."""
        value = self._field(name)
        texts = value if isinstance(value, list) else []
        if len(texts) != (length or max(2, len(texts))) or not all(
            isinstance(text, str) for text in texts
        ):
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

    def _field(self, name: str) -> object:
        if name not in self.fields:
            found = ", ".join(self.fields) or "none"
            raise ValueError(f"{self.place}: no field {name!r}; its fields are: {found}")
        return self.fields[name]

    def unfit(self, name: str, value: object, expected: str) -> ValueError:
        return ValueError(f"{self.place}: field {name!r} is {value!r}, expected {expected}")


def task_file(name: str, data_dir: str | Path | None) -> Path | None:
    """The file that holds a task's data, or None where it is absent.

    Raises:
        FileNotFoundError: `data_dir` is given and is no folder.
    """
    if not data_dir:
        return None
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected the evaluation data there")
    paths = [folder / f"{find_task(name).file}.jsonl{suffix}" for suffix in ("", ".gz")]
    return next((path for path in paths if path.is_file()), None)


def how_to_get(name: str, data_dir: str | Path | None) -> str:
    """One line that says why a task is skipped and what would bring it back."""
    task = find_task(name)
    if name in EMBEDDED:
        return f"{name}: skipped; it is made from held-out documents, and none were given"
    where = f"no such file in {data_dir}" if data_dir else "no data folder was given (data_dir)"
    return (
        f"{name}: skipped, {where}; put {task.source} there as {task.file}.jsonl or "
        f"{task.file}.jsonl.gz, one JSON object a line"
    )


def read_items(name: str, path: Path, limit: int | None = None) -> list[Item]:
    """The items of a task's file: all, or with a `limit` the first ones, of every group as many.

    Raises:
        ValueError: naming file and line, for a record that does not fit; naming the file, when
            it holds no record.
    """
    read = find_task(name).read
    if read is None:
        raise ValueError(f"task {name!r} has no file; it is made from held-out documents")
    groups: dict[str, list[Item]] = {}
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                item = read(Record(line, f"{path}, line {number}"))
                groups.setdefault(item.group, []).append(item)
    if not groups:
        raise ValueError(f"{path}: no records; expected one JSON object a line")
    ranked = ((turn, item) for items in groups.values() for turn, item in enumerate(items))
    if not limit:
        return [item for _, item in ranked]
    # sorting is stable: the first of every group, then the second of every group, ...
    return [item for _, item in sorted(ranked, key=lambda pair: pair[0])][:limit]
