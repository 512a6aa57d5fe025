"""Take a run to a training machine and bring it home, over plain ssh and rsync.

    push("runs/mine", "me@gpu:strata")     code, run and token shards go there
    run("runs/mine", "me@gpu:strata")      training starts there and outlives the connection
    status("runs/mine", "me@gpu:strata")   what it says now
    pull("runs/mine", "me@gpu:strata")     what it made comes home

This file is the end at home. It sends the text of `strata/far_end.py`, which also says what lies
where on the far machine and how a transfer is made whole or not at all, to the Python there, and
lets rsync move the files. ssh is the user's own, with its configuration, agent and host-key
checking; STRATA_SSH_COMMAND names another command line for it, as GIT_SSH_COMMAND does for git.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from strata import far_end
from strata.far_end import INPUTS, RECORD, TransferError, choose, differing, keep_only, place
from strata.storage import cache_dir

__all__ = ["Status", "TransferError", "Transferred", "pull", "push", "run", "status"]

ROOT = Path(__file__).resolve().parent.parent

# Runs at the far end before anything of ours is there. One line, which every shell takes as is.
BOOTSTRAP = (
    "import json,sys; sys.version_info<(3,11) and sys.exit("
    '"strata: python %d.%d" % sys.version_info[:2]); '
    'request=json.load(sys.stdin); exec(request["program"]); answer(request)'
)
# As git does it: a shell reads the user's command line, and nothing of what is added to it.
SSH = ("sh", "-c", 'eval "exec $STRATA_SSH_COMMAND \\"\\$@\\""', "ssh")

# Left out of a push although git does not ignore them: what looks like a key or a password.
SECRET = re.compile(
    r"(^|/)(\.env(\.[^/]*)?|\.netrc|\.pypirc|\.npmrc|\.git-credentials|id_(rsa|dsa|ecdsa|ed25519)"
    r"|[^/]*\.(pem|key|p12|pfx|kdbx|age)|(secret|credential|password|(hf_)?token)s?"
    r"(\.(txt|json|toml|ya?ml|ini))?)$|(^|/)\.(ssh|aws|gnupg|kube|huggingface)/",
    re.IGNORECASE,
)

# What ssh, rsync and the far system say, and what a person can do about it.
REMEDIES = {
    r"strata: python (\d+\.\d+)": "its Python is {0} and Strata needs 3.11: name a newer one",
    r"Could not resolve hostname": "no such host is known: check the name, or your ssh config",
    r"REMOTE HOST IDENTIFICATION HAS CHANGED": "its host key is not the one you know: ask those "
    "who run it, then mend your known_hosts",
    r"Host key verification failed": "its host key is not known yet: run `ssh {host}` once and "
    "compare the key it shows",
    r"Permission denied \(|Too many authentication": "it refused your key: load it with ssh-add, "
    "or name it in your ssh config, until `ssh {host}` works",
    r"Connection refused|timed out|No route to host|unreachable": "it does not answer: check that "
    "it is up, its port, and your network",
    r"No space left on device|Disk quota exceeded": "the disk is full: make room and start again; "
    "what arrived is kept",
    r"rsync: (command )?not found": "rsync is missing there: install it",
    r"(not found|python[\d.]*: No such file.*|directory: '[^']*python[\d.]*')\s*$": "its Python "
    "was not found: name another",
    r"closed by|Broken pipe|unexpectedly closed|Connection reset": "the line was cut: start "
    "again; what arrived is kept",
}


class Transferred(NamedTuple):
    """What a push or pull moved: files and bytes it consisted of, where it lies, what stayed."""

    n_files: int
    n_bytes: int
    place: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """A run on the far machine: whether a job trains it, and the last line of its metrics."""

    running: bool
    finished: bool
    pid: int | None
    host: str | None
    max_steps: int
    metrics: dict[str, Any]
    last_log_line: str

    def __str__(self) -> str:
        if self.running:
            what = f"running (process {self.pid} on {self.host})"
        else:
            what = "finished" if self.finished else "not running"
        if self.metrics:
            what += f", step {self.metrics['step']} of {self.max_steps}"
            what += f", loss {self.metrics['loss']:.4f} nats"
        else:
            what += f", no step of {self.max_steps} yet"
        silent = self.finished or not self.last_log_line
        return what if silent else f"{what}; its log ends: {self.last_log_line}"


class Target(NamedTuple):
    """A folder on another machine, as `user@host:folder`."""

    host: str
    folder: str

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

    def ask(self, python: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """Let the far end do one operation and return what it answers.

        Raises:
            TransferError: it could not be reached, or says what is wrong there.
        """
        program = Path(far_end.__file__).read_text(encoding="utf-8")
        request = {"program": program, "folder": self.folder, "operation": operation}
        done = subprocess.run(
            [*SSH, self.host, shlex.join([python, "-c", BOOTSTRAP])],
            input=json.dumps(request | {"arguments": arguments}),
            capture_output=True, text=True, env=_surroundings(), check=False,
        )  # fmt: skip
        replies = [line for line in done.stdout.splitlines() if line.startswith("strata:{")]
        if not replies:
            raise self.failure(done.stderr or f"closed by ssh, status {done.returncode}")
        reply: dict[str, Any] = json.loads(replies[-1].removeprefix("strata:"))
        if "system_error" in reply:
            raise self.failure(reply["system_error"])
        if "error" in reply:
            raise TransferError(f"{self.host}: {reply['error']}")
        return reply

    def copy(self, names: Iterable[str], source: str, destination: str, *options: str) -> None:
        """Let rsync copy the named files from one folder to another, either of them `remote`.

        Raises:
            TransferError: rsync failed; what has arrived is kept for the next attempt.
        """
        if shutil.which("rsync") is None:
            raise TransferError("rsync is missing here: install it (Debian: apt-get install rsync)")
        shown = ["--info=progress2"] if sys.stderr.isatty() else []
        done = subprocess.run(
            ["rsync", "--times", "--executability", "--protect-args", "--from0", "--files-from=-",
             "--partial-dir=.rsync-partial", *shown, *options, "-e", shlex.join(SSH),
             f"{source}/", f"{destination}/"],
            input="".join(f"./{name}\0" for name in names).encode("utf-8", "surrogateescape"),
            stderr=subprocess.PIPE, env=_surroundings(), check=False,
        )  # fmt: skip
        if done.returncode:
            raise self.failure(done.stderr.decode("utf-8", "replace"))

    def failure(self, said: str) -> TransferError:
        """One line for what ssh, rsync or the far end said, with what to do about it."""
        for pattern, remedy in REMEDIES.items():
            if found := re.search(pattern, said):
                advice = remedy.format(*found.groups(), host=self.host)
                return TransferError(f"{self.host}: {advice}")
        lines = [line for line in said.splitlines() if line.strip()] or ["it said nothing"]
        return TransferError(f"{self.host}: {lines[-1].strip()}")


def push(run_dir: str | Path, target: str, *, python: str = "python3") -> Transferred:
    """Send the code, a run and the token shards it needs; the far side changes when all is there.

    Sent are the files that git tracks and the untracked ones that it does not ignore, without
    those that look like secrets; of the run its configuration, tokenizer, provenance, record and
    newest good checkpoint.

    Args:
        run_dir: a folder with at least config.toml.
        target: `user@host:folder`.
        python: the far machine's Python, 3.11 or later.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: the target is not one.
        TransferError: it could not be done; the far side is as before.
    """
    home, there = _existing(run_dir), Target.parse(target)
    code, left_out = source_files(ROOT, home)
    cache = cache_dir()
    parts = [
        ("code", ROOT, code, "code"),
        ("run", home, far_end.run_files(home, INPUTS + RECORD), f"runs/{home.name}"),
        ("cache", cache, shard_files(home, cache), "cache"),
    ]
    with _alone(home):
        sent = {f"{part}/{name}": place / name for part, place, names, _ in parts for name in names}
        manifest = {name: far_end.sum_of(path) for name, path in sent.items()}
        about = {"name": home.name, "key": _key(home)}
        folder = there.ask(python, "begin", **about)["folder"]
        bad = list(manifest)
        for first in (True, False):
            for part, source, names, final in parts:
                staged = f"{there.host}:{folder}/.strata/push-{_key(home)}/{part}"
                # What lies there with equal size and time gets a second name instead of a copy;
                # should its sum be wrong all the same, it is sent again in full.
                known = f"--link-dest={folder}/{final}/" if first else "--ignore-times"
                wanted = [name for name in names if f"{part}/{name}" in bad]
                if wanted:
                    there.copy(wanted, str(source), staged, "--copy-links", known)
            bad = there.ask(python, "finish", **about, manifest=manifest)["bad"]
            if not bad:
                break
        else:
            raise TransferError(f"{bad[0]} arrived changed twice: is something writing to it?")
    n_bytes = sum(path.stat().st_size for path in sent.values())
    return Transferred(
        len(sent), n_bytes, f"{there.host}:{folder}/runs/{home.name}", tuple(left_out)
    )


def run(
    run_dir: str | Path, target: str, *, python: str = "python3", prepare: bool = True
) -> Status:
    """Start training a pushed run there, detached: it goes on when this machine is gone.

    Training uses every GPU there, one process each, and continues from the newest good checkpoint.

    Args:
        run_dir: the run at home; only its name matters.
        target: `user@host:folder`.
        python: the far machine's Python, 3.11 or later.
        prepare: make an environment of the locked packages in folder/venv, once, from that Python;
            otherwise train with that Python itself, which then must have them.

    Raises:
        ValueError: the target is not one.
        TransferError: the run was not pushed, a job trains it already, or it could not start.
    """
    name = Path(run_dir).resolve().name
    return Status(
        **Target.parse(target).ask(python, "start", name=name, executable=python, prepare=prepare)
    )


def status(run_dir: str | Path, target: str, *, python: str = "python3") -> Status:
    """What the run there is doing now.

    Raises:
        ValueError: the target is not one.
        TransferError: it could not be asked, or the run is not there.
    """
    name = Path(run_dir).resolve().name
    return Status(**Target.parse(target).ask(python, "look", name=name))


def pull(run_dir: str | Path, target: str, *, python: str = "python3") -> Transferred:
    """Bring home what the run there has made, into the same run folder, which need not exist yet.

    Metrics, samples, final weights, figures and the newest good checkpoint come; nothing here that
    is newer or good is replaced by something older or torn (`far_end.choose` has the rules).

    Raises:
        ValueError: the target is not one.
        TransferError: it could not be done, or the two ends went different ways; the run here is
            as before.
    """
    home, there = Path(run_dir).resolve(), Target.parse(target)
    about = {"key": _key(home)}
    offered = there.ask(python, "offer", name=home.name, **about)
    manifest: dict[str, str] = offered["manifest"]
    staged = home / ".pull"
    differing(staged, manifest)  # raises, before anything is made, if a name leads out of it
    with _alone(home):
        bad = list(manifest)
        for known in (f"--link-dest={home}", "--ignore-times"):
            staged.mkdir(exist_ok=True)
            there.copy(bad, f"{there.host}:{offered['source']}", str(staged), known)
            bad = differing(staged, manifest)
            if not bad:
                break
        else:
            raise TransferError(f"{bad[0]} arrived changed twice: look at the disk of {there.host}")
        keep_only(staged, manifest)
        n_bytes = sum((staged / name).stat().st_size for name in manifest)
        choose(staged, home, replace_inputs=False)
        place(staged, home)
        shutil.rmtree(staged)
    with contextlib.suppress(TransferError):  # the run is home; the next pull tidies up there
        there.ask(python, "release", **about)
    return Transferred(len(manifest), n_bytes, str(home))


def source_files(root: Path, run_dir: Path) -> tuple[list[str], list[str]]:
    """The files of the source tree at `root` that a push sends, and those it leaves out as secret.

    Raises:
        TransferError: git does not know the tree.
    """
    listed: dict[str, list[str]] = {}
    for kind, options in (("tracked", ["--cached"]), ("new", ["--others", "--exclude-standard"])):
        git = subprocess.run(
            ["git", "-C", str(root), "ls-files", "-z", *options], capture_output=True, check=False
        )
        if git.returncode:
            said = git.stderr.decode("utf-8", "replace").strip().splitlines() or ["no answer"]
            raise TransferError(f"git must say what is source in {root}: {said[-1]}")
        listed[kind] = [os.fsdecode(name) for name in git.stdout.split(b"\0") if name]
    not_source = (run_dir, cache_dir())
    new = []
    for name in listed["new"]:
        inside = (root / name).parents
        prepared = any(place in not_source or _is_run(place) for place in inside)
        if not prepared:
            new.append(name)
    secret = [name for name in new if SECRET.search(name)]
    names = listed["tracked"] + [name for name in new if name not in secret]
    return [name for name in names if (root / name).resolve().is_relative_to(root)
            and (root / name).is_file()], secret  # fmt: skip


def shard_files(run_dir: Path, cache: Path) -> list[str]:
    """The token shards of a run that are in the cache here, as names relative to it.

    Shards are found by what the run's provenance says it was trained on. Where it says nothing, or
    they are not here, none are sent, and training makes them there.
    """
    if not (run_dir / "provenance.json").exists():
        return []
    origin = json.loads((run_dir / "provenance.json").read_text(encoding="utf-8"))
    wanted = origin["corpus"], origin["tokenizer"]
    found = []
    for path in (cache / "shards").glob("*/manifest.json"):
        shards = json.loads(path.read_text(encoding="utf-8"))
        if (shards["corpus_identity"], shards["tokenizer_identity"]) == wanted:
            names = ["manifest.json", *(shard["name"] for shard in shards["shards"])]
            found += [str((path.parent / name).relative_to(cache)) for name in names]
    return found


def _is_run(folder: Path) -> bool:
    return (folder / "config.toml").exists() and (folder / "metrics.jsonl").exists()


def _existing(run_dir: str | Path) -> Path:
    home = Path(run_dir).resolve()
    if not (home / "config.toml").exists():
        raise FileNotFoundError(f"{run_dir} is not a run: it holds no config.toml")
    return home


def _key(home: Path) -> str:
    """Names the staging folder there, so that pushes from two places do not mix."""
    return hashlib.sha256(f"{socket.gethostname()} {home}".encode()).hexdigest()[:12]


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One transfer of a run at a time."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".transfer").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransferError(f"{home} is being pushed or pulled already: wait for it") from None
        yield


def _surroundings() -> dict[str, str]:
    return {"STRATA_SSH_COMMAND": "ssh -o ServerAliveInterval=15"} | os.environ
