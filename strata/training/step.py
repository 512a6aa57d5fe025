"""One update: from a batch to a gradient, and from the gradient to new weights.

`train_step` is the whole of it. A batch that does not fit into memory goes through in pieces, its
micro-batches, whose gradients add up to that of the batch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from strata.config import TrainingConfig
from strata.model import Transformer
from strata.model.loss import IGNORED
from strata.training.device import choose_runtime
from strata.training.distributed import without_averaging
from strata.training.optimizer import Optimizer

MicroBatch = tuple[Tensor, ...]  # tokens and targets, and where documents are kept apart, these
LossFunction = Callable[..., Tensor]


def train_step(
    model: Transformer | LossFunction,
    optimizer: Optimizer,
    micro_batches: Sequence[MicroBatch],
    training: TrainingConfig,
    measure: bool = False,
    predicted: float = 0.0,
) -> Tensor:
    """One update from its micro-batches, each (tokens, targets) of shape (batch, time).

    The gradient is that of the mean over all targets but those of -100; in how many micro-batches
    they come changes the memory needed and nothing else. A third tensor in a micro-batch says
    which document of its row a token belongs to; tokens then read from their own document alone.

    Args:
        model: the `Transformer`, or a function (tokens, targets) -> loss made from it.
        measure: leave the sizes of gradient and update by role in `optimizer.measures`.
        predicted: targets that count, on the average of all processes; 0 = those of the
            micro-batches given.

    Returns:
        The mean loss in nats, a scalar.
    """
    runtime = choose_runtime(training)
    loss_function = model.loss if isinstance(model, Transformer) else model
    optimizer.zero_grad(set_to_none=True)
    counts = [int((targets != IGNORED).sum()) for _, targets, *_ in micro_batches]
    predicted = predicted or max(1, sum(counts))
    total = torch.zeros((), device=runtime.device)
    for index, (micro_batch, count) in enumerate(zip(micro_batches, counts, strict=True)):
        tensors = [tensor.to(runtime.device, non_blocking=True) for tensor in micro_batch]
        last = index + 1 == len(micro_batches)
        with without_averaging(loss_function, until=last):
            with runtime.autocast():
                loss = loss_function(*tensors) * (count / predicted)
            loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    optimizer.clip(training.gradient_clip)
    optimizer.step(measure=measure)
    return total
