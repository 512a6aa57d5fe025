"""Who is treated how, and how fast: parameters grouped by their role in the model.

The roles are the matrices of the blocks, the embeddings, an untied head, and scalars (gains,
biases, residual mixes). Under "muon" the matrices are Muon's and the rest AdamW's; any other name
is one rule for all.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from strata.config import OptimizerConfig
from strata.model import Transformer

ROLES = ("matrix", "embedding", "head", "scalar")


def role_of(name: str, parameter: Tensor) -> str:
    """A parameter's role, from its name in the `Transformer`."""
    if parameter.ndim < 2:
        return "scalar"
    if name.startswith(("embedding", "positions")):
        return "embedding"
    return "head" if name.startswith("head") else "matrix"


def group_parameters(model: Transformer, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The model's parameters by role, each group with its rate, decay and rule.

    Under "muon" only matrices decay; under all other names all but scalars do, as in GPT-3.

    With `reference_width`, rates of updates that have a size for each number (AdamW's, Lion's) are
    multiplied by (reference_width / width)^width_exponent. Such an update of a row of `width`
    numbers changes its product with an activation by rate * width if the two are aligned, which
    asks for the exponent 1 of Yang et al. (2022, "Tensor Programs V", table 3), and by
    rate * sqrt(width) if they are not (Everett et al., 2024), which asks for nanochat's 0.5. So it
    is for matrices, the head, and embeddings: a tied one is the head as well, and nanochat scales
    an untied one too. Scalars act on each number of the stream by itself, and Muon's updates have a
    size as a map.
    """
    rates = {
        "matrix": config.learning_rate,
        "embedding": config.embedding_learning_rate or config.learning_rate,
        "head": config.head_learning_rate or config.learning_rate,
        "scalar": config.scalar_learning_rate or config.learning_rate,
    }
    transfer = 1.0
    if config.reference_width:
        transfer = (config.reference_width / model.config.width) ** config.width_exponent
    members: dict[str, dict[str, Tensor]] = {role: {} for role in ROLES}
    for name, parameter in model.named_parameters():
        members[role_of(name, parameter)][name] = parameter
    groups = []
    for role, parameters in members.items():
        method = config.name
        if method == "muon" and role != "matrix":
            method = "adamw"
        rate = rates[role] * (1.0 if method == "muon" or role == "scalar" else transfer)
        decays = role == "matrix" or (config.name != "muon" and role != "scalar")
        decay = config.weight_decay if decays else 0.0
        if parameters:
            group = {
                "params": list(parameters.values()),
                "names": list(parameters),
                "role": role,
                "method": method,
                "peak_rate": rate,
                "lr": rate,
                "peak_decay": decay,
                "weight_decay": decay,
            }
            if method in ("muon", "sgd"):
                group["momentum"] = config.momentum
            groups.append(group)
    return groups


def pytorch_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    """A class of torch.optim over the groups, with what its signature takes of the configuration.

    Its weight decay is what the class makes of it: in Adam, part of the gradient; in AdamW, not.

    Raises:
        ValueError: if weight decay is asked of a class that has none.
    """
    if config.name == "Adafactor" and isinstance(groups[0]["params"][0], DTensor):
        raise ValueError(
            "optimizer.name = 'Adafactor': torch.optim's does not work on a model that is sharded; "
            "expected 'adafactor', which does"
        )
    kind = getattr(torch.optim, config.name)
    known = inspect.signature(kind).parameters
    if config.weight_decay and "weight_decay" not in known:
        raise ValueError(
            f"optimizer.weight_decay = {config.weight_decay}: expected 0, since "
            f"torch.optim.{config.name} has none"
        )
    options = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "momentum": config.momentum,
    }
    # Adafactor calls a pair of other things "eps"
    taken = {
        name: value
        for name, value in options.items()
        if name in known and isinstance(known[name].default, tuple) == isinstance(value, tuple)
    }
    optimizer: Optimizer = kind(groups, **taken)
    return optimizer


def group_table(optimizer: Optimizer) -> list[tuple[str, str, int, int, float, float]]:
    """Who gets what: role, method, tensors, parameters, peak rate, peak weight decay."""
    return [
        (
            group["role"],
            group["method"],
            len(group["params"]),
            sum(parameter.numel() for parameter in group["params"]),
            group["peak_rate"],
            group["peak_decay"],
        )
        for group in optimizer.param_groups
    ]
