"""What may be done between updates: a base class, and three that are of use.

    trainer = Trainer(config, "runs/mine", callbacks=[LivePlot(), EarlyStopping(patience=5)])

Any object with some of `Callback`'s methods will do. `strata.evaluation` has two more:
`SampleWriter` lets the model write, `TaskMonitor` scores it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from strata.training.trainer import Trainer


@dataclass(frozen=True)
class StepResult:
    """What one update gave: its number, mean loss in nats, and its line in `metrics.jsonl`."""

    step: int
    loss: float
    metrics: dict[str, Any]


class Callback:
    """What may be done between updates; override what you need.

    It is called on the first process, for whom the others wait: ten minutes during training, a day
    in `on_end`. One that runs the model sets `on_every_process`, since a model that is sharded runs
    on all processes or on none.
    """

    on_every_process = False

    def check(self, trainer: Trainer) -> None:
        """Before anything is made, when a trainer has little but its configuration.

        Raises:
            ValueError: if that asks for what cannot be done.
        """

    def on_metrics(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """After every update, before its line is written, to which it may add numbers.

        What depends on the clock belongs under `metrics["timing"]`.
        """

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        """After every update."""

    def on_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """After every validation, with the step's line of metrics."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """After a checkpoint was written to `path`, some updates after the one that it is of."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last update, when the final weights are written."""

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints are to keep of it, as JSON can hold it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept; an empty one is the start of the run."""


class EarlyStopping(Callback):
    """Stop when held-out text is no longer predicted better (Prechelt, 1998).

    A checkpoint holds the best so far, so that a run that was interrupted stops where it would have
    stopped.

    Args:
        patience: validations that may bring no improvement.
        least: improvement in bits per byte that counts as one.
    """

    def __init__(self, patience: int, least: float = 0.0) -> None:
        self.patience, self.least = patience, least
        self._best, self._waited = float("inf"), 0

    def on_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        bits = metrics["validation_bits_per_byte"]
        self._waited = 0 if bits < self._best - self.least else self._waited + 1
        self._best = min(self._best, bits)
        if self._waited >= self.patience:
            trainer.stop(
                f"no better than {self._best:.4f} bits per byte in {self._waited} validations"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._waited = state.get("best", float("inf")), state.get("waited", 0)


class LivePlot(Callback):
    """In a notebook: the loss so far, drawn anew after every validation."""

    def on_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        from IPython.display import clear_output, display
        from matplotlib import pyplot as plt

        lines = trainer.metrics
        fig, axis = plt.subplots(figsize=(7, 3.5))
        for name, label in (
            ("bits_per_byte", "training batch"),
            ("validation_bits_per_byte", "held-out text"),
        ):
            points = [(line["tokens"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points, strict=True), label=label)
        axis.set(xlabel="tokens seen", ylabel="bits per byte", xscale="log")
        axis.legend()
        clear_output(wait=True)  # type: ignore[no-untyped-call]
        display(fig)  # type: ignore[no-untyped-call]
        plt.close(fig)


class Profiler(Callback):
    """Record what some steps spend their time on.

    `RUN/profile/trace.json` opens in Perfetto or chrome://tracing; `operators.txt` is a table of
    the operators that took longest.

    Args:
        first: the first step that is recorded, from 2 on, since those before it warm up; a run
            that goes on from a later step is recorded from the next but one.
        steps: how many are.

    Raises:
        ValueError: if `first` is less than 2.
    """

    def __init__(self, first: int = 10, steps: int = 3) -> None:
        if first < 2:
            raise ValueError(f"first = {first}: expected at least 2, since the first step warms up")
        self.first, self.left = first, steps
        self._profile: torch.profiler.profile | None = None

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if self._profile is not None:
            self.left -= 1
            if not self.left:
                self.on_end(trainer)
        elif self.left and result.step >= self.first - 1:
            self._profile = torch.profiler.profile(profile_memory=True)
            self._profile.start()

    def on_end(self, trainer: Trainer) -> None:
        if self._profile is not None:
            self._profile.stop()
            folder = trainer.run_dir / "profile"
            folder.mkdir(exist_ok=True)
            self._profile.export_chrome_trace(str(folder / "trace.json"))
            on_gpu = trainer.runtime.device.type == "cuda"
            order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
            operators = self._profile.key_averages().table(sort_by=order, row_limit=30)
            (folder / "operators.txt").write_text(operators, encoding="utf-8")
            self._profile = None
