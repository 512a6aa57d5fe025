"""The other end of a transfer, and the rules both ends share about what may replace what.

`strata/transfer.py` sends the text of this file through ssh to the Python of the far machine, where
`answer` does one operation and prints its result. So nothing needs to be installed there before the
first push, and this file imports the standard library alone.

A folder on the far machine, the target, serves any number of runs:

    code             a link to the source tree of the last push, under .strata/code/
    runs/<name>/     the run, as at home, with job.json and job.log of the job that trains it
    cache/           token shards (STRATA_CACHE points here)
    venv/            the environment, made by the first `run`

Both ways a transfer has three steps. Files go to a staging folder; they are held against the
SHA-256 sums of what was to be sent; only then are they renamed into place. So a cut line leaves
the run as it was, and a push that was cut while its files were being renamed is finished by
whatever is asked there next.
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
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

INPUTS = ("config.toml", "tokenizer.json", "provenance.json")
# What a run's past consists of; a push carries it so that the far end continues the same record.
RECORD = ("metrics.jsonl", "samples.txt")
RESULTS = ("model.safetensors", "summary.json", "values.json", "job.log")
RESULT_FOLDERS = ("tensorboard", "figures", "notebooks")


class TransferError(RuntimeError):
    """A transfer that could not be done: one line saying what was wrong and what to do."""


# ---- At both ends: sums, what is good, what may replace what ------------------------------------


def sum_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(staged: Path, manifest: dict[str, str]) -> list[str]:
    """Names of the manifest that are missing under `staged`, are links, or have another sum.

    Raises:
        TransferError: a name that leads out of the folder.
    """
    bad = []
    for name, expected in manifest.items():
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or not parts or "\0" in name:
            raise TransferError(f"the far end names {name!r}, outside the run: nothing was taken")
        path = staged.joinpath(*parts)
        linked = any(place.is_symlink() for place in (path, *path.parents[: len(parts) - 1]))
        if linked or not path.is_file() or sum_of(path) != expected:
            bad.append(name)
    return bad


def keep_only(staged: Path, names: Iterable[str]) -> None:
    """Remove whatever else lies under `staged`: leftovers of an earlier transfer."""
    wanted = {staged.joinpath(*PurePosixPath(name).parts) for name in names}
    for path in sorted(staged.rglob("*"), reverse=True):  # a folder's content before the folder
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # not empty: it holds something wanted
                path.rmdir()
        elif path not in wanted:
            path.unlink()


def is_good(checkpoint: Path) -> bool:
    """Whether a checkpoint folder holds what its own manifest of SHA-256 sums says."""
    try:
        sums = json.loads((checkpoint / "manifest.json").read_text())["manifest"]["files"]
        return bool(sums) and not differing(checkpoint, sums)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TransferError):
        return False


def newest_good_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint of the latest step that is whole, or None."""
    folders = (run_dir / "checkpoints").glob("step-*")
    steps = sorted(path for path in folders if re.fullmatch(r"step-\d+", path.name))
    return next((path for path in reversed(steps) if is_good(path)), None)


