"""Parameters of which each process holds a part: FSDP2's, seen by an optimizer.

`fully_shard` turns parameters, and with them their gradients and moments, into DTensors. A rule
that treats each number by itself works on the part that is here; one that needs a whole matrix
gathers it, does on every process the same arithmetic, and cuts its own part from the result.
For ordinary tensors all of these functions return what they are given.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


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
