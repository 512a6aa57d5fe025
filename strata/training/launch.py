"""Several processes of this machine, through PyTorch's elastic launcher.

    launch_training(Config.preset("small"), "runs/small")    # one process for each GPU here

The launcher's process trains nothing. It starts the others, waits, passes on the signals that it
gets, and says which process died of what; from then on, as often as it is allowed to, all are
started again and go on from the last checkpoint. Signals go through it since a process that is
stopped by one has to save, for which the launcher of PyTorch by itself leaves it 30 seconds, and
SIGUSR1 not even these. Over several nodes `torchrun … -m strata.cli train` does the same.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from strata.config import Config
from strata.training.distributed import leave_processes
from strata.training.signals import Interrupted, ignore_save_requests
from strata.training.trainer import Trainer

_STOP = (signal.SIGINT, signal.SIGTERM)
_SAVE: int | None = getattr(signal, "SIGUSR1", None)  # Windows has none
_RELAYED = (*_STOP, _SAVE) if _SAVE is not None else _STOP
# What would happen again.
_MISTAKES = ("ValueError", "FileNotFoundError", "BlockingIOError", "TypeError")
# Seconds that processes whose launcher has died get to save.
_LAST_SAVE = 600.0
# Seconds that a process waits before it fails: another may have died, of which this one's error is
# a consequence, and the launcher reports who dies first.
_COURTESY = 1.0


class _Outcome(NamedTuple):
    """What a process tells the launcher: updates done, and what stopped it, if anything did."""

    steps: int
    signal: int = 0
    message: str = ""


def launch_training(
    config: Config,
    run_dir: str | Path,
    nproc: int = 0,
    restarts: int = 0,
    callbacks: Sequence[Any] = (),
    progress: bool = True,
) -> int:
    """Train a run to its end, or go on with it, on several processes of this machine.

    Args:
        config, run_dir, callbacks, progress: as for `Trainer`; callbacks have to be picklable.
        nproc: how many; 0 = one for each GPU that is here, or one. For one without restarts this
            is `Trainer(…).fit()`.
        restarts: how often all are started again after one of them died.

    Returns:
        The updates that the run has done.

    Raises:
        Interrupted: a signal stopped it, once the state is saved.
        RuntimeError: a process died and no restart is left; says which, and of what.
        ValueError: as `Trainer`; or if another launcher has started this process already.
    """
    started = "TORCHELASTIC_RUN_ID" in os.environ
    if started and (nproc > 1 or restarts):
        raise ValueError(
            f"{nproc} processes with {restarts} restarts: expected neither where torchrun has "
            "started this process already; give the numbers to torchrun"
        )
    nproc = nproc or (1 if started else max(1, torch.cuda.device_count()))
    if nproc == 1 and not restarts:
        with _ending_with_launcher() if started else nullcontext():
            steps = Trainer(config, run_dir, callbacks, progress).fit().step
        leave_processes()
        return steps
    work = (config, Path(run_dir), callbacks, progress)
    while True:
        received: list[int] = []
        try:
            outcome = _run_processes(nproc, work, received)
        except ChildFailedError as error:
            reason = _what_happened(error, nproc)
            status = error.get_first_failure()[1].exitcode
            if stops := [int(number) for number in _STOP if status in (-number, 128 + number)]:
                raise Interrupted("stopped before it could save; run again", stops[0]) from error
            mistaken = status >= 0 and any(f" failed: {kind}: " in reason for kind in _MISTAKES)
            if mistaken:  # of the configuration or the folder, and so of no process by itself
                raise ValueError(reason.split(": ", 2)[2]) from error
            if not restarts or set(received) & set(_STOP):
                advice = "run again to continue, or let --restarts do so"
                raise RuntimeError(f"{reason}; {advice}") from error
            print(f"{reason}; starting again (restarts left: {restarts - 1})", file=sys.stderr)
            restarts -= 1
            continue
        if outcome.signal:
            stops = [number for number in [*received, outcome.signal] if number in _STOP]
            raise Interrupted(outcome.message, stops[0])
        return outcome.steps


def _run_processes(nproc: int, work: tuple[Any, ...], received: list[int]) -> _Outcome:
    """Start the processes and wait for them; `received` gets the signals that come meanwhile."""
    with tempfile.TemporaryDirectory(prefix="strata-launch-") as name, _quiet():
        folder = Path(name)
        (folder / "processes").mkdir()
        options = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port
            local_addr="localhost",
            max_restarts=0,  # `launch_training` starts again, unless a signal is what they died of
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
            signals_to_handle="SIGQUIT",
        )
        with _relay(folder / "processes", received):
            outcomes = elastic_launch(options, _work)(*work, folder / "processes")
    first: _Outcome = outcomes[0]
    return first


@contextmanager
def _relay(processes: Path, received: list[int]) -> Iterator[None]:
    """Pass the signals that come within the block on to processes that name themselves in a folder.

    Processes started within the block begin with these signals held back, until they can take them:
    none is lost on a process that is just starting, and none kills it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    over = threading.Event()

    def pass_on() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _RELAYED)  # they are held back elsewhere
        done: set[tuple[int, str]] = set()
        while not over.wait(0.1):
            for index, number in enumerate(received):
                for name in {path.name for path in processes.iterdir()}:
                    if (index, name) not in done:
                        done.add((index, name))
                        _send(int(name), number)

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    thread = threading.Thread(target=pass_on, daemon=True)
    handlers = {number: signal.signal(number, note) for number in _RELAYED}
    handlers[signal.SIGQUIT] = signal.getsignal(signal.SIGQUIT)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _RELAYED)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for number, handler in handlers.items():
            # None: a handler that was not set from Python cannot be put back from there
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _send(process: int, number: int) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return  # it has ended


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the launcher's own log off the terminal: `launch_training` says it in a line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _what_happened(error: ChildFailedError, nproc: int) -> str:
    """Which process died first, and of what, in a line."""
    rank, failure = error.get_first_failure()
    who = f"process {rank} of {nproc} (rank {rank}, pid {failure.pid})"
    if failure.exitcode < 0:
        return f"{who} was killed by {failure.signal_name()}"
    message: Any = failure.message
    if isinstance(message, dict):
        message = message["message"]
    return f"{who} failed: {' '.join(str(message).split())}"