def run_files(run_dir: Path, names: Iterable[str], folders: Iterable[str] = ()) -> list[str]:
    """Which of these a run holds, with its newest good checkpoint; names relative to the run."""
    checkpoint = newest_good_checkpoint(run_dir)
    places = [run_dir / name for name in folders] + ([checkpoint] if checkpoint else [])
    found = [run_dir / name for name in names]
    found += [path for place in places for path in place.rglob("*")]
    return [str(path.relative_to(run_dir)) for path in found if path.is_file()]


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, first step first, without a last one that is torn."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def settled(run_dir: Path, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The part of a history that a checkpoint or the final weights stand for.

    What comes after is provisional: resuming would train those steps again.
    """
    if (run_dir / "summary.json").exists():
        return history
    checkpoint = newest_good_checkpoint(run_dir)
    last = int(checkpoint.name.removeprefix("step-")) if checkpoint else -1
    return [line for line in history if line["step"] <= last]


def without_clock(history: list[dict[str, Any]]) -> str:
    """A history as text to compare (NaN equals NaN), without what depends on the clock."""
    return json.dumps([{**line, "timing": None} for line in history], sort_keys=True)


def choose(staged: Path, run_dir: Path, *, replace_inputs: bool) -> None:
    """Delete from `staged`, a verified copy of the other end's run, what must not enter `run_dir`.

    A checkpoint that is present and good stays. When the other run is behind, nothing but
    checkpoints is taken from it. Inputs are replaced by a push to a run that has no checkpoint yet;
    otherwise they must agree.

    Raises:
        TransferError: the two are not one run: other inputs, or metrics that part ways.
    """
    ours, theirs = read_history(run_dir), read_history(staged)
    ahead = not ours or (bool(theirs) and theirs[-1]["step"] >= ours[-1]["step"])
    if ahead:
        longer, shorter = theirs, settled(run_dir, ours)
    else:
        longer, shorter = ours, settled(staged, theirs)
    if without_clock(longer[: len(shorter)]) != without_clock(shorter):
        raise TransferError(
            f"{run_dir.name} went on at both ends and their metrics differ: to keep both, pull "
            "into another folder of the same name"
        )
    fixed = not replace_inputs or bool(settled(run_dir, ours))
    for name in INPUTS:
        present, incoming = run_dir / name, staged / name
        if not (fixed and present.exists() and incoming.exists()):
            continue
        if name != "provenance.json" and present.read_bytes() != incoming.read_bytes():
            raise TransferError(
                f"the two ends hold a different {name} for {run_dir.name}: to use the one at home "
                "push it under another name, to keep the far one pull into another folder"
            )
        incoming.unlink()
    if not ahead:
        for path in [path for path in staged.rglob("*") if path.is_file()]:
            first = path.relative_to(staged).parts[0]
            if first != "checkpoints" and first not in INPUTS:
                path.unlink()
    for incoming in (staged / "checkpoints").glob("step-*"):
        present = run_dir / "checkpoints" / incoming.name
        if is_good(present):
            shutil.rmtree(incoming)
        elif present.exists():
            shutil.rmtree(present)


def place(source: Path, destination: Path) -> None:
    """Rename `source` into place: whole folders where there is none, else file by file.

    The record goes before the checkpoints, and they before the results, so that being cut off in
    between leaves a run from which the same transfer can be made again.
    """
    if source.is_dir() and destination.is_dir():
        late = {"checkpoints": 1, "model.safetensors": 2, "summary.json": 3}
        for child in sorted(source.iterdir(), key=lambda path: (late.get(path.name, 0), path.name)):
            place(child, destination / child.name)
    else:
        destination.parent.mkdir(parents=True, exist_ok=True)
        source.replace(destination)


# ---- At the far end: `answer` is asked through ssh ----------------------------------------------


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One transfer at a time in a target folder; finishes a push that was cut while switching."""
    (folder / ".strata").mkdir(parents=True, exist_ok=True)
    with (folder / ".strata" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for verified in (folder / ".strata").glob("push-*/VERIFIED"):
            switch(folder, verified.parent)
        yield


def living_job(run_dir: Path) -> dict[str, Any] | None:
    """What job.json says of the job that trains a run, or None if it does not live.

    The job holds a lock on the file as long as it lives: a stale file, or another process that got
    the same number, is never taken for it.
    """
    with contextlib.suppress(FileNotFoundError), (run_dir / "job.json").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return dict(json.loads(file.read() or "{}"))
    return None


def begin(folder: Path, name: str, key: str) -> dict[str, Any]:
    """Ready a staging folder for a push of run `name`; it is kept between attempts."""
    if shutil.which("rsync") is None:
        raise TransferError("rsync is missing there: install it (Debian: apt-get install rsync)")
    if (folder / "code").exists() and not (folder / "code").is_symlink():
        raise TransferError(f"{folder}/code is there and no push made it: name another folder")
    with locked(folder):
        refuse_if_running(folder / "runs" / name)
        for part in ("code", "run", "cache"):
            (folder / ".strata" / f"push-{key}" / part).mkdir(parents=True, exist_ok=True)
    return {"folder": str(folder)}


def refuse_if_running(run_dir: Path) -> None:
    """Raise TransferError if a job trains the run now."""
    job = living_job(run_dir)
    if job is not None:
        raise TransferError(
            f"a job is training {run_dir.name} there (process {job.get('pid', '?')} on "
            f"{job.get('host', '?')}): wait for its end, or end it there"
        )


def finish(folder: Path, name: str, key: str, manifest: dict[str, str]) -> dict[str, Any]:
    """Verify what was staged and switch to it; the names to send again, if any were damaged."""
    staged = folder / ".strata" / f"push-{key}"
    with locked(folder):
        refuse_if_running(folder / "runs" / name)
        bad = differing(staged, manifest)
        for damaged in bad:
            (staged / damaged).unlink(missing_ok=True)
        if not bad:
            keep_only(staged, manifest)
            choose(staged / "run", folder / "runs" / name, replace_inputs=True)
            code = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}"
            marker = staged / "marker"
            marker.write_text(json.dumps({"run": name, "code": code}))
            marker.replace(staged / "VERIFIED")  # from here on the push is made, come what may
            switch(folder, staged)
    return {"bad": bad}


