"""How a run is asked to stop: Ctrl-C, or the SIGTERM that a scheduler sends before it kills."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved and the same call continues it.

    Attributes:
        signal: number of the signal that asked; a process that ends for it has status 128 + this.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = int(number)


@contextmanager
def stop_requests(stop: threading.Event) -> Iterator[None]:
    """Within the block, turn the first Ctrl-C into a request: `stop` is set. A second raises."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return

    def request(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {name: signal.signal(name, request) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
