"""The update rules: what each optimizer does with a gradient, one function a rule, in place.

AdamW, Lion and SGD treat each number by itself, which suits embeddings, where a row is touched
only when its token appears, and scalars. Adafactor is AdamW with the memory of a row and a column
in place of a matrix. Muon treats a matrix as the linear map that it is: it replaces the momentum by
the nearest matrix whose singular values are all one, so that no direction of the map is updated
much more than another.

Weight decay is decoupled everywhere (Loshchilov and Hutter, 2019): it shrinks weights by
rate * decay and never enters a moment. Numbers that change from step to step may be 0-dimensional
tensors, so that a compiled rule is compiled once and not for each of their values.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from strata.config import OptimizerConfig
from strata.training.sharding import cut, gather, local

Scalar = float | Tensor

# Of X, (X X') X and (X X')^2 X in a step of `orthogonalize` (Jordan et al., 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Steps of the iteration between two matrices made from X itself; see `_through_gram`.
_GRAM_STEPS = 5


def decay_weights(
    parameter: Tensor, update: Tensor, rate: Scalar, decay: Scalar, cautious: bool
) -> None:
    """Shrink weights by rate * decay, all or, when cautious, those that the update shrinks too.

    The update is subtracted, so it shrinks a weight of its own sign. Where it enlarges a weight,
    the loss asks for that, and cautious decay does not argue (Chen et al., 2025, "Cautious Weight
    Decay").
    """
    if isinstance(decay, float) and not decay:
        return
    if cautious:
        parameter.sub_(rate * decay * parameter * (update * parameter >= 0))
    else:
        parameter.mul_(1 - rate * decay)


def adamw_update(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    updates: Scalar,
    rate: Scalar,
    config: OptimizerConfig,
    decay: Scalar,
) -> None:
    """AdamW (Loshchilov and Hutter, 2019, algorithm 2). All tensors have one shape.

    Args:
        mean, square: running means of the gradient and of its square.
        updates: how many there have been, this one included.
        rate: learning rate.
        decay: decoupled weight decay.
    """
    mean.lerp_(gradient, 1 - config.beta1)
    square.lerp_(gradient.square(), 1 - config.beta2)
    # both start at zero; dividing by 1 - beta^updates undoes that
    mean_scale = 1 - config.beta1**updates
    square_scale = 1 - config.beta2**updates
    denominator = (square / square_scale).sqrt_().add_(config.epsilon)
    update = (mean / mean_scale).div_(denominator)
    decay_weights(parameter, update, rate, decay, config.cautious_decay)
    parameter.sub_(update.mul_(rate))


def lion_update(
    parameter: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    rate: Scalar,
    config: OptimizerConfig,
    decay: Scalar,
) -> None:
    """Lion (Chen et al., 2023, algorithm 2): every number moves by the rate, up or down.

    The sign is of a fast mean of the gradient (beta1), the momentum kept is a slow one (beta2). Its
    rate is to be 3 to 10 times smaller than AdamW's (section 5). All tensors have one shape.
    """
    update = gradient.lerp(momentum, config.beta1).sign_()  # beta1 momentum + (1 - beta1) gradient
    momentum.lerp_(gradient, 1 - config.beta2)
    decay_weights(parameter, update, rate, decay, config.cautious_decay)
    parameter.sub_(update.mul_(rate))


def sgd_update(
    parameter: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    rate: Scalar,
    momentum: Scalar,
    config: OptimizerConfig,
    decay: Scalar,
) -> None:
    """Gradient descent with Nesterov's momentum (Sutskever et al., 2013, section 2).

    The velocity is a sum, not a mean: a steady gradient moves a weight by rate / (1 - momentum)
    times itself. All tensors have one shape.
    """
    velocity.mul_(momentum).add_(gradient)
    update = gradient + momentum * velocity
    decay_weights(parameter, update, rate, decay, config.cautious_decay)
    parameter.sub_(update.mul_(rate))


def adafactor_update(
    parameter: Tensor,
    gradient: Tensor,
    squares: list[Tensor],
    updates: Scalar,
    rate: Scalar,
    config: OptimizerConfig,
    decay: Scalar,
) -> None:
    """Adafactor without momentum (Shazeer and Stern, 2018, algorithms 4 and 5).

    The mean square of a matrix's gradient is taken as the product of what its rows and its columns
    say. An update is `rate` times the size of the weights themselves; the paper's schedule of the
    rate, min(0.01, 1 / sqrt(updates)), is left to `training.schedule`.

    Args:
        squares: running means of the squared gradient: over each row (rows, 1) and over each
            column (1, columns) of a matrix, or as it is, of a vector.
    """
    fresh = updates**-0.8  # 1 - beta2 of section 7.2: the memory is none at first and then grows
    square = gradient.square().add_(1e-30)
    if gradient.ndim == 2:
        rows, columns = squares
        rows.lerp_(square.mean(dim=1, keepdim=True), fresh)
        columns.lerp_(square.mean(dim=0, keepdim=True), fresh)
        expected = rows / rows.mean() * columns  # (rows, columns)
    else:
        squares[0].lerp_(square, fresh)
        expected = squares[0]
    update = torch.rsqrt(expected, out=square).mul_(gradient)
    update.div_(_root_mean_square(update).clamp(min=1.0))  # clipped at d = 1, section 6
    step = rate * _root_mean_square(parameter).clamp(min=1e-3)
    decay_weights(parameter, update, rate, decay, config.cautious_decay)
    parameter.sub_(update.mul_(step))


def _root_mean_square(x: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(x) / math.sqrt(x.numel())
    return size


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: U V' where a matrix is U S V'.

    Newton-Schulz iteration with the quintic of Jordan et al. (2024, "Muon"), whose coefficients
    favour a steep start over an exact end: after 5 steps singular values lie near one, between
    about 0.7 and 1.2, which is all an optimizer needs.

    Args:
        matrices: (count, rows, columns), all of one shape so that they go through in one batch.
        dtype: of the products; bfloat16 is enough. None: that on CUDA, float32 elsewhere.
    """
    a, b, c = COEFFICIENTS
    dtype = dtype or (torch.bfloat16 if matrices.is_cuda else torch.float32)
    x = matrices.to(dtype)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT  # the product below is then the smaller one
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # singular values at most one
    if dtype == torch.float32 and x.device.type == "cpu" and x.shape[-1] >= 2 * x.shape[-2]:
        x = _through_gram(x, steps)
    else:
        for _ in range(steps):
            gram = x @ x.mT  # (count, rows, rows)
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G^2
            x = torch.baddbmm(x, polynomial, x, beta=a)  # a X + (b G + c G^2) X
    result: Tensor = (x if wide else x.mT).to(matrices.dtype)
    return result


def _through_gram(x: Tensor, steps: int) -> Tensor:
    """The same iteration for wide matrices, almost all of it on small square ones.

    A step is X <- P X with P = a I + b G + c G^2 and G = X X'. P and G commute, so that G follows
    by itself, G <- P^2 G, and X is needed at the start and the end only. At four columns a row
    that is 50 products of rows^3 multiplications in place of 90. Rounding makes G's smallest
    eigenvalues negative, and a step enlarges them by a^2 = 12: harmless for five steps in
    float32, after which G is made anew; fatal in bfloat16 and where float32 products round to it.
    """
    a, b, c = COEFFICIENTS
    for start in range(0, steps, _GRAM_STEPS):
        left = min(_GRAM_STEPS, steps - start)
        gram = x @ x.mT  # (count, rows, rows)
        product = None
        for step in range(left):
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
            product = polynomial if product is None else product @ polynomial
            if step + 1 < left:
                gram = polynomial @ (polynomial @ gram)
        assert product is not None
        x = product @ x
    return x


def normalise_rows(updates: Tensor, squares: list[Tensor], beta2: float) -> Tensor:
    """NorMuon: divide each row by the root of its mean square so far (Li et al., 2025, alg. 1).

    Orthogonal columns do not make even rows: some neurons would learn much faster than others. The
    whole keeps its norm, where the paper sets it to 0.2 sqrt(rows * columns), so that a rate means
    what it means without this.

    Args:
        updates: (count, rows, columns), orthogonalised.
        squares: for each, the running mean of its rows' mean squares, (rows, 1).
    """
    means = updates.square().mean(dim=-1, keepdim=True)  # (count, rows, 1)
    for square, mean in zip(squares, means, strict=True):
        square.lerp_(mean, 1 - beta2)
    even = updates / torch.stack(squares).sqrt().add_(1e-8)
    size, even_size = (x.norm(dim=(-2, -1), keepdim=True) for x in (updates, even))
    scaled: Tensor = even * (size / even_size.clamp(min=1e-8))
    return scaled


def muon_update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    squares: list[Tensor],
    rate: float,
    momentum: float,
    config: OptimizerConfig,
    decay: float,
    orthogonalizer: Callable[[Tensor, int], Tensor] = orthogonalize,
) -> None:
    """Muon, for matrices (rows, columns) of one shape (Jordan et al., 2024).

    Nesterov momentum, orthogonalised; scaled by sqrt(rows / columns) where rows are more, so that
    an update changes an output's numbers by about `rate` where the input's are of unit size. Of a
    wide matrix it is up to sqrt(columns / rows) times that. Neither depends on the width of the
    model, and so a rate found at one width is right at another (Bernstein and Newhouse, 2024,
    "Old Optimizer, New Norm").

    Args:
        squares: of `normalise_rows`, or none of them.
        rate: learning rate.
        momentum: decay of the mean gradient.
        decay: decoupled weight decay.
        orthogonalizer: `orthogonalize`, perhaps compiled; of a matrix it needs the whole, of which
            a process may hold a few rows (FSDP2). All the rest is done on these rows alone.
    """
    mine = [local(parameter) for parameter in parameters]
    gradients, momenta = [local(x) for x in gradients], [local(x) for x in momenta]
    torch._foreach_lerp_(momenta, gradients, 1 - momentum)
    directions = torch._foreach_lerp(gradients, momenta, momentum)
    whole = torch.stack([gather(d, p) for d, p in zip(directions, parameters, strict=True)])
    updates = orthogonalizer(whole, config.newton_schulz_steps)
    if squares:
        updates = normalise_rows(updates, squares, config.beta2)
    rows, columns = parameters[0].shape
    scale = rate * math.sqrt(max(1.0, rows / columns))
    for parameter, weights, update in zip(parameters, mine, updates, strict=True):
        part = cut(update, parameter)
        decay_weights(weights, part, rate, decay, config.cautious_decay)
        weights.sub_(part, alpha=scale)
