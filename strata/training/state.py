"""What a run consists of after a step, as a checkpoint keeps it, and how it is put back.

Tensors are `model.<parameter>` and `optimizer.<moment>.<parameter>`; all else is a few numbers, and
for every process the generators of random numbers. The schedule needs nothing, since it follows
from the step, nor does the order of the data but the loader's position, since packed rows and
shuffles follow from that.
"""

from __future__ import annotations

import json
import random
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from strata.training.checkpoint import load_tensors, read_manifest, tensor_shapes
from strata.training.distributed import Processes
from strata.training.guard import SpikeGuard
from strata.training.sharding import load_weights

if TYPE_CHECKING:
    from strata.data import LoaderState
    from strata.model import Transformer
    from strata.training.optimizer import Optimizer
    from strata.training.trainer import Trainer

# Of a trainer: what has been spent, the best validation, and whether a checkpoint is overdue.
COUNTS = ("tokens", "flops", "wasted_flops", "best", "due")


def run_identity(trainer: Trainer) -> dict[str, Any]:
    """Which run it is, as the manifest of each of its checkpoints says."""
    return {
        "configuration": trainer.config.hash(),
        "corpus": trainer.prepared.corpus_identity,
        "tokenizer": trainer.tokenizer.identity,
    }


def run_tensors(model: Transformer, optimizer: Optimizer) -> dict[str, Tensor]:
    """Weights and moments by name: those that training goes on with, not copies."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    for parameter, moments in optimizer.state.items():
        for kind, moment in moments.items():
            tensors[f"optimizer.{kind}.{names[id(parameter)]}"] = moment
    return tensors


def put_tensors(
    checkpoint: Path,
    model: Transformer,
    optimizer: Optimizer,
    on_cpu: Sequence[str],
    processes: Processes,
) -> None:
    """Fill a model and its optimizer from a checkpoint, sharded as they are now.

    Args:
        on_cpu: moments that stay there, wherever the weights are.
    """
    parameters = dict(model.named_parameters())
    tensors = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    moments: dict[Tensor, dict[str, Tensor]] = {}
    for name, (shape, dtype) in tensor_shapes(checkpoint).items():
        if name.startswith("optimizer."):
            _, kind, of = name.split(".", 2)
            like = parameters[of]
            if isinstance(like, DTensor) and shape == like.shape:
                moment: Tensor = torch.zeros_like(like, dtype=dtype, requires_grad=False)
            else:
                device = torch.device("cpu") if name in on_cpu else like.device
                moment = torch.zeros(shape, dtype=dtype, device=device)
            moments.setdefault(like, {})[kind] = tensors[name] = moment
    load_tensors(checkpoint, tensors, processes)
    optimizer.state.clear()
    optimizer.state.update(moments)


def run_state(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """The tensors, what the run remembers besides, and what this process does for itself.

    The latter two can be written as JSON.
    """
    tensors = run_tensors(trainer.model, trainer.optimizer)
    here = trainer.runtime.device.type
    state = {
        "step": trainer.step,
        "updates": trainer.optimizer.updates,
        # of a model on a GPU: the step counters of torch.optim
        "on_cpu": [name for name, tensor in tensors.items() if tensor.device.type != here],
        "loader": trainer.loader.state_dict(),
        "guard": trainer.guard.state_dict(),
        "micro_batch_size": trainer.memory.micro_batch_size,
        "callbacks": {
            name: callback.state_dict()
            for name, callback in _callbacks_by_name(trainer).items()
            if hasattr(callback, "state_dict")
        },
        **{name: getattr(trainer, name) for name in COUNTS},
    }
    return tensors, state, generator_states(trainer.runtime.device)


def restore_run(trainer: Trainer, checkpoint: Path) -> LoaderState:
    """Put a trainer where a checkpoint was taken; only the loader's position is handed back.

    Tensors are sharded as they are now, however they were when the checkpoint was written.

    Raises:
        ValueError: if the checkpoint is of another run, saying what differs.
    """
    manifest = read_manifest(checkpoint)
    if others := [name for name, own in run_identity(trainer).items() if manifest[name] != own]:
        raise ValueError(
            f"{checkpoint} is of another run: it has another {' and another '.join(others)}"
        )
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    put_tensors(checkpoint, trainer.model, trainer.optimizer, state["on_cpu"], trainer.processes)
    trainer.optimizer.updates, trainer.step = state["updates"], state["step"]
    for name in COUNTS:
        setattr(trainer, name, state[name])
    trainer.guard.load_state_dict(state["guard"])
    _restore_callbacks(trainer, state["callbacks"])
    if trainer.processes.size == len(state["processes"]):  # so many had it in their memories
        memory = trainer.memory
        memory.micro_batch_size = min(memory.micro_batch_size, state["micro_batch_size"])
    if trainer.processes.rank < len(state["processes"]):
        set_generators(state["processes"][trainer.processes.rank], trainer.runtime.device)
    position: LoaderState = state["loader"]
    return position


def begin_again(trainer: Trainer) -> None:
    """Put a trainer where the run began, all but the loader."""
    load_weights(trainer.model, trainer.new_model().state_dict())
    trainer.optimizer.state.clear()
    trainer.optimizer.updates = trainer.step = trainer.tokens = 0
    trainer.flops, trainer.best, trainer.due = 0.0, [], False
    trainer.guard.load_state_dict(SpikeGuard(trainer.config.training).state_dict())
    _restore_callbacks(trainer, {})


def _restore_callbacks(trainer: Trainer, states: dict[str, Any]) -> None:
    for name, callback in _callbacks_by_name(trainer).items():
        if hasattr(callback, "load_state_dict"):
            callback.load_state_dict(states.get(name, {}))


def _callbacks_by_name(trainer: Trainer) -> dict[str, Any]:
    """By class, and several of one class by number too: `EarlyStopping-0`, `EarlyStopping-1`."""
    met = Counter[str]()
    named = {}
    for callback in trainer.callbacks:
        kind = type(callback).__name__
        named[f"{kind}-{met[kind]}"] = callback
        met[kind] += 1
    return named


def seed_all(seed: int) -> None:
    """Put this process's generators of random numbers where a run begins."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def generator_states(device: torch.device) -> dict[str, Any]:
    """Where this process's generators of random numbers stand: PyTorch's, NumPy's, Python's."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 its users have it
    states = {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "numpy": {
            "key": numpy_state["state"]["key"].tobytes().hex(),
            "pos": numpy_state["state"]["pos"],
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        },
        "python": [version, array("I", words).tobytes().hex(), gauss],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes().hex()
    return states


def set_generators(states: dict[str, Any], device: torch.device) -> None:
    """Put this process's generators where `generator_states` found them."""
    torch.set_rng_state(_bytes_tensor(states["torch"]))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(_bytes_tensor(states["cuda"]), device)
    about = states["numpy"]
    key = np.frombuffer(bytes.fromhex(about["key"]), dtype=np.uint32)
    np.random.set_state(("MT19937", key, about["pos"], about["has_gauss"], about["gauss"]))  # noqa: NPY002
    version, words, gauss = states["python"]
    random.setstate((version, tuple(array("I", bytes.fromhex(words))), gauss))


def _bytes_tensor(hexadecimal: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(hexadecimal), dtype=torch.uint8)
