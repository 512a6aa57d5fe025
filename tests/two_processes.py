"""A script run by torchrun on several processes, as a user would."""

import subprocess
import sys
from pathlib import Path


def run_on_processes(script: Path, text: str, count: int) -> str:
    """Write `text` to `script`, run it `count` times together, and return what was printed.

    It must not fail.
    """
    script.write_text(text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_on_two_processes(script: Path, text: str) -> str:
    """`run_on_processes` for two."""
    return run_on_processes(script, text, 2)
