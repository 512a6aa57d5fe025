"""Scripts in processes of their own, one or, by PyTorch's elastic launcher as by torchrun, several.

Importing PyTorch takes a process seconds, so all are forks of a server that has imported `warm` and
done nothing else, one for the whole session. That interpreters which start on their own do the same
is tested where `strata train --nproc`, torchrun and a cold `strata train` are.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import uuid
from pathlib import Path

import pytest
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

WARM = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Start the server if it does not run; it finds `warm` in this folder."""
    WARM.set_forkserver_preload(["warm"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()


class Started:
    """A script that runs, under the environment of the test; to be used as a `subprocess.Popen`."""

    def __init__(self, script: Path, text: str, count: int = 0) -> None:
        """Write `text` to `script` and run it, or, if `count` is given, have so many run it."""
        start_server()
        script.write_text(text)
        self._said, self._complained = script.with_suffix(".out"), script.with_suffix(".err")
        self._complained.unlink(missing_ok=True)
        options = script, count, dict(os.environ), self._said, self._complained
        self._process = WARM.Process(target=_run, args=options)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for its end, which must come in time; what it printed, and what it complained of."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.terminate()  # of a launcher, which ends those that it started
            self._process.join(60)
            self._process.kill()
            raise TimeoutError(f"still running after {timeout} s: {self._complained.read_text()}")
        return self._said.read_text(), self._complained.read_text()


def run_on_processes(script: Path, text: str, count: int) -> str:
    """Write `text` to `script`, run it `count` times together, and return what was printed.

    It must not fail.
    """
    started = Started(script, text, count)
    said, complained = started.communicate()
    assert started.returncode == 0, complained
    return said


def run_on_two_processes(script: Path, text: str) -> str:
    """`run_on_processes` for two."""
    return run_on_processes(script, text, 2)


def _run(
    script: Path, count: int, environment: dict[str, str], said: Path, complained: Path
) -> None:
    """In the process: the environment of the test, and files for what is printed."""
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((1, said), (2, complained)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if not count:
        _run_script(script)
        return
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
    elastic_launch(options, _run_script)(script)


def _run_script(script: Path) -> None:
    runpy.run_path(str(script), run_name="__main__")
