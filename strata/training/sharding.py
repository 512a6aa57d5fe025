"""Models of which each process holds a part: PyTorch's FSDP2.

`fully_shard` cuts every parameter along its rows. A block's parameters are gathered before it runs
and let go after it, in the forward pass and in the backward one, where their gradients are cut the
same way and averaged. Arithmetic stays what it is with whole models: weights and sums of gradients
in float32, matrix products in the type that autocast says.

Seen by an optimizer, parameters, gradients and moments are DTensors. A rule that treats each number
by itself works on the part that is here; one that needs a whole matrix gathers it, does on every
process the same arithmetic, and cuts its own part from the result. For ordinary tensors and models
the functions below `compile_blocks` do what one would do without them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate

from strata.model import Transformer


def shard(model: Transformer, nodes: int, device: torch.device) -> Transformer:
    """Cut a model among all processes, or among those of each of several nodes (HSDP).

    No process ever has the whole model on its device. All call this together.

    Args:
        model: on the CPU; of the processes only the first one's values count.
    """
    weights = model.state_dict() if dist.get_rank() == 0 else {}
    model = model.to("meta")
    size = dist.get_world_size()
    if nodes > 1:
        names, shape = ("replicate", "shard"), (nodes, size // nodes)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    else:
        mesh = init_device_mesh(device.type, (size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    root: FSDPModule = fully_shard(model, mesh=mesh)
    model.to_empty(device=device)
    load_weights(model, weights)
    register_fsdp_forward_method(model, "loss")

    # what the root gathered it keeps for a backward pass, which does not come after scoring
    def letting_go(score: Callable[..., Any]) -> Callable[..., Any]:
        def score_and_let_go(*arguments: Any, **options: Any) -> Any:
            result = score(*arguments, **options)
            root.reshard()
            return result

        return score_and_let_go

    for name in ("score", "score_branches"):
        register_fsdp_forward_method(model, name)
        setattr(model, name, letting_go(getattr(model, name)))

    def agree_and_let_go(module: Any, arguments: Any, logits: Tensor) -> None:
        # whoever writes by these logits writes the same on every process, and goes on as long
        dist.broadcast(logits, 0)
        root.reshard()

    model.register_forward_hook(agree_and_let_go)
    return model


def compile_blocks(model: Transformer) -> None:
    """Compile the blocks of a sharded model for training, each by itself.

    Gathering happens between them, in hooks around what is compiled. Outside of training, where
    shapes change with every token that is written, they run as they are.
    """
    for block in model.blocks:
        block.forward = _compiled_for_training(block, block.forward)


def _compiled_for_training(block: Any, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled = torch.compile(forward, dynamic=False)

    def choose(*arguments: Any) -> Tensor:
        return (compiled if block.training and torch.is_grad_enabled() else forward)(*arguments)

    return choose


def whole_weights(model: Transformer) -> dict[str, Tensor]:
    """All weights, whole: of a sharded model on the CPU, of the first process alone.

    All processes call this together; the others get none.
    """
    if not isinstance(model, FSDPModule):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered: dict[str, Any] = get_model_state_dict(model, options=options)
    return gathered


def load_weights(model: Transformer, weights: dict[str, Tensor]) -> None:
    """Put whole weights into a model: the inverse of `whole_weights`.

    All processes call this together; of a sharded model the first one's weights count.
    """
    if not isinstance(model, FSDPModule):
        model.load_state_dict(weights)
        return
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    given: dict[str, Any] = dict(weights) if dist.get_rank() == 0 else {}
    set_model_state_dict(model, given, options=options)


def on_all(model: Transformer, mine: bool) -> bool:
    """Whether something holds of every process's part; of a whole model, whether it holds here."""
    if not isinstance(model, FSDPModule):
        return mine
    flag = torch.tensor(float(mine), device=model.device)
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag.item())


def local(x: Tensor) -> Tensor:
    """The part of a tensor that this process holds; writing to it writes to the tensor."""
    return x.to_local() if isinstance(x, DTensor) else x


def gather(part: Tensor, like: Tensor) -> Tensor:
    """The whole of what all processes hold a part of, laid out as `like` is."""
    if not isinstance(like, DTensor):
        return part
    parts = DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return parts.full_tensor()


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process holds whole: the inverse of `gather`."""
    if not isinstance(like, DTensor):
        return whole
    mesh = like.device_mesh
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim)
    return replicated.redistribute(placements=like.placements).to_local()


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of all numbers of all tensors, a scalar on their device."""
    norm = torch.nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
