"""Matrix products in eight bits, for chips whose units multiply those twice as fast as bfloat16.

Eight bits hold a sign, an exponent and very few digits, and there are two ways to share them
(Micikevicius et al., 2022, "FP8 formats for deep learning", section 3): e4m3 with three binary
digits up to 448, for weights and activations, and e5m2 with two digits up to 57,344, for gradients,
whose sizes are more spread out. So that neither range is missed, each tensor is first scaled to
make its largest number the largest of the format, anew at every product ("dynamic scaling, one
scale a tensor"); the unit multiplies the scales back in and sums in higher precision.

A linear layer has three products, one forward and two backward, and all three are done so. Weights,
their gradients and the optimizer stay as they are. Scaling costs a few passes over each tensor,
which torch.compile has to fuse with what is around them, and which only large matrices repay.
"""

from typing import Any

import torch
from torch import Tensor, nn

from strata.model.transformer import Transformer

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2

# What the units take: every side of a product, but the rows of its result, is a multiple of this.
MULTIPLE = 16


def use_float8(model: Transformer) -> list[str]:
    """Let the matrices of the blocks multiply in eight bits while the model is trained.

    Parameters and their names stay the same, so this may come before or after an optimizer or a
    checkpoint. The head is left out: nanochat measured 1 % of gain for 2 GB more (dev/LOG.md,
    2026-01-13), and here the loss multiplies by it in pieces.

    Returns:
        The names of the matrices that stay as they were, since a side is no multiple of 16.
    """
    left = []
    for name, module in list(model.blocks.named_modules()):
        if not isinstance(module, nn.Linear) or isinstance(module, Float8Linear):
            continue
        if module.in_features % MULTIPLE or module.out_features % MULTIPLE:
            left.append(f"blocks.{name}")
        else:
            parent, _, own = name.rpartition(".")
            setattr(model.blocks.get_submodule(parent), own, Float8Linear.like(module))
    return left


class Float8Linear(nn.Linear):
    """A linear layer that trains in eight bits, and otherwise is an ordinary one.

    Validation thus measures the model that is saved. A batch whose positions are no multiple of 16
    is multiplied in the usual type as well.
    """

    @classmethod
    def like(cls, linear: nn.Linear) -> "Float8Linear":
        """One with the very parameters of an ordinary layer."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        return made.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # (positions, in_features)
        if not self.training or rows.shape[0] % MULTIPLE:
            return super().forward(x)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        product: Tensor = _Float8Product.apply(rows, self.weight, dtype)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            product = product + self.bias.to(dtype)
        return product.view(*x.shape[:-1], self.out_features)


class _Float8Product(torch.autograd.Function):
    """rows @ weight.T, of (positions, in) and (out, in), with its two gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        rows8, rows_scale = to_float8(rows, FORWARD)
        weight8, weight_scale = to_float8(weight, FORWARD)
        ctx.save_for_backward(rows8, rows_scale, weight8, weight_scale)
        ctx.dtypes = rows.dtype, weight.dtype
        # fast accumulation keeps fewer digits of the sums: enough here, too few for gradients
        # (torchao decides so too)
        return torch._scaled_mm(
            rows8,
            weight8.t(),
            scale_a=rows_scale,
            scale_b=weight_scale,
            out_dtype=dtype,
            use_fast_accum=True,
        )  # (positions, out)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        rows8, rows_scale, weight8, weight_scale = ctx.saved_tensors
        gradient = upstream[0].contiguous()  # (positions, out)
        gradient8, scale = to_float8(gradient, BACKWARD)
        dtype = gradient.dtype
        of_rows = torch._scaled_mm(
            gradient8, by_column(weight8), scale_a=scale, scale_b=weight_scale, out_dtype=dtype
        )  # (positions, in)
        of_weight = torch._scaled_mm(
            gradient8.t().contiguous(),
            by_column(rows8),
            scale_a=scale,
            scale_b=rows_scale,
            out_dtype=dtype,
        )  # (out, in)
        return of_rows.to(ctx.dtypes[0]), of_weight.to(ctx.dtypes[1]), None


def to_float8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor in eight bits, and the float32 scale that multiplies it back to its size."""
    largest = torch.finfo(dtype).max
    scale = largest / x.abs().amax().float().clamp(min=1e-12)  # a tensor of zeros stays one
    scaled = (x.float() * scale).clamp(-largest, largest)  # casting beyond the range gives NaN
    return scaled.to(dtype), scale.reciprocal()


def by_column(matrix: Tensor) -> Tensor:
    """The same matrix laid out column by column, as the unit takes its second operand."""
    return matrix.t().contiguous().t()
