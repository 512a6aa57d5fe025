"""What a run writes down: a line of numbers a step, curves of them, and how far it has come.

`metrics.jsonl` is the record and the single truth; all else is made from it and may be made again.
What depends on the clock stands under "timing" in each line, so that two equal runs have equal
lines without it. The curves in `tensorboard/` hold every number of every line, a nested one under
the path to it (`timing/seconds`), and so do those that Weights & Biases gets where
`training.wandb_project` names a project.
"""

import json
import os
import secrets
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tqdm.auto import tqdm

from strata.config import Config
from strata.data.progress import is_live
from strata.storage import write_whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Between two lines of a log that nobody watches: an hour makes 120 of them.
SECONDS_BETWEEN_LINES = 30.0


def read_metrics(run_dir: str | Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, first step first; empty where there is none yet.

    A last line that a crash left torn is passed over. Lines beyond `last_step`, whatever a loss of
    power made of them, are not looked at.

    Raises:
        ValueError: naming a line that is damaged.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    whole = path.read_bytes().split(b"\n")[:-1]  # a whole line ends with a newline
    for number, text in enumerate(whole, start=1):
        if last_step is not None and (found[-1]["step"] if found else 0) >= last_step:
            break
        try:
            line = json.loads(text)
            line["step"] + 0
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected the numbers of a step") from error
        found.append(line)
    return found


def flatten(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line by name, nested ones by path: `{"timing/seconds": 0.1}`."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            numbers |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            numbers[prefix + name] = value
    return numbers


def write_tensorboard(run_dir: str | Path) -> Path:
    """Make a run's TensorBoard curves anew from `metrics.jsonl`, and return their folder."""
    folder = Path(run_dir) / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    with _tensorboard_writer(folder, 0) as writer:
        for line in read_metrics(run_dir):
            _add_scalars(writer, line)
    return folder


class RunLogger:
    """Writes the metrics of a run; use it as a context.

    Args:
        run_dir: the run's folder, with its `config.toml`.
        step: steps already done; lines beyond it, from before a crash, are dropped.
        max_steps: steps in all.
        progress: whether to show how far the run has come.

    Raises:
        ValueError: on entering, if `training.wandb_project` is set and wandb is not installed.
    """

    def __init__(self, run_dir: Path, step: int, max_steps: int, progress: bool) -> None:
        self._run_dir, self._step = run_dir, step
        self._max_steps, self._progress = max_steps, progress

    def __enter__(self) -> Self:
        self._wandb = _start_wandb(self._run_dir)
        self._open(self._step)
        self._shown = _Progress(self._run_dir.name, self._step, self._max_steps, self._progress)
        return self

    def log(self, line: dict[str, Any]) -> None:
        """Write one step's line, and show it; the line is in the file when this returns."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        _add_scalars(self._tensorboard, line)
        if self._wandb is not None:
            self._wandb.log(flatten(line), step=line["step"])
        self._shown.show(line)

    def sync(self) -> None:
        """Bring all lines to disk, before a checkpoint that stands on them."""
        os.fsync(self._file.fileno())

    def rewind(self, step: int) -> None:
        """Drop the lines beyond `step`, to which the run goes back.

        Weights & Biases takes nothing back: it passes over what it has of these steps already.
        """
        self._tensorboard.close()
        self._file.close()
        self._open(step)
        self._shown.rewind(step)

    def _open(self, step: int) -> None:
        path = self._run_dir / "metrics.jsonl"
        kept = read_metrics(self._run_dir, step)
        if len(kept) < step:
            print(f"{path} lacks {step - len(kept)} of the first {step} lines", file=sys.stderr)
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = _tensorboard_writer(self._run_dir / "tensorboard", step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shown.close()
        self._file.close()
        self._tensorboard.close()
        if self._wandb is not None:  # stopping a run is no failure: it can be continued
            self._wandb.finish(exit_code=int(isinstance(error, Exception)))


def _tensorboard_writer(folder: Path, step: int) -> "SummaryWriter":
    """A writer of curves that makes TensorBoard forget what it has beyond `step`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's imports warn of their own past
        from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)


def _add_scalars(writer: "SummaryWriter", line: Mapping[str, Any]) -> None:
    for name, value in flatten(line).items():
        if name != "step":
            writer.add_scalar(name, value, line["step"])


def _start_wandb(run_dir: Path) -> Any:
    """The run's Weights & Biases run, begun or continued; None if its configuration asks for none.

    Its identity rests in the run's folder. Whether it works offline, under which account and where
    to, is said by wandb's own environment variables (`WANDB_MODE=offline`).
    """
    config = Config.load(run_dir / "config.toml")
    project = config.training.wandb_project
    if not project:
        return None
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ValueError(
            f"training.wandb_project = {project!r}: expected the package wandb to be installed; "
            "pip install 'strata-workbook[wandb]'"
        ) from error
    path = run_dir / "wandb_run.txt"
    if not path.is_file():
        write_whole(path, secrets.token_hex(4))
    return wandb.init(
        project=project,
        id=path.read_text(encoding="utf-8").strip(),
        resume="allow",
        name=run_dir.name,
        config=config.to_dict(),
        dir=str(run_dir),
    )


class _Progress:
    """A bar for whoever watches, a line now and then where nobody does; a line at the end."""

    def __init__(self, name: str, step: int, max_steps: int, progress: bool) -> None:
        self._name, self._max_steps = name, max_steps
        self._progress, self._live = progress, is_live()
        self._bar = tqdm(
            total=max_steps,
            initial=step,
            unit="step",
            desc=name,
            disable=not (progress and self._live),
            mininterval=0.5,
            leave=False,
        )
        self._held_out = ""  # of the last validation
        self._first_step = step
        self._started = self._told = time.monotonic()

    def show(self, line: Mapping[str, Any]) -> None:
        timing = line["timing"]
        if "validation_bits_per_byte" in line:
            self._held_out = f", {line['validation_bits_per_byte']:.3f} bits/byte held out"
        numbers = (
            f"loss {line['loss']:.3f}{self._held_out}, {timing['tokens_per_second']:,.0f} tok/s, "
            f"{timing['utilisation']:.0%} of peak"
        )
        self._bar.set_postfix_str(numbers, refresh=False)
        self._bar.update()
        now, step = time.monotonic(), line["step"]
        last = step == self._max_steps
        due = not self._live and now - self._told >= SECONDS_BETWEEN_LINES
        if self._progress and (last or due):
            self._told = now
            self._bar.close()  # or what is left of it would stand before the line
            spent = now - self._started
            left = spent * (self._max_steps - step) / max(1, step - self._first_step)
            clock = f"in {duration(spent)}" if last else f"{duration(left)} left"
            print(
                f"{self._name}: step {step:,} of {self._max_steps:,}, {numbers}, {clock}",
                file=sys.stderr,
                flush=True,
            )

    def rewind(self, step: int) -> None:
        self._bar.n = step
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """A time, rounded, in the largest unit that says enough."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
