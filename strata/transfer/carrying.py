"""Files named by their SHA-256 are carried between a folder here and one at the far end.

rsync carries them over the target's ssh; sftp does where either end has no rsync. A name is a sum,
so no name of a user's file is ever read by a shell, by rsync or by sftp; the far folder's is the
only other. What has arrived when the line is cut stays in the receiving folder, and the next
attempt goes on from there (`incoming` has the rules). Nothing is verified here: that is for
who asked for the files.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from strata.transfer.connection import failure
from strata.transfer.incoming import PARTIAL, gather, rsync_works
from strata.transfer.rules import TransferError
from strata.transfer.target import Target, surroundings

# Bytes that tell how fast a line is, and bytes a second at which compressing holds it up.
LARGE, FAST = 50_000_000, 125_000_000

Advance = Callable[[int], None]


class Object(NamedTuple):
    """A file's bytes, and whether they take fewer when compressed."""

    size: int
    compresses: bool


def send(
    target: Target,
    files: Mapping[str, Path],
    objects: Mapping[str, Object],
    far_folder: str,
    *,
    arrived: Mapping[str, int],
    rsync_there: bool,
    advance: Advance,
) -> None:
    """Bring files to `far_folder`/SUM.

    Args:
        files: where each lies here, by its sum.
        objects: what is to go, by its sum.
        far_folder: absolute; it exists.
        arrived: bytes of each that `gather` found there; what is whole stays as it is.
        rsync_there: whether `rsync_works` there.
        advance: told how many bytes came to lie there; all calls add up to the sizes, and what an
            attempt that fails has told is not taken back.

    Raises:
        LineCut: what has arrived is kept there.
        TransferError: a program is missing here, or the far end says what is wrong.
    """
    _check(target, objects)
    if not objects:
        return
    with _workshop(target) as workshop:
        links = workshop / "links"
        links.mkdir()
        for name in objects:
            (links / name).symlink_to(files[name].resolve())
        if rsync_there and rsync_works():
            _rsync(target, workshop, objects, f"{links}/", _for_rsync(target, far_folder), advance)
        else:
            _sftp(target, workshop, objects, far_folder, "put", links, arrived, advance)


def fetch(
    target: Target,
    objects: Mapping[str, Object],
    far_folder: str,
    folder: Path,
    *,
    rsync_there: bool,
    advance: Advance,
) -> None:
    """Bring `far_folder`/SUM home to `folder`/SUM; arguments and errors as for `send`."""
    _check(target, objects)
    if not objects:
        return
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    use_rsync = rsync_there and rsync_works()
    arrived = gather(folder)
    with _workshop(target) as workshop:
        try:
            if use_rsync:
                there = _for_rsync(target, far_folder)
                _rsync(target, workshop, objects, there, f"{folder}/", advance)
            else:
                for half in (folder / PARTIAL).glob("*"):
                    half.replace(folder / half.name)
                _sftp(target, workshop, objects, far_folder, "get", folder, arrived, advance)
        except TransferError as error:
            if "disk is full" in str(error):  # the far end only reads
                raise TransferError(
                    f"the disk of {folder} is full: make room and start again; what arrived is kept"
                ) from error
            raise


def _check(target: Target, objects: Mapping[str, Object]) -> None:
    for name in objects:
        if not re.fullmatch(r"[0-9a-f]{64}", name):
            raise TransferError(f"{target.host} names {name!r}, which is no sum: nothing was taken")


@contextlib.contextmanager
def _workshop(target: Target) -> Iterator[Path]:
    """A private folder with a script `ssh`, which is the target's ssh with its options."""
    with tempfile.TemporaryDirectory(prefix="strata-") as name:
        script = Path(name, "ssh")
        script.write_text(
            "#!/bin/sh\n"
            # When the process at home dies, however it does, its end of this pipe closes.
            "{ read -r _ || kill $$; } </dev/fd/$STRATA_ALIVE >/dev/null 2>&1 &\n"
            # sftp tells ssh to ask for nothing, but a machine may want a password.
            'for word; do shift; [ "$word" = "-obatchmode yes" ] || set -- "$@" "$word"; done\n'
            f'exec {shlex.join(target.ssh())} "$@"\n'
        )
        script.chmod(0o700)
        yield Path(name)


