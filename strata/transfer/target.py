"""Where a run is taken: a folder on another machine, and how it is reached and used."""

import os
import re
import shlex
from dataclasses import dataclass
from typing import Literal

# As git does it: a shell reads the user's command line, and nothing of what is added to it.
SSH = ("sh", "-c", 'eval "exec $STRATA_SSH_COMMAND \\"\\$@\\""', "ssh")


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
    """

    host: str
    folder: str
    port: int = 0
    key: str = ""
    ssh_options: tuple[str, ...] = ()
    ssh_config: str = ""
    python: str = "python3"
    environment: Literal["venv", "present"] = "venv"
    setup: str = ""
    scheduler: Literal["none", "slurm"] = "none"
    sbatch: tuple[str, ...] = ()
    preset: str = ""

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Split `user@host:folder`; the folder is relative to the home there unless absolute.

        Raises:
            ValueError: the text is something else, or a host that ssh would take for an option.
        """
        host, colon, folder = text.partition(":")
        folder = folder.removeprefix("~/")
        if not (host and colon and folder) or re.match(r"-|.*[\s/]", host) or folder[0] == "~":
            raise ValueError(
                f"the target must be user@host:folder or host:folder, not {text!r} (a port, a key "
                "or a jump host belong into ~/.ssh/config under a name for the host)"
            )
        return cls(host, folder)

    def ssh(self) -> list[str]:
        """The ssh command line up to where the host stands."""
        options = [word for option in self.ssh_options for word in ("-o", option)]
        port = ["-p", str(self.port)] if self.port else []
        key = ["-i", os.path.expanduser(self.key)] if self.key else []
        config = ["-F", os.path.expanduser(self.ssh_config)] if self.ssh_config else []
        return [*SSH, *config, *options, *port, *key]

    def command(self, words: list[str]) -> str:
        """A command line for the shell there: its `setup`, then these words."""
        if not self.setup:
            return shlex.join(words)
        return shlex.join(["sh", "-c", f"{self.setup}\nexec {shlex.join(words)}"])


def find_target(target: "str | Target") -> Target:
    """The target that a text names.

    Raises:
        ValueError: the text names none.
    """
    return target if isinstance(target, Target) else Target.parse(target)


def surroundings() -> dict[str, str]:
    """The environment that `SSH` needs; a dead line is noticed after 45 seconds."""
    return {"STRATA_SSH_COMMAND": "ssh -o ServerAliveInterval=15"} | os.environ
