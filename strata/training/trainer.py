"""The training loop.

`train_step`, in the file beside this one, is one update. `Trainer` repeats it, and between two
updates does what a run needs: validation, checkpoints, a line in the log, a step back when the loss
has left its course. It can be run to the end or stepped through:

    trainer = Trainer(Config.preset("nano"), "runs/nano")
    for step in trainer:
        print(step.step, step.loss)

Everything that a step depends on is in the run's folder, so a run that was killed is continued by
making the same `Trainer` again; it then does what the first one would have done, bit for bit.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from strata.config import Config
from strata.data import IGNORED, Prepared, prepare
from strata.model import Transformer, bits_per_byte, flops_per_token
from strata.model.float8 import use_float8
from strata.storage import write_whole
from strata.training.batches import next_batch, open_loader, share_of_batch
from strata.training.callbacks import StepResult
from strata.training.checkpoint import Checkpoints
from strata.training.device import (
    Runtime,
    apply_runtime,
    choose_runtime,
    matmul_flops,
    peak_flops,
    peak_memory,
)
from strata.training.distributed import join_processes, parallel_loss, spread
from strata.training.folder import open_folder, recall_data, write_summary
from strata.training.guard import Diverged, SpikeGuard, are_finite
from strata.training.lock import OneWriter
from strata.training.logger import RunLogger, read_metrics
from strata.training.memory import Memory
from strata.training.optimizer import build_optimizer
from strata.training.schedule import schedule_at
from strata.training.sharding import load_weights, whole_weights
from strata.training.signals import Requests
from strata.training.state import begin_again, restore_run, run_identity, run_state, seed_all
from strata.training.validation import check_held_out, validate


class Trainer:
    """Trains one model in one run folder, and continues by itself what the folder holds.

    Args:
        config: the whole configuration.
        run_dir: the run's folder; made if it is not there.
        callbacks: objects with any of the methods of `Callback`.
        progress: whether to show progress.

    Attributes:
        model, optimizer, tokenizer: as they stand after `step` updates.
        best: [step, bits per byte] of the best validation so far; empty before the first.

    Raises:
        ValueError: if the folder holds another run, or the corpus is smaller than one batch.
    """

    def __init__(
        self,
        config: Config,
        run_dir: str | Path,
        callbacks: Sequence[Any] = (),
        progress: bool = True,
    ) -> None:
        self.config, self.run_dir, self.callbacks = config, Path(run_dir), callbacks
        self.runtime: Runtime = choose_runtime(config.training, config.model)
        apply_runtime(self.runtime)
        self.processes = join_processes(self.runtime)
        self._call("check")
        self.progress = progress and self.processes.first
        self.requests, self._writer = Requests(), OneWriter(self.run_dir)
        if self.processes.first:  # the others wait, and find the cache filled
            with nullcontext() if self.finished else self._writer:
                self._open()
        self.processes.long_barrier()
        if not self.processes.first:
            self._open()

        self.model = self.new_model()
        if self.runtime.float8 and (left := use_float8(self.model)) and self.progress:
            print(f"in bfloat16, not float8, for their sizes: {', '.join(left)}", file=sys.stderr)
        self.model = spread(self.model, self.runtime)
        self.optimizer = build_optimizer(
            self.model, config.optimizer, self.runtime.compile, self.runtime.dtype
        )
        self.loss_function = parallel_loss(self.model, self.processes, self.runtime)
        share = share_of_batch(config.training, self.processes)
        self.memory = Memory(self.model, self.loss_function, self.optimizer, config, share)
        self.guard = SpikeGuard(config.training)
        self.step = self.tokens = 0
        self.flops = 0.0
        self.stopped = ""
        self.wasted_flops = 0.0
        self.best: list[float] = []
        self._held = 0.0  # seconds for which saving held up training since the last line
        self.due = False  # a checkpoint, which may have to wait until the loss is itself again
        self._validated: tuple[int, dict[str, float]] = 0, {}
        if self.finished:
            summary = json.loads((self.run_dir / "summary.json").read_text())
            self.step, self.tokens = summary["steps"], summary["tokens"]
            self.flops, self.stopped = summary["flops"], summary["stopped"]
            path = self.run_dir / "model.safetensors"
            load_weights(self.model, safetensors.torch.load_file(path))
            return
        self.checkpoints = Checkpoints(
            self.run_dir,
            self.processes,
            run_identity(self),
            config.training.keep_checkpoints,
            config.training.keep_every,
        )
        if checkpoint := self.checkpoints.latest():
            self.loader.load_state_dict(restore_run(self, checkpoint))
            if self.progress:
                print(f"continuing {self.run_dir} after step {self.step}", file=sys.stderr)
        self.memory.agree(self.processes)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the run's `metrics.jsonl` so far."""
        return read_metrics(self.run_dir)

    @property
    def finished(self) -> bool:
        """Whether the folder holds the final weights, and with them everything else."""
        return (self.run_dir / "summary.json").is_file()

    def fit(self) -> "Trainer":
        """Train to the end.

        Raises:
            Interrupted: after a signal that asks to stop (signals.py), once the state is saved.
            OSError: if nothing can be written any more; says what the run can go on from.
        """
        with self.requests:
            for _ in self:
                pass
        return self

    def __iter__(self) -> Iterator[StepResult]:
        """Train, and yield after each update."""
        self._writer.check()
        if not self.finished:
            with self._writer.training() if self.processes.first else nullcontext():
                yield from self._train()

    def _train(self) -> Iterator[StepResult]:
        steps = self.config.training.max_steps
        logger = RunLogger(self.run_dir, self.step, steps, self.progress)
        with logger if self.processes.first else nullcontext() as log:
            try:
                while self.step < steps and not self.stopped:
                    if result := self._advance(log):
                        yield result
            finally:  # whoever leaves the loop finds on the disk what was begun
                self._settle(stop=False)
        self.loader.close()
        self._finish()

    def stop(self, reason: str) -> None:
        """End the run after this update as if it had been the last: for callbacks."""
        self.stopped = reason

    def validate(self) -> dict[str, float]:
        """Loss in nats a token and bits per byte on held-out sequences."""
        measured = validate(
            self.model,
            self.prepared.validation,
            self.config.training.validation_sequences,
            self._byte_lengths,
            self.runtime,
            self.processes,
            self.tokenizer.document_separator if self.config.data.document_masks else None,
        )
        self._validated = self.step, measured
        return measured

    def _open(self) -> None:
        """Text, tokenizer, shards and loader, and the folder that says so."""
        config = self.config
        self.prepared: Prepared = recall_data(self.run_dir) or prepare(
            config.data, config.model.vocab_size, progress=self.progress
        )
        self.tokenizer = self.prepared.tokenizer
        self._byte_lengths = torch.from_numpy(self.tokenizer.byte_lengths.astype(np.int64))
        self.loader = open_loader(config, self.prepared, self.processes, self.runtime)
        check_held_out(self.prepared.validation, config)
        if self.processes.first:
            open_folder(self.run_dir, config, self.prepared, self.runtime)

    def new_model(self) -> Transformer:
        """The model as the seed makes it, on the CPU; random numbers after this follow it too."""
        seed_all(self.config.training.seed)
        elsewhere = self.runtime.parallelism.sharded and not self.processes.first
        with torch.device("meta" if elsewhere else "cpu"):
            return Transformer(self.config.model)

    def _advance(self, log: RunLogger | None) -> StepResult | None:
        """One update and all that follows from it; None if the guard sent the run back instead."""
        training = self.config.training
        with self.requests:
            result = self._train_one()
            if wrong := self.guard.judge(result.loss, result.metrics["gradient_norm"]):
                self._go_back(wrong, log)
                return None
            self._call("on_metrics", result.metrics)
            if log is not None:
                log.log(result.metrics)
            self._call("on_step", result)
            if "validation_loss" in result.metrics:
                measured = [self.step, result.metrics["validation_bits_per_byte"]]
                self.best = min(self.best or measured, measured, key=lambda found: found[1])
                self._call("on_validation", result.metrics)
            # a signal or a callback reaches one process, but all of them must stop at one step
            stopped, leave, save, written = self.processes.total(
                bool(self.stopped), *self.requests.take(), self.checkpoints.written
            )
            if stopped and not self.stopped:
                self.stopped = "by another process"
            last = self.step == training.max_steps or bool(self.stopped)
            every = training.checkpoint_every
            self.due |= bool(every and self.step % every == 0)
            if (self.due or leave or save or last) and not are_finite(self.model):
                self.requests.save |= bool(save)
                self._go_back("a weight is no number", log)
                return None
            if written == self.processes.size:
                self._settle()
            scheduled = self.due and not self.guard.suspicious
            if (scheduled or leave or save) and not last:
                self._save(scheduled, log)
            if save and self.progress:
                print(f"asked to save: saving after step {self.step}, going on", file=sys.stderr)
            if leave and not last:
                raise self.requests.obey(self.step, self.processes, saved=self._settle())
        return result

    def _train_one(self) -> StepResult:
        """One update with its numbers."""
        training, started = self.config.training, time.perf_counter()
        self.step += 1
        self.model.train()
        separator = self.tokenizer.document_separator
        batch = next_batch(
            self.loader, self.step, self.config, self.processes, self.runtime, separator
        )
        targets = batch[1][batch[1] != IGNORED]
        predicted, n_bytes = self.processes.total(
            float(targets.numel()), float(self._byte_lengths[targets].sum())
        )
        settings = schedule_at(self.step, self.config)
        self.optimizer.set_schedule(settings)
        measure = bool(training.measure_every) and self.step % training.measure_every == 0
        mine = self.memory.update(batch, measure, predicted / self.processes.size)
        loss = self.processes.total(mine)[0] / self.processes.size
        seconds = time.perf_counter() - started
        tokens = batch[0].numel() * self.processes.size
        model = dataclasses.replace(self.config.model, context_length=batch[0].shape[1])
        flops = tokens * flops_per_token(model)
        self.tokens += tokens
        self.flops += flops
        metrics: dict[str, Any] = {
            "step": self.step,
            "loss": loss,
            "bits_per_byte": bits_per_byte(loss * predicted, int(n_bytes)),
            "learning_rate": settings.rate_ratio * self.config.optimizer.learning_rate,
            "momentum": settings.momentum,
            "weight_decay_ratio": settings.decay_ratio,
            "gradient_norm": self.optimizer.gradient_norm,
            "tokens": self.tokens,
        }
        if measure:
            metrics["roles"] = self.optimizer.measures
        timing = {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "utilisation": flops / seconds / (matmul_flops(self.runtime) * self.processes.size),
            "memory_bytes": peak_memory(self.runtime.device),
        }
        if self._held:
            timing["checkpoint_seconds"], self._held = self._held, 0.0
        if peak := peak_flops(self.runtime):
            timing["peak_utilisation"] = flops / seconds / (peak * self.processes.size)
        if self.step % training.validate_every == 0 or self.step == training.max_steps:
            started = time.perf_counter()
            metrics |= self.validate()
            timing["validation_seconds"] = time.perf_counter() - started
        metrics["timing"] = timing
        return StepResult(self.step, loss, metrics)

    def _go_back(self, wrong: str, log: RunLogger | None) -> None:
        """Return to the last good state, and leave out the data read since.

        Raises:
            Diverged: if the run has gone back `training.max_rollbacks` times already.
        """
        where, rollbacks = self.step, self.guard.rollbacks + 1
        spent = self.flops + self.wasted_flops
        if rollbacks > self.config.training.max_rollbacks:
            raise Diverged(
                f"{wrong} at step {where}: lower optimizer.learning_rate or raise "
                "training.warmup_steps"
            )
        self._settle()
        checkpoint = self.checkpoints.latest(scheduled=True)
        every = self.config.training.checkpoint_every
        if checkpoint is None and every and where > every:  # those of the plan are gone
            checkpoint = self.checkpoints.latest()
        if checkpoint is not None:
            restore_run(self, checkpoint)
        else:
            begin_again(self)
        self.checkpoints.forget_after(self.step)
        self.guard.rollbacks = rollbacks
        self.wasted_flops = spent - self.flops
        self.due, self.stopped = False, ""
        if log is not None:
            log.rewind(self.step)
        if self.processes.first:
            print(
                f"{wrong} at step {where}: back to step {self.step}, and on without the batches "
                "that came after it",
                file=sys.stderr,
            )

    def _save(self, scheduled: bool, log: RunLogger | None) -> None:
        """Begin a checkpoint of this step, if the lines up to it are on disk."""
        started = time.perf_counter()
        self._settle()
        if all(self.processes.gather(log is None or log.sync())):
            self.due &= not scheduled
            self.checkpoints.save(self.step, *run_state(self), scheduled)
        self._held += time.perf_counter() - started

    def _settle(self, stop: bool = True) -> bool:
        """Wait for the checkpoint that is being written, if any, and say what became of it.

        Returns:
            Whether one has been written.

        Raises:
            OSError: if it could not be, `stop` is true, and the configuration says to stop then.
        """
        try:
            path = self.checkpoints.wait()
        except OSError as error:
            problem = f"a checkpoint of {self.run_dir} could not be written ({error})"
            if stop and self.config.training.on_write_failure == "stop":
                raise OSError(problem) from error
            if self.processes.first:
                print(f"{problem}; training goes on without it", file=sys.stderr)
            return False
        if path is not None:
            self._call("on_checkpoint", path)
        return path is not None

    def _finish(self) -> None:
        """Write the final weights and, as the mark of a finished run, its summary."""
        step, measured = self._validated
        if step != self.step:
            measured = self.validate()
        weights = whole_weights(self.model)
        if self.processes.first:
            write_whole(self.run_dir / "model.safetensors", safetensors.torch.save(weights))
        self._call("on_end")
        if self.processes.first:
            counts = {
                "steps": self.step,
                "stopped": self.stopped,
                "rollbacks": self.guard.rollbacks,
                "best": self.best,
                "tokens": self.tokens,
                "flops": self.flops,
                "wasted_flops": self.wasted_flops,
            }
            write_summary(self.run_dir, self.config, counts | measured, self.metrics)
        self.processes.long_barrier()

    def _call(self, name: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            if self.processes.first or getattr(callback, "on_every_process", False):
                getattr(callback, name, lambda *_: None)(self, *arguments)
