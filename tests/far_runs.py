"""What the tests of transfers stand on: a source tree and runs that take no time.

The source tree that is pushed is a small git repository whose `strata` package stands in for the
trainer: it continues a run from its newest checkpoint, as the real one does, in no time.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from strata import transfer
from strata.transfer import contents
from strata.transfer.target import find_target

TRAINER = """
import hashlib, json, os, sys, time, tomllib
from pathlib import Path

run = Path(sys.argv[sys.argv.index("--run-dir") + 1])
training = tomllib.loads((run / "config.toml").read_text())["training"]
taken = sorted((run / "checkpoints").glob("step-*")) if (run / "checkpoints").exists() else []
first = int(taken[-1].name[5:]) if taken else 0
lines = (run / "metrics.jsonl").read_text().splitlines() if first else []
lines = [line for line in lines if json.loads(line)["step"] <= first]
(run / "metrics.jsonl").write_text("".join(line + chr(10) for line in lines))
for step in range(first + 1, training["max_steps"] + 1):
    time.sleep(training["seconds"])
    with (run / "metrics.jsonl").open("a") as file:
        line = {"step": step, "loss": 10 / step, "timing": {"time": time.time()}}
        file.write(json.dumps(line) + chr(10))
    folder = run / "checkpoints" / f"step-{step:08d}"
    part = folder.with_name("." + folder.name)
    part.mkdir(parents=True)
    (part / "state.json").write_text(json.dumps(step))
    sum = hashlib.sha256((part / "state.json").read_bytes()).hexdigest()
    (part / "manifest.json").write_text(json.dumps({"manifest": {"files": {"state.json": sum}}}))
    part.rename(folder)
(run / "model.safetensors").write_bytes(b"weights after %d" % step)
(run / "summary.json").write_text("{}")
(run / "seen.json").write_text(json.dumps([os.environ["STRATA_CACHE"], sys.argv[1:], __file__]))
"""


# The far machine is this one, and its Python the one of this test: nothing has to be installed.
def here(target: str, python: str = sys.executable) -> transfer.Target:
    return replace(find_target(target), python=python, environment="present")


def push(home: Path, target: str, **options) -> transfer.Transferred:
    return transfer.push(home, here(target), **options)


def run(home: Path, target: str) -> transfer.Status:
    return transfer.run(home, here(target))


def status(home: Path, target: str) -> transfer.Status:
    return transfer.status(home, here(target))


def pull(home: Path, target: str, **options) -> transfer.Transferred:
    return transfer.pull(home, here(target), **options)


FAR_NAME = '-far side\'s $HOME "x" é'


def make_source(root: Path) -> Path:
    """A source tree known to git."""
    (root / "strata").mkdir(parents=True)
    (root / "strata" / "__init__.py").touch()
    (root / "strata" / "cli.py").write_text(TRAINER)
    for name in ("storage.py", "transfer/job.py"):  # the job itself is the real one
        (root / "strata" / name).parent.mkdir(exist_ok=True)
        shutil.copy(contents.ROOT / "strata" / name, root / "strata" / name)
    (root / "strata" / "transfer" / "__init__.py").touch()
    (root / "torch.py").write_text("class cuda:\n    device_count = staticmethod(lambda: 0)\n")
    (root / ".gitignore").write_text("ignored/\n")
    subprocess.run(["git", "init", "-q", root], check=True)
    subprocess.run(["git", "-C", root, "add", "."], check=True)
    return root


def make_run(folder: Path, *, steps: int = 0, max_steps: int = 6, seconds: float = 0.0) -> Path:
    """A run as a trainer leaves it after some steps."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        f"[training]\nmax_steps = {max_steps}\nseconds = {seconds}\n"
    )
    (folder / "tokenizer.json").write_text('{"merges": 0}')
    (folder / "provenance.json").write_text('{"corpus": "aa", "tokenizer": "bb"}')
    for step in range(1, steps + 1):
        add_step(folder, step)
    return folder


def add_step(folder: Path, step: int, loss: float | None = None) -> Path:
    """One more line of metrics, and a checkpoint."""
    line = {"step": step, "loss": loss or 10 / step, "timing": {"time": time.time()}}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps(step))
    digest = hashlib.sha256((checkpoint / "state.json").read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(
        json.dumps({"manifest": {"files": {"state.json": digest}}})
    )
    return checkpoint


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    patience = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < patience, "it did not happen within a minute"
        time.sleep(0.1)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
