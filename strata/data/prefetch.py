"""Work done ahead: while one batch is used, a thread makes the next ones."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")
Call = tuple[int, int]  # the arguments of one call of `make`


class Ahead(Generic[Result]):
    """Results of `make`, called in one thread, in order, before they are asked for.

    The thread begins with the first `take` and ends with `close`, or when nobody holds this object
    any more; so `make` must not hold it.
    """

    def __init__(self, make: Callable[[int, int], Result], device: torch.device | None) -> None:
        """`device`: the GPU whose memory manager the thread is to ask for pinned memory."""
        self._make = make
        self._device = device
        self._waiting: deque[tuple[Call, Future[Result]]] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def take(self, calls: Sequence[Call]) -> Result:
        """The result of the first of `calls`; the others are begun, and expected to come next.

        What was begun and is not among them is thrown away.

        Raises:
            Exception: what `make` raised for the first of `calls`.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "prefetch", _use_device, (self._device,))
        if [call for call, _ in self._waiting] != list(calls[: len(self._waiting)]):
            self._forget()
        for call in calls[len(self._waiting) :]:
            self._waiting.append((call, self._thread.submit(self._make, *call)))
        return self._waiting.popleft()[1].result()

    def close(self) -> None:
        """End the thread; the next `take` would begin another."""
        self._forget()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _forget(self) -> None:
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()


def _use_device(device: torch.device | None) -> None:
    """A thread begins with the first GPU, whichever one its process uses."""
    if device is not None:
        torch.cuda.set_device(device)
