"""A training machine of one's own: an sshd on this machine, for one user and for a while.

    with loopback(folder) as target:
        push("runs/mine", target)

It runs as whoever starts it, listens on a free port of 127.0.0.1 alone, and lets one key in, which
is made for it, as is its own; neither the user's keys nor ssh configuration are read or changed.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strata.transfer.rules import TransferError
from strata.transfer.target import Target

_SBIN = "/usr/sbin:/usr/local/sbin"


def missing_tools() -> list[str]:
    """Which of the programs that it takes this machine lacks."""
    return [
        name
        for name in ("sshd", "ssh", "ssh-keygen", "git")
        if not (shutil.which(name) or shutil.which(name, path=_SBIN))
    ]


@contextmanager
def loopback(folder: Path, far_folder: str) -> Iterator[Target]:
    """A target on this machine, as long as the block lasts.

    Args:
        folder: where keys and configuration of the two ends go; made if need be.
        far_folder: the target's folder.

    Raises:
        TransferError: a program is missing, or sshd did not start.
    """
    if missing := missing_tools():
        raise TransferError(f"a machine of one's own takes {', '.join(missing)}: install it")
    folder.mkdir(parents=True, exist_ok=True)
    for key in ("host_key", "user_key"):
        (folder / key).unlink(missing_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "Subsystem sftp internal-sftp\n"
    )
    kind, key = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (folder / "ssh_config").write_text(
        f"Host loopback\n HostName 127.0.0.1\n Port {port}\n BatchMode yes\n"
        f" IdentityFile {folder}/user_key\n IdentitiesOnly yes\n IdentityAgent none\n"
        f" UserKnownHostsFile {folder}/known_hosts\n GlobalKnownHostsFile none\n"
        " StrictHostKeyChecking yes\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd run by root drops its privileges
    sshd = shutil.which("sshd") or shutil.which("sshd", path=_SBIN)
    with (folder / "sshd.log").open("w") as log:
        server = subprocess.Popen([str(sshd), "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise TransferError(f"sshd did not start: {(folder / 'sshd.log').read_text()}")
        yield Target(
            "loopback", far_folder, ssh_config=str(folder / "ssh_config"), python=sys.executable
        )
    finally:
        server.terminate()
        server.wait()
