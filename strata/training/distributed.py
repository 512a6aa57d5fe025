"""Many processes, one run: PyTorch's own data parallelism, started by torchrun.

    torchrun --nproc-per-node 8 -m strata.cli train small --run-dir runs/small

Each process holds the whole model, sees its share of every batch, and DistributedDataParallel
averages the gradients while the backward pass runs. One process is the same code without it.
"""

import atexit
import datetime
import functools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from strata.model import Transformer


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        control: a gloo group of all of them, for what is not on a GPU; None for one process.
        saving: another, for the thread that writes checkpoints while training goes on.
    """

    rank: int = 0
    size: int = 1
    control: Any = None
    saving: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def total(self, *values: float) -> list[float]:
        """The sums of the values over all processes."""
        return self._combine(values, dist.ReduceOp.SUM)

    def least(self, value: float) -> float:
        """The smallest value that any process has."""
        return self._combine([value], dist.ReduceOp.MIN)[0]

    def gather(self, value: Any, group: Any = None) -> list[Any]:
        """What every process has, in the order of their ranks.

        Args:
            group: `saving` in the thread that writes checkpoints; `control` if it is not given.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=group or self.control)
        return values

    def _combine(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.size == 1:
            return list(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        numbers = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(numbers, operation)
        combined: list[float] = numbers.tolist()
        return combined


def join_processes(device: torch.device) -> Processes:
    """Join the group that torchrun started, or be the only process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # the others wait while the first prepares the text, which may take hours
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=24))
        atexit.register(dist.destroy_process_group)
    return Processes(dist.get_rank(), dist.get_world_size(), *_control_groups())


@functools.cache
def _control_groups() -> tuple[Any, Any]:
    return dist.new_group(backend="gloo"), dist.new_group(backend="gloo")


class LossModule(nn.Module):
    """`Transformer.loss` as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, *micro_batch: Tensor) -> Tensor:
        return self.model.loss(*micro_batch)


def parallel_loss(
    model: Transformer, processes: Processes, compiled: bool
) -> Callable[..., Tensor]:
    """The function (tokens, targets, …) -> loss whose backward pass averages over processes.

    Compiled, each shape gets kernels of its own, of which a run has few: kernels for any shape
    would be slower for the rest of the run.
    """
    if processes.size == 1:
        return torch.compile(model.loss, dynamic=False) if compiled else model.loss
    module: nn.Module = LossModule(model)
    if compiled:
        module.compile(dynamic=False)
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def without_averaging(loss_function: Any, until: bool) -> AbstractContextManager[None]:
    """Keep gradients local, for all micro-batches of an update `until` the last."""
    if isinstance(loss_function, DistributedDataParallel) and not until:
        return loss_function.no_sync()
    return nullcontext()
