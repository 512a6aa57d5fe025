"""Cut a run's way to another machine and back at random instants: nothing is lost, nothing half.

    python benchmarks/transfer_drill.py --cuts 100

Over an sshd of its own on this machine a run goes there and comes back, again and again: each push
brings a checkpoint, a line of metrics and other code, each pull what was "trained" there since.
Meanwhile, at random, one of those is killed that take part: ssh, rsync or the process itself at
home; sshd, rsync or Python there; or all that runs there. A transfer that sees its line cut tries
again by itself, and one that was killed is started again. Whenever one has ended, either way, each
end must hold what it held before or all that was on its way; and when one has come through,
exactly what the other holds.
"""

import argparse
import datetime
import hashlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import psutil

from strata.training.device import processor_name
from strata.training.folder import code_version
from strata.transfer import Target, contents, exchange, pull, push
from strata.transfer.loopback import loopback
from strata.transfer.rules import Sums, is_good, read_history, steps_of

RECORD = Path(__file__).parent / "results" / "transfer-drill.jsonl"
# How many files of code there are, and how many of how many bytes a checkpoint has.
CODE_FILES, STATE_FILES, STATE_BYTES = 40, 3, 8_000_000
# At most so many cuts a transfer: beyond that its own attempts would be what is measured.
CUTS_AT_MOST = 4
# What is killed: who takes part, by the name of the process, and at which end.
KINDS = {
    "ssh here": ("ssh", True),
    "rsync here": ("rsync", True),
    "the process here": ("", True),
    "sshd there": ("sshd", False),
    "rsync there": ("rsync", False),
    "python there": ("python", False),
    "all there": ("", False),
}


@dataclass
class Found:
    """What a drill has found.

    cuts: processes killed, by kind. transfers: that came through, by direction.
    again: how often one had to be started again. problems: what was lost or half.
    """

    cuts: Counter[str] = field(default_factory=Counter)
    transfers: Counter[str] = field(default_factory=Counter)
    again: int = 0
    problems: list[str] = field(default_factory=list)


def drill(folder: Path, cuts: int, seed: int) -> Found:
    """Push and pull in turns until so many cuts have been made.

    Args:
        folder: where both ends lie; must not hold a drill yet.
    """
    rng, found = random.Random(seed), Found()
    home, source, far = folder / "home" / "mine", folder / "source", folder / "far"
    there_run = far / "runs" / "mine"
    _begin(home, source)
    pace = {"push": 1.5, "pull": 1.5}  # seconds; soon what an undisturbed one takes
    with (
        mock.patch.object(contents, "ROOT", source),
        mock.patch.object(exchange, "PAUSES", (0.1,) * 20),
        mock.patch.dict(os.environ, STRATA_CACHE=str(folder / "cache")),
        loopback(folder / "keys", str(far)) as there,
    ):
        push(home, there, progress=False)
        step = edit = 1
        while (left := cuts - sum(found.cuts.values())) > 0:
            way = "push" if step % 2 else "pull"
            source_run, other = (home, there_run) if way == "push" else (there_run, home)
            step += 1
            _train(source_run, step, rng)
            if way == "push":
                edit = step
                _edit(source, edit)
            wanted = min(rng.randint(1, CUTS_AT_MOST), left)
            problems: list[str] = []
            for attempt in range(3 * CUTS_AT_MOST):
                found.again += attempt > 0
                status, made = _attempt(way, home, there, wanted, pace, rng, found)
                wanted -= made
                problems += _half(other, {step - 1, step}) + _half_code(far)
                if status == 0:
                    problems += _differing(source_run, other, edit, far)
                    break
            else:
                problems.append(f"it does not come through, status {status}")
            found.transfers[way] += 1
            found.problems += [f"{way} {step}: {what}" for what in problems]
    return found


def _attempt(
    way: str,
    home: Path,
    there: Target,
    cuts: int,
    pace: dict[str, float],
    rng: random.Random,
    found: Found,
) -> tuple[int | None, int]:
    """Start a transfer and cut it at most so often; its exit status, and how often it was cut."""
    began, made = time.monotonic(), 0
    transfer = multiprocessing.get_context("fork").Process(
        target=_transfer, args=(way, home, there, home.parent.parent / "transfers.log")
    )
    transfer.start()
    while made < cuts and transfer.is_alive():
        transfer.join(rng.uniform(0.0, pace[way]))
        if struck := _strike(transfer, rng):
            found.cuts[struck] += 1
            made += 1
    transfer.join(120)
    if transfer.is_alive():
        found.problems.append(f"{way}: nothing came of it for two minutes")
        transfer.kill()
        transfer.join()
    if transfer.exitcode == 0 and not made:
        pace[way] = time.monotonic() - began
    return transfer.exitcode, made