def switch(folder: Path, staged: Path) -> None:
    """Rename a verified push into place; when cut off, calling it again does the rest."""
    marker = json.loads((staged / "VERIFIED").read_text())
    code = folder / ".strata" / "code" / marker["code"]
    for part, final in (("cache", "cache"), ("run", f"runs/{marker['run']}"), ("code", code)):
        if (staged / part).exists():
            place(staged / part, folder / final)
    link = folder / ".strata" / "code.new"
    link.unlink(missing_ok=True)
    link.symlink_to(code.relative_to(folder))
    link.replace(folder / "code")
    (staged / "VERIFIED").unlink()
    shutil.rmtree(staged)
    in_use = {str(code)}  # a job keeps the code that it was started with
    for job in (folder / "runs").glob("*/job.json"):
        in_use.add(str((living_job(job.parent) or {}).get("code")))
    for old in code.parent.iterdir():
        if str(old) not in in_use:
            shutil.rmtree(old)


def environment(folder: Path, code: Path, python: str) -> str:
    """The Python of folder/venv, made or brought up to date with the code's locked packages."""
    wanted = hashlib.sha256()
    for name in ("constraints.txt", "pyproject.toml"):
        wanted.update((code / name).read_bytes())
    venv, stamp, log = folder / "venv", folder / "venv" / "strata-ready", folder / "venv.log"
    if not stamp.exists() or stamp.read_text() != wanted.hexdigest():
        installed = str(venv / "bin" / "python")
        with log.open("w") as output:
            for command in (
                [python, "-m", "venv", str(venv)],
                [installed, "-m", "pip", "install", "-c", "constraints.txt", "-e", "."],
            ):
                made = subprocess.run(
                    command, cwd=code, stdout=output, stderr=subprocess.STDOUT, check=False
                )
                if made.returncode:
                    raise TransferError(
                        f"`{shlex.join(command[1:])}` failed there: {last_line(log)} (all of it in "
                        f"{log}; Debian and Ubuntu need the package python3-venv)"
                    )
        stamp.write_text(wanted.hexdigest())
    return str(venv / "bin" / "python")


