"""The Python that trains: an environment of the locked packages, or one that is there already."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from strata.transfer.far.folder import who_trains
from strata.transfer.rules import TransferError

# Says, in the interpreter that is asked, what it has of the packages that it is given.
VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in json.loads(sys.argv[1]):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


def prepare(folder: Path, executable: str, environment: str) -> dict[str, Any]:
    """Ready the Python that trains, and name it; what is ready already takes no time.

    Args:
        executable: a Python there.
        environment: "venv" makes folder/venv with it, or brings it up to date; "present" looks
            whether it has the packages itself.

    Raises:
        TransferError: nothing was pushed yet, or it cannot be made, or lacks something.
    """
    code = folder / "code"
    if not code.exists():
        raise TransferError("no code is there yet: push first")
    if environment == "present":
        check_packages(executable, code.resolve())
        return {"python": executable}
    return {"python": make_venv(folder, code.resolve(), executable)}


def requirements(code: Path) -> list[str]:
    """What the project's pyproject.toml depends on; nothing where there is none."""
    path = code / "pyproject.toml"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return list(tomllib.loads(text).get("project", {}).get("dependencies", []))


def check_packages(executable: str, code: Path) -> None:
    """Raise TransferError, naming each, if a Python lacks packages or has them too old."""
    oldest = {}
    for requirement in requirements(code):
        found = re.match(r"([\w.-]+)(?:\[.*?\])?(?:\s*>=\s*([\d.]+))?", requirement)
        assert found, requirement
        oldest[found[1]] = found[2] or "0"
    asked = subprocess.run(
        [executable, "-c", VERSIONS, json.dumps(list(oldest))],
        cwd=code, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise TransferError(f"{executable} there does not start: {said}")
    versions: dict[str, str | None] = json.loads(asked.stdout.splitlines()[-1])
    missing = [name for name, version in versions.items() if version is None]
    old = [
        f"{name} {version}, which has to be {oldest[name]} or later"
        for name, version in versions.items()
        if version is not None and release(version) < release(oldest[name])
    ]
    lacks = [f"lacks {', '.join(missing)}"] if missing else []
    if old:
        lacks.append(f"has {', '.join(old)}")
    if lacks:
        raise TransferError(
            f"{executable} there {' and '.join(lacks)}: install that, or let the target's "
            'environment be "venv"'
        )


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version before any letter: (2, 11) of 2.11.0a0+gpu, zeros at the end left.

    A vendor's build of what is about to become a version counts as that version.
    """
    numbers = [int(number) for number in re.match(r"[\d.]*", version)[0].split(".") if number]  # type: ignore[index]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def make_venv(folder: Path, code: Path, executable: str) -> str:
    """The Python of folder/venv, made or brought up to date with the code's locked packages.

    Its stamp is taken away before anything in it changes and comes back last; without one it is
    made from nothing, since what was interrupted may look whole and not be so.
    """
    tool = code / "tools" / "make_environment.py"
    wanted = hashlib.sha256(json.dumps(requirements(code)).encode())
    for path in (code / "constraints.txt", tool):
        wanted.update(path.read_bytes())
    venv, log = folder / "venv", folder / "venv.log"
    python, stamp = venv / "bin" / "python", venv / "strata-ready"
    (folder / ".strata").mkdir(exist_ok=True)
    with (folder / ".strata" / "environment.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = stamp.exists() and os.access(python, os.X_OK)
        if made and stamp.read_text() == wanted.hexdigest():
            return str(python)
        for run_dir in (folder / "runs").glob("*"):
            job = who_trains(run_dir)
            if job is not None and job.get("python", str(python)) == str(python):
                raise TransferError(
                    f"the environment there has to be brought up to date, and {run_dir.name} "
                    "trains with it: `strata transfer run` does it once that has ended"
                )
        stamp.unlink(missing_ok=True)
        if not made and venv.exists():
            shutil.rmtree(venv)
        with log.open("w") as output:
            # the lock is the installation's too, which goes on when whoever started it is gone
            done = subprocess.run(
                [executable, str(tool), str(venv), "--dependencies"],
                cwd=code, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                pass_fds=(lock.fileno(),), check=False,
            )  # fmt: skip
        if done.returncode:
            raise TransferError(
                f"the environment could not be made there: {complaint(log)} (all of it in {log})"
            )
        stamp.write_text(wanted.hexdigest())
    return str(python)


def complaint(log: Path) -> str:
    """What was wrong, as an installation's log says it: pip's first error, or the tool's words."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.startswith(("ERROR:", "Error:")):
            return line
        if line.startswith("make:"):
            return " ".join(lines[number:])
    return (lines or ["it said nothing"])[-1]