def _transfer(way: str, home: Path, there: Target, log: Path) -> None:
    os.setsid()
    with log.open("a") as output:
        sys.stderr = output
        (push if way == "push" else pull)(home, there, progress=False)


def _strike(transfer: multiprocessing.process.BaseProcess, rng: random.Random) -> str:
    """Kill one of those that take part, and return what it was; empty if there was none."""
    try:
        here = psutil.Process(transfer.pid).children(recursive=True)
        servers = [one for one in psutil.Process().children() if one.name() == "sshd"]
        there = servers + [one for each in servers for one in each.children(recursive=True)]
        processes = {
            kind: [one for one in (here if at_home else there) if one.name().startswith(name)]
            for kind, (name, at_home) in KINDS.items()
        }
    except psutil.NoSuchProcess:
        return ""
    processes["the process here"] = [psutil.Process(transfer.pid)]
    kinds = [kind for kind in KINDS if processes[kind]]
    if not transfer.is_alive():
        return ""
    kind = rng.choice(kinds)
    for process in processes[kind] if kind == "all there" else [rng.choice(processes[kind])]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            return ""
    return kind


def _begin(home: Path, source: Path) -> None:
    home.mkdir(parents=True)
    (home / "config.toml").write_text("[training]\nmax_steps = 1_000_000\n")
    (home / "tokenizer.json").write_text("{}")
    (home / "provenance.json").write_text('{"corpus": "text", "tokenizer": "tokens"}')
    (source / "package").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", source], check=True)
    _train(home, 1, random.Random(0))
    _edit(source, 1)


def _train(run_dir: Path, step: int, rng: random.Random) -> None:
    """What training leaves: a line of metrics, then a checkpoint; one before it is dropped."""
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": 1 / step, "timing": {}}) + "\n")
    for old in list(steps_of(run_dir).values())[2:]:
        shutil.rmtree(old)
    part = run_dir / "checkpoints" / f".step-{step:08d}"
    part.mkdir(parents=True)
    files = {}
    for number in range(STATE_FILES):
        content = rng.randbytes(STATE_BYTES)
        (part / f"{number}.bin").write_bytes(content)
        files[f"{number}.bin"] = hashlib.sha256(content).hexdigest()
    (part / "manifest.json").write_text(json.dumps({"manifest": {"files": files}}))
    part.rename(run_dir / "checkpoints" / f"step-{step:08d}")


def _edit(source: Path, step: int) -> None:
    for number in range(CODE_FILES):
        (source / "package" / f"{number}.py").write_text(f"EDIT = {step}\n" + "# text\n" * 200)


def _half(run_dir: Path, allowed: set[int]) -> list[str]:
    """What is wrong with a run that was, or was not, reached by a transfer that was cut."""
    problems = []
    sums, found = Sums(), steps_of(run_dir)
    for step, checkpoint in found.items():
        if not is_good(checkpoint, sums):
            problems.append(f"checkpoint {step} is torn")
    newest = max(found, default=0)
    if newest not in allowed:
        problems.append(f"the newest checkpoint is {newest}, of {sorted(allowed)}")
    history = read_history(run_dir)
    if not history or history[-1]["step"] < newest:
        problems.append(f"the metrics end before checkpoint {newest}")
    return problems


def _half_code(far: Path) -> list[str]:
    """What is wrong with the code there: it has to be of one edit, and complete."""
    edits = [path.read_text().partition("\n")[0] for path in (far / "code").rglob("*.py")]
    whole = len(edits) == CODE_FILES and len(set(edits)) == 1
    return [] if whole else [f"the code is of {len(edits)} files and of {sorted(set(edits))}"]


def _differing(run_dir: Path, other: Path, edit: int, far: Path) -> list[str]:
    """What one end lacks of the other, or the code there of the last edit."""
    problems = [
        f"{name} differs"
        for name in ("metrics.jsonl", "config.toml")
        if (run_dir / name).read_bytes() != (other / name).read_bytes()
    ]
    newest = max(steps_of(run_dir))
    for path in steps_of(run_dir)[newest].iterdir():
        there = other / path.relative_to(run_dir)
        if not there.is_file() or there.read_bytes() != path.read_bytes():
            problems.append(f"{path.name} of checkpoint {newest} differs")
    if not (far / "code" / "package" / "0.py").read_text().startswith(f"EDIT = {edit}\n"):
        problems.append("the code there is not that of home")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = time.time_ns() % 1_000_000 if options.seed is None else options.seed
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="strata-transfer-") as name:
        found = drill(Path(name), options.cuts, seed)
    commit, dirty = code_version()
    line = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit,
        "dirty": dirty,
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "cuts": sum(found.cuts.values()),
        "struck": found.cuts,
        "transfers": found.transfers,
        "started_again": found.again,
        "problems": found.problems,
    }
    with RECORD.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))
    sys.exit(1 if found.problems else 0)


if __name__ == "__main__":
    main()