# In each process ---------------------------------------------------------------------------------


def _work(
    config: Config, run_dir: Path, callbacks: Sequence[Any], progress: bool, processes: Path
) -> _Outcome:
    """Train, as one process of several."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    # the trainer has handlers of its own for as long as there is something to be saved
    for number in _STOP:
        signal.signal(number, stop)
    ignore_save_requests()
    (processes / str(os.getpid())).touch()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _RELAYED)
        with _ending_with_launcher():
            trainer = Trainer(config, run_dir, callbacks, progress)
            trainer.fit()
        leave_processes()
        return _Outcome(trainer.step)
    except Interrupted as interrupted:
        return _Outcome(0, interrupted.signal, str(interrupted))
    except KeyboardInterrupt:
        # there is nothing to save, and the others, who may be waiting for this process, have to
        # see that it is gone
        os._exit(128 + (asked or [signal.SIGINT])[0])
    except Exception:
        if asked:  # another process that was stopped has left this one alone
            os._exit(128 + asked[0])
        time.sleep(_COURTESY)
        raise


@contextmanager
def _ending_with_launcher() -> Iterator[None]:
    """Within the block, outlive the launcher only for as long as it takes to save."""
    finished, launcher = threading.Event(), os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1.0)
        if not finished.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            finished.wait(_LAST_SAVE)
        time.sleep(_COURTESY)
        os._exit(1)  # there is nobody left to hand a result to, which some would wait for

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        finished.set()
