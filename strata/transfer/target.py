"""Where a run is taken: a folder on another machine, and how it is reached and used.

`find_target` reads what a person writes: `user@host:folder`, or the name of a table of
`~/.config/strata/targets.toml`, whose fields are those of `Target`:

    [gpu]
    host = "me@gpu.example.org"
    folder = "strata"
"""

import os
import re
import shlex
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from strata.config import Config
from strata.fields import check_section, nearest, number

# As git does it: a shell reads the user's command line, and nothing of what is added to it.
SSH = ("sh", "-c", 'eval "exec $STRATA_SSH_COMMAND \\"\\$@\\""', "ssh")
# The user, if any; then a name or an address, IPv6 in brackets. Neither begins like an option.
_HOST = re.compile(r"([\w.][\w.+%@\\-]*@)?([\w.][\w.+-]*|\[[\w:.%]+\])")


@dataclass(frozen=True)
class Target:
    """A folder on another machine.

    host: as ssh is given it, `user@host` or a name from its configuration.
    folder: relative to the home there unless absolute.
    port, key, ssh_options: for ssh, besides its own configuration; 0 and "" leave them to that.
    ssh_config: a file for ssh in place of its own configuration.
    python: the Python there, 3.11 or later.
    environment: "venv" makes an environment of the locked packages in folder/venv; "present" trains
        with `python` itself, which then must have them.
    setup: what a shell there runs first, such as "module load python/3.12"; it may set variables.
    scheduler: "none" starts training at once; "slurm" queues it with sbatch.
    sbatch: its options, such as "--gpus=4".
    preset: what a run is begun with that has no configuration at home yet.

    Raises:
        ValueError: from construction, naming the field, the value and what is expected.
    """

    host: str
    folder: str
    port: int = number(0, 0, 65535)
    key: str = ""
    ssh_options: tuple[str, ...] = ()
    ssh_config: str = ""
    python: str = "python3"
    environment: Literal["venv", "present"] = "venv"
    setup: str = ""
    scheduler: Literal["none", "slurm"] = "none"
    sbatch: tuple[str, ...] = ()
    preset: str = ""

    def __post_init__(self) -> None:
        check_section(self, "target")
        object.__setattr__(self, "folder", self.folder.removeprefix("~/"))
        if not _HOST.fullmatch(self.host):
            _refuse("host", self.host, "user@host or host, an IPv6 address in [brackets]")
        if not self.folder or self.folder[0] == "~" or re.search(r"[\0-\x1f\x7f]", self.folder):
            _refuse("folder", self.folder, "a path from your home there, or an absolute one")
        if not re.match(r"/|[^-~/][^/]*$", self.python):
            _refuse("python", self.python, "a command, such as python3.12, or an absolute path")
        for name in ("key", "ssh_config"):
            path = os.path.expanduser(getattr(self, name))
            if path and not (os.path.isabs(path) and os.path.isfile(path)):
                _refuse(name, path, "the path of a file that exists, absolute or from ~")
        for option in self.ssh_options:
            if not re.fullmatch(r"[A-Za-z]\w*\s*[=\s]\s*\S.*", option):
                _refuse("ssh_options", option, "each as in ssh_config, such as 'Compression=yes'")
        for option in self.sbatch:
            if not re.fullmatch(r"-\S.*", option):
                _refuse("sbatch", option, "options with their value in one, such as '--gpus=4'")
        if self.sbatch and self.scheduler != "slurm":
            _refuse("sbatch", list(self.sbatch), 'scheduler = "slurm" with it')
        if self.preset:
            Config.preset(self.preset)

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Split `user@host:folder`; the folder is relative to the home there unless absolute.

        Raises:
            ValueError: the text is something else, or a host that ssh would take for an option.
        """
        split = re.fullmatch(rf"(?P<host>{_HOST.pattern}):(?P<folder>(?!//).+)", text, re.DOTALL)
        if not split:
            raise ValueError(
                f"the target must be user@host:folder or host:folder, not {text!r} (a port, a key "
                f"or a jump host belong into ~/.ssh/config, or into {targets_file()})"
            )
        return cls(split["host"], split["folder"])

    @property
    def ssh_host(self) -> str:
        """The host as ssh itself takes it: an IPv6 address without the brackets of all others."""
        return re.sub(r"\[(.*)\]$", r"\1", self.host)

    def ssh(self) -> list[str]:
        """The ssh command line up to where the host stands."""
        options = [word for option in self.ssh_options for word in ("-o", option)]
        port = ["-p", str(self.port)] if self.port else []
        key = ["-i", os.path.expanduser(self.key)] if self.key else []
        config = ["-F", os.path.expanduser(self.ssh_config)] if self.ssh_config else []
        return [*SSH, *config, *options, *port, *key]

    def command(self, words: list[str]) -> str:
        """A command line for the shell there, of whatever kind: its `setup`, then these words."""
        if not self.setup:
            return shlex.join(words)
        # one line, which csh needs, and fit for any setup, be its end a comment or a semicolon
        script = 'eval "$1" || { echo "strata: setup $?" >&2; exit 1; }; shift; exec "$@"'
        return shlex.join(["sh", "-c", script, "sh", self.setup, *words])


def find_target(target: "str | Target") -> Target:
    """The target that a text names: `user@host:folder`, or a table of `targets_file()`.

    Raises:
        ValueError: the text names none, or what its table says is wrong.
    """
    if isinstance(target, Target):
        return target
    if ":" in target:
        return Target.parse(target)
    path, known = targets_file(), read_targets()
    if target not in known:
        listed = f"one of {', '.join(known)}" if known else "a name"
        raise ValueError(
            f"no target {target!r}: expected user@host:folder, or {listed} from {path}"
            + nearest(target, list(known))
        )
    try:
        return _from_table(known[target])
    except ValueError as error:
        raise ValueError(f"{path}, [{target}]: {error}") from error


def targets_file() -> Path:
    """Where targets have names: `strata/targets.toml` in $XDG_CONFIG_HOME or ~/.config."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / (
        "strata/targets.toml"
    )


def read_targets() -> dict[str, Any]:
    """The tables of `targets_file()` by name, as they stand there; none where there is no file.

    Raises:
        ValueError: it is not TOML.
    """
    path = targets_file()
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of which tomllib.TOMLDecodeError is one
        raise ValueError(f"{path}: {error}") from error


def surroundings() -> dict[str, str]:
    """The environment that `SSH` needs."""
    return {"STRATA_SSH_COMMAND": "ssh"} | os.environ


def _from_table(table: Any) -> Target:
    if not isinstance(table, dict):
        raise ValueError(f"it is {table!r}: expected a table with a host and a folder")
    known = [item.name for item in fields(Target)]
    for name in table:
        if name not in known:
            raise ValueError(f"unknown field {name!r}{nearest(name, known)}")
    for name in ("host", "folder"):
        if name not in table:
            raise ValueError(f"{name} is missing")
    return Target(**table)


def _refuse(name: str, value: object, expected: str) -> None:
    raise ValueError(f"target.{name} = {value!r}: expected {expected}")
