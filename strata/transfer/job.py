"""The job that trains a run at the far end: `python -m strata.transfer.job runs/mine`.

It is part of the code that was pushed, and finds out what only the machine that trains can know:
how many GPUs there are, which on a cluster is not the machine that was asked to start it. Then it
does what `strata train --run-dir runs/mine --nproc N --restarts 3` does, in its own process, so
that a signal reaches what saves. How training ended it leaves in `job-end.json` of the run; a job
that was killed leaves nothing there, which is how that is known.
"""

import contextlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from strata.storage import write_whole

RESTARTS = 3


def choose_processes(batch_size: int, micro_batch_size: int, n_gpus: int) -> int:
    """The most processes, one a GPU, among which a batch divides into whole micro-batches.

    Args:
        batch_size: sequences of an update.
        micro_batch_size: of these at once in a process; 0 is its whole share.
        n_gpus: 0 where there is none, and then one process trains.
    """
    for n in range(n_gpus, 1, -1):
        if batch_size % (n * max(micro_batch_size, 1)) == 0:
            return n
    return 1


def train(run_dir: Path) -> None:
    """Train on every GPU here, as far as the batch divides.

    Raises:
        SystemExit: with the status of `strata train`.
        RuntimeError: this is no place to train: several nodes, or GPUs that torch cannot use.
    """
    if int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1:
        raise RuntimeError(
            f"{os.environ['SLURM_JOB_NUM_NODES']} nodes were allocated and this job trains on one: "
            "leave --nodes out of the target's sbatch options, or submit docs/slurm/train.sbatch "
            "by hand"
        )
    import torch

    n_gpus = torch.cuda.device_count()
    if not n_gpus and "CUDA_VISIBLE_DEVICES" not in os.environ and _machine_has_gpus():
        raise RuntimeError(
            f"torch {torch.__version__} cannot use the GPUs that nvidia-smi lists here: their "
            "driver is older than it takes (580 and later take every build), or it is one for "
            "processors; `export CUDA_VISIBLE_DEVICES=` in the target's setup trains without them"
        )
    n_processes = 1
    if n_gpus > 1:
        from strata.config import Config

        training = Config.load(run_dir / "config.toml").training
        batch = training.batch_size, training.micro_batch_size
        n_processes = choose_processes(*batch, n_gpus)
        if n_processes < n_gpus:
            print(
                f"training on {n_processes} of {n_gpus} GPUs: training.batch_size = {batch[0]} "
                "does not divide among more"
            )
    arguments = ["--run-dir", str(run_dir), "--nproc", str(n_processes)]
    sys.argv = ["strata", "train", *arguments, "--restarts", str(RESTARTS)]
    runpy.run_module("strata.cli", run_name="__main__")


def _machine_has_gpus() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False)
    return listed.returncode == 0 and b"GPU" in listed.stdout


def main(run_dir: Path) -> int:
    """Train a run, and leave behind how that ended; returns the exit status."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # as long as training has no handlers of its own, since there is nothing to be saved
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    (run_dir / "job-end.json").unlink(missing_ok=True)
    try:
        train(run_dir)
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        print(f"strata: {' '.join(str(error).split())}", file=sys.stderr)
        status = 1
    with contextlib.suppress(OSError):  # a full disk, which may be why training ended
        write_whole(run_dir / "job-end.json", json.dumps({"status": status, "ended": time.time()}))
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
