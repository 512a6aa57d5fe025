"""The training loop.

`train_step` is one update. `Trainer` repeats it, and between two updates does what a run needs:
validation, checkpoints, a line in the log. It can be run to the end or stepped through:

    trainer = Trainer(Config.preset("nano"), "runs/nano")
    for step in trainer:
        print(step.step, step.loss)

Everything that a step depends on is in the run's folder, so a run that was killed is continued by
making the same `Trainer` again; it then does what the first one would have done, bit for bit.
"""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from strata.config import Config, TrainingConfig
from strata.data import Loader, Prepared, prepare, read_windows, spread_windows
from strata.model import Transformer, bits_per_byte, count_parameters, flops_per_token
from strata.storage import write_whole
from strata.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from strata.training.device import Runtime, apply_runtime, choose_runtime, matmul_flops
from strata.training.distributed import join_processes, parallel_loss, without_averaging
from strata.training.folder import open_folder, recall_data
from strata.training.logger import RunLogger, read_metrics
from strata.training.optimizer import Optimizer, build_optimizer
from strata.training.schedule import rate_ratio


@dataclass(frozen=True)
class StepResult:
    """What one update gave: its number, mean loss in nats, and its line in `metrics.jsonl`."""

    step: int
    loss: float
    metrics: dict[str, Any]


class Callback:
    """What may be done between updates, on the first process; override what you need."""

    def on_step(self, trainer: "Trainer", result: StepResult) -> None:
        """After every update."""

    def on_validation(self, trainer: "Trainer", metrics: dict[str, Any]) -> None:
        """After every validation, with the step's line of metrics."""

    def on_checkpoint(self, trainer: "Trainer", path: Path) -> None:
        """After a checkpoint was written to `path`."""

    def on_end(self, trainer: "Trainer") -> None:
        """After the last update, when the final weights are written."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved and the same call continues it."""


def train_step(
    model: Transformer | Callable[[Tensor, Tensor], Tensor],
    optimizer: Optimizer,
    micro_batches: Sequence[tuple[Tensor, Tensor]],
    training: TrainingConfig,
) -> Tensor:
    """One update from its micro-batches, each (tokens, targets) of shape (batch, time).

    The gradient is the mean over the micro-batches, which must be of one size; how many there are
    changes the memory needed and nothing else.

    Args:
        model: the `Transformer`, or a function (tokens, targets) -> loss made from it.

    Returns:
        The mean loss in nats, a scalar.
    """
    runtime = choose_runtime(training)
    loss_function = model.loss if isinstance(model, Transformer) else model
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=runtime.device)
    for index, (tokens, targets) in enumerate(micro_batches):
        tokens = tokens.to(runtime.device, non_blocking=True)
        targets = targets.to(runtime.device, non_blocking=True)

        def accumulate(tokens: Tensor = tokens, targets: Tensor = targets) -> Tensor:
            with runtime.autocast():
                loss = loss_function(tokens, targets) / len(micro_batches)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        if index + 1 < len(micro_batches):
            with without_averaging(loss_function):
                total += accumulate()
        else:
            total += accumulate()
    optimizer.clip(training.gradient_clip)
    optimizer.step()
    return total


