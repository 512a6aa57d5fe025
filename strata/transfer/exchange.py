"""Push and pull, as seen from home.

Either way: one end describes what there is (a manifest), the other says what it lacks, that is
carried, and the end that receives it verifies all of it before it changes anything. When the line
is cut, the same is done again, and by then less is lacking.
"""

import hashlib
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from strata.config import Config
from strata.data.progress import building
from strata.storage import cache_dir, write_whole
from strata.training.lock import OneWriter
from strata.transfer import contents
from strata.transfer.carrying import Object, fetch, send
from strata.transfer.connection import Connection, LineCut
from strata.transfer.incoming import rsync_works
from strata.transfer.receiving import (
    Manifest,
    assemble,
    check,
    check_room,
    describe,
    lacking,
    ready,
)
from strata.transfer.rules import Sums, TransferError, choose, is_of_run, place
from strata.transfer.target import Target, find_target

# Seconds between two attempts after the line was cut; a line that held for a minute begins them
# anew.
PAUSES = (1, 2, 4, 8, 15, 30, 30, 30, 60, 60, 60)


class Transferred(NamedTuple):
    """What a push or a pull came to, or would.

    sizes: bytes of every file that it consisted of, by name.
    carried: bytes of those that the other end lacked.
    place: where it lies now.
    left_out: what looked like a secret and stayed.
    """

    sizes: dict[str, int]
    carried: dict[str, int]
    place: str
    left_out: tuple[str, ...] = ()


def push(
    run_dir: str | Path,
    target: str | Target,
    *,
    preset: str = "",
    dry_run: bool = False,
    progress: bool = True,
) -> Transferred:
    """Send the code, a run and the token shards it needs; the far side changes when all is there.

    Sent are the files that git tracks and the untracked ones that it does not ignore, without
    those that look like secrets; of the run its configuration, tokenizer, provenance, record and
    newest good checkpoint. Then the environment there is made, or found to be ready.

    Args:
        run_dir: a run; one without a configuration is begun, with its text prepared here.
        target: `user@host:folder`, a name of targets.toml, or a `Target`.
        preset: what a new run is begun with; the target's if empty.
        dry_run: find out what would go, and change nothing at either end.
        progress: show a bar, and a line on what was carried.

    Raises:
        FileNotFoundError: there is no such run, and no preset.
        ValueError: the target is none, or the preset.
        BlockingIOError: the run is being trained, pushed or pulled here.
        TransferError: it could not be done, and the far side is as before; or all arrived and the
            environment there is not ready, which it says.
    """
    home, there = Path(run_dir).resolve(), find_target(target)
    if not (home / "provenance.json").is_file():
        _begin_run(home, preset or there.preset, dry_run)
    with OneWriter(home):
        read = Sums()
        files, left_out = contents.files(home, read)
        about = {"name": home.name, "key": _key(home)}
        done: Transferred | None = None

        def attempt(far: Connection) -> Transferred:
            nonlocal done
            bad: list[str] = []
            manifest = describe(files, read)
            for _ in range(2):
                answer = far.ask(
                    "begin", **about, manifest=manifest, rsync=rsync_works(), dry_run=dry_run
                )
                where = f"{there.host}:{answer['folder']}/runs/{home.name}"
                wanted: dict[str, int] = answer["lacking"]
                if done is None:  # what a second attempt finds there came with the first
                    carried = _of(manifest, wanted)
                    done = Transferred(_of(manifest), carried, where, tuple(left_out))
                if dry_run:
                    return done
                with _showing(f"to {there.host}", manifest, wanted, progress) as advance:
                    send(
                        far.shared,
                        {entry.sum: files[name] for name, entry in manifest.items()},
                        _objects(manifest, wanted),
                        answer["incoming"],
                        arrived=wanted,
                        rsync_there=answer["rsync"],
                        advance=advance,
                    )
                bad = far.ask("finish", **about, manifest=manifest)["bad"]
                if not bad:
                    _prepare(far, progress)
                    return done
            raise TransferError(f"{bad[0]} arrived changed twice: is something writing to it?")

        return _persist(there, attempt)


