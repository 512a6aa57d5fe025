"""What may be done between updates: a base class, and three that are of use.

    trainer = Trainer(config, "runs/mine", callbacks=[LivePlot(), EarlyStopping(patience=5)])

Any object with some of `Callback`'s methods will do. `strata.evaluation.SampleWriter` is another.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from strata.training.trainer import StepResult, Trainer


class Callback:
    """What may be done between updates, on the first process; override what you need."""

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        """After every update."""

    def on_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """After every validation, with the step's line of metrics."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """After a checkpoint was written to `path`."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last update, when the final weights are written."""


class EarlyStopping(Callback):
    """Stop when held-out text is no longer predicted better (Prechelt, 1998).

    The best so far is read from the run's metrics, so that a run that was interrupted stops where
    it would have stopped.

    Args:
        patience: validations that may bring no improvement.
        least: improvement in bits per byte that counts as one.
    """

    def __init__(self, patience: int, least: float = 0.0) -> None:
        self.patience, self.least = patience, least

    def on_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        best, waited = float("inf"), 0
        for line in trainer.metrics:
            if "validation_bits_per_byte" in line:
                found = line["validation_bits_per_byte"]
                waited = 0 if found < best - self.least else waited + 1
                best = min(best, found)
        if waited >= self.patience:
            trainer.stop(f"no better than {best:.4f} bits per byte in {waited} validations")


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
        first: the first step that is recorded; those before it warm up.
        steps: how many are.
    """

    def __init__(self, first: int = 10, steps: int = 3) -> None:
        self.first, self.last = first, first + steps - 1
        self._profile: torch.profiler.profile | None = None

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if result.step == self.first - 1:
            self._profile = torch.profiler.profile(profile_memory=True)
            self._profile.start()
        elif result.step == self.last and self._profile is not None:
            self._profile.stop()
            folder = trainer.run_dir / "profile"
            folder.mkdir(exist_ok=True)
            self._profile.export_chrome_trace(str(folder / "trace.json"))
            on_gpu = trainer.runtime.device.type == "cuda"
            order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
            operators = self._profile.key_averages().table(sort_by=order, row_limit=30)
            (folder / "operators.txt").write_text(operators, encoding="utf-8")
            self._profile = None
