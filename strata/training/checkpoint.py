"""Checkpoints: everything a run needs to go on as if it had never stopped.

    checkpoints/step-00000100/
      model.safetensors      the weights
      training.safetensors   the optimizer's moments, and the state of PyTorch's generators
      state.json             the step, the number of updates, the loader's position, the counts
      manifest.json          the SHA-256 of each of these

A checkpoint is written under another name, synced to disk, and renamed, so that a folder of this
name is whole however the process ended. Which is the latest is decided by verifying it: a damaged
one is reported and the one before it is used. Nothing here is a pickle.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from strata.data.loader import LoaderState
from strata.model import Transformer
from strata.training.optimizer import Optimizer

FORMAT = 2


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """The folder of one checkpoint."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    run_dir: Path,
    step: int,
    model: Transformer,
    optimizer: Optimizer,
    loader: LoaderState,
    counts: dict[str, Any],
) -> Path:
    """Write the checkpoint of a step, whole or not at all, and return its folder.

    Args:
        counts: what else the trainer has to remember, as JSON can hold it.
    """
    path = checkpoint_path(run_dir, step)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    training = {"generator.cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
        training["generator.cuda"] = torch.cuda.get_rng_state(model.device)
    kept_on_cpu = []  # step counters of torch.optim, wherever the parameter is
    for parameter, moments in optimizer.state.items():
        for kind, moment in moments.items():
            key = f"{kind}.{names[id(parameter)]}"
            training[key] = moment
            if moment.device != parameter.device:
                kept_on_cpu.append(key)
    state = {
        "format": FORMAT,
        "step": step,
        "updates": optimizer.updates,
        "kept_on_cpu": kept_on_cpu,
        "loader": loader,
        "counts": counts,
    }
    safetensors.torch.save_file(model.state_dict(), partial / "model.safetensors")
    safetensors.torch.save_file(training, partial / "training.safetensors")
    (partial / "state.json").write_text(json.dumps(state, indent=1))
    manifest = {file.name: _sha256(file) for file in sorted(partial.iterdir())}
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for file in partial.iterdir():
        _sync(file)
    _sync(partial)
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
    _sync(path.parent)
    return path


def load_checkpoint(path: Path, model: Transformer, optimizer: Optimizer) -> dict[str, Any]:
    """Put a verified checkpoint's state into a model and an optimizer.

    Returns:
        The rest: "step", "counts", and "loader" for `Loader.load_state_dict`.
    """
    device = model.device
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    if state["format"] != FORMAT:
        raise ValueError(f"{path}: format {state['format']}; this version reads format {FORMAT}")
    model.load_state_dict(safetensors.torch.load_file(path / "model.safetensors"))
    training = safetensors.torch.load_file(path / "training.safetensors")
    torch.set_rng_state(training.pop("generator.cpu"))
    cuda_state = training.pop("generator.cuda", None)
    if cuda_state is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda_state, device)
    parameters = dict(model.named_parameters())
    moments: dict[Tensor, dict[str, Tensor]] = {}
    for key, moment in training.items():
        kind, _, name = key.partition(".")
        place = "cpu" if key in state["kept_on_cpu"] else device
        moments.setdefault(parameters[name], {})[kind] = moment.to(place)
    optimizer.state.clear()
    optimizer.state.update(moments)
    optimizer.updates = state["updates"]
    return state


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest checkpoint whose files are all there and unaltered, or None."""
    for path in sorted((Path(run_dir) / "checkpoints").glob("step-*"), reverse=True):
        damage = find_damage(path)
        if not damage:
            return path
        print(f"{path}: {damage}; trying the checkpoint before it", file=sys.stderr)
    return None


def find_damage(path: Path) -> str:
    """What is wrong with a checkpoint, in words; empty where nothing is."""
    try:
        manifest: dict[str, str] = json.loads((path / "manifest.json").read_text())
        for name, expected in manifest.items():
            if _sha256(path / name) != expected:
                return f"{name} is not as it was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"unreadable ({error})"
    return ""


def prune_checkpoints(run_dir: Path, step: int, keep: int) -> None:
    """Delete all but the `keep` checkpoints up to `step`, and what an interrupted write left.

    A later one was found damaged, or the run would have gone on from it.
    """
    folder = run_dir / "checkpoints"
    paths = sorted(folder.glob("step-*"))
    older = [path for path in paths if path <= checkpoint_path(run_dir, step)]
    for path in [*(set(paths) - set(older[-keep:])), *folder.glob(".*.partial")]:
        shutil.rmtree(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Make the operating system write a file or folder to disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
