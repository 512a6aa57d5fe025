"""One writer: of several processes that are given one run folder, one trains and the others stop.

The lock is the kernel's, on the file `writer.lock` of the run, so it ends with the process however
that ends and no stale one is ever left. `writer.json` beside it says who holds it, for people.
"""

import datetime
import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from strata.storage import write_whole
from strata.training.signals import Interrupted

# Seconds to wait for the lock: a process that was just killed may need them to let go of a GPU.
PATIENCE = 3.0
# What file systems answer that know no locks: Lustre and NFS, depending on how they are mounted.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


class OneWriter:
    """The right to write in a run folder: held within `with writer:`, any number of times.

    Between two blocks others may have it. So it remembers how the folder was left, and a block is
    entered only if nobody has taken the run further since, and if no training in a block ended half
    through an update. Another block of the same process, as that of a notebook's cell run twice, is
    let in.

    Args:
        run_dir: made on entering; taken away again on leaving if nothing came into it.

    Raises:
        BlockingIOError: on entering, if another process holds the folder, saying which.
        OSError: on entering, if nothing can be written there.
        ValueError: on entering, if what a Trainer holds in memory is not the run any more.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir.absolute()
        self._holder = self._folder / "writer.json"
        # a singleton: two of them on one file would shut each other out within one process
        self._lock = FileLock(
            self._folder.resolve() / "writer.lock",
            thread_local=False,
            is_singleton=True,
            fallback_to_soft=False,  # a file that would outlive a killed process
        )
        self._made = self._told = self._broken = False
        self._left: tuple[int, bytes] | None = None

    def __enter__(self) -> Self:
        try:
            try:
                self._acquire()
            except FileNotFoundError:  # another process has just taken its empty folder away
                self._acquire()
        except Timeout:
            raise BlockingIOError(
                f"{self._folder} is in use by {self._describe_holder()}: one process at a time "
                "writes a run; wait for its end, end it, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise OSError(error.errno, error.strerror, str(self._folder)) from error
            if not self._told:
                print(
                    f"{self._folder}: its file system knows no locks ({error.strerror}); see to it "
                    "yourself that one process at a time writes there",
                    file=sys.stderr,
                )
                self._told = True
        try:
            self.check()
        except ValueError:
            self._lock.release()
            raise
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        with suppress(OSError):  # a full disk is told by whoever has more to write
            write_whole(self._holder, json.dumps(holder))
        return self

    def _acquire(self) -> None:
        self._made = not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire(timeout=PATIENCE)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left = self._mark()
        if self._lock.lock_counter <= 1:
            with suppress(OSError):
                self._holder.unlink()
                # while it is locked: whoever has just opened it sees that it has no name any more
                if self._made and os.listdir(self._folder) == ["writer.lock"]:
                    (self._folder / "writer.lock").unlink()
                    self._folder.rmdir()
        self._lock.release()

    @contextmanager
    def training(self) -> Iterator[None]:
        """A block that trains: an OSError in it is raised anew with what is safe in the folder."""
        with self:
            try:
                yield
            except (Interrupted, GeneratorExit):  # both between two updates
                raise
            except BaseException as error:
                self._broken = True
                if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
                    raise  # the pipe is the terminal's
                said = f"{error.filename}: {error.strerror}" if error.filename else f"{error}"
                raise OSError(f"{said}; {self._describe_safe()}") from error

    def check(self) -> None:
        """Raise ValueError if what a Trainer holds in memory is not the run any more."""
        if self._broken:
            raise ValueError(
                f"training in {self._folder} ended in an error, perhaps half through an update: "
                "make the Trainer again to go on from the last checkpoint"
            )
        if self._left is not None and self._mark() != self._left:
            raise ValueError(
                f"{self._folder} was trained further by another process or another Trainer since "
                "this one had it: make the Trainer again to go on from there"
            )

    def _mark(self) -> tuple[int, bytes]:
        """What training changes, whoever does it: the length and the end of the metrics.

        The times in a line tell two trainings of the same steps apart.
        """
        try:
            with (self._folder / "metrics.jsonl").open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 4_096))
                return size, file.read()
        except OSError:
            return 0, b""

    def _describe_safe(self) -> str:
        try:
            os.listdir(self._folder)
        except OSError:
            return "the folder cannot be read either; run again when it is back"
        # not verified here, which may take minutes: whoever goes on from it does that
        checkpoint = max((self._folder / "checkpoints").glob("step-*"), default=None)
        where = f"from {checkpoint}" if checkpoint else "from the start, having no checkpoint yet"
        return f"run again when that is mended, to continue {where}"

    def _describe_holder(self) -> str:
        try:
            holder = json.loads(self._holder.read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
