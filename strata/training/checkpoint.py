"""Checkpoints: everything a run needs to go on as if it had never stopped.

    checkpoints/step-00000100/
      shard-00001-model-00001-of-00002.safetensors   weights, those that the first process wrote
      shard-00001-model-00002-of-00002.safetensors   the optimizer's moments, likewise
      state.json       the step, the loader's position, counts, every process's generators
      manifest.json    format, step, configuration, and the SHA-256 of each of these files

PyTorch's distributed checkpoint decides which process writes what, so that nothing is written
twice, and puts it together again for any other number of processes; its safetensors storage says in
each file's header where a part belongs. Training waits for the copy off the device and no longer: a
thread writes the copy under another name, syncs it to disk, and renames it, so that a folder of
this name is whole however the process ended. Which is the latest is decided by verifying it: a
damaged one is reported and the one before it is used. Nothing here is a pickle.
"""

import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from strata.storage import sha256_of, sync_folder, write_whole
from strata.training.distributed import Processes

FORMAT = 3

# That there is but one process is no news here.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """The folder of one checkpoint."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


class Checkpoints:
    """Writes the checkpoints of a run and finds them again; every process calls every method.

    Args:
        run_dir: the run's folder, which all processes see.
        processes: those of the run.
        about: what the manifests say besides, as JSON can hold it; not looked at here.
        keep: checkpoints to keep, newest first.
        keep_every: steps whose multiples are kept for good; 0 = none.

    """

    def __init__(
        self,
        run_dir: Path,
        processes: Processes,
        about: dict[str, Any] | None = None,
        keep: int = 2,
        keep_every: int = 0,
    ) -> None:
        self._run_dir, self._processes, self._about = run_dir, processes, about or {}
        self._keep, self._keep_every = keep, keep_every
        # pinned memory is kept for the next copy; ordinary memory costs nothing to get again
        self._stager = BlockingAsyncStager(cache_staged_state_dict=torch.cuda.is_available())
        # a thread is on the first GPU unless it is told which is its process's own
        on_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        gpu = torch.cuda.current_device() if on_gpu else -1  # of which -1 is none
        self._thread = ThreadPoolExecutor(1, "checkpoint", torch.cuda.set_device, (gpu,))
        self._pending: Future[Path] | None = None

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        state: dict[str, Any],
        each: Any = None,
        scheduled: bool = True,
    ) -> None:
        """Begin a checkpoint, once the one before is written; it holds what is there now.

        Args:
            step: updates done.
            tensors: by names whose first part says what they are, "model" for the weights.
            state: what else the first process has to remember, as JSON can hold it.
            each: what every process has to remember for itself, likewise.
            scheduled: whether it stands in the run's plan, in which case the run may go back to
                it. Others, made because someone asked, go when the next is there.

        Raises:
            OSError: if the checkpoint before this one could not be written.
            TypeError: if JSON cannot hold `state` or `each`.
        """
        self.wait()
        # as text, in which nothing changes any more
        texts = json.dumps(state), json.dumps(each)
        staged = self._stager.stage(tensors)
        manifest = {"format": FORMAT, "step": step, "scheduled": scheduled, **self._about}
        manifest["processes"] = self._processes.size
        self._pending = self._thread.submit(
            self._write, checkpoint_path(self._run_dir, step), staged, *texts, manifest
        )

    def wait(self) -> Path | None:
        """Wait until what was begun is written, and return its folder if it is news.

        Raises:
            OSError: if it could not be written. What was there before is still there.
        """
        pending, self._pending = self._pending, None
        return pending.result() if pending is not None else None

    @property
    def written(self) -> bool:
        """Whether something was begun, has ended, and waits for `wait` to be told of."""
        return self._pending is not None and self._pending.done()

    def latest(self, scheduled: bool = False) -> Path | None:
        """The newest checkpoint whose files are all there and unaltered, or None.

        Args:
            scheduled: of those alone that stand in the run's plan.

        Raises:
            ValueError: if it has another format than this version reads, or if there are
                checkpoints and none is whole: to begin again is not this program's to decide.
            OSError: if one cannot be read, which is no damage and may pass.
        """
        found: list[Path] = self._processes.gather(_list(self._run_dir))[0]
        any_whole = False
        for path in found:
            outcomes = self._processes.gather(self._examine(path))
            if troubles := {trouble for _, trouble in outcomes if trouble}:
                raise OSError(f"{path} cannot be read: {'; '.join(sorted(troubles))}")
            damage = "; ".join(sorted({damage for damage, _ in outcomes if damage}))
            if not damage:
                manifest = read_manifest(path)
                _check_format(path, manifest)
                any_whole = True
                if manifest["scheduled"] or not scheduled:
                    return path
            elif self._processes.first:
                print(f"{path}: {damage}; trying the checkpoint before it", file=sys.stderr)
        if found and not any_whole:
            raise ValueError(
                f"{self._run_dir}: none of its checkpoints is whole; bring one back, or delete the "
                "folder checkpoints to begin again from the first step"
            )
        return None

    def _examine(self, path: Path) -> tuple[str, str]:
        """What is wrong with this process's share of a checkpoint, and with reading it."""
        try:
            return find_damage(path, self._processes.rank, self._processes.size), ""
        except OSError as error:
            return "", str(error)

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, from which a run that went back must not go on."""
        self.wait()
        if self._processes.first:
            for path in _list(self._run_dir):
                if path > checkpoint_path(self._run_dir, step):
                    shutil.rmtree(path)
        self._processes.gather(None)

    def _write(
        self,
        path: Path,
        tensors: dict[str, Tensor],
        state: str,
        each: str,
        manifest: dict[str, Any],
    ) -> Path:
        partial = path.with_name(f".{path.name}.partial")
        processes = self._processes
        try:
            self._together(lambda: _make_empty(partial) if processes.first else None)
            kinds = {name: 1 if name.startswith("model.") else 2 for name in tensors}
            self._together(
                lambda: state_dict_saver.save(
                    tensors,
                    storage_writer=HuggingFaceStorageWriter(str(partial), kinds, 1, True),
                    process_group=processes.saving,
                    no_dist=processes.size == 1,
                )
            )
            of_mine = f"shard-{processes.rank + 1:05d}-*"
            parts = self._together(
                lambda: ({file.name: sha256_of(file) for file in partial.glob(of_mine)}, each)
            )

            def complete() -> None:
                whole = json.loads(state) | {"processes": [json.loads(own) for _, own in parts]}
                write_whole(partial / "state.json", json.dumps(whole, indent=1))
                sums = {name: digest for names, _ in parts for name, digest in names.items()}
                sums["state.json"] = sha256_of(partial / "state.json")
                write_manifest(partial, manifest | {"files": dict(sorted(sums.items()))})
                shutil.rmtree(path, ignore_errors=True)
                partial.rename(path)
                sync_folder(path.parent)
                try:
                    self._prune(path, manifest["scheduled"])
                except OSError as error:  # the checkpoint is there all the same
                    print(f"an old checkpoint could not be deleted: {error}", file=sys.stderr)

            self._together(lambda: complete() if processes.first else None)
        except OSError:
            if processes.first:
                shutil.rmtree(partial, ignore_errors=True)  # it may be what fills the disk
            raise
        return path

    def _together(self, task: Callable[[], Any]) -> list[Any]:
        """Do a task on every process; its results by rank, or OSError everywhere if one failed."""
        problem, result = "", None
        try:
            result = task()
        except CheckpointException as error:
            problem = _causes(error)
        except Exception as error:  # no process may be left waiting for one that failed
            problem = str(error) or type(error).__name__
        outcomes = self._processes.gather((problem, result), self._processes.saving)
        if problems := {text for text, _ in outcomes if text}:
            raise OSError("; ".join(sorted(problems)))
        return [found for _, found in outcomes]

    def _prune(self, newest: Path, scheduled: bool) -> None:
        """Delete what `keep` and `keep_every` do not ask for, and what an interrupted write left.

        Where there is a checkpoint of a later step, it was found damaged, or the run would have
        gone on from it.
        """
        found, in_plan = _list(self._run_dir), []
        for path in found:
            with suppress(OSError, ValueError):
                if path <= newest and read_manifest(path)["scheduled"]:
                    in_plan.append(path)
        kept = {newest, *in_plan[: self._keep]}
        if self._keep_every:
            # of each so many steps the first, since one may be late; of the first so many, none
            oldest = {int(path.name[5:]) // self._keep_every: path for path in in_plan}
            kept |= {path for turn, path in oldest.items() if turn}
        for path in found:
            if path not in kept:
                shutil.rmtree(path)
        for left in newest.parent.glob(".*.partial"):
            shutil.rmtree(left)


def load_tensors(path: Path, tensors: dict[str, Tensor], processes: Processes) -> None:
    """Fill tensors from a checkpoint, each with what stands there under its name.

    The values of sharded ones are put together from whatever parts they were written in.

    Raises:
        OSError: if they cannot be read.
    """
    try:
        state_dict_loader.load(
            tensors,
            storage_reader=HuggingFaceStorageReader(str(path)),
            process_group=processes.control,
            no_dist=processes.size == 1,
        )
    except CheckpointException as error:
        raise OSError(f"{path} could not be read: {_causes(error)}") from error


def tensor_shapes(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """What tensors a checkpoint holds: by name the shape and type of the whole."""
    known: dict[str, Any] = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    return {name: (about.size, about.properties.dtype) for name, about in known.items()}


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run whose files are all there and unaltered, or None."""
    return Checkpoints(Path(run_dir), Processes()).latest()


