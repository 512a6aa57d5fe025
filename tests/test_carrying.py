"""Files named by their sums, carried over a real sshd on loopback, by rsync and by sftp.

The ssh in between is at times a relay of this test's own, which counts what passes, and after so
many bytes kills the ssh, kills rsync or sftp, or falls silent.
"""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_disks import small_disk

from strata.transfer import TransferError
from strata.transfer.carrying import Object, fetch, send
from strata.transfer.connection import LineCut
from strata.transfer.incoming import PARTIAL, gather, rsync_works
from strata.transfer.loopback import loopback, missing_tools
from strata.transfer.target import Target

pytestmark = pytest.mark.skipif(
    bool(missing_tools()) or not rsync_works() or shutil.which("sftp") is None,
    reason="carrying is tested against a real sshd: install openssh-server, rsync and git",
)
both_tools = pytest.mark.parametrize("rsync", [True, False], ids=["rsync", "sftp"])
both_ways = pytest.mark.parametrize("way", ["send", "fetch"])

# With every character in it that rsync, sftp or a shell could take for something else.
AWKWARD = '-far side\'s $HOME "x" é [ab]*? \\d `id` ~ #{1,2}'

SIZE = 12_000_000  # of the file that is carried most

RELAY = """
import os, select, signal, subprocess, sys, threading, time
limit, deed, log, *arguments = sys.argv[1:]
ssh = subprocess.Popen(["ssh", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
passed = [0, 0]

def relay(way, source, sink):
    try:
        while select.select([source], [], []) and (chunk := os.read(source, 4096)):
            while chunk and select.select([], [sink], []):
                n_written = os.write(sink, chunk)
                chunk, passed[way] = chunk[n_written:], passed[way] + n_written
            while deed == "silence" and sum(passed) > int(limit):
                time.sleep(1)
            if deed == "delay":
                time.sleep(0.001)
            elif sum(passed) > int(limit):
                if deed == "kill ssh":
                    ssh.kill()
                else:
                    os.kill(os.getppid(), signal.SIGKILL)
                os._exit(255)
    except BrokenPipeError:
        pass
    os.close(sink)

threading.Thread(target=relay, args=(0, 0, ssh.stdin.fileno()), daemon=True).start()
relay(1, ssh.stdout.fileno(), 1)
status = ssh.wait()
open(log, "w").write(f"{sum(passed)} {' '.join(arguments)}")
os._exit(status)
"""


