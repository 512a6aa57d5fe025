"""Answers on disk as they come, so that an interrupted evaluation goes on where it was.

A journal is a folder with a file of JSON lines for each task and process:

    hellaswag-9f2c41d0a7e3.0.jsonl
        {"asked": "9f2c…", "requests": 40168}
        {"request": 17, "log_likelihood": -31.2, "greedy": false, "n_tokens": 9}

`asked`, of which the name has the beginning, stands for all that the answers depend on: the
weights, the arithmetic, and every request. A line that was cut off in the middle is ignored; its
request is asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from strata.evaluation.rows import Request
from strata.evaluation.scoring import Answer, Processes


def identity_of(requests: Sequence[Request], *circumstances: object) -> str:
    """64 hex digits that stand for the requests and for what else answers depend on."""
    digest = hashlib.sha256(json.dumps(circumstances, default=str).encode("utf-8"))
    for ids, n_scored in requests:
        digest.update(np.array([len(ids), n_scored, *ids], dtype=np.uint32).tobytes())
    return digest.hexdigest()


class Journal:
    """The answers of one task.

    Attributes:
        known: answers that were there already, by the number of their request; the same for all
            processes.
    """

    def __init__(
        self, folder: Path, task: str, asked: str, n_requests: int, processes: Processes | None
    ) -> None:
        """Read what is there.

        Args:
            asked: from `identity_of`.

        Raises:
            OSError: the folder cannot be made or read.
        """
        rank = processes.rank if processes else 0
        stem = f"{task}-{asked[:12]}"
        self._path = folder / f"{stem}.{rank}.jsonl"
        self._header = json.dumps({"asked": asked, "requests": n_requests}) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        self.known: dict[int, Answer] = {}
        own = False
        for path in sorted(folder.glob(f"{stem}.*.jsonl")):
            fits, answers = self._read(path)
            self.known |= answers
            own |= fits and path == self._path
        if processes:  # the first may see more than others do, and all have to leave out the same
            self.known = processes.gather(self.known)[0]
        self._mode = "a" if own else "w"

    def _read(self, path: Path) -> tuple[bool, dict[int, Answer]]:
        """Whether a file is of this task as it is asked, and its answers."""
        with open(path, encoding="utf-8", errors="replace") as lines:
            if lines.readline() != self._header:
                return False, {}
            answers = {}
            for line in lines:
                try:
                    fields = json.loads(line)
                    number = fields.pop("request")
                    answers[number] = Answer(**fields)
                except ValueError:
                    continue  # cut off in the middle
            return True, answers

    @contextmanager
    def open(self) -> Iterator[IO[str]]:
        """The file to which `write_answers` adds."""
        with open(self._path, self._mode, encoding="utf-8") as file:
            # the last line that is there may have been cut off
            file.write(self._header if self._mode == "w" else "\n")
            yield file


def write_answers(file: IO[str], answers: Sequence[tuple[int, Answer]]) -> None:
    """Add the answers of a batch."""
    for number, answer in answers:
        file.write(json.dumps({"request": number, **answer._asdict()}) + "\n")
    file.flush()
