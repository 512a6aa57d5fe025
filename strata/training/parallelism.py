"""What several processes share, decided by arithmetic: the batch alone, or the model too.

    ddp    every process holds the whole model (DistributedDataParallel)
    fsdp   every process holds a part of each tensor (FSDP2, `fully_shard`)
    hsdp   every node holds the whole model, its processes a part each (FSDP2 on a mesh of two
           dimensions), so that only gradients travel between nodes

Training needs 16 bytes a parameter before the first activation, so a model is too large for one
GPU long before its weights are (Rajbhandari et al., 2020, "ZeRO", section 3.1).
"""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from strata.config import ModelConfig, TrainingConfig
from strata.model import count_parameters

# Bytes a parameter: weight, gradient and two moments, in float32.
STATE_BYTES = 16
# Share of a device's memory that may be planned for; kernels and fragments take the rest.
USABLE = 0.9

Kind = Literal["ddp", "fsdp", "hsdp"]


@dataclass(frozen=True)
class Parallelism:
    """The decision, and why.

    Attributes:
        nodes: groups of processes that each hold the whole model, under "hsdp".
        hold_gradient: where the model is sharded, keep the whole gradient of an update's
            micro-batches and reduce it once, which takes 4 bytes a parameter.
    """

    kind: Kind
    reason: str
    nodes: int = 1
    hold_gradient: bool = True

    @property
    def sharded(self) -> bool:
        """Whether no process holds the whole model."""
        return self.kind != "ddp"


def activation_bytes(model: ModelConfig, sequences: int) -> float:
    """What a forward pass keeps for the backward one, roughly.

    34 numbers of two bytes for each position, layer and unit of width (Korthikanti et al., 2022,
    section 4.1, without the attention matrix, which is never stored).
    """
    return 34.0 * 2 * sequences * model.context_length * model.width * model.n_layers


def choose_parallelism(
    training: TrainingConfig, model: ModelConfig | None, device_type: str
) -> Parallelism:
    """Decide from the number of processes, which the launcher left in the environment.

    Args:
        model: what is to be trained; without it the reason says up to which size it is held whole.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    rank = int(os.environ.get("LOCAL_RANK", 0))
    asked = training.parallelism
    memory = 0.0
    if device_type == "cuda" and (model is None or size > 1):
        memory = float(torch.cuda.get_device_properties(rank).total_memory)
    if size == 1:
        return Parallelism("ddp", f"one process; {_outlook(memory)}")
    if asked == "hsdp" and size % local:
        raise ValueError(
            f"training.parallelism = 'hsdp': {size} processes on nodes of {local}; expected as "
            "many on each"
        )
    parameters = count_parameters(model)["total"] if model else 0
    room = float("inf")
    if model and memory:
        room = USABLE * memory - activation_bytes(model, training.micro_batch_size or 1)
    needed = f"{_gigabytes(STATE_BYTES * parameters)} of weights, gradient and moments"
    free = f"the {_gigabytes(max(0.0, room))} that activations leave" if memory else "any memory"
    if asked != "auto":
        kind, why = asked, "as configured"
    elif STATE_BYTES * parameters <= room:
        kind, why = "ddp", f"{needed} fit into {free}"
        if device_type != "cuda":
            why = f"always on {device_type}"
    elif size % local == 0 and 1 < local < size and STATE_BYTES * parameters / local <= room:
        kind, why = "hsdp", f"{needed} do not fit into {free}, but those of {local} GPUs hold them"
    else:
        kind, why = "fsdp", f"{needed} do not fit into {free}"
    if kind == "ddp" or (kind == "hsdp" and local == 1):  # a part of one process is the whole
        return Parallelism("ddp", f"{size} processes share the batch (DDP): {why}")
    nodes = size // local if kind == "hsdp" else 1
    kind = "hsdp" if nodes > 1 else "fsdp"
    hold = STATE_BYTES * parameters / (size // nodes) + 4 * parameters <= room
    often = "once an update" if hold else "after every micro-batch, since a whole one does not fit"
    where = f"on each of {nodes} nodes " if nodes > 1 else ""
    return Parallelism(
        kind,
        f"{size // nodes} processes {where}share the model ({kind.upper()}): {why}; gradients are "
        f"reduced {often}",
        nodes,
        hold,
    )


def _outlook(memory: float) -> str:
    """What several processes would do here."""
    if not memory:
        return "several would share the batch (DDP)"
    largest = USABLE * memory / STATE_BYTES
    return (
        f"several would share the batch (DDP), and a model of more than some "
        f"{largest / 1e9:.1f} billion parameters as well (FSDP2)"
    )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
