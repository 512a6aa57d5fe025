"""A gigabyte to another machine and back: Strata's push and pull beside plain rsync.

    python benchmarks/transfer.py                     # two CPU cores, about two minutes

The other machine is an sshd of this one's own. What goes is this project's code, the token shards
of a run and its checkpoint. Plain rsync is `rsync -a` of the same files through the same ssh: it
sums nothing, verifies nothing, and leaves half a run there when it is cut. The two take turns, each
to an empty folder, and every time is of the wall, from the call to its return: Strata's contains
the sums at both ends and the look at the Python there. Then each goes again with nothing changed,
and brings the run home. The report goes to benchmarks/results/.
"""

import argparse
import functools
import json
import os
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from measuring import RESULTS, Seconds, machine, ratio, table, take_turns

from strata.storage import sha256_of
from strata.transfer import Target, contents, pull, push
from strata.transfer.loopback import loopback
from strata.transfer.rules import Sums
from strata.transfer.target import surroundings

OURS, PEER = "Strata", "rsync -a"
GOES, AGAIN, COMES = "goes there", "again, unchanged", "the run comes home"
MEGABYTE = 1_000_000
# The share of the bytes that are tokens; the rest is the checkpoint.
TOKENS = 0.4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="on the disk to be used; else the system's")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the report")
    options = parser.parse_args()
    seconds: dict[str, Seconds] = {stage: {OURS: [], PEER: []} for stage in (GOES, AGAIN, COMES)}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        os.environ["STRATA_CACHE"] = str(folder / "cache")
        run_dir = folder / "runs" / "mine"
        prepare(run_dir, folder / "cache", options.megabytes * MEGABYTE)
        files, _ = contents.files(run_dir, Sums())
        for path, source in files.items():  # one tree for rsync
            (folder / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / "tree" / path)
        n_bytes = sum(path.stat().st_size for path in files.values())
        run_bytes = sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file())
        with loopback(folder / "keys", str(folder / "far")) as target:
            trials: dict[str, Callable[[], object]] = {
                OURS: functools.partial(ours, target, run_dir, folder, seconds),
                PEER: functools.partial(peer, target, folder, seconds),
            }
            take_turns(trials, options.rounds)

    rates = {GOES: n_bytes, AGAIN: n_bytes, COMES: run_bytes}
    rows = [
        (
            stage,
            rates[stage] / MEGABYTE,
            statistics.median(times[OURS]),
            statistics.median(times[PEER]),
            f"{100 * ratio(times, OURS, PEER):.0f} %",
        )
        for stage, times in seconds.items()
    ]
    rsync = subprocess.run(["rsync", "--version"], capture_output=True, text=True, check=True)
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True)
    report = (
        f"# A run to another machine and back, {date.today()}\n\n"
        f"{machine(['numpy'])} rsync {rsync.stdout.split()[2]}, {ssh.stderr.split(',')[0]}. Over "
        f"loopback; shared with others; medians of {options.rounds} alternating rounds. "
        f"{len(files)} files.\n\n"
        + table(("", "MB", f"{OURS}, s", f"{PEER}, s", "of its speed"), rows)
        + "\nStrata's times contain the SHA-256 sums of every file at both ends, and the look at "
        "the environment there; not the start of Python. Targets: at least 80 % of rsync's speed "
        "there; under 3 s when nothing has changed.\n"
    )
    path = options.output / f"transfer-{date.today()}.md"
    path.write_text(report, encoding="utf-8")
    print(path)


def prepare(run_dir: Path, cache: Path, n_bytes: int) -> None:
    """A run of so many bytes: tokens, which compress as tokens do, and weights, which do not."""
    rng = np.random.default_rng(0)
    step = run_dir / "checkpoints" / "step-00000100"
    step.mkdir(parents=True)
    (run_dir / "config.toml").write_text("[training]\nmax_steps = 200\n")
    (run_dir / "tokenizer.json").write_text("{}")
    (run_dir / "provenance.json").write_text('{"corpus": "text", "tokenizer": "tokens"}')
    line = {"step": 100, "loss": 3.0, "timing": {}}
    (run_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    n_weights = int(n_bytes * (1 - TOKENS)) // 4
    weights = rng.standard_normal(n_weights, dtype=np.float32)
    (step / "state.safetensors").write_bytes(weights.tobytes())
    sums = {"state.safetensors": sha256_of(step / "state.safetensors")}
    (step / "manifest.json").write_text(json.dumps({"manifest": {"files": sums}}))
    shards = cache / "shards" / "text-tokens-train"
    shards.mkdir(parents=True)
    names = [f"shard-{number:05d}.bin" for number in range(4)]
    for name in names:
        # words are about as frequent as their rank is low (Zipf's law)
        tokens = rng.zipf(1.2, int(n_bytes * TOKENS) // 4 // len(names)) % 86_400
        (shards / name).write_bytes(tokens.astype(np.uint32).tobytes())
    about = {"corpus_identity": "text", "tokenizer_identity": "tokens"}
    about |= {"shards": [{"name": name} for name in names]}
    (shards / "manifest.json").write_text(json.dumps(about))


def ours(target: Target, run_dir: Path, folder: Path, seconds: dict[str, Seconds]) -> None:
    """One round of Strata's."""
    home = folder / "again" / run_dir.name
    for stage, transfer in (
        (GOES, lambda: push(run_dir, target, progress=False)),
        (AGAIN, lambda: push(run_dir, target, progress=False)),
        (COMES, lambda: pull(home, target, progress=False)),
    ):
        seconds[stage][OURS].append(timed(transfer))
    state = Path("checkpoints", "step-00000100", "state.safetensors")
    assert sha256_of(home / state) == sha256_of(run_dir / state)
    clear(folder)


def peer(target: Target, folder: Path, seconds: dict[str, Seconds]) -> None:
    """One round of plain rsync's."""
    far, home = f"{target.host}:{folder / 'far'}", folder / "again"
    home.mkdir()
    for stage, source, destination in (
        (GOES, f"{folder / 'tree'}/", far),
        (AGAIN, f"{folder / 'tree'}/", far),
        (COMES, f"{far}/run/", str(home)),
    ):
        command = ["rsync", "-a", "-e", shlex.join(target.ssh()), source, destination]
        copy = functools.partial(subprocess.run, command, check=True, env=surroundings())
        seconds[stage][PEER].append(timed(copy))
    clear(folder)


def timed(transfer: Callable[[], object]) -> float:
    """Seconds that it takes, once the disk has nothing left to do for what was before."""
    os.sync()
    started = time.perf_counter()
    transfer()
    return time.perf_counter() - started


def clear(folder: Path) -> None:
    """Make both ends as empty as they were."""
    shutil.rmtree(folder / "far")
    shutil.rmtree(folder / "again")


if __name__ == "__main__":
    main()
