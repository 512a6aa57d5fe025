"""Files of a public repository at one commit, by git, and no more of it than is asked for.

A repository of textbooks is hundreds of megabytes of pictures around a few of text. So a first
fetch takes the commit and its folders without any file (`--filter=blob:none`), the list says which
files are wanted, and those are fetched by their ids, some hundreds at a time. What has arrived
stays: a fetch that was cut short goes on where it stopped, and one that is whole needs no network.

A commit's id is a hash over all it holds; every file is hashed again when it is read, and compared
with the list.
"""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

HOST = "https://github.com/"
FILES_A_FETCH = 500


def fetch(repository: str, commit: str, paths: list[str], cache: Path) -> Iterator[bytes]:
    """The contents of `paths` at `commit`, in their order, fetched into `cache` where missing.

    Args:
        repository: `owner/name` on GitHub; git's own `url.<base>.insteadOf` leads elsewhere.
        commit: the full id of the commit, 40 hexadecimal digits.
        paths: files in the repository, from its root, with `/`.
        cache: the folder of bare repositories, one a repository.

    Raises:
        FileNotFoundError: git is not installed, or a path is not in the commit.
        ConnectionError: the repository or the commit cannot be had.
    """
    folder = cache / f"{repository.replace('/', '+')}.git"
    git("init", "--quiet", "--bare", str(folder))  # changes nothing in one that is there
    git("-C", str(folder), "config", "remote.origin.url", f"{HOST}{repository}.git")
    if commit not in present(folder):
        request(folder, repository, "--depth=1", "--filter=blob:none", "origin", commit)
    blobs = blobs_of(folder, commit)
    if missing := [path for path in paths if path not in blobs]:
        raise FileNotFoundError(
            f"{repository} at {commit[:8]} has no file {missing[0]!r}"
            + (f", nor {len(missing) - 1} others of the list" if len(missing) > 1 else "")
            + "; is scripts/english.tsv.gz of this commit?"
        )
    here = present(folder)
    wanted = iter(dict.fromkeys(blobs[path] for path in paths if blobs[path] not in here))
    while batch := list(islice(wanted, FILES_A_FETCH)):
        # What git itself does when a file of a partial clone is first read, one at a time.
        options = ["--no-write-fetch-head", "--filter=blob:none", "--stdin", "origin"]
        request(folder, repository, *options, ids=batch)
    yield from contents(folder, [blobs[path] for path in paths])


def request(folder: Path, repository: str, *arguments: str, ids: list[str] | None = None) -> None:
    """Fetch commits or files; ConnectionError in one line if that fails."""
    command = ["-C", str(folder), "-c", "fetch.negotiationAlgorithm=noop", "fetch", "--quiet"]
    try:
        git(*command, "--no-tags", *arguments, lines=ids)
    except subprocess.CalledProcessError as failure:
        said = [line for line in failure.stderr.decode(errors="replace").splitlines() if line]
        reason = next((line for line in said if line.startswith("fatal:")), (said or ["?"])[-1])
        raise ConnectionError(
            f"{HOST}{repository} cannot be fetched: {reason.removeprefix('fatal: ')}; what was "
            "fetched before is kept, the same command goes on from there"
        ) from None


def present(folder: Path) -> set[str]:
    """Ids of everything that has arrived."""
    listing = git(
        "-C", str(folder), "cat-file", "--batch-all-objects", "--batch-check=%(objectname)"
    )
    return set(listing.decode().split())


def blobs_of(folder: Path, commit: str) -> dict[str, str]:
    """The id of every file of a commit, by its path."""
    listing = git("-C", str(folder), "ls-tree", "-r", "-z", commit).decode()
    entries = (entry.partition("\t") for entry in listing.split("\0") if entry)
    return {path: about.split()[2] for about, _, path in entries}


def contents(folder: Path, ids: list[str]) -> Iterator[bytes]:
    """The files with these ids, in order; a ValueError where the bytes do not hash to the id."""
    data = git("-C", str(folder), "cat-file", "--batch", lines=ids)
    position = 0
    for expected in ids:
        line_end = data.index(b"\n", position)
        size = int(data[position:line_end].split()[2])
        content = data[line_end + 1 : line_end + 1 + size]
        position = line_end + 1 + size + 1
        if blob_id(content) != expected:
            raise ValueError(f"{folder}: the file {expected} is damaged; delete the folder")
        yield content


def blob_id(content: bytes) -> str:
    """The id that git gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def git(*arguments: str, lines: list[str] | None = None) -> bytes:
    """Run git, without ever asking for a password; its output."""
    try:
        return subprocess.run(
            ["git", *arguments],
            input="".join(f"{line}\n" for line in lines or []).encode(),
            capture_output=True,
            check=True,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
        ).stdout
    except FileNotFoundError:
        raise FileNotFoundError("git is not installed, or not on the PATH; install it") from None
