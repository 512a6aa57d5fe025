"""How a run is asked to save or to stop: the signals of a person, a scheduler and a launcher.

    SIGINT    Ctrl-C, a notebook's stop button: save and stop, exit status 130
    SIGTERM   a scheduler that is about to kill, a launcher that ends its job: the same, with 143
    SIGUSR1   save and go on (not on Windows, which has no such signal)

A signal comes in the middle of anything, so a handler only notes it; the training loop looks
between two updates, where the state is whole. This module needs the standard library alone.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from strata.training.distributed import Processes

_SAVE: int | None = getattr(signal, "SIGUSR1", None)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved and the same call continues it.

    Attributes:
        signal: number of the signal that asked; a process that ends for it has status 128 + this.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = int(number)


def ignore_save_requests() -> None:
    """Do nothing on SIGUSR1 as long as there is nothing to save, instead of dying of it."""
    if _SAVE is not None and threading.current_thread() is threading.main_thread():
        signal.signal(_SAVE, signal.SIG_IGN)


class Requests:
    """What signals have asked for since the block was entered; `with requests:` listens.

    A second Ctrl-C raises KeyboardInterrupt at once, for whoever sits before the run and will not
    wait. A second SIGTERM does nothing, and nothing under torch's elastic launcher does, since
    schedulers and launchers send several. A block inside a block, and one in another thread than
    the main one, where signals do not arrive, changes nothing.

    Args:
        on_stop: called, in the handler, when the first request to stop arrives.

    Attributes:
        stop: number of the first signal that asked to stop, or 0; whoever obeys sets it back.
        save: whether a signal asked to save; likewise.
    """

    def __init__(self, on_stop: Callable[[], object] = lambda: None) -> None:
        self.stop, self.save = 0, False
        self._on_stop = on_stop
        self._depth = 0
        self._before: dict[int, Any] = {}  # the handlers to be put back

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._depth += 1
            if self._depth == 1:
                for number in (signal.SIGINT, signal.SIGTERM, _SAVE):
                    if number is not None:
                        self._before[number] = signal.signal(number, self._note)
        return self

    def take(self) -> tuple[bool, bool]:
        """Whether to stop, and whether to save, which is taken off the list."""
        save, self.save = self.save, False
        return bool(self.stop), save

    def obey(self, step: int, processes: "Processes", saved: bool) -> Interrupted:
        """What all processes are to raise after `step` since one of them was asked to stop."""
        number = max(processes.gather(self.stop))
        self.stop = 0
        state = "saved" if saved else "not saved since its last checkpoint"
        return Interrupted(f"stopped after step {step}, {state}; run again to continue", number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self._depth -= 1
            while not self._depth and self._before:
                number, handler = self._before.popitem()
                # None: a handler that was not set from Python cannot be put back from there
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == _SAVE:
            self.save = True
        elif not self.stop:
            self.stop = number
            self._on_stop()
        elif number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