class Trainer:
    """Trains one model in one run folder, and continues by itself what the folder holds.

    Args:
        config: the whole configuration.
        run_dir: the run's folder; made if it is not there.
        callbacks: objects with any of the methods of `Callback`.
        progress: whether to show progress.

    Attributes:
        model, optimizer, tokenizer: as they stand after `step` updates.

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
        self.runtime: Runtime = choose_runtime(config.training)
        apply_runtime(self.runtime)
        self.processes = join_processes(self.runtime.device)
        self.progress = progress and self.processes.first
        if self.processes.first:  # the others wait, and find the cache filled
            self._open()
        self.processes.barrier()
        if not self.processes.first:
            self._open()

        torch.manual_seed(config.training.seed)
        self.model = Transformer(config.model).to(self.runtime.device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.loss_function = parallel_loss(self.model, self.processes, self.runtime.compile)
        self.step = 0
        if self.finished:
            self.step = config.training.max_steps
            weights = safetensors.torch.load_file(self.run_dir / "model.safetensors")
            self.model.load_state_dict(weights)
        elif checkpoint := latest_checkpoint(self.run_dir):
            state = load_checkpoint(checkpoint, self.model, self.optimizer)
            self.loader.load_state_dict(state["loader"])
            self.step = state["step"]
            if self.progress:
                print(f"continuing {self.run_dir} after step {self.step}", file=sys.stderr)

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
            Interrupted: after a Ctrl-C, once the state is saved. A second Ctrl-C does not wait.
        """
        for _ in self:
            pass
        return self

    def __iter__(self) -> Iterator[StepResult]:
        """Train, and yield after each update."""
        training = self.config.training
        if self.finished:
            return
        logger = RunLogger(self.run_dir, self.step, training.max_steps, self.progress)
        with _stop_requests() as stop, logger if self.processes.first else _silence() as log:
            while self.step < training.max_steps:
                result = self._train_one()
                if log is not None:
                    log.log(result.metrics)
                self._call("on_step", result)
                if "validation_loss" in result.metrics:
                    self._call("on_validation", result.metrics)
                last = self.step == training.max_steps
                due = training.checkpoint_every and self.step % training.checkpoint_every == 0
                # a signal may reach one process alone, but all of them must stop at one step
                stopping = self.processes.total(float(stop.is_set()))[0] > 0
                if (due or stopping) and not last:
                    if log is not None:
                        log.sync()
                    self._checkpoint()
                if stopping and not last:
                    raise Interrupted(f"stopped after step {self.step}; run again to continue")
                yield result
        self._finish()

    def validate(self) -> dict[str, float]:
        """Loss in nats a token and bits per byte on held-out sequences."""
        length = self.config.model.context_length
        shards = self.prepared.validation
        numbers = spread_windows(shards, self.config.training.validation_sequences, length)
        mine = numbers[self.processes.rank :: self.processes.size]
        rows = 16  # sequences a forward pass
        byte_lengths = torch.from_numpy(self.tokenizer.byte_lengths.astype(np.int64))
        nats, n_tokens, n_bytes = 0.0, 0, 0
        self.model.eval()
        for start in range(0, len(mine), rows):
            tokens, targets = read_windows(shards, mine[start : start + rows], length)
            with self.runtime.autocast():
                losses, _ = self.model.score(
                    tokens.to(self.runtime.device), targets.to(self.runtime.device)
                )
            nats += losses.cpu().double().sum().item()  # MPS has no float64
            n_tokens += targets.numel()
            n_bytes += int(byte_lengths[targets].sum())
        self.model.train()
        nats, tokens_seen, bytes_seen = self.processes.total(nats, n_tokens, n_bytes)
        return {
            "validation_loss": nats / tokens_seen,
            "validation_bits_per_byte": bits_per_byte(nats, int(bytes_seen)),
        }

    def _open(self) -> None:
        """Text, tokenizer, shards and loader, and the folder that says so."""
        config = self.config
        self.prepared: Prepared = recall_data(self.run_dir) or prepare(
            config.data, config.model.vocab_size, progress=self.progress
        )
        self.tokenizer = self.prepared.tokenizer
        self.loader = Loader(
            self.prepared.train,
            batch_size=self._share(),
            context_length=config.model.context_length,
            seed=config.training.seed,
            rank=self.processes.rank,
            world_size=self.processes.size,
        )
        if self.prepared.validation.n_tokens <= config.model.context_length:
            raise ValueError(
                f"the corpus {config.data.corpus!r} holds out "
                f"{self.prepared.validation.n_tokens} tokens: expected more than "
                f"model.context_length = {config.model.context_length}; raise "
                "data.validation_fraction or use more text"
            )
        if self.processes.first:
            open_folder(self.run_dir, config, self.prepared, self.runtime)

    def _share(self) -> int:
        """Sequences an update on this process."""
        training = self.config.training
        share, rest = divmod(training.batch_size, self.processes.size)
        micro = training.micro_batch_size or share
        if rest or share % micro:
            raise ValueError(
                f"training.batch_size = {training.batch_size}: expected a multiple of "
                f"{self.processes.size} processes times micro-batches of {micro}"
            )
        return share

    def _train_one(self) -> StepResult:
        """One update with its numbers."""
        training, started = self.config.training, time.perf_counter()
        self.step += 1
        self.model.train()
        batch = self.loader.next()
        micro = training.micro_batch_size or len(batch.tokens)
        pieces = len(batch.tokens) // micro
        micro_batches = list(
            zip(batch.tokens.chunk(pieces), batch.targets.chunk(pieces), strict=True)
        )
        ratio = rate_ratio(self.step, training)
        self.optimizer.set_rate(ratio)
        loss = train_step(self.loss_function, self.optimizer, micro_batches, training).item()
        loss = self.processes.total(loss)[0] / self.processes.size
        if not math.isfinite(loss):
            raise RuntimeError(
                f"the loss is {loss} at step {self.step}: lower optimizer.learning_rate or raise "
                "training.warmup_steps"
            )
        seconds = time.perf_counter() - started
        tokens = training.batch_size * self.config.model.context_length
        achieved = tokens * flops_per_token(self.config.model) / seconds
        metrics: dict[str, Any] = {
            "step": self.step,
            "loss": loss,
            "learning_rate": ratio * self.config.optimizer.learning_rate,
            "gradient_norm": self.optimizer.gradient_norm,
            "tokens": self.step * tokens,
        }
        timing = {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "utilisation": achieved / (matmul_flops(self.runtime) * self.processes.size),
        }
        if self.step % training.validate_every == 0 or self.step == training.max_steps:
            started = time.perf_counter()
            metrics |= self.validate()
            timing["validation_seconds"] = time.perf_counter() - started
        metrics["timing"] = timing
        return StepResult(self.step, loss, metrics)

    def _checkpoint(self) -> None:
        if self.processes.first:
            path = save_checkpoint(
                self.run_dir, self.step, self.model, self.optimizer, self.loader.state_dict()
            )
            prune_checkpoints(self.run_dir, self.step, self.config.training.keep_checkpoints)
            self._call("on_checkpoint", path)
        self.processes.barrier()

    def _finish(self) -> None:
        """Write the final weights and, as the mark of a finished run, its summary."""
        if self.processes.first:
            weights = safetensors.torch.save(self.model.state_dict())
            write_whole(self.run_dir / "model.safetensors", weights)
        self._call("on_end")
        if self.processes.first:
            write_whole(self.run_dir / "summary.json", json.dumps(self._summary(), indent=1))
        self.processes.barrier()

    def _summary(self) -> dict[str, Any]:
        config, last = self.config, self.metrics[-1]
        counts = count_parameters(config.model)
        flops = flops_per_token(config.model)
        return {
            "config_hash": config.hash(),
            "validation_bits_per_byte": last["validation_bits_per_byte"],
            "validation_loss": last["validation_loss"],
            "parameters": counts["total"],
            "body_parameters": counts["body"],
            "flops_per_token": flops,
            "tokens": last["tokens"],
            "flops": flops * last["tokens"],
            "timing": {
                name: sum(line["timing"].get(name, 0.0) for line in self.metrics)
                for name in ("seconds", "validation_seconds")
            },
        }

    def _call(self, name: str, *arguments: Any) -> None:
        for callback in self.callbacks if self.processes.first else ():
            method = getattr(callback, name, None)
            if method is not None:
                method(self, *arguments)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a request that is met after the update under way."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread alone
        return

    def request(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {name: signal.signal(name, request) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def _silence() -> Iterator[None]:
    """In place of a logger, on all processes but the first."""
    yield None
