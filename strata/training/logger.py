"""What a run writes down: a line of numbers a step, curves for TensorBoard, and a progress bar.

`metrics.jsonl` is the record. What depends on the clock stands under "timing" in each line, so
that two equal runs have equal lines without it.
"""

import json
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm

from strata.storage import write_whole


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, first step first; empty where there is none yet.

    A last line that a crash left torn is passed over.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]  # a whole line ends with a newline


class RunLogger:
    """Writes the metrics of a run; use it as a context.

    Args:
        run_dir: the run's folder.
        step: steps already done; lines beyond it, from before a crash, are dropped.
        max_steps: steps in all.
        progress: whether to show a bar.
    """

    def __init__(self, run_dir: Path, step: int, max_steps: int, progress: bool) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._tensorboard_dir = run_dir / "tensorboard"
        self._step, self._max_steps, self._progress = step, max_steps, progress

    def __enter__(self) -> Self:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorBoard's imports warn of their own past
            from torch.utils.tensorboard import SummaryWriter

        kept = [line for line in read_metrics(self._path.parent) if line["step"] <= self._step]
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(self._tensorboard_dir), purge_step=self._step + 1)
        self._bar = tqdm(
            total=self._max_steps,
            initial=self._step,
            unit="step",
            desc=self._path.parent.name,
            disable=not self._progress,
            mininterval=0.5,
        )
        return self

    def log(self, line: dict[str, Any]) -> None:
        """Write one step's line, and show it."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        timing = line["timing"]
        for name, value in {**line, **timing}.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, line["step"])
        shown = {
            "loss": f"{line['loss']:.3f}",
            "tok/s": f"{timing['tokens_per_second']:,.0f}",
            "util": f"{timing['utilisation']:.0%}",
        }
        if "validation_bits_per_byte" in line:
            shown["val bits/byte"] = f"{line['validation_bits_per_byte']:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def sync(self) -> None:
        """Bring all lines to disk, before a checkpoint that stands on them."""
        os.fsync(self._file.fileno())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._writer.close()
        self._file.close()
