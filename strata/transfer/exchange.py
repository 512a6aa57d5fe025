"""The end at home of a push and of a pull."""

import contextlib
import fcntl
import hashlib
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from strata.storage import cache_dir
from strata.transfer import contents
from strata.transfer.connection import Connection, failure
from strata.transfer.contents import shard_files, source_files
from strata.transfer.rules import (
    INPUTS,
    RECORD,
    TransferError,
    choose,
    differing,
    keep_only,
    place,
    run_files,
    sum_of,
)
from strata.transfer.target import Target, find_target, surroundings


class Transferred(NamedTuple):
    """What a push or pull moved: files and bytes it consisted of, where it lies, what stayed."""

    n_files: int
    n_bytes: int
    place: str
    left_out: tuple[str, ...] = ()


def push(run_dir: str | Path, target: str | Target) -> Transferred:
    """Send the code, a run and the token shards it needs; the far side changes when all is there.

    Sent are the files that git tracks and the untracked ones that it does not ignore, without
    those that look like secrets; of the run its configuration, tokenizer, provenance, record and
    newest good checkpoint.

    Args:
        run_dir: a folder with at least config.toml.
        target: `user@host:folder`, or a `Target`.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: the target is not one.
        TransferError: it could not be done; the far side is as before.
    """
    home, there = _existing(run_dir), find_target(target)
    code, left_out = source_files(contents.ROOT, home)
    cache = cache_dir()
    parts = [
        ("code", contents.ROOT, code, "code"),
        ("run", home, run_files(home, INPUTS + RECORD), f"runs/{home.name}"),
        ("cache", cache, shard_files(home, cache), "cache"),
    ]
    with _alone(home), Connection(there) as far:
        sent = {f"{part}/{name}": place / name for part, place, names, _ in parts for name in names}
        manifest = {name: sum_of(path) for name, path in sent.items()}
        about = {"name": home.name, "key": _key(home)}
        folder = far.ask("begin", **about)["folder"]
        bad = list(manifest)
        for first in (True, False):
            for part, source, names, final in parts:
                staged = f"{there.host}:{folder}/.strata/push-{_key(home)}/{part}"
                # What lies there with equal size and time gets a second name instead of a copy;
                # should its sum be wrong all the same, it is sent again in full.
                known = f"--link-dest={folder}/{final}/" if first else "--ignore-times"
                wanted = [name for name in names if f"{part}/{name}" in bad]
                if wanted:
                    _copy(there, wanted, str(source), staged, "--copy-links", known)
            bad = far.ask("finish", **about, manifest=manifest)["bad"]
            if not bad:
                break
        else:
            raise TransferError(f"{bad[0]} arrived changed twice: is something writing to it?")
    n_bytes = sum(path.stat().st_size for path in sent.values())
    return Transferred(
        len(sent), n_bytes, f"{there.host}:{folder}/runs/{home.name}", tuple(left_out)
    )


def pull(run_dir: str | Path, target: str | Target) -> Transferred:
    """Bring home what the run there has made, into the same run folder, which need not exist yet.

    Metrics, samples, final weights, figures and the newest good checkpoint come; nothing here that
    is newer or good is replaced by something older or torn (`rules.choose` has the rules).

    Raises:
        ValueError: the target is not one.
        TransferError: it could not be done, or the two ends went different ways; the run here is
            as before.
    """
    home, there = Path(run_dir).resolve(), find_target(target)
    about = {"key": _key(home)}
    with Connection(there) as far:
        offered = far.ask("offer", name=home.name, **about)
        manifest: dict[str, str] = offered["manifest"]
        staged = home / ".pull"
        differing(staged, manifest)  # raises, before anything is made, if a name leads out of it
        with _alone(home):
            bad = list(manifest)
            for known in (f"--link-dest={home}", "--ignore-times"):
                staged.mkdir(exist_ok=True)
                _copy(there, bad, f"{there.host}:{offered['source']}", str(staged), known)
                bad = differing(staged, manifest)
                if not bad:
                    break
            else:
                raise TransferError(
                    f"{bad[0]} arrived changed twice: look at the disk of {there.host}"
                )
            keep_only(staged, manifest)
            n_bytes = sum((staged / name).stat().st_size for name in manifest)
            choose(staged, home, replace_inputs=False)
            place(staged, home)
            shutil.rmtree(staged)
        with contextlib.suppress(TransferError):  # the run is home; the next pull tidies up there
            far.ask("release", **about)
    return Transferred(len(manifest), n_bytes, str(home))


def _copy(
    target: Target, names: Iterable[str], source: str, destination: str, *options: str
) -> None:
    """Let rsync copy the named files from one folder to another, either of them `remote`.

    Raises:
        TransferError: rsync failed; what has arrived is kept for the next attempt.
    """
    if shutil.which("rsync") is None:
        raise TransferError("rsync is missing here: install it (Debian: apt-get install rsync)")
    shown = ["--info=progress2"] if sys.stderr.isatty() else []
    done = subprocess.run(
        ["rsync", "--times", "--executability", "--protect-args", "--from0", "--files-from=-",
         "--partial-dir=.rsync-partial", *shown, *options, "-e", shlex.join(target.ssh()),
         f"{source}/", f"{destination}/"],
        input="".join(f"./{name}\0" for name in names).encode("utf-8", "surrogateescape"),
        stderr=subprocess.PIPE, env=surroundings(), check=False,
    )  # fmt: skip
    if done.returncode:
        raise failure(target, done.stderr.decode("utf-8", "replace"))


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
