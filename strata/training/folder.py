"""One run, one folder: what it is, what it came from, and whether it is still the same run."""

import ast
import contextlib
import datetime
import functools
import hashlib
import json
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from strata.config import Config
from strata.data import Prepared, TokenShards, cache_dir, prepare
from strata.model import count_parameters, flops_per_token
from strata.storage import write_whole
from strata.tokenizer import Tokenizer
from strata.training.device import Runtime, processor_name

_PACKAGES = ("torch", "numpy", "numba", "safetensors", "pyarrow")


def recall_data(run_dir: Path) -> Prepared | None:
    """The tokenizer and shards that a run was begun with; None where the cache lacks the shards.

    A run goes on with its own text, whatever the machine it is on has installed by then.
    """
    if not (run_dir / "provenance.json").is_file():
        return None
    origin = json.loads((run_dir / "provenance.json").read_text())
    found: dict[str, TokenShards] = {}
    for split in ("train", "validation"):
        for folder in (cache_dir() / "shards").glob(f"{origin['corpus'][:16]}-*-{split}"):
            shards = TokenShards(folder)
            if (shards.corpus_identity, shards.tokenizer_identity) == (
                origin["corpus"],
                origin["tokenizer"],
            ):
                found[split] = shards
    if len(found) < 2:
        return None
    return Prepared(origin["corpus"], Tokenizer.load(run_dir / "tokenizer.json"), **found)


def begin_folder(run_dir: Path, config: Config) -> None:
    """Set up a run that will be trained elsewhere: its configuration, tokenizer and text.

    What its provenance says beyond that is added where training begins.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: as `prepare` does.
    """
    prepared = prepare(config.data, config.model.vocab_size)
    _set_up(run_dir, config, prepared, {})


def open_folder(run_dir: Path, config: Config, prepared: Prepared, runtime: Runtime) -> None:
    """Make a run's folder, or check that it belongs to this configuration, corpus and tokenizer.

    Raises:
        ValueError: if the folder holds another run, saying what differs.
    """
    path = run_dir / "provenance.json"
    origin = _origin(prepared)
    if path.is_file():
        held = Config.load(run_dir / "config.toml")
        differences = [
            f"{name} is {there!r} there and {here!r} here"
            for name, (here, there) in config.differences(held).items()
        ]
        before = json.loads(path.read_text())
        changed = [
            f"the {name} is another ({before[name][:12]} there, {here[:12]} here)"
            for name, here in origin.items()
            if before[name] != here
        ]
        if held.hash() != config.hash() or changed:
            raise ValueError(
                f"{run_dir} holds another run: {'; '.join(differences + changed)}. "
                "Choose another folder, or continue that run as it is: strata train --run-dir "
                f"{run_dir}"
            )
        if before.get("code", code_hash()) != code_hash():
            print(
                f"{run_dir} was begun by another version of the code; delete it to train anew",
                file=sys.stderr,
            )
    if not path.is_file() or "code" not in before:
        _set_up(run_dir, config, prepared, _circumstances(config, runtime))
    elif held != config:  # else a finished run that cannot be written is read
        config.save(run_dir / "config.toml")


def _set_up(
    run_dir: Path, config: Config, prepared: Prepared, circumstances: dict[str, Any]
) -> None:
    config.save(run_dir / "config.toml")
    prepared.tokenizer.save(run_dir / "tokenizer.json")
    # last, since it marks a folder that is set up
    provenance = {**_origin(prepared), **circumstances}
    write_whole(run_dir / "provenance.json", json.dumps(provenance, indent=1))


def _origin(prepared: Prepared) -> dict[str, str]:
    return {"corpus": prepared.corpus_identity, "tokenizer": prepared.tokenizer.identity}


def write_summary(
    run_dir: Path, config: Config, counts: dict[str, Any], lines: list[dict[str, Any]]
) -> None:
    """Write `summary.json`: what a finished run came to, and the mark that it is finished.

    Args:
        counts: steps, tokens, FLOPs and the like, and the last validation.
        lines: of its `metrics.jsonl`.
    """
    sizes = count_parameters(config.model)
    summary = {
        "config_hash": config.hash(),
        "parameters": sizes["total"],
        "body_parameters": sizes["body"],
        "flops_per_token": flops_per_token(config.model),
        **counts,
        "timing": {
            name: sum(line["timing"].get(name, 0.0) for line in lines)
            for name in ("seconds", "validation_seconds")
        },
    }
    write_whole(run_dir / "summary.json", json.dumps(summary, indent=1))


def _circumstances(config: Config, runtime: Runtime) -> dict[str, Any]:
    """The code, the packages, the machine and the moment."""
    commit, dirty = code_version()
    cuda = runtime.device.type == "cuda"
    return {
        "commit": commit,
        "dirty": dirty,
        "code": code_hash(),
        "config_hash": config.hash(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": processor_name(),
        "threads": runtime.threads,
        "device": torch.cuda.get_device_name() if cuda else runtime.device.type,
        "decisions": list(runtime.reasons),
    }


@functools.cache
def code_hash() -> str:
    """16 hexadecimal digits over the code that weights depend on; comments do not count.

    To parse it takes half a second, so what came of it is kept under the hash of the sources.
    """
    package = Path(__file__).parent.parent
    folders = ("tokenizer", "data", "model", "training")
    paths = [path for folder in folders for path in sorted((package / folder).glob("*.py"))]
    paths = [package / "config.py", package / "sections.py", *paths]
    sources = {path: path.read_bytes() for path in paths}
    key = hashlib.sha256(sys.version.encode())
    for path, source in sources.items():
        key.update(f"{path.name} {len(source)}\n".encode() + source)
    kept = cache_dir() / "code" / key.hexdigest()
    with contextlib.suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{16}", found := kept.read_text(encoding="utf-8")):
            return found
    digest = hashlib.sha256()
    for path, source in sources.items():
        digest.update(f"{path.name}\n{ast.dump(ast.parse(source))}\n".encode())
    with contextlib.suppress(OSError):
        write_whole(kept, digest.hexdigest()[:16])
    return digest.hexdigest()[:16]


def code_version() -> tuple[str, bool]:
    """The commit of the source tree and whether files differ from it; ("", False) outside git."""
    root = Path(__file__).parent.parent.parent
    try:
        commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain"])
        commit, status = (
            subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "", False
    return commit.strip(), bool(status.strip())
