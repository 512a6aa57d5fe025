"""Training in processes of its own, to be killed, or asked to stop, from outside.

A job is what a user types: `strata train CONFIG --run-dir RUN`, or the same under torchrun for
several processes. A cold one is exactly that, a new interpreter, and spends some 7 seconds of a
core on imports and machine code before its first step. A warm one is a fork of the process that
drills, which has imported the packages and loaded the tokenizer's machine code, but has opened no
run and done no operation of PyTorch. The fork runs the same module of the command line, and for
several processes the same elastic launcher of PyTorch, which forks its ranks in turn. That takes
about a second. In a drill the first undisturbed run starts cold and all others warm, and they have
to come to the same end. One thing differs: Linux sends SIGINT to a forked rank whose launcher dies,
as it does under `strata train --nproc`; the ranks of torchrun hear nothing.
"""

import contextlib
import importlib
import multiprocessing
import os
import random
import runpy
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from strata.drill.aims import EndedFirst
from strata.tokenizer import Tokenizer
from strata.training.folder import code_hash

# What a training process comes to import; far the most of what a cold start costs.
_PACKAGES = (
    "strata.evaluation",
    "strata.training.trainer",
    "torch._dynamo",
    "torch.distributed.launcher.api",
    "tyro",
)
# Seconds in which a job has to end once one of its processes is dead, or all are asked to stop;
# and those in which its ranks have to end once nobody is left who could end them.
SECONDS_TO_NOTICE, SECONDS_ORPHANED = 60.0, 10.0


def prepare_warm_jobs(tokenizer: Path) -> None:
    """Do once what every start would do again before it opens its run."""
    for name in _PACKAGES:
        importlib.import_module(name)
    Tokenizer.load(tokenizer)
    code_hash()


class Job:
    """One start of training; use it as a context, at whose end nothing of it is left.

    Args:
        words: of the command line, after `strata`.
        processes: how many train.
        log: a file that what they print is added to.
        warm: whether it is a fork of this process.
        cache: where prepared data rests.
    """

    def __init__(
        self, words: Sequence[str], processes: int, log: Path, warm: bool, cache: Path
    ) -> None:
        self._processes = processes
        self._process = multiprocessing.get_context("fork").Process(
            target=_train, args=(list(words), processes, log, warm, cache)
        )
        self._process.start()
        self._leader = psutil.Process(self._process.pid)

    @property
    def status(self) -> int | None:
        """What it exited with; None as long as it runs."""
        return self._process.exitcode

    def choose(self, rng: random.Random) -> None:
        """Choose what will be killed, while there is time: to find the ranks takes a while."""
        self._struck, self._doomed = "the process", [self._leader]
        self._others, self._training = self._leader.children(recursive=True), [self._leader]
        if self._processes == 1:
            return
        self._struck, self._doomed = "launcher and ranks", [self._leader, *self._others]
        self._training = sorted(self._leader.children(), key=lambda rank: rank.pid)
        kind = rng.choice(["one rank", "all ranks", "launcher", "launcher and ranks"])
        if len(self._training) < self._processes:
            return
        if kind == "one rank":
            index = rng.randrange(self._processes)
            self._struck, self._doomed = f"rank {index}", [self._training[index]]
        elif kind == "all ranks":
            self._struck, self._doomed = kind, self._training
        elif kind == "launcher":
            self._struck, self._doomed = kind, [self._leader]

    def strike(self) -> str:
        """Kill what was chosen, wait until nothing is left, and return what was killed.

        Raises:
            EndedFirst: it had ended already.
            TimeoutError: some of it was still there a minute later; 10 s where the launcher alone
                was killed.
        """
        _send(self._doomed, signal.SIGKILL)
        self._wait(SECONDS_ORPHANED if self._struck == "launcher" else SECONDS_TO_NOTICE)
        if self.status == 0 or (self._leader in self._doomed and self.status != -signal.SIGKILL):
            raise EndedFirst
        return self._struck

    def ask_to_save(self) -> None:
        """Send SIGUSR1 to all that train, as a scheduler would; after `choose`."""
        _send(self._training, signal.SIGUSR1)

    def stop(self) -> str:
        """Send SIGTERM to them, wait until nothing is left, and return what was asked.

        Raises:
            TimeoutError: some of it was still there a minute later.
        """
        _send(self._training, signal.SIGTERM)
        self._wait(SECONDS_TO_NOTICE)
        return "the process" if self._processes == 1 else "all ranks"

    def end(self) -> None:
        """Kill all of it."""
        if self.status is None:
            self._leader.suspend()  # or it might start a process that is not in the list
            self._others = self._leader.children(recursive=True)
            _send([self._leader, *self._others], signal.SIGKILL)
            self._wait(SECONDS_TO_NOTICE)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._process.join(seconds)
        while self.status is None or any(map(_lives, self._others)):
            if time.monotonic() > deadline:
                _send([self._leader, *self._others], signal.SIGKILL)
                self._process.join()
                raise TimeoutError(
                    f"some of its processes ran on for {seconds:.0f} s after others had been "
                    "killed, or all asked to stop"
                )
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


def _send(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE) and process.is_running()
    except psutil.NoSuchProcess:
        return False


def _train(words: list[str], processes: int, log: Path, warm: bool, cache: Path) -> None:
    """In the new process: become training."""
    os.setsid()  # a Ctrl-C in the drill's terminal is not for it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["STRATA_CACHE"] = str(cache)
    if not warm:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*(launcher if processes > 1 else []), "-m", "strata.cli", *words]
        os.execv(sys.executable, [sys.executable, *command])
    if processes == 1:
        _command_line(words)
    else:
        _launch(words, processes)


def _command_line(words: list[str]) -> None:
    """As `python -m strata.cli`."""
    sys.argv = ["strata", *words]
    runpy.run_module("strata.cli", run_name="__main__", alter_sys=True)


def _launch(words: list[str], processes: int) -> None:
    """What torchrun does, but for the ranks: they are forked."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=secrets.token_hex(4),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, _command_line)(words)
