"""Curves made of a run's metrics: for TensorBoard, and where asked for in Weights & Biases.

Both hold every number of every line, a nested one under the path to it (`timing/seconds`). Neither
is the record, so what goes wrong with them is told and stops nothing.
"""

import secrets
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata.config import Config
from strata.storage import write_whole


def flatten(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line by name, nested ones by path: `{"timing/seconds": 0.1}`."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            numbers |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            numbers[prefix + name] = value
    return numbers


class TensorBoard:
    """An event file of TensorBoard, by which it forgets what it has beyond `step`.

    TensorBoard reads a folder's files in the order of their names and goes by that in forgetting,
    so a file is named by a number greater than all before it, whatever the clock says. It is
    written in the calling thread: a full disk is an error here, not in a thread of its own.
    """

    def __init__(self, folder: Path, step: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorBoard's imports warn of their own past
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter

        self._new_event: Any = event_pb2.Event
        folder.mkdir(parents=True, exist_ok=True)
        before = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
        numbers = [int(number) for number in before if number.isdecimal()]
        number = max([int(time.time()), *(found + 1 for found in numbers)])
        self._file = (folder / f"events.out.tfevents.{number:010d}.strata").open("xb")
        self._records: Any = RecordWriter(self._file)
        self._write(self._new_event(file_version="brain.Event:2"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(self._new_event(step=step + 1, session_log=start))

    def add(self, line: Mapping[str, Any]) -> None:
        """Write one step's numbers."""
        event = self._new_event(step=line["step"])
        for name, number in flatten(line).items():
            if name != "step":
                event.summary.value.add(tag=name, simple_value=number)
        self._write(event)

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()


class Curves:
    """All curves of a run that trains.

    Raises:
        ValueError: if `training.wandb_project` is set and wandb is not installed.
    """

    def __init__(self, run_dir: Path, config: Config, step: int) -> None:
        self._run_dir, self._step = run_dir, step
        self._tensorboard: TensorBoard | None = None
        self._wandb: Any = None
        if project := config.training.wandb_project:
            try:
                import wandb
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"training.wandb_project = {project!r}: expected the package wandb to be "
                    "installed; pip install 'strata-workbook[wandb]'"
                ) from error
            try:
                self._wandb = _start_wandb(wandb, run_dir, config)
            except Exception as error:
                self._tell_wandb(error)
        self.rewind(step)

    def add(self, line: Mapping[str, Any]) -> None:
        """Write one step's numbers."""
        self._step = line["step"]
        if self._tensorboard is not None:
            try:
                self._tensorboard.add(line)
            except OSError as error:
                self._tell_tensorboard(error)
        if self._wandb is not None:
            try:
                self._wandb.log(flatten(line), step=line["step"])
            except Exception as error:
                self._tell_wandb(error)

    def rewind(self, step: int) -> None:
        """Forget what lies beyond `step`.

        Weights & Biases takes nothing back: it passes over what it has of these steps already.
        """
        try:
            if self._tensorboard is not None:
                self._tensorboard.close()
            self._tensorboard = TensorBoard(self._run_dir / "tensorboard", step)
        except OSError as error:
            self._tell_tensorboard(error)

    def close(self, failed: bool) -> None:
        """Bring all to its end; `failed` is for Weights & Biases, which keeps it with the run."""
        if self._tensorboard is not None:
            try:
                self._tensorboard.close()
            except OSError as error:
                self._tell_tensorboard(error)
        if self._wandb is not None:
            try:
                self._wandb.finish(exit_code=int(failed))
            except Exception as error:
                self._tell_wandb(error)

    def _tell_tensorboard(self, error: OSError) -> None:
        self._tensorboard = None
        print(
            f"TensorBoard's curves end before step {self._step} ({error.strerror or error}); "
            f"strata runs {self._run_dir} --tensorboard makes them anew from the metrics",
            file=sys.stderr,
        )

    def _tell_wandb(self, error: Exception) -> None:
        self._wandb = None
        print(
            f"Weights & Biases gets no more curves of {self._run_dir} until training starts again: "
            f"{type(error).__name__}: {error}",
            file=sys.stderr,
        )


def _start_wandb(wandb: Any, run_dir: Path, config: Config) -> Any:
    """The run's Weights & Biases run, begun or continued.

    Its identity rests in the run's folder. Whether it works offline, under which account and where
    to, is said by wandb's own environment variables (`WANDB_MODE=offline`).
    """
    path = run_dir / "wandb_run.txt"
    if not path.is_file():
        write_whole(path, secrets.token_hex(4))
    return wandb.init(
        project=config.training.wandb_project,
        id=path.read_text(encoding="utf-8").strip(),
        resume="allow",
        name=run_dir.name,
        config=config.to_dict(),
        dir=str(run_dir),
    )