def pull(
    run_dir: str | Path,
    target: str | Target,
    *,
    checkpoints: str | Sequence[int] = "newest",
    dry_run: bool = False,
    progress: bool = True,
) -> Transferred:
    """Bring home what the run there has made, into the same run folder, which need not exist yet.

    Metrics, samples, figures, final weights and checkpoints come; nothing here that is newer or
    good is replaced by something older or torn (`rules.choose` has the rules).

    Args:
        run_dir: the run here, whose name is the run's there.
        target, progress: as for `push`.
        checkpoints: "newest" (that is whole), "all", "none", or the steps of those to bring.
        dry_run: find out what would come, and change nothing at either end.

    Raises:
        ValueError: the target is none, or `checkpoints` is nothing of this.
        BlockingIOError: the run is being trained, pushed or pulled here.
        TransferError: it could not be done, or the two ends went different ways; the run here is
            as before.
    """
    if isinstance(checkpoints, str) and checkpoints not in ("newest", "all", "none"):
        raise ValueError(
            f"checkpoints = {checkpoints!r}: expected newest, all, none, or the steps of some"
        )
    home, there = Path(run_dir).resolve(), find_target(target)
    chosen = checkpoints if isinstance(checkpoints, str) else list(checkpoints)
    about = {"name": home.name, "key": _key(home), "token": uuid.uuid4().hex}
    staged, sums = home / ".pull", Sums()

    def known(name: str) -> Path:
        return home / name

    done: Transferred | None = None

    def attempt(far: Connection) -> Transferred:
        nonlocal done
        bad: list[str] = []
        for _ in range(2):
            offered = far.ask("offer", **about, checkpoints=chosen, dry_run=dry_run)
            manifest = check(offered["manifest"], is_of_run)
            incoming, rsync = staged / "incoming", bool(offered.get("rsync")) and rsync_works()
            if not dry_run:
                ready(manifest, incoming, sums)
            wanted = lacking(manifest, incoming, known, sums)
            if done is None:
                done = Transferred(_of(manifest), _of(manifest, wanted), str(home))
            if dry_run:
                return done
            check_room(manifest, wanted, incoming)
            with _showing(f"from {there.host}", manifest, wanted, progress) as advance:
                fetch(
                    far.shared,
                    _objects(manifest, wanted),
                    offered["outgoing"],
                    incoming,
                    rsync_there=rsync,
                    advance=advance,
                )
            bad = assemble(manifest, incoming, known, staged / "tree", sums)
            if not bad:
                try:
                    choose(staged / "tree", home, sums, replace_inputs=False)
                except TransferError:  # what came is of no use, here or there
                    shutil.rmtree(staged)
                    far.ask("release", key=about["key"])
                    raise
                shutil.rmtree(incoming)  # or what is written to from now on had two names
                place(staged / "tree", home)
                shutil.rmtree(staged)
                far.ask("release", key=about["key"])
                return done
        raise TransferError(f"{bad[0]} arrived changed twice: look at the disk of {there.host}")

    if dry_run:
        return _persist(there, attempt)
    with OneWriter(home):
        return _persist(there, attempt)


def _begin_run(home: Path, preset: str, dry_run: bool) -> None:
    """Give a run that has never been trained its configuration, tokenizer and text."""
    # here, since they load PyTorch, which takes seconds and no other transfer needs
    from strata.data import absolute_spec
    from strata.training.folder import begin_folder

    named = (home / "config.toml").is_file()
    if not named and home.exists() and not (home.is_dir() and not any(home.iterdir())):
        raise FileNotFoundError(f"{home} is not a run: it holds no config.toml, but other things")
    if not named and not preset:
        raise FileNotFoundError(
            f"{home} is not a run: it holds no config.toml; name a preset to begin one with"
        )
    config = Config.load(home / "config.toml") if named else Config.preset(preset)
    if dry_run:
        raise ValueError(
            f"{home} has not been begun, so what it needs is not known: train it, or push it"
        )
    if not named:
        print(f"{home} begins with the preset {preset}", file=sys.stderr)
        config = config.override({"data.corpus": absolute_spec(config.data.corpus)})
    begin_folder(home, config)


def _prepare(far: Connection, progress: bool) -> None:
    """Ready the environment there; where that takes a while, say so."""
    target = far.target
    words = f"{target.host}: making its environment, which takes minutes"
    slow = threading.Timer(2.0, print, (words,), {"file": sys.stderr})
    if progress:
        slow.start()
    try:
        far.ask("prepare", executable=target.python, environment=target.environment)
    except LineCut:
        raise
    except TransferError as error:
        raise TransferError(f"all arrived, but it cannot be trained there yet: {error}") from error
    finally:
        slow.cancel()


def _persist(there: Target, attempt: Callable[[Connection], Transferred]) -> Transferred:
    """Make attempts, each over a line of its own, until one comes to its end.

    Raises:
        LineCut: the first could not even begin, or the last of many was cut too.
        TransferError: one failed for another reason.
    """
    pauses, reached = list(PAUSES), False
    while True:
        try:
            began = time.monotonic()
            with Connection(there) as far:
                return attempt(far)
        except LineCut as cut:
            reached = reached or far.reached
            if time.monotonic() > began + sum(PAUSES[:6]):
                pauses = list(PAUSES)
            if not reached or not pauses:
                raise
            pause = pauses.pop(0)
            print(f"{cut}; trying again in {pause} s", file=sys.stderr)
            time.sleep(pause)


@contextmanager
def _showing(
    what: str, manifest: Manifest, wanted: dict[str, int], progress: bool
) -> Iterator[Callable[[int], None]]:
    """A bar while something is carried; none where nothing has to be."""
    n_bytes = sum(one.size for one in _objects(manifest, wanted).values())
    with building(what, n_bytes, progress=progress and bool(wanted)) as advance:
        yield advance


def _of(manifest: Manifest, sums: dict[str, int] | None = None) -> dict[str, int]:
    """Sizes of the files whose sums are among these, by name; of all without any."""
    return {n: one.size for n, one in manifest.items() if sums is None or one.sum in sums}


def _objects(manifest: Manifest, wanted: dict[str, int]) -> dict[str, Object]:
    return {
        one.sum: Object(one.size, one.compresses) for one in manifest.values() if one.sum in wanted
    }


def _key(home: Path) -> str:
    """Names the staging folder there, so that pushes from two places do not mix.

    The name of this machine would not do: it may change with the network that it is in.
    """
    path = cache_dir() / "transfer-id"
    if not path.exists():
        write_whole(path, uuid.uuid4().hex)
    return hashlib.sha256(f"{path.read_text()} {home}".encode()).hexdigest()[:12]
