"""A script run by PyTorch's elastic launcher on several processes, as by torchrun.

Importing PyTorch takes a process seconds, so the launcher and its processes are forks of a server
that has imported all and done nothing, one for the whole session. That interpreters which start on
their own do the same is tested where `strata train --nproc` and torchrun are.
"""

import multiprocessing
import os
import runpy
import uuid
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["strata.evaluation", "strata.training.launch", "torch._dynamo"])


def run_on_processes(script: Path, text: str, count: int) -> str:
    """Write `text` to `script`, run it `count` times together, and return what was printed.

    It must not fail.
    """
    script.write_text(text)
    said, complained = script.with_suffix(".out"), script.with_suffix(".err")
    launcher = WARM.Process(
        target=_launch, args=(script, count, dict(os.environ), said, complained)
    )
    launcher.start()
    launcher.join(240)
    if launcher.exitcode is None:
        launcher.terminate()
        launcher.join()
    assert launcher.exitcode == 0, complained.read_text()
    return said.read_text()


def run_on_two_processes(script: Path, text: str) -> str:
    """`run_on_processes` for two."""
    return run_on_processes(script, text, 2)


def _launch(
    script: Path, count: int, environment: dict[str, str], said: Path, complained: Path
) -> None:
    """In the launcher: the environment of the test that asked, and files for what is printed."""
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((1, said), (2, complained)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    options = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(options, _run)(script)


def _run(script: Path) -> None:
    runpy.run_path(str(script), run_name="__main__")
