"""A push is taken in, and what a pull will fetch is set aside."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strata.transfer.far.folder import locked, refuse_if_running, switch, untrained
from strata.transfer.incoming import rsync_works
from strata.transfer.receiving import (
    Manifest,
    assemble,
    check,
    check_room,
    describe,
    is_whole,
    lacking,
    ready,
)
from strata.transfer.rules import (
    ABOUT,
    INPUTS,
    RECORD,
    WEIGHTS,
    Sums,
    TransferError,
    choose,
    files_of,
    is_good,
    is_of_run,
    newest_good_checkpoint,
    steps_of,
)

SUMS = Sums()  # of one conversation


def begin(
    folder: Path,
    name: str,
    key: str,
    manifest: dict[str, list[Any]],
    rsync: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """What a push of run `name` has to carry, and where to; what came of it before is kept.

    Args:
        key: of the place that pushes.
        manifest: names begin with code/, run/ or cache/.
        rsync: whether home has it.
        dry_run: find out, and make nothing.
    """
    if (folder / "code").exists() and not (folder / "code").is_symlink():
        raise TransferError(f"{folder}/code is there and no push made it: name another folder")
    refuse_if_running(folder / "runs" / name)
    incoming, expected = folder / ".strata" / f"push-{key}" / "incoming", check(manifest, _of_push)
    rsync = rsync and rsync_works()
    if not dry_run:
        with locked(folder):  # which finishes a push that was cut
            ready(expected, incoming, SUMS)
    wanted = lacking(expected, incoming, _known(folder, name), SUMS)
    if not dry_run:
        check_room(expected, wanted, incoming)
    return {"folder": str(folder), "incoming": str(incoming), "lacking": wanted, "rsync": rsync}


def _of_push(name: str) -> bool:
    part, _, rest = name.partition("/")
    return part in ("code", "cache") or (part == "run" and is_of_run(rest))


def _known(folder: Path, name: str) -> Callable[[str], Path]:
    """Where in the target folder the file of a manifest's name lies, if it is there already."""
    places = {"code": folder / "code", "run": folder / "runs" / name, "cache": folder / "cache"}

    def known(path: str) -> Path:
        part, _, rest = path.partition("/")
        return places.get(part, folder / ".strata" / "none") / rest

    return known


def finish(folder: Path, name: str, key: str, manifest: dict[str, list[Any]]) -> dict[str, Any]:
    """Verify what arrived and switch to it; or the names of what did not arrive whole."""
    staged, expected = folder / ".strata" / f"push-{key}", check(manifest, _of_push)
    tree = staged / "tree"
    run_dir = folder / "runs" / name
    with locked(folder), untrained(run_dir):
        bad = assemble(expected, staged / "incoming", _known(folder, name), tree, SUMS)
        if not bad:
            choose(tree / "run", run_dir, SUMS, replace_inputs=True)
            code = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}"
            if _is_code(folder / "code", expected):
                shutil.rmtree(tree / "code")
                code = (folder / "code").resolve().name
            with (staged / "marker").open("w") as marker:
                marker.write(json.dumps({"run": name, "code": code}))
                marker.flush()
                os.fsync(marker.fileno())
            # from here on the push is made, come what may
            (staged / "marker").replace(staged / "VERIFIED")
            switch(folder, staged)
    return {"bad": bad}


def _is_code(code: Path, manifest: Manifest) -> bool:
    """Whether the code there is that of the manifest; what running it left there does not count."""
    wanted = {name[5:]: entry for name, entry in manifest.items() if name.startswith("code/")}
    code = code.resolve()
    there = {str(path.relative_to(code)) for path in code.rglob("*.py")}
    return there <= wanted.keys() and all(
        is_whole(code / name, entry, SUMS) for name, entry in wanted.items()
    )


def offer(
    folder: Path, name: str, key: str, checkpoints: str | list[int], token: str, dry_run: bool
) -> dict[str, Any]:
    """Set aside what a pull will fetch, as it is at this moment, and say what that is.

    Args:
        checkpoints: "newest", "all", "none", or the steps of those that are asked for.
        token: of the pull; one that asks again after the line was cut gets what it got before.
        dry_run: say what it would be, and make nothing.
    """
    run_dir, aside = folder / "runs" / name, folder / ".strata" / f"pull-{key}"
    if not run_dir.exists():
        raise TransferError(f"{name} is not there: push it first")
    if dry_run:
        paths = {one: run_dir / one for one in _wanted(run_dir, checkpoints)}
        return {"manifest": describe(paths, SUMS)}
    with locked(folder):
        about = aside / f"manifest-{token}.json"
        if not about.exists():
            manifest = _set_aside(run_dir, aside, checkpoints)
            about.write_text(json.dumps(manifest))
        return {
            "manifest": json.loads(about.read_text()),
            "outgoing": str(aside / "outgoing"),
            "rsync": rsync_works(),
        }


def _wanted(run_dir: Path, checkpoints: str | list[int]) -> list[str]:
    """The files of a run that home wants, checkpoints first: its metrics are never behind them."""
    found = steps_of(run_dir)
    if isinstance(checkpoints, list):
        if lost := [step for step in checkpoints if step not in found]:
            there = ", ".join(map(str, sorted(found))) or "none"
            raise TransferError(
                f"no checkpoint of step {lost[0]} is there; of these there are: {there}"
            )
        chosen = [found[step] for step in checkpoints]
        if torn := [path.name for path in chosen if not is_good(path, SUMS)]:
            raise TransferError(f"{torn[0]} of {run_dir.name} is damaged there: ask for another")
    elif checkpoints == "newest":
        newest = newest_good_checkpoint(run_dir, SUMS)
        chosen = [newest] if newest else []
    else:
        chosen = [path for path in found.values() if checkpoints == "all" and is_good(path, SUMS)]
    return files_of(run_dir, [], chosen) + files_of(
        run_dir, INPUTS + RECORD + WEIGHTS + ABOUT, [run_dir / name for name in ABOUT]
    )


def _set_aside(run_dir: Path, aside: Path, checkpoints: str | list[int]) -> Manifest:
    """Copy what home wants; checkpoints, which never change, by a second name."""
    for attempt in (1, 2, 3):
        try:
            shutil.rmtree(aside, ignore_errors=True)
            (aside / "outgoing").mkdir(parents=True)
            copies = {}
            for number, name in enumerate(_wanted(run_dir, checkpoints)):
                copies[name] = aside / str(number)
                if name.startswith("checkpoints/"):
                    with contextlib.suppress(OSError):  # the file system may know no second names
                        os.link(run_dir / name, copies[name])
                if not copies[name].exists():
                    shutil.copy2(run_dir / name, copies[name])
            break
        except FileNotFoundError:  # training has just pruned a checkpoint
            if attempt == 3:
                raise
    if metrics := copies.get("metrics.jsonl"):  # its last line may be half written
        lines = metrics.read_bytes()
        metrics.write_bytes(lines[: lines.rfind(b"\n") + 1])
    manifest = describe(copies, SUMS)
    for name, entry in manifest.items():
        copies[name].replace(aside / "outgoing" / entry.sum)
    return manifest


def release(folder: Path, key: str) -> dict[str, Any]:
    """Drop what `offer` set aside."""
    shutil.rmtree(folder / ".strata" / f"pull-{key}", ignore_errors=True)
    return {}
