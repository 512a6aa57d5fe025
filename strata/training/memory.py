"""How much of a batch goes through at once: as much as the memory holds.

The gradient of a batch is the mean of those of its micro-batches, so their size is a matter of
memory alone. It starts at the whole share of a process, or at what the configuration says, and is
halved for as long as memory runs out.
"""

import sys

import torch
from torch.distributed.fsdp import FSDPModule

from strata.config import Config
from strata.model import Transformer
from strata.training.device import Runtime, choose_runtime
from strata.training.distributed import Processes
from strata.training.optimizer import Optimizer
from strata.training.step import LossFunction, MicroBatch, train_step


class Memory:
    """Takes updates in micro-batches that fit.

    Attributes:
        micro_batch_size: sequences of the whole context in one of them; of shorter ones as many
            more as have as many tokens.
    """

    def __init__(
        self,
        model: Transformer,
        loss_function: LossFunction,
        optimizer: Optimizer,
        config: Config,
        share: int,
    ) -> None:
        self._model, self._loss_function, self._optimizer = model, loss_function, optimizer
        self._config = config
        self._alone = True
        self.micro_batch_size = config.training.micro_batch_size or share

    def update(self, batch: MicroBatch, measure: bool = False, predicted: float = 0.0) -> float:
        """One update from a batch; the mean loss in nats.

        Args:
            measure, predicted: see `train_step`.

        Raises:
            RuntimeError: if not even one sequence fits.
        """
        pieces_in_context = self._config.model.context_length // batch[0].shape[1]
        while True:
            updates = self._optimizer.updates
            try:
                pieces = split_batch(batch, self.micro_batch_size * pieces_in_context)
                training, optimizer = self._config.training, self._optimizer
                loss = train_step(
                    self._loss_function, optimizer, pieces, training, measure, predicted
                )
                return loss.item()
            except (RuntimeError, MemoryError) as error:
                began_update = self._optimizer.updates > updates  # which cannot be done again
                if not is_out_of_memory(error) or began_update or not self._alone:
                    raise
            self._halve()

    def agree(self, processes: Processes) -> None:
        """Of several processes: find what fits on all of them, before the first step.

        During a step it would be too late, since a process that runs out of memory leaves the
        others waiting for its gradients. Of a sharded model each pass is such a step: there the
        configuration has to say what fits.

        Raises:
            RuntimeError: if not even one sequence fits, or too many are asked of a sharded model.
        """
        self._alone = processes.size == 1
        if self._alone:
            return
        runtime = choose_runtime(self._config.training)
        moments = []  # which the first update makes, and a run that goes on has already
        if runtime.device.type == "cuda" and not self._optimizer.state:
            moments = [torch.empty_like(w) for w in self._model.parameters() for _ in range(2)]
        while True:
            shape = self.micro_batch_size, self._config.model.context_length
            tokens = torch.zeros(shape, dtype=torch.long, device=runtime.device)
            try:
                with runtime.autocast():
                    loss = self._model.loss(tokens, tokens)
                loss.backward()  # type: ignore[no-untyped-call]
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if isinstance(self._model, FSDPModule):
                    raise RuntimeError(
                        f"out of memory: micro-batches of {self.micro_batch_size} sequences do not "
                        "fit beside a part of the model; set training.micro_batch_size to fewer"
                    ) from error
            self._halve()
        del moments
        self.micro_batch_size = int(processes.least(self.micro_batch_size))
        self._settle_order(runtime)

    def _settle_order(self, runtime: Runtime) -> None:
        """Go once forward and backward, so that every later sum over processes has one order.

        After its first backward pass DistributedDataParallel arranges the gradients anew, by the
        order in which they came. A run that goes on would otherwise add up the gradients of its
        first step in another order than the run that it goes on with did.
        """
        shape = self.micro_batch_size, self._config.model.context_length
        tokens = torch.zeros(shape, dtype=torch.long, device=runtime.device)
        with runtime.autocast():
            loss = self._loss_function(tokens, tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.zero_grad(set_to_none=True)

    def _halve(self) -> None:
        if self.micro_batch_size == 1:
            raise RuntimeError(
                "out of memory: not even one sequence fits; lower model.context_length or take a "
                "smaller model"
            )
        self.micro_batch_size //= 2
        self._optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(
            f"out of memory: micro-batches of {self.micro_batch_size} sequences from here on; the "
            f"batch of {self._config.training.batch_size} stays as it is",
            file=sys.stderr,
        )


def split_batch(batch: MicroBatch, most: int) -> list[MicroBatch]:
    """Micro-batches of equal size, of `most` sequences or the next fewer that divide the batch."""
    rows = next(rows for rows in range(most, 0, -1) if len(batch[0]) % rows == 0)
    return list(zip(*(torch.split(tensor, rows) for tensor in batch), strict=True))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is a device's way of saying that its memory is full."""
    said = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "can't allocate memory" in said
        or "out of memory" in said
    )