def find_damage(path: Path, rank: int = 0, size: int = 1) -> str:
    """What is wrong with a checkpoint, in words; empty where nothing is.

    Of another format it looks at the manifest alone.

    Args:
        rank, size: look at the share of one among so many who look.

    Raises:
        OSError: if something that is there cannot be read.
    """
    try:
        manifest = read_manifest(path)
        sums = manifest["files"] if manifest["format"] == FORMAT else {}
        for name, expected in list(sums.items())[rank::size]:
            if sha256_of(path / name) != expected:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except ValueError as error:
        return str(error)
    return ""


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write a checkpoint's `manifest.json`, with the sum of its own contents."""
    content = {"manifest": manifest, "sha256": _sum_of(manifest)}
    write_whole(path / "manifest.json", json.dumps(content, indent=1))


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest, of which at least "format", "step" and "scheduled" are there.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    try:
        content = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if "manifest" not in content and all(len(digest) == 64 for digest in content.values()):
            return {"format": 2, "step": int(path.name[5:]), "scheduled": True}  # sums, and no more
        manifest: dict[str, Any] = content["manifest"]
        if _sum_of(manifest) == content["sha256"]:
            return manifest
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError("manifest.json is not as it was written")


def _check_format(path: Path, manifest: dict[str, Any]) -> None:
    if manifest["format"] != FORMAT:
        age = "a newer" if manifest["format"] > FORMAT else "an older"
        raise ValueError(
            f"{path} has format {manifest['format']}, of {age} version of Strata: expected format "
            f"{FORMAT}. Continue the run with the version that began it, or take another folder."
        )


def _causes(error: CheckpointException) -> str:
    """What went wrong, on whichever process, without its traceback."""
    return "; ".join(sorted({str(cause) for cause, _ in error.failures.values()}))


def _list(run_dir: Path) -> list[Path]:
    """All of a run's checkpoint folders, newest first."""
    return sorted((run_dir / "checkpoints").glob("step-????????"), reverse=True)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _sum_of(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
