"""How a token sequence becomes rows of equal length, and what each way loses.

**Stream.** The sequence is cut every `context_length + 1` ids, wherever that is. No place is empty,
but most documents are cut, and what is left of one begins a row without what it goes on from.

**Best fit** (Ding et al., 2024, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830,
section 3). Only a document that is longer than a row is cut, into pieces as long as a row and a
rest. All pieces, longest first, are then put each into the row in which it leaves the least room.
Every row begins with a separator, or goes on with a document that fills it; no id is lost and none
is there twice; what stays empty, mostly far less than a hundredth, is padding.

    row    |s a a a a a a a a|a a a a a a a a a|s a a a s b b b ·|     s: separator, ·: padding
    pieces  longer document …  … goes on         … its rest, and another document

The rest of a document gets a separator of its own, so that whoever counts separators in a row
(`document_numbers`) never takes it for a part of the document before it. What cannot be known is
not to be predicted: padding, and the first id of a rest. Padding is made of separators.

Which piece lies where is planned once for a sequence and a row length and kept in the shards'
folder, memory-mapped, so that any row is found at once:

    best-fit-<version>-<row length>-<first id>-<ids>.bin    little-endian int64
        rows · pieces · documents cut
        the number of each row's first piece, and the number of pieces
        the first id of each piece, in the order of rows
        the ids of each piece, negative where a separator is to stand before it
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from strata.data.shards import Part, Tokens, TokenShards
from strata.storage import write_whole

PLAN_VERSION = 1
SCANNED_TOKENS = 1 << 24  # ids looked at at once for separators

Packing = Literal["stream", "best-fit"]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class PackingSummary:
    """What one way of packing does to a corpus.

    n_rows: rows in an epoch.
    padding: share of the rows' places that hold no text: padding and separators of rests.
    dropped: share of the corpus's ids that lie in no row.
    cut: share of the documents that do not lie whole in one row.
    """

    n_rows: int
    padding: float
    dropped: float
    cut: float


def measure_packing(shards: TokenShards, context_length: int, packing: Packing) -> PackingSummary:
    """What `packing` would make of these shards at this context length, measured.

    Raises:
        ValueError: as `BestFitRows` does.
    """
    length = context_length + 1
    n_rows = n_laid = n_cut = 0
    for part in shards.parts:
        if packing == "best-fit":
            packed = BestFitRows(shards, part, context_length)
            n_rows += packed.n_rows
            n_laid += part.n_tokens
            n_cut += packed.n_cut
        else:
            rows = StreamRows(shards, part, context_length).n_rows
            n_rows += rows
            n_laid += rows * length
            first, last = _document_bounds(shards, part)
            whole = (first // length == last // length) & (last < rows * length)
            n_cut += int((~whole).sum())
    return PackingSummary(
        n_rows=n_rows,
        padding=1 - n_laid / (n_rows * length) if n_rows else 0.0,
        dropped=1 - n_laid / shards.n_tokens,
        cut=n_cut / shards.n_documents,
    )


class StreamRows:
    """Rows cut from one part of a sequence at equal distances; what is left over is not used."""

    def __init__(self, shards: TokenShards, part: Part, context_length: int) -> None:
        self._shards = shards
        self._start = part.start
        self._length = context_length + 1
        self.n_rows = part.n_tokens // self._length

    def read(self, row: int, ids: Tokens, unknown: Flags) -> None:
        """Fill in the ids, (context_length + 1,), of one row; all are to be predicted."""
        self._shards.copy_to(ids, self._start + row * self._length)


class BestFitRows:
    """Rows packed from one part of a sequence.

    Attributes:
        n_rows: how many there are.
        n_cut: documents that are longer than a row.
    """

    def __init__(self, shards: TokenShards, part: Part, context_length: int) -> None:
        """Open the plan, or make and keep it.

        Raises:
            ValueError: a kept plan is damaged, or the separator also occurs within documents.
        """
        self._shards = shards
        self._length = context_length + 1
        self._separator = int(shards.window(part.start, 1)[0])
        name = f"best-fit-{PLAN_VERSION}-{self._length}-{part.start}-{part.n_tokens}.bin"
        path = shards.folder / name
        if not path.exists():
            first, last = _document_bounds(shards, part)
            plan = plan_rows(first + part.start, last - first + 1, self._length)
            header = np.array([len(plan.first_pieces) - 1, len(plan.starts), plan.n_cut])
            numbers = np.concatenate([header, plan.first_pieces, plan.starts, plan.lengths])
            write_whole(path, numbers.astype("<i8").tobytes())
        plan = _open_plan(path)
        self.n_rows = len(plan.first_pieces) - 1
        self.n_cut = plan.n_cut
        self._plan = plan

    def read(self, row: int, ids: Tokens, unknown: Flags) -> None:
        """Fill in the ids, (context_length + 1,), of one row; mark those not to be predicted."""
        pieces = slice(*self._plan.first_pieces[row : row + 2].tolist())
        starts, lengths = self._plan.starts[pieces].tolist(), self._plan.lengths[pieces].tolist()
        end = 0
        for start, length in zip(starts, lengths, strict=True):
            if length < 0:
                ids[end] = self._separator
                end, length = end + 1, -length
                unknown[end] = True
            self._shards.copy_to(ids[end : end + length], start)
            end += length
        ids[end:] = self._separator
        unknown[end:] = True


class Plan(NamedTuple):
    """Which pieces of documents fill which row.

    first_pieces: (rows + 1,) the number of each row's first piece, and the number of pieces.
    starts: (pieces,) first id of each piece, in the order of rows.
    lengths: (pieces,) ids of each; negative where a separator stands before them.
    n_cut: documents that were cut.
    """

    first_pieces: Integers
    starts: Integers
    lengths: Integers
    n_cut: int


def plan_rows(starts: Integers, lengths: Integers, row_length: int) -> Plan:
    """Cut the documents that are longer than a row, and pack all pieces.

    Args:
        starts: (documents,) first id of each.
        lengths: (documents,) ids of each, its separator included.
        row_length: ids of a row.
    """
    n_pieces = -(-lengths // row_length)  # of each document
    document = np.repeat(np.arange(len(starts)), n_pieces)
    number = np.arange(len(document)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    piece_starts = starts[document] + number * row_length
    piece_lengths = np.minimum(lengths[document] - number * row_length, row_length)
    is_rest = (number > 0) & (piece_lengths < row_length)
    row_of, n_rows = best_fit(piece_lengths + is_rest, row_length)
    by_row = np.argsort(row_of, kind="stable")
    return Plan(
        np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=n_rows))]),
        piece_starts[by_row],
        np.where(is_rest, -piece_lengths, piece_lengths)[by_row],
        int((n_pieces > 1).sum()),
    )


def best_fit(sizes: Integers, capacity: int) -> tuple[Integers, int]:
    """Best-fit-decreasing bin packing: the row of each piece, and the number of rows.

    Pieces come in decreasing order of size, and each goes into the fullest row that has room for
    it. Pieces of one size are placed together: rows with equal room take equally many of them, one
    row after another, which is what placing them singly does too. So the time is that of sorting,
    O(N log N), and of one turn for each pair of a size and a room that meet.

    Args:
        sizes: (pieces,) each from 1 to `capacity`.
        capacity: ids that fit a row.
    """
    row_of: Integers = np.empty(len(sizes), dtype=np.int64)
    by_size = np.argsort(-sizes, kind="stable")
    n_rows = 0
    rooms: list[int] = []  # that some row has left, ascending
    rows_with: dict[int, list[Integers]] = {}

    def keep(room: int, rows: Integers) -> None:
        if room and len(rows):
            if room not in rows_with:
                rows_with[room] = []
                insort(rooms, room)
            rows_with[room].append(rows)

    for pieces in np.split(by_size, np.flatnonzero(np.diff(sizes[by_size])) + 1):
        size = int(sizes[pieces[0]])
        while len(pieces):
            tightest = bisect_left(rooms, size)
            if tightest < len(rooms):
                room = rooms[tightest]
                rows = rows_with[room].pop()
                if not rows_with[room]:
                    del rows_with[room], rooms[tightest]
            else:
                room = capacity
                rows = n_rows + np.arange(-(-len(pieces) // (capacity // size)))
                n_rows += len(rows)
            each = room // size  # pieces that such a row takes
            n_placed = min(len(pieces), len(rows) * each)
            n_filled, n_last = divmod(n_placed, each)  # rows that took all they could; the next one
            row_of[pieces[:n_placed]] = np.repeat(rows, each)[:n_placed]
            pieces = pieces[n_placed:]
            keep(room - each * size, rows[:n_filled])
            if n_last:
                keep(room - n_last * size, rows[n_filled : n_filled + 1])
                n_filled += 1
            keep(room, rows[n_filled:])
    return row_of, n_rows


def _document_bounds(shards: TokenShards, part: Part) -> tuple[Integers, Integers]:
    """The first and the last id of every document of a part, counted from the part's start.

    Raises:
        ValueError: the separator also occurs within documents.
    """
    separator = shards.window(part.start, 1)[0]
    found = []
    for start in range(0, part.n_tokens, SCANNED_TOKENS):
        ids = shards.window(part.start + start, min(SCANNED_TOKENS, part.n_tokens - start))
        found.append(start + np.flatnonzero(ids == separator))
    first = np.concatenate(found)
    if len(first) != part.n_documents:
        raise ValueError(
            f"{shards.folder} has {len(first):,} separators, expected one before each of its "
            f"{part.n_documents:,} documents: where documents begin cannot be told"
        )
    return first, np.append(first[1:], part.n_tokens) - 1


def _open_plan(path: Path) -> Plan:
    """A kept plan, memory-mapped.

    Raises:
        ValueError: it has another size than it says.
    """
    header = np.fromfile(path, dtype="<i8", count=3).tolist()
    if len(header) < 3 or path.stat().st_size != 8 * (4 + header[0] + 2 * header[1]):
        raise ValueError(f"{path} was cut short or altered; delete it and it is made anew")
    n_rows, n_pieces, n_cut = header
    numbers = np.memmap(path, dtype="<i8", mode="r", offset=24).view(np.ndarray)
    first_pieces, starts, lengths = np.split(numbers, [n_rows + 1, n_rows + 1 + n_pieces])
    return Plan(first_pieces, starts, lengths, n_cut)