def last_line(path: Path) -> str:
    """The last line of a text file that is not blank; nothing if there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        text = re.split(r"[\r\n]+", file.read().decode("utf-8", "replace").strip())
    return text[-1].strip()


def choose_processes(training: dict[str, Any], n_gpus: int) -> int:
    """The most processes, one a GPU, among which a batch divides into whole micro-batches.

    Args:
        training: the section of the configuration; `micro_batch_size` 0 is a process's whole share.
    """
    for n in range(n_gpus, 1, -1):
        if training["batch_size"] % (n * max(training["micro_batch_size"], 1)) == 0:
            return n
    return 1


def start(folder: Path, name: str, executable: str, prepare: bool) -> dict[str, Any]:
    """Start training detached, one process a GPU, unless a job already trains.

    The log says so when the batch leaves GPUs over.
    """
    run_dir = folder / "runs" / name
    with locked(folder):
        if not (run_dir / "config.toml").exists() or not (folder / "code").exists():
            raise TransferError(f"{name} is not there yet: push it first")
        refuse_if_running(run_dir)
        code = (folder / "code").resolve()
        if prepare:
            executable = environment(folder, code, executable)
        surroundings = os.environ | {
            "STRATA_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(code),
            "PYTHONUNBUFFERED": "1",
        }
        count = subprocess.run(
            [executable, "-c", "import torch; print(torch.cuda.device_count())"],
            cwd=code, env=surroundings, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if count.returncode:
            reason = (count.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise TransferError(f"{executable} there cannot import torch: {reason}")
        n_gpus = int(count.stdout.split()[-1])
        training = tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))["training"]
        n = choose_processes(training, n_gpus)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
        command = [executable, *(torchrun if n > 1 else []), "-m", "strata.cli", "train"]
        command += ["--run-dir", str(run_dir)]
        with (run_dir / "job.json").open("a+") as pid_file, (run_dir / "job.log").open("a") as log:
            fcntl.flock(pid_file, fcntl.LOCK_EX)
            if n < n_gpus:
                log.write(
                    f"training on {n} of {n_gpus} GPUs: training.batch_size = "
                    f"{training['batch_size']} does not divide among more\n"
                )
                log.flush()  # before the lines of the process that shares the file
            process = subprocess.Popen(
                command, cwd=code, env=surroundings, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(pid_file.fileno(),),
            )  # fmt: skip
            job = {"pid": process.pid, "host": socket.gethostname(), "code": str(code)}
            pid_file.truncate(0)
            pid_file.write(json.dumps(job | {"command": command, "started": time.time()}))
    with contextlib.suppress(subprocess.TimeoutExpired):
        if process.wait(timeout=2):
            raise TransferError(f"training ended at once there: {last_line(run_dir / 'job.log')}")
    return look(folder, name)


def look(folder: Path, name: str) -> dict[str, Any]:
    """The fields of `Status` for a run there."""
    run_dir = folder / "runs" / name
    if not run_dir.exists():
        raise TransferError(f"{name} is not there: push it first")
    job = living_job(run_dir)
    history = read_history(run_dir)
    config = tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
    return {
        "running": job is not None,
        "finished": (run_dir / "summary.json").exists(),
        "pid": (job or {}).get("pid"),
        "host": (job or {}).get("host"),
        "max_steps": config["training"]["max_steps"],
        "metrics": history[-1] if history else {},
        "last_log_line": last_line(run_dir / "job.log"),
    }


def offer(folder: Path, name: str, key: str) -> dict[str, Any]:
    """Set aside what a pull will fetch, as it is at this moment, with its sums."""
    run_dir, aside = folder / "runs" / name, folder / ".strata" / f"pull-{key}"
    if not run_dir.exists():
        raise TransferError(f"{name} is not there: push it first")
    with locked(folder):
        for attempt in (1, 2, 3):
            try:
                shutil.rmtree(aside, ignore_errors=True)
                set_aside(run_dir, aside)
                break
            except FileNotFoundError:  # training has just pruned a checkpoint
                if attempt == 3:
                    raise
        names = [path.relative_to(aside) for path in aside.rglob("*") if path.is_file()]
        return {"source": str(aside), "manifest": {str(n): sum_of(aside / n) for n in names}}


def set_aside(run_dir: Path, aside: Path) -> None:
    """Copy what home may want of a run; checkpoints, which never change, by a second name."""
    aside.mkdir(parents=True)
    for found in run_files(run_dir, INPUTS + RECORD + RESULTS, RESULT_FOLDERS):
        copy = aside / found
        copy.parent.mkdir(parents=True, exist_ok=True)
        if found.startswith("checkpoints/"):
            with contextlib.suppress(OSError):  # the file system may know no second names
                os.link(run_dir / found, copy)
        if not copy.exists():
            shutil.copy2(run_dir / found, copy)
    if (aside / "metrics.jsonl").exists():  # its last line may be half written
        lines = (aside / "metrics.jsonl").read_bytes()
        (aside / "metrics.jsonl").write_bytes(lines[: lines.rfind(b"\n") + 1])


def release(folder: Path, key: str) -> dict[str, Any]:
    """Drop what `offer` set aside."""
    shutil.rmtree(folder / ".strata" / f"pull-{key}", ignore_errors=True)
    return {}


def answer(request: dict[str, Any]) -> None:
    """Do one operation that home asks for; print its result, or what went wrong, as one line."""
    operations: dict[str, Callable[..., dict[str, Any]]] = {
        function.__name__: function for function in (begin, finish, start, look, offer, release)
    }
    try:
        folder = Path(request["folder"]).absolute()
        reply = operations[request["operation"]](folder, **request["arguments"])
    except TransferError as error:
        reply = {"error": str(error)}
    except (OSError, ValueError, KeyError) as error:
        reply = {"system_error": f"{type(error).__name__}: {error}"}
    print("\nstrata:" + json.dumps(reply))