def _rsync(
    target: Target,
    workshop: Path,
    objects: Mapping[str, Object],
    source: str,
    destination: str,
    advance: Advance,
) -> None:
    """Let rsync carry the objects: those that compress in a call of their own, the last."""
    names, ssh = workshop / "names", f"sh {shlex.quote(f'{workshop}/ssh')}"
    told, rest = 0, b""

    def hear(chunk: bytes) -> None:
        nonlocal told, rest
        *lines, rest = (rest + chunk).split(b"\r")
        for line in lines:
            if found := re.match(rb" *(\d+) +\d+%", line):
                now = max(told, int(found[1]))
                advance(now - told)
                told = now

    fast = False
    for compresses in (False, True):
        group = {name: about.size for name, about in objects.items()
                 if about.compresses == compresses}  # fmt: skip
        if not group:
            continue
        began = time.monotonic()
        names.write_text("".join(f"{name}\n" for name in group))
        # Both ends settle on what they know, zstd at best. Its level 1 outruns a network, but not a
        # line that has just carried more than a gigabit a second.
        compression = ["--compress", "--compress-level=1"] if compresses and not fast else []
        told, rest = 0, b""
        _watch(
            target,
            ["rsync", f"--files-from={names}", "--copy-links", "--size-only", "--protect-args",
             f"--partial-dir={PARTIAL}", "--chmod=u+rw", "--timeout=180", *compression,
             "--info=progress2", "--no-human-readable", "--rsh", ssh, "--", source, destination],
            workshop,
            hear,
        )  # fmt: skip
        advance(sum(group.values()) - told)  # it does not count what was there whole
        fast = told > max(LARGE, FAST * (time.monotonic() - began))


def _for_rsync(target: Target, far_folder: str) -> str:
    """A far folder as rsync takes it: where part of it looks like a pattern, that is escaped."""
    parts = far_folder.split("/")
    exact = [re.sub(r"([\\*?\[])", r"\\\1", part) if re.search(r"[*?\[]", part) else part
             for part in parts]  # fmt: skip
    return f"{target.host}:{'/'.join(exact)}/"


def _sftp(
    target: Target,
    workshop: Path,
    objects: Mapping[str, Object],
    far_folder: str,
    verb: str,
    folder: Path,
    arrived: Mapping[str, int],
    advance: Advance,
) -> None:
    """Let sftp "put" or "get" the objects from or to `folder` here."""
    if shutil.which("sftp") is None:
        raise TransferError(
            "carrying files takes rsync, or at least sftp, which is missing here: install rsync "
            "(Debian: apt-get install rsync)"
        )
    commands = [f"cd {_quoted(far_folder)}"]
    for name, about in objects.items():
        there = arrived.get(name, 0)
        if there and verb == "put":
            # It may be what rsync left; and it has the rights of the file here, perhaps read-only.
            commands += [f"-rename {PARTIAL}/{name} {name}", f"chmod 600 {name}"]
        if there == about.size > 0:
            advance(about.size)
        else:
            commands.append(f"{verb} {'-a ' if 0 < there < about.size else ''}{name}")
    (workshop / "commands").write_text("".join(f"{line}\n" for line in commands))
    under_way, rest = "", b""

    def hear(chunk: bytes) -> None:
        nonlocal under_way, rest
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if found := re.fullmatch(rb"sftp> (?:put|get) (?:-a )?(\w{64})", line):
                if under_way:
                    advance(objects[under_way].size)
                under_way = found[1].decode()

    sftp = ["sftp", "-b", str(workshop / "commands"), "-S", str(workshop / "ssh")]
    _watch(target, [*sftp, "--", target.host], folder, hear)
    if under_way:
        advance(objects[under_way].size)


def _quoted(path: str) -> str:
    """A path as sftp's commands read it: not as a shell does."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _watch(target: Target, command: list[str], folder: Path, hear: Callable[[bytes], None]) -> None:
    """Run rsync or sftp in a folder to its end, and `hear` what it says of its progress.

    Neither it nor its ssh outlives this process, however that ends.

    Raises:
        LineCut: it, or its ssh, was killed or lost the line.
        TransferError: it says what is wrong.
    """
    theirs, ours = os.pipe()
    with (
        open(ours, "wb", buffering=0) as alive,
        open(theirs, "rb", buffering=0),
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
            env=surroundings() | {"STRATA_ALIVE": str(theirs)}, pass_fds=[theirs],
        ) as tool,
    ):  # fmt: skip
        assert tool.stdout
        try:
            while chunk := os.read(tool.stdout.fileno(), 65536):
                hear(chunk)
            status = tool.wait()
            alive.write(b"\n")  # its ssh has ended as well
        finally:
            if tool.poll() is None:
                tool.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    tool.wait(5)
                tool.kill()
        stderr.seek(0)
        said = stderr.read().decode("utf-8", "replace")
    if status:
        raise failure(target, _reason(command[0], status, said))


def _reason(tool: str, status: int, said: str) -> str:
    """What rsync or sftp said, without what only follows from it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("rsync error: ", "remote rename "))]
    gone = r"(rsync: connection unexpectedly|Connection) closed|rsync: .*: Broken pipe"
    reasons = [line for line in lines if not re.match(gone, line)]
    if named := [line for line in reasons if line.startswith("rsync: ")]:
        return "\n".join(named)
    if len(reasons) < len(lines) or status < 0 or not reasons:
        reasons.append(f"closed by {tool}, status {status}")
    elif re.match("write remote .*: Failure$", reasons[-1]):
        reasons[-1] += " (as where the disk is full)"
    return "\n".join(reasons)
