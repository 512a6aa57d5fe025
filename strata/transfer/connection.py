"""A conversation with the far end, over one ssh."""

import dataclasses
import json
import re
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from strata.transfer import far, incoming, receiving, rules
from strata.transfer.rules import TransferError, visible
from strata.transfer.target import Target, surroundings

# Runs at the far end before anything of ours is there. One line, which every shell takes as is.
BOOTSTRAP = (
    "import sys; sys.path[:1]=[]; import json; sys.version_info<(3,11) and sys.exit("
    '"strata: python %d.%d" % sys.version_info[:2]); '
    'first=json.loads(sys.stdin.readline()); exec(first["loader"])'
)
# Makes modules of the texts that came with it, in their order, and lets the last one answer.
LOADER = """
import sys, types
for name, text in first["modules"].items():
    sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), sys.modules[name].__dict__)
sys.modules[name].serve(first["folder"])
"""
FAR_MODULES = ("slurm", "folder", "exchange", "environment", "jobs", "serving")

# What ssh, rsync, sftp and the far system say, and what a person can do about it; the first that is
# found counts. What ssh's status tells comes behind what was said (`failure`).
REMEDIES = {
    r"(?m)^ssh: (?:line )?\d+: (.*)": (
        "ssh does not start here ({0}): install it (Debian: apt-get install openssh-client), or "
        "mend STRATA_SSH_COMMAND"
    ),
    r"strata: setup (\d+)": "the target's setup ends with status {0} there: try it in `ssh {host}`",
    r"strata: python (\d+\.\d+)": (
        "its Python is {0} and Strata needs 3.11: name a newer one in targets.toml, such as "
        'python = "python3.12"'
    ),
    r"name resolution|Connection refused|timed out|No route to host|[Uu]nreachable": (
        "it does not answer: check that it is up, its port, and your network"
    ),
    r"Could not resolve hostname": "no such host is known: check the name, or your ssh config",
    r"REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "its host key is not the one you know: ask those who run it, then mend your known_hosts"
    ),
    r"Host key verification failed": (
        "its host key is not known yet: run `ssh {host}` once and compare the key it shows"
    ),
    r"Permission denied(?: \([a-z]|, please)|Too many authentication": (
        "it refused your key: load it with ssh-add, or name it in your ssh config, until "
        "`ssh {host}` works"
    ),
    r"No space left on device|Disk quota exceeded": (
        "the disk is full: make room and start again; what arrived is kept"
    ),
    r'write remote "[^"]*": Failure': (  # all that sftp learns of a full disk
        "a file could not be written there, as on a full disk: make room and start again; what "
        "arrived is kept"
    ),
    r"subsystem request failed": "neither rsync nor sftp is there: install rsync",
    r"shell clean|Received message too long": (
        "its login shell prints text where files should pass: let its startup file, such as "
        "~/.bashrc, print only behind `[ -t 1 ] &&`"
    ),
    r"rsync: ([Cc]ommand )?not found|command not found: rsync|Unknown command:? '?rsync": (
        "rsync is not found there when ssh starts it: put it on the PATH of the login shell"
    ),
    r"(Permission denied|Operation not permitted|Read-only file system|Not a directory)"
    r"(?: \(\d+\)|(: '.*'))": "{0}{1}: name a folder in which you may write",
    r"ended with status 12[67]$"
    r"|(?:ommand not found|Permission denied)\.\nended with status 1$": (  # as tcsh has it
        "its Python was not found, or does not start ({python}): name another in targets.toml, "
        'such as python = "/opt/python/bin/python3"'
    ),
    r"^\s*ended with status (\d\d?|1\d\d|2[0-4]\d|25[0-4])$": (
        "what ssh started there ended with status {0} and said nothing: check the target's setup "
        "and python"
    ),
    r"closed by|Broken pipe|unexpectedly closed|Connection reset|not responding|io timeout"
    r"|^\s*ended with status|ended with status -\d+$": (
        "the line was cut: start again; what arrived is kept"
    ),
}


class LineCut(TransferError):
    """The line to the far end was cut, or is not there: trying again may help."""


