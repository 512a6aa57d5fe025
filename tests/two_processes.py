"""A script run by torchrun on several processes, as a user would."""

import subprocess
import sys
from pathlib import Path


def run_on_processes(count: int, script: Path, text: str) -> str:
    """Write `text` to `script`, run it, and return what it printed; it must not fail."""
    script.write_text(text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_on_two_processes(script: Path, text: str) -> str:
    """`run_on_processes` with two of them."""
    return run_on_processes(2, script, text)
