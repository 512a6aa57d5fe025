"""Samples while a model trains: a callback that joins generation to the training loop.

    Trainer(config, run_dir, callbacks=[SampleWriter("import torch\n")]).fit()

It has the methods that a `Trainer` calls and knows no more of it than they need.
"""

import sys
from pathlib import Path
from typing import Protocol

from strata.config import Config
from strata.evaluation.generation import generate
from strata.evaluation.scoring import Processes
from strata.model import Transformer
from strata.storage import write_whole
from strata.tokenizer import Tokenizer

_HEADING = "==== after step "


class Training(Protocol):
    """What a sampler needs to see of a trainer."""

    config: Config
    run_dir: Path
    step: int
    model: Transformer
    tokenizer: Tokenizer
    processes: Processes


class SampleWriter:
    """Writes what the model makes of a prompt to the run's `samples.txt`.

    A sample is taken every `training.sample_every` updates and after the last one. Sampling has a
    generator of its own, so that a run with samples has the weights of one without.

    A full disk or a lost folder ends the training, or not, as `training.on_write_failure` says.

    Args:
        prompt: what the model continues; None = a document of its own.
        max_new_tokens: length of a sample.
        temperature, top_p: as for `generate`.
    """

    on_every_process = True

    def __init__(
        self,
        prompt: str | None = None,
        max_new_tokens: int = 120,
        temperature: float = 0.7,
        top_p: float = 0.95,
    ) -> None:
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        self.temperature, self.top_p = temperature, top_p
        self._held: dict[int, str] = {}  # by step, what a full disk did not take

    def on_step(self, trainer: Training, result: object) -> None:
        """Sample at intervals."""
        training = trainer.config.training
        if training.sample_every and trainer.step % training.sample_every == 0:
            self._write(trainer)

    def on_end(self, trainer: Training) -> None:
        """Sample the finished model."""
        self._write(trainer)

    def _write(self, trainer: Training) -> None:
        # a run that went back takes some steps again
        self._held = {step: text for step, text in self._held.items() if step < trainer.step}
        text = (self.prompt or "") + generate(
            trainer.model,
            trainer.tokenizer,
            self.prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=trainer.config.training.seed,
        )
        if not trainer.processes.first:
            return
        path = trainer.run_dir / "samples.txt"
        self._held[trainer.step] = text
        try:
            before = path.read_text(encoding="utf-8") if path.is_file() else ""
            kept = [
                part
                for part in before.split(_HEADING)[1:]  # a run taken up again repeats some steps
                if int(part.partition(" ")[0]) < min(self._held)
            ]
            parts = [f"{step} ====\n{sample}\n\n" for step, sample in self._held.items()]
            write_whole(path, "".join(_HEADING + part for part in [*kept, *parts]))
            self._held.clear()
        except OSError as error:
            if trainer.config.training.on_write_failure == "stop":
                raise
            print(f"{error}: the sample is held in memory until the next", file=sys.stderr)
