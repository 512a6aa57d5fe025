"""Many processes, one run: PyTorch's own data parallelism, started by its launcher.

    strata train small --nproc 8
    torchrun --nnodes 2 --nproc-per-node 8 … -m strata.cli train small --run-dir runs/small

Each process sees its share of every batch. Where the model fits, each holds all of it, and
DistributedDataParallel averages the gradients while the backward pass runs; where it does not, each
holds a part (see `sharding`). `parallelism` decides. One process is the same code without either.
"""

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
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from strata.model import Transformer
from strata.training.device import Runtime
from strata.training.sharding import compile_blocks, shard

# A process that is not heard of for so long is lost; the others end, and may be started again.
PATIENCE = datetime.timedelta(minutes=10)
# Preparing text may take hours, and all but the first process wait for it.
LONG_PATIENCE = datetime.timedelta(hours=24)


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        control: a gloo group of all of them, for what is not on a GPU; None for one process.
        saving: another, for the thread that writes checkpoints while training goes on.
        waiting: another, whose members wait for each other for a day.
    """

    rank: int = 0
    size: int = 1
    control: Any = None
    saving: Any = None
    waiting: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def long_barrier(self) -> None:
        """Wait for all, of whom one may do something that takes hours."""
        if self.size > 1:
            dist.barrier(group=self.waiting)

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


def join_processes(runtime: Runtime) -> Processes:
    """Join the group that the launcher started, or be the only process.

    Raises:
        ValueError: if processes decided otherwise than others how to share the model.
    """
    device = runtime.device
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    processes = Processes(dist.get_rank(), dist.get_world_size(), *_control_groups())
    shared = runtime.parallelism
    if len(set(processes.gather((shared.kind, shared.nodes, shared.hold_gradient)))) > 1:
        raise ValueError(
            "the GPUs of this run differ in memory, and so in what fits: set training.parallelism"
        )
    return processes


def leave_processes() -> None:
    """Leave the group at the end of all training.

    Not after an error: NCCL would then wait for collectives that the others are in, who wait for
    this process, and nobody would learn of the error.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        _control_groups.cache_clear()


@functools.cache
def _control_groups() -> tuple[Any, Any, Any]:
    return (
        dist.new_group(backend="gloo", timeout=PATIENCE),
        dist.new_group(backend="gloo"),
        dist.new_group(backend="gloo", timeout=LONG_PATIENCE),
    )


def spread(model: Transformer, runtime: Runtime) -> Transformer:
    """The model on the devices: on each whole, or on each a part.

    Args:
        model: on the CPU; where it is to be sharded the first process alone needs its values.
    """
    if runtime.parallelism.sharded:
        return shard(model, runtime.parallelism.nodes, runtime.device)
    return model.to(runtime.device)


class LossModule(nn.Module):
    """`Transformer.loss` as a forward pass, which is what DistributedDataParallel wraps.

    Args:
        hold_gradient: of a sharded model; see `Parallelism`.
    """

    def __init__(self, model: Transformer, hold_gradient: bool = True) -> None:
        super().__init__()
        self.model = model
        self.hold_gradient = hold_gradient

    def forward(self, *micro_batch: Tensor) -> Tensor:
        return self.model.loss(*micro_batch)


def parallel_loss(
    model: Transformer, processes: Processes, runtime: Runtime
) -> Callable[..., Tensor]:
    """The function (tokens, targets, …) -> loss whose backward pass averages over processes.

    Compiled, each shape gets kernels of its own, of which a run has few: kernels for any shape
    would be slower for the rest of the run.

    Args:
        model: as `spread` left it.
    """
    if processes.size == 1:
        return torch.compile(model.loss, dynamic=False) if runtime.compile else model.loss
    module = LossModule(model, runtime.parallelism.hold_gradient)
    if isinstance(model, FSDPModule):
        if runtime.compile:
            compile_blocks(model)
        return module
    if runtime.compile:
        module.compile(dynamic=False)
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def without_averaging(loss_function: Any, until: bool) -> AbstractContextManager[None]:
    """Keep gradients local, for all micro-batches of an update `until` the last."""
    if isinstance(loss_function, DistributedDataParallel) and not until:
        return loss_function.no_sync()
    if isinstance(loss_function, LossModule) and isinstance(loss_function.model, FSDPModule):
        # what was set holds until it is set again, so this is no block
        loss_function.model.set_requires_gradient_sync(until or not loss_function.hold_gradient)
        loss_function.model.set_requires_all_reduce(until)
    return nullcontext()
