"""What a push consists of: the code as it is, the run, and the token shards that it needs."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from strata.storage import cache_dir
from strata.transfer.rules import (
    INPUTS,
    RECORD,
    Sums,
    TransferError,
    files_of,
    newest_good_checkpoint,
)

ROOT = Path(__file__).resolve().parents[2]

# Left out of a push although git does not ignore it: what looks like a key or a password.
SECRET = re.compile(
    r"(^|/)([^/]*\.env(\.[^/]*)?|\.envrc|\.netrc|\.pypirc|\.npmrc|\.htpasswd|\.pgpass"
    r"|\.git-credentials|id_(rsa|dsa|ecdsa|ed25519)[^/]*|kaggle\.json|targets\.toml"
    r"|[^/]*\.(pem|key|p12|pfx|ppk|jks|kdbx|age|gpg|tfstate)"
    r"|([^/]*[-_.])?(secret|credential|password|service[-_]account|((api|gcp|private)[-_]?key)"
    r"|((hf|my|access|auth|api)[-_]?)?token)s?(\.(txt|json|toml|ya?ml|ini))?)$"
    r"|(^|/)(\.(ssh|aws|gnupg|kube|huggingface|docker)|secrets?|credentials?)/",
    re.IGNORECASE,
)
# How a private key begins, whatever its file is called.
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def files(run_dir: Path, sums: Sums) -> tuple[dict[str, Path], list[str]]:
    """All that a push of a run sends, by the name it gets there, and what it leaves out as secret.

    Args:
        sums: what has been read of them for that.

    Raises:
        TransferError: git does not know the source tree.
    """
    source, secret = source_files(ROOT, run_dir)
    checkpoint = newest_good_checkpoint(run_dir, sums)
    run = files_of(run_dir, INPUTS + RECORD, [checkpoint] if checkpoint else [])
    cache = cache_dir()
    parts = [("code", ROOT, source), ("run", run_dir, run), ("cache", cache, shard_files(run_dir))]
    return {f"{part}/{name}": root / name for part, root, names in parts for name in names}, secret


def source_files(root: Path, run_dir: Path) -> tuple[list[str], list[str]]:
    """The files of the source tree at `root` that a push sends, and those it leaves out as secret.

    Raises:
        TransferError: git does not know the tree.
    """
    if shutil.which("git") is None:
        raise TransferError("git says what is source, and is missing here: install it")
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
    names = listed["tracked"] + new
    secret = [name for name in names if SECRET.search(name) or _holds_key(root / name)]
    return [
        name
        for name in names
        if name not in secret
        and (root / name).is_file()
        and (root / name).resolve().is_relative_to(root)
    ], secret


def shard_files(run_dir: Path) -> list[str]:
    """The token shards of a run that are in the cache here, as names relative to the cache.

    Shards are found by what the run's provenance says it was trained on. Where it says nothing, or
    they are not here, none are sent, and training makes them there.
    """
    if not (run_dir / "provenance.json").exists():
        return []
    origin = json.loads((run_dir / "provenance.json").read_text(encoding="utf-8"))
    wanted = origin["corpus"], origin["tokenizer"]
    cache, found = cache_dir(), []
    for path in (cache / "shards").glob("*/manifest.json"):
        shards = json.loads(path.read_text(encoding="utf-8"))
        if (shards["corpus_identity"], shards["tokenizer_identity"]) == wanted:
            names = ["manifest.json", *(shard["name"] for shard in shards["shards"])]
            found += [str((path.parent / name).relative_to(cache)) for name in names]
    return found


def _holds_key(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return PRIVATE_KEY.match(file.read(64)) is not None
    except OSError:
        return False


def _is_run(folder: Path) -> bool:
    return (folder / "config.toml").exists() and (folder / "provenance.json").exists()
