"""How a gradient becomes an update: the rules of `rules`, each applied to its groups.

`clip` measures the gradient and limits it, `step` applies it. Neither waits for a GPU: numbers that
are made there stay there until someone reads them. On a CPU each rule works on what fits the cache,
since most of the time of a simple one goes into memory.
"""

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from strata.config import OptimizerConfig
from strata.model import Transformer
from strata.training.groups import group_parameters, pytorch_optimizer
from strata.training.rules import (
    adafactor_update,
    adamw_update,
    lion_update,
    muon_update,
    orthogonalize,
    sgd_update,
)
from strata.training.schedule import Settings
from strata.training.sharding import cut, gather, local, total_norm

__all__ = ["Optimizer", "build_optimizer", "orthogonalize"]

# Numbers of a tensor that a rule treats at once on a CPU: with its moments they fit the cache, so
# that the rule's many small operations read and write memory once.
_BLOCK = 1 << 17


class Optimizer(torch.optim.Optimizer):
    """The rules applied to groups of parameters.

    Each group has a `role`, a `method`, its `peak_rate` and `peak_decay`, and what they are now:
    `lr`, `weight_decay`, and `momentum` where the method has one.

    Attributes:
        updates: how many there have been.
    """

    # PyTorch wraps these for TorchDynamo to leave alone, and a wrapper imports it, which takes a
    # second of every start. Nothing compiles them here.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(
        self,
        groups: list[dict[str, Any]],
        config: OptimizerConfig,
        compile: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(groups, {})
        self.config = config
        self.updates = 0
        self._norm = torch.zeros(())  # of the gradient, before clipping
        self._norms: dict[str, Tensor] = {}  # the same by role
        self._ratios: dict[str, Tensor] = {}  # of each role's last measured update to its weights
        self._compile = compile
        self._rules: dict[Callable[..., None], Callable[..., None]] = {}
        polar = torch.compile(orthogonalize, dynamic=False) if compile else orthogonalize
        self._orthogonalizer = functools.partial(polar, dtype=dtype)
        self._pytorch: torch.optim.Optimizer | None = None
        if config.from_pytorch:
            self._pytorch = pytorch_optimizer(self.param_groups, config)
            self.state = self._pytorch.state

    # What it is told ----------------------------------------------------------------------------

    def set_rate(self, ratio: float) -> None:
        """Set every group's rate to a share of its peak."""
        for group in self.param_groups:
            group["lr"] = ratio * group["peak_rate"]

    def set_schedule(self, settings: Settings) -> None:
        """Set rate, momentum and weight decay to what the schedule says; see `schedule_at`."""
        self.set_rate(settings.rate_ratio)
        for group in self.param_groups:
            group["weight_decay"] = settings.decay_ratio * group["peak_decay"]
            if "momentum" in group:
                group["momentum"] = settings.momentum

    # What it tells ------------------------------------------------------------------------------

    @property
    def gradient_norm(self) -> float:
        """Global norm of the last update's gradient, before clipping; 0 before the first."""
        return self._norm.item()

    @property
    def measures(self) -> dict[str, dict[str, float]]:
        """By role: "gradient_norm" before clipping, and "update_ratio", the norm of the last
        measured update over that of the weights that it left."""
        return {
            role: {"gradient_norm": norm.item(), "update_ratio": self._ratios[role].item()}
            for role, norm in self._norms.items()
            if role in self._ratios
        }

    # What it does -------------------------------------------------------------------------------

    def clip(self, limit: float) -> None:
        """Measure the gradient's norm; where it exceeds `limit` and that is not 0, shrink to it."""
        gradients = {group["role"]: _gradients(group["params"]) for group in self.param_groups}
        self._norms = {role: total_norm(members) for role, members in gradients.items() if members}
        self._norm = torch.linalg.vector_norm(torch.stack(list(self._norms.values())))
        # on a GPU it costs less to multiply by one than to wait and see whether one has to
        if limit and (self._norm.device.type != "cpu" or self._norm > limit):
            factor = (limit / self._norm).clamp(max=1.0)
            for role in self._norms:
                torch._foreach_mul_([local(gradient) for gradient in gradients[role]], factor)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, measure: bool = False
    ) -> None:
        """One update of every parameter from its gradient.

        Args:
            measure: fill `measures` (after `clip`); each group in its turn is copied for it.
        """
        self.updates += 1
        for group in self.param_groups:
            if not _gradients(group["params"]):
                continue
            before = [parameter.clone() for parameter in group["params"]] if measure else []
            self._step_group(group)
            if measure:
                for old, parameter in zip(before, group["params"], strict=True):
                    local(old).sub_(local(parameter))
                size = total_norm(group["params"]).clamp(min=torch.finfo(torch.float32).tiny)
                self._ratios[group["role"]] = total_norm(before) / size

    def _step_group(self, group: dict[str, Any]) -> None:
        method, config = group["method"], self.config
        members = [parameter for parameter in group["params"] if parameter.grad is not None]
        if self._pytorch is not None:
            self._pytorch.param_groups, self._pytorch.state = [group], self.state
            self._pytorch.step()
        elif method == "muon":
            self._step_muon(members, group)
        elif method == "adamw" and not config.cautious_decay and members[0].device.type != "mps":
            self._step_fused_adamw(members, group)
        elif method == "adafactor":
            self._step_adafactor(members, group)
        else:
            self._step_numbers(members, group)

    def _step_muon(self, members: list[Tensor], group: dict[str, Any]) -> None:
        """A GPU takes all matrices of a shape at once, a CPU one that fits its cache."""
        batches: dict[Any, list[Tensor]] = defaultdict(list)
        for number, parameter in enumerate(members):
            batches[number if parameter.device.type == "cpu" else parameter.shape].append(parameter)
        for batch in batches.values():
            squares = []
            if self.config.normalise_rows:
                squares = [self._moment(p, "square", (p.shape[0], 1)) for p in batch]
            muon_update(
                batch,
                _gradients(batch),
                [self._moment(parameter, "momentum") for parameter in batch],
                squares,
                group["lr"],
                group["momentum"],
                self.config,
                group["weight_decay"],
                self._orthogonalizer,
            )

    def _step_fused_adamw(self, members: list[Tensor], group: dict[str, Any]) -> None:
        """`adamw_update` as PyTorch's kernel, which reads and writes every number once."""
        steps = torch.full((len(members),), self.updates - 1.0, device=members[0].device)
        adamw(
            [local(parameter) for parameter in members],
            [local(gradient) for gradient in _gradients(members)],
            [local(self._moment(parameter, "mean")) for parameter in members],
            [local(self._moment(parameter, "square")) for parameter in members],
            [],
            list(steps.unbind()),
            fused=True,
            amsgrad=False,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=self.config.epsilon,
            maximize=False,
        )

    def _step_numbers(self, members: list[Tensor], group: dict[str, Any]) -> None:
        """Rules that treat each number by itself: on a CPU a block of them at a time."""
        scalars = [self._scalar(group["lr"])]
        rule: Callable[..., None]
        if group["method"] == "lion":
            rule, moments = lion_update, ["momentum"]
        elif group["method"] == "sgd":
            rule, moments = sgd_update, ["velocity"]
            scalars.append(self._scalar(group["momentum"]))
        else:
            rule, moments = adamw_update, ["mean", "square"]
            scalars.insert(0, self._scalar(self.updates))
        rule = self._rule(rule)
        for parameter in members:
            tensors = [parameter, *_gradients([parameter])]
            tensors += [self._moment(parameter, name) for name in moments]
            tensors = [local(tensor) for tensor in tensors]
            blocks = tensors[0].numel() // _BLOCK if parameter.device.type == "cpu" else 1
            for parts in zip(*(tensor.chunk(max(1, blocks)) for tensor in tensors), strict=True):
                rule(*parts, *scalars, self.config, self._decay(group))

    def _step_adafactor(self, members: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in members:
            shapes: dict[str, tuple[int, ...]] = {"square": parameter.shape}
            if parameter.ndim == 2:
                shapes = {"rows": (parameter.shape[0], 1), "columns": (1, parameter.shape[1])}
            part = local(parameter)
            whole = gather(part, parameter)
            self._rule(adafactor_update)(
                whole,
                gather(local(*_gradients([parameter])), parameter),
                [self._moment(parameter, name, shape) for name, shape in shapes.items()],
                self._scalar(self.updates),
                self._scalar(group["lr"]),
                self.config,
                self._decay(group),
            )
            if whole is not part:
                part.copy_(cut(whole, parameter))

    def _rule(self, rule: Callable[..., None]) -> Callable[..., None]:
        """A rule, compiled if rules are."""
        if not self._compile:
            return rule
        if rule not in self._rules:
            self._rules[rule] = torch.compile(rule)
        return self._rules[rule]

    def _scalar(self, value: float) -> float | Tensor:
        """A number that changes from step to step: a tensor where a rule is compiled for it."""
        return torch.tensor(float(value)) if self._compile else value

    def _decay(self, group: dict[str, Any]) -> float | Tensor:
        return self._scalar(group["weight_decay"]) if group["peak_decay"] else 0.0

    def _moment(self, parameter: Tensor, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A parameter's moment: sharded as it is or, of a shape of its own, whole everywhere."""
        state = self.state[parameter]
        if name not in state:
            if shape is None:
                state[name] = torch.zeros_like(parameter)
            else:
                state[name] = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        moment: Tensor = state[name]
        return moment


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def build_optimizer(
    model: Transformer,
    config: OptimizerConfig,
    compile: bool = False,
    dtype: torch.dtype | None = None,
) -> Optimizer:
    """The optimizer of a model, its parameters grouped as `group_parameters` says.

    Args:
        compile: compile the rules, for GPUs. AdamW is a fused kernel with and without.
        dtype: of the products inside Muon; None: bfloat16 on CUDA, float32 elsewhere.
    """
    return Optimizer(group_parameters(model, config), config, compile, dtype)