class Connection:
    """One ssh to a target, in which the far end answers questions; `with Connection(target) as …`.

    rsync and sftp share the line meanwhile, which saves a second, and a password asked again. What
    the user's ssh is configured to do itself, be it sharing or for how long to wait, is left to it.

    Attributes:
        reached: whether the far end has answered anything yet.
        shared: the target, as who shares the line has to name it.
    """

    def __init__(self, target: Target) -> None:
        self.target = self.shared = target
        self.reached = False

    def __enter__(self) -> Self:
        self._said = tempfile.TemporaryFile()
        self._folder = tempfile.TemporaryDirectory(prefix="strata-")  # for us alone to enter
        options, sharing = [], list[str]()
        settings = _settings(self.target)
        if settings.get("connecttimeout") == "none":
            options.append("ConnectTimeout=60")  # a host that is silent is given up
        if settings.get("serveraliveinterval") == "0":
            options.append("ServerAliveInterval=15")  # a line that died is noticed within a minute
        # a path that ssh reads as it stands, and short enough for a socket's
        plain = re.fullmatch(r"[\w/.+-]{1,80}", self._folder.name)
        if plain and settings and settings.get("controlpath", "none") == "none":
            options.append(f"ControlPath={self._folder.name}/line")
            sharing = ["-o", "ControlMaster=yes", "-o", "ControlPersist=no"]
        self.shared = dataclasses.replace(
            self.target, ssh_options=(*self.target.ssh_options, *options)
        )
        command = self.target.command([self.target.python, "-c", BOOTSTRAP])
        self._ssh = subprocess.Popen(
            [*self.shared.ssh(), *sharing, self.target.ssh_host, command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
            text=True, encoding="utf-8", errors="replace", env=surroundings(),
        )  # fmt: skip
        files = {
            module.__name__: Path(str(module.__file__)) for module in (rules, incoming, receiving)
        }
        folder = Path(far.__file__).parent
        files |= {f"{far.__name__}.{name}": folder / f"{name}.py" for name in FAR_MODULES}
        modules = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
        self._first = {"loader": LOADER, "modules": modules, "folder": self.target.folder}
        return self

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Let the far end do one operation and return what it answers.

        Raises:
            LineCut: the line is cut; whether the operation was done is not known.
            TransferError: it could not be reached, or says what is wrong there.
        """
        assert self._ssh.stdin
        assert self._ssh.stdout
        try:
            if self._first:
                self._ssh.stdin.write(json.dumps(self._first) + "\n")
                self._first = {}
            request = {"operation": operation, "arguments": arguments}
            self._ssh.stdin.write(json.dumps(request) + "\n")
            self._ssh.stdin.flush()
        except BrokenPipeError:
            pass  # why, ssh has said, or the far end before it hung up
        for line in self._ssh.stdout:
            if line.startswith("strata:{") and line.endswith("\n"):
                self.reached = True
                reply: dict[str, Any] = json.loads(line.removeprefix("strata:"))
                if "system_error" in reply:
                    raise failure(self.target, reply["system_error"])
                if "error" in reply:
                    raise TransferError(visible(f"{self.target.host}: {reply['error']}"))
                return reply
        status = self._ssh.wait()
        self._said.seek(0)
        said = self._said.read().decode("utf-8", "replace")
        raise failure(self.target, f"{said.rstrip()}\nended with status {status}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ssh.kill()
        self._ssh.communicate()
        self._said.close()
        self._folder.cleanup()


def _settings(target: Target) -> dict[str, str]:
    """What the user's ssh is configured to do for a target; nothing where it is not OpenSSH's."""
    asked = [*target.ssh(), "-G", target.ssh_host]
    said = subprocess.run(
        asked, capture_output=True, text=True, errors="replace", env=surroundings(), check=False
    ).stdout
    settings = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    return settings if "hostname" in settings else {}


def failure(target: Target, said: str) -> TransferError:
    """One line for what ssh, rsync or the far end said, with what to do about it.

    Args:
        said: all of it; a last line "ended with status N" is of ssh, below 0 where it was killed.
    """
    for pattern, remedy in REMEDIES.items():
        if found := re.search(pattern, said):
            parts = [part or "" for part in found.groups()]
            advice = remedy.format(*parts, host=target.host, python=target.python)
            cut = remedy.startswith(("the line", "it does not answer"))
            return (LineCut if cut else TransferError)(f"{target.host}: {advice}")
    said = re.sub(r"\nended with status \d+$", "", said)
    lines = [line for line in visible(said).splitlines() if line.strip()] or ["it said nothing"]
    return TransferError(f"{target.host}: {lines[-1].strip()}")
