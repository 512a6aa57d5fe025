"""A training machine of one's own: an sshd on this machine, for one user and for a while.

    with loopback(folder, "/tmp/there") as target:
        push("runs/mine", target)

It runs as whoever starts it, listens on a free port of 127.0.0.1 alone, and lets one key in, which
is made for it, as is its own; neither the user's keys nor ssh configuration are read or changed.
This process listens, and starts an sshd for each connection, as inetd does. So the port is ours
from the first, there is nothing to wait for, and a line can be cut like one in a hotel.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from strata.transfer.rules import TransferError
from strata.transfer.target import Target

_SBIN = "/usr/sbin:/usr/local/sbin"


def missing_tools() -> list[str]:
    """Which of the programs that it takes this machine lacks."""
    return [name for name in ("sshd", "ssh", "ssh-keygen", "git") if not _program(name)]


class Loopback:
    """The machine, as long as the block lasts: `with Loopback(folder) as machine: …`.

    place: where keys, known hosts, configuration and sshd's log lie; gone with the machine.
    ssh_config: in which it is the host `loopback`.
    port: which it listens on.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """A machine that is not up yet.

        Args:
            folder: where a folder is made for it; made itself if need be.
            environment: variables that every session there has.
        """
        self._folder, self._environment = folder, dict(environment or {})
        self._sessions: list[subprocess.Popen[bytes]] = []
        self._changing = threading.Lock()  # whoever reads or changes the sessions
        self.port = 0

    def target(self, far_folder: str) -> Target:
        """A folder there as a target, with this Python, in which everything is installed."""
        return Target(
            "loopback", far_folder,
            ssh_config=str(self.ssh_config), python=sys.executable, environment="present",
        )  # fmt: skip

    def __enter__(self) -> Self:
        if missing := missing_tools():
            raise TransferError(f"a machine of one's own takes {', '.join(missing)}: install it")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.place = Path(tempfile.mkdtemp(prefix="machine-", dir=self._folder)).resolve()
        for key in ("host_key", "user_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.place / key], check=True
            )
        # where an sshd of root's leaves its privileges
        if os.geteuid() == 0 and sys.platform == "linux":
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.restart()
        self._configure()
        return self

    def _configure(self) -> None:
        # SHLVL keeps bash from reading ~/.bashrc, which it otherwise does for sshd
        variables = {"SHLVL": "2"} | self._environment
        set_variables = " ".join(_quote(f"{name}={value}") for name, value in variables.items())
        (self.place / "sshd_config").write_text(
            f"HostKey {_quote(self.place / 'host_key')}\nPidFile none\nStrictModes no\nUsePAM no\n"
            f"AuthorizedKeysFile {_quote(self.place / 'user_key.pub', tokens=True)}\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"Subsystem sftp internal-sftp\nSetEnv {set_variables}\n"
        )
        key = (self.place / "host_key.pub").read_text()
        (self.place / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}")
        self.ssh_config = self.place / "ssh_config"
        self.ssh_config.write_text(
            f"Host loopback\n HostName 127.0.0.1\n Port {self.port}\n BatchMode yes\n"
            f" IdentityFile {_quote(self.place / 'user_key', tokens=True)}\n IdentitiesOnly yes\n"
            f" UserKnownHostsFile {_quote(self.place / 'known_hosts', tokens=True)}\n"
            " IdentityAgent none\n GlobalKnownHostsFile none\n StrictHostKeyChecking yes\n"
        )

    def cut(self) -> None:
        """Kill every connection's sshd: the line is dead, and what ran there is left to itself."""
        with self._changing:
            for session in self._sessions:
                if session.poll() is None:
                    os.killpg(session.pid, signal.SIGKILL)
                    session.wait()

    def stop(self) -> None:
        """Let nobody in any more, and cut the line."""
        self._open = False
        socket.create_connection(("127.0.0.1", self.port)).close()  # the thread sees it
        self._thread.join()
        self._listener.close()
        self.cut()

    def restart(self) -> None:
        """Let connections in (again), at the port of the first time."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._open = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        command = [_program("sshd"), "-i", "-e", "-f", str(self.place / "sshd_config")]
        with (self.place / "sshd.log").open("a") as log:
            while True:
                with self._listener.accept()[0] as line, self._changing:
                    if not self._open:
                        return
                    # a process group of its own, which the commands that it starts leave
                    session = subprocess.Popen(
                        command,
                        stdin=line.fileno(),
                        stdout=line.fileno(),
                        stderr=log,
                        start_new_session=True,
                    )
                    running = [one for one in self._sessions if one.poll() is None]
                    self._sessions = [*running, session]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.place)


@contextlib.contextmanager
def loopback(folder: Path, far_folder: str) -> Iterator[Target]:
    """A target on this machine, as long as the block lasts.

    Args:
        folder: where a folder for keys and configuration is made, and removed in the end.
        far_folder: the target's folder.

    Raises:
        TransferError: a program is missing.
    """
    with Loopback(folder) as machine:
        yield machine.target(far_folder)


def _program(name: str) -> str:
    """Where a program lies; nothing if it is not there."""
    return shutil.which(name) or shutil.which(name, path=_SBIN) or ""


def _quote(text: str | Path, *, tokens: bool = False) -> str:
    """One word of an ssh or sshd configuration; `tokens` where `%` has a meaning in it."""
    quoted = str(text).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + (quoted.replace("%", "%%") if tokens else quoted) + '"'
