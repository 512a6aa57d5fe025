"""How files arrive, at either end: each under its SHA-256, and as a tree once all are whole.

A manifest says of every name what its file has to be. What is there already is found by its sum
and never carried; what arrives lies in a folder of its own, `incoming`, under its sum. So no name
that a person gave to a file passes through ssh, rsync or sftp; a transfer that was cut goes on with
what arrived; and no tree comes about of which one file is not what the manifest says.

The far end gets the text of this file through ssh, so it imports the standard library alone.
"""

import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from strata.transfer.incoming import PARTIAL, gather
from strata.transfer.rules import Sums, TransferError, is_inside

# Bytes in the middle of a file by which it is judged whether it shrinks, and what counts as that.
SAMPLE, SHRINKS_TO = 1 << 16, 0.8
# Never written to again once they are there, so that a second name does instead of a copy.
FIXED = ("cache/", "checkpoints/", "run/checkpoints/")


class Entry(NamedTuple):
    """What a file has to be.

    sum: SHA-256, in hexadecimal. size: in bytes. executable: by its owner.
    modified: when it was written, in nanoseconds since 1970. compresses: whether it shrinks so far
    that carrying it compressed is worth the time.
    """

    sum: str
    size: int
    executable: bool
    modified: int
    compresses: bool


Manifest = dict[str, Entry]


def describe(files: dict[str, Path], sums: Sums) -> Manifest:
    """The manifest of files by name.

    Raises:
        OSError: one cannot be read.
    """
    sums.read(files.values())
    return {name: _describe(path, sums) for name, path in files.items()}


def _describe(path: Path, sums: Sums) -> Entry:
    status = path.stat()
    with path.open("rb") as file:
        file.seek(max(0, status.st_size - SAMPLE) // 2)
        sample = file.read(SAMPLE)
    compresses = len(zlib.compress(sample, 1)) < SHRINKS_TO * len(sample)
    executable = bool(status.st_mode & 0o100)
    return Entry(sums.of(path), status.st_size, executable, status.st_mtime_ns, compresses)


def check(manifest: dict[str, Any], allowed: Callable[[str], bool]) -> Manifest:
    """A manifest as the other end wrote it, once it is clear that it names nothing that it may not.

    Args:
        allowed: whether a name that stays inside is one that belongs there.

    Raises:
        TransferError: a name leads out of the folder or does not belong there, or an entry is none.
    """
    checked = {}
    for name, fields in manifest.items():
        if not is_inside(name) or not allowed(name):
            raise TransferError(f"the other end names {name!r}, outside the run: nothing was taken")
        try:
            entry = Entry(*fields)
            right = re.fullmatch(r"[0-9a-f]{64}", entry.sum) and 0 <= entry.modified < 1 << 62
            right = right and isinstance(entry.size, int) and 0 <= entry.size < 1 << 62
        except TypeError:
            right = None
        if not right:
            raise TransferError(f"the other end says no SHA-256 of {name!r}: nothing was taken")
        checked[name] = entry
    return checked


def is_whole(path: Path, entry: Entry, sums: Sums) -> bool:
    """Whether a file, and no link, is what a manifest says."""
    try:
        plain = path.is_file() and not path.is_symlink() and path.stat().st_size == entry.size
        return plain and sums.of(path) == entry.sum
    except OSError:
        return False


def ready(manifest: Manifest, incoming: Path, sums: Sums) -> None:
    """Make the folder of arrivals hold nothing but whole or half files of this manifest."""
    incoming.mkdir(parents=True, exist_ok=True)
    names = {entry.sum for entry in manifest.values()}
    for folder in (incoming, incoming / PARTIAL):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name != PARTIAL and path.name.lstrip(".")[:64] not in names:
                path.unlink()
    gather(incoming)
    for entry in manifest.values():
        arrived = incoming / entry.sum
        if _size(arrived) >= entry.size and not is_whole(arrived, entry, sums):
            arrived.unlink(missing_ok=True)  # or what carries it would take it for whole


def lacking(
    manifest: Manifest, incoming: Path, known: Callable[[str], Path], sums: Sums
) -> dict[str, int]:
    """The sums that have to be carried, with the bytes of each that arrived before.

    Args:
        incoming: where arrivals lie; need not exist.
        known: where a name's file may be already.
        sums: reads what was not read before.
    """
    _read(manifest, incoming, known, sums)
    wanted = {}
    for name, entry in manifest.items():
        arrived = incoming / entry.sum
        if not is_whole(known(name), entry, sums) and not is_whole(arrived, entry, sums):
            wanted[entry.sum] = max(_size(arrived), _size(incoming / PARTIAL / entry.sum))
    return wanted


def check_room(manifest: Manifest, wanted: dict[str, int], incoming: Path) -> None:
    """Raise TransferError if the disk has no room for what is to come."""
    sizes = {entry.sum: entry.size for entry in manifest.values()}
    n_bytes = sum(sizes[one] - arrived for one, arrived in wanted.items())
    free = shutil.disk_usage(incoming).free
    if n_bytes > free:
        raise TransferError(
            f"the disk is full: {n_bytes / 1e6:,.1f} MB are to come and {free / 1e6:,.1f} MB are "
            f"free in {incoming.parent}: make room and start again"
        )


def _read(manifest: Manifest, incoming: Path, known: Callable[[str], Path], sums: Sums) -> None:
    """Read side by side what may be what the manifest asks for."""
    places = [(known(name), entry) for name, entry in manifest.items()]
    places += [(incoming / entry.sum, entry) for entry in manifest.values()]
    sums.read(path for path, entry in places if _size(path) == entry.size)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def assemble(
    manifest: Manifest, incoming: Path, known: Callable[[str], Path], tree: Path, sums: Sums
) -> list[str]:
    """Make the tree that the manifest describes; return the names whose files are not whole.

    What did not arrive whole is dropped, so that it is carried again from its beginning.
    """
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    _read(manifest, incoming, known, sums)
    bad, linked = [], set()
    for name, entry in manifest.items():
        path = tree.joinpath(*PurePosixPath(name).parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_whole(arrived := incoming / entry.sum, entry, sums):
            # one of them may be written to later, so no two share it; the arrival's own name goes
            _add(arrived, path, entry, sums, second_name=entry.sum not in linked)
            linked.add(entry.sum)
        elif is_whole(there := known(name), entry, sums):
            _add(there, path, entry, sums, second_name=name.startswith(FIXED))
        else:
            arrived.unlink(missing_ok=True)
            bad.append(name)
    return bad


def _add(source: Path, path: Path, entry: Entry, sums: Sums, *, second_name: bool) -> None:
    mode = source.stat().st_mode & 0o777
    wanted = mode | 0o111 if entry.executable else mode & ~0o111
    linked = second_name and mode == wanted
    try:
        if linked:
            try:
                os.link(source, path)
            except FileExistsError:
                raise
            except OSError:
                linked = False  # the file system knows no second names
        if not linked:
            with source.open("rb") as there, path.open("xb") as here:
                shutil.copyfileobj(there, here, 1 << 20)
            path.chmod(wanted)
    except FileExistsError as error:
        raise TransferError(f"two names are one on this file system: {path.name!r}") from error
    os.utime(path, ns=(entry.modified, entry.modified))
    sums.know(path, entry.sum)