class Relay:
    """Stands in for ssh; `passed` and `arguments` are of the last that ended well."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._log, self._script, self._patch = folder / "log", folder / "relay.py", monkeypatch
        self._script.write_text(RELAY)

    def set(self, limit: int = 10**12, deed: str = "none") -> None:
        command = f"'{sys.executable}' '{self._script}' {limit} '{deed}' '{self._log}'"
        self._patch.setenv("STRATA_SSH_COMMAND", command)

    @property
    def passed(self) -> int:
        return int(self._log.read_text().split()[0])

    @property
    def arguments(self) -> str:
        return self._log.read_text()


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with loopback(tmp_path_factory.mktemp("ssh"), "/") as target:
        yield target


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Relay:
    made = Relay(tmp_path, monkeypatch)
    made.set()
    return made


def lay_out(folder: Path, contents: list[bytes]) -> tuple[dict[str, Path], dict[str, Object]]:
    """Files of awkward names; every other one is said to compress."""
    folder.mkdir(parents=True)
    files, objects = {}, {}
    for number, content in enumerate(contents):
        name = hashlib.sha256(content).hexdigest()
        files[name] = folder / f'-it\'s "{number}" $HOME\n é'
        files[name].write_bytes(content)
        objects[name] = Object(len(content), number % 2 == 1)
    return files, objects


def under_sums(folder: Path, files: dict[str, Path]) -> Path:
    folder.mkdir(parents=True)
    for name, path in files.items():
        shutil.copyfile(path, folder / name)
    return folder


def assert_arrived(folder: Path, objects: dict[str, Object]) -> None:
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert sums == {name: name for name in objects}


def carry(
    way: str, far: Target, here: Path, there: Path, *, rsync: bool, objects: dict[str, Object]
) -> list[int]:
    """Send or fetch; `here` and `there` hold files under their sums or will; what was told."""
    told: list[int] = []
    if way == "send":
        files = {name: here / name for name in objects}
        arrived = gather(there) if there.is_dir() else {}
        send(far, files, objects, str(there), arrived=arrived, rsync_there=rsync,
             advance=told.append)  # fmt: skip
    else:
        fetch(far, objects, str(there), here, rsync_there=rsync, advance=told.append)
    return told


@pytest.fixture
def half(tmp_path: Path) -> tuple[Path, Path, dict[str, Object]]:
    """A folder that holds a file of 12 MB under its sum, an empty one, and the object."""
    data = random.Random(0).randbytes(SIZE)
    files, objects = lay_out(tmp_path / "files", [data])
    (tmp_path / "empty").mkdir()
    return under_sums(tmp_path / "full", files), tmp_path / "empty", objects


@both_tools
def test_files_arrive_equal_both_ways_in_a_folder_of_any_name(
    far: Target, tmp_path: Path, rsync: bool
) -> None:
    contents = [os.urandom(2_000_000), b"text " * 400_000, b"", b"hello", os.urandom(100)]
    files, objects = lay_out(tmp_path / "it's $HOME", contents)
    there, home = tmp_path / AWKWARD / "in", tmp_path / 'at "home"\'s'
    there.mkdir(parents=True)
    # what the name would match if it were a pattern, or lost its backslash
    for decoy in ("a*? \\d", "aXX \\d", "[ab]*? d"):
        (tmp_path / AWKWARD.replace("[ab]*? \\d", decoy) / "in").mkdir(parents=True)
    sent: list[int] = []
    send(far, files, objects, str(there), arrived={}, rsync_there=rsync, advance=sent.append)
    assert_arrived(there, objects)
    fetched: list[int] = []
    fetch(far, objects, str(there), home, rsync_there=rsync, advance=fetched.append)
    assert_arrived(home, objects)
    assert sum(sent) == sum(fetched) == sum(map(len, contents))
    assert min(sent + fetched) >= 0


@both_tools
@both_ways
@pytest.mark.parametrize("deed", ["kill ssh", "kill the tool"])
def test_what_came_before_a_cut_is_not_carried_again(
    far: Target, relay: Relay, half: tuple[Path, Path, dict[str, Object]],
    rsync: bool, way: str, deed: str,
) -> None:  # fmt: skip
    full, empty, objects = half
    here, there = (full, empty) if way == "send" else (empty, full)

    def left() -> list[Path]:
        return [path for path in empty.rglob("*") if path.is_file()]

    relay.set(5_000_000, deed)
    with pytest.raises(LineCut, match="what arrived is kept"):
        carry(way, far, here, there, rsync=rsync, objects=objects)
    wait_for(lambda: sum(path.stat().st_size for path in left()) > 2_000_000)
    assert len(left()) == 1
    relay.set()
    told = carry(way, far, here, there, rsync=rsync, objects=objects)
    assert_arrived(empty, objects)
    assert relay.passed < SIZE - 2_000_000
    assert sum(told) == SIZE


@both_tools
@both_ways
def test_what_rsync_left_when_killed_is_built_upon(
    far: Target, relay: Relay, half: tuple[Path, Path, dict[str, Object]], rsync: bool, way: str
) -> None:
    full, empty, objects = half
    [name] = objects
    data = (full / name).read_bytes()
    for suffix, n_bytes in (("aB3xYz", 1_000_000), ("Q00000", 11_000_000), ("zzzzzz", 0)):
        (empty / f".{name}.{suffix}").write_bytes(data[:n_bytes])
    here, there = (full, empty) if way == "send" else (empty, full)
    carry(way, far, here, there, rsync=rsync, objects=objects)
    assert relay.passed < 1_500_000
    shutil.rmtree(empty / PARTIAL, ignore_errors=True)  # sftp leaves the folder, empty
    assert_arrived(empty, objects)


def test_of_what_earlier_attempts_left_the_longest_of_each_sum_stays(tmp_path: Path) -> None:
    one, two, three = ("1" * 64, "2" * 64, "3" * 64)
    (tmp_path / PARTIAL).mkdir()
    sizes = {one: 5, f".{one}.abcdef": 7, f"{PARTIAL}/{one}": 6, f"{PARTIAL}/{two}": 3,
             f".{two}.abcdef": 2, three: 4, f"{PARTIAL}/{three}": 1, "notes": 9}  # fmt: skip
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / ("4" * 64)).symlink_to(tmp_path / "notes")
    assert gather(tmp_path) == {one: 7, two: 3, three: 4}
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    left = {str(path.relative_to(tmp_path)): path.stat().st_size for path in files}
    assert left == {f"{PARTIAL}/{one}": 7, f"{PARTIAL}/{two}": 3, three: 4, "notes": 9}


@both_tools
@both_ways
def test_what_is_whole_there_stays_and_counts(
    far: Target, relay: Relay, half: tuple[Path, Path, dict[str, Object]], rsync: bool, way: str
) -> None:
    full, empty, objects = half
    shutil.copytree(full, empty, dirs_exist_ok=True)
    here, there = (full, empty) if way == "send" else (empty, full)
    assert sum(carry(way, far, here, there, rsync=rsync, objects=objects)) == SIZE
    assert relay.passed < 100_000


@pytest.mark.parametrize("compresses", [True, False])
def test_rsync_compresses_what_is_said_to_compress(
    far: Target, relay: Relay, tmp_path: Path, compresses: bool
) -> None:
    files, objects = lay_out(tmp_path / "files", [b"the same again " * 200_000])
    objects = {name: Object(one.size, compresses) for name, one in objects.items()}
    send(far, files, objects, str(tmp_path), arrived={}, rsync_there=True, advance=int)
    assert (relay.passed < 100_000) == compresses


def test_no_object_takes_no_connection(far: Target, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STRATA_SSH_COMMAND", "false")
    for rsync in (True, False):
        send(far, {}, {}, "/nowhere", arrived={}, rsync_there=rsync, advance=int)
        fetch(far, {}, "/nowhere", tmp_path / "none", rsync_there=rsync, advance=int)
    assert not (tmp_path / "none").exists()


def test_rsync_tells_of_a_long_file_while_it_goes(
    far: Target, relay: Relay, half: tuple[Path, Path, dict[str, Object]]
) -> None:
    full, empty, objects = half
    relay.set(0, "delay")
    told = carry("send", far, full, empty, rsync=True, objects=objects)
    assert len([count for count in told if 0 < count < SIZE / 2]) >= 2
    assert sum(told) == SIZE


def test_without_rsync_here_sftp_carries_and_without_either_it_is_said(
    far: Target, half: tuple[Path, Path, dict[str, Object]], tmp_path: Path,
    relay: Relay, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    full, empty, objects = half
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("ssh", "sftp", "sh"):
        (programs / name).symlink_to(str(shutil.which(name)))
    # what macOS calls rsync is another program
    (programs / "rsync").write_text("#!/bin/sh\necho openrsync: protocol version 29\n")
    (programs / "rsync").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    carry("send", far, full, empty, rsync=True, objects=objects)
    assert_arrived(empty, objects)
    assert "sftp" in relay.arguments
    (programs / "sftp").unlink()
    with pytest.raises(TransferError, match="sftp, which is missing here: install rsync"):
        carry("send", far, full, empty, rsync=True, objects=objects)


def test_sftp_lets_ssh_ask_for_a_password(
    far: Target, half: tuple[Path, Path, dict[str, Object]], relay: Relay
) -> None:
    full, empty, objects = half
    carry("send", far, full, empty, rsync=False, objects=objects)
    assert "batchmode" not in relay.arguments.lower()


@both_tools
@both_ways
def test_a_far_folder_that_is_none_is_said_in_one_line_and_is_no_cut(
    far: Target, half: tuple[Path, Path, dict[str, Object]], tmp_path: Path, rsync: bool, way: str
) -> None:
    full, empty, objects = half
    here, there = (full if way == "send" else empty), tmp_path / "a file"
    there.touch()
    with pytest.raises(TransferError, match=r"^loopback: .*irectory[^\n]*$") as caught:
        carry(way, far, here, there, rsync=rsync, objects=objects)
    assert not isinstance(caught.value, LineCut)


@both_tools
@both_ways
def test_a_full_disk_is_named_and_what_came_is_kept(
    far: Target, half: tuple[Path, Path, dict[str, Object]], tmp_path: Path, rsync: bool, way: str
) -> None:
    full, _, objects = half
    with small_disk(tmp_path / "small", "4m") as small:
        here, there = (full, small) if way == "send" else (small, full)
        whose = "loopback: .*(on a|disk is)" if way == "send" else f"{re.escape(str(small))} is"
        with pytest.raises(TransferError, match=f"{whose} full( disk)?") as caught:
            carry(way, far, here, there, rsync=rsync, objects=objects)
        assert not isinstance(caught.value, LineCut)
        assert sum(gather(small).values()) > 2_000_000


def test_a_name_that_is_no_sum_is_refused(far: Target, tmp_path: Path) -> None:
    for name in ("../outside", "A" * 64, "-x", "1" * 63):
        with pytest.raises(TransferError, match="is no sum: nothing was taken"):
            fetch(far, {name: Object(1, False)}, str(tmp_path), tmp_path, rsync_there=True,
                  advance=int)  # fmt: skip


CARRY = """
import sys
from pathlib import Path
from strata.transfer.carrying import Object, send
from strata.transfer.target import Target
config, name, source, there, rsync = sys.argv[1:]
objects = {name: Object(Path(source).stat().st_size, False)}
send(Target("loopback", "/", ssh_config=config), {name: Path(source)}, objects, there,
     arrived={}, rsync_there=rsync == "True", advance=int)
"""


@both_tools
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_one_that_carries(
    far: Target, relay: Relay, half: tuple[Path, Path, dict[str, Object]], rsync: bool, how: int
) -> None:
    full, empty, objects = half
    [name] = objects
    relay.set(5_000_000, "silence")
    home = subprocess.Popen(
        [sys.executable, "-c", CARRY, far.ssh_config, name, full / name, empty, str(rsync)],
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: any(path.is_file() for path in empty.rglob("*")))
        assert len(session(home.pid)) >= 3  # itself, rsync or sftp, ssh
        home.send_signal(how)
        home.wait(10)
        wait_for(lambda: not session(home.pid))
    finally:
        for pid in session(home.pid):
            os.kill(pid, signal.SIGKILL)


def session(leader: int) -> list[int]:
    """The processes of a session, without those that have ended."""
    listed = subprocess.run(["ps", "-eo", "pid=,sess=,stat="], capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, its, state in rows if int(its) == leader and state[0] != "Z"]


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
