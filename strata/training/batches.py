"""What each process reads at each step: its share of the batch, which may start small."""

from strata.config import Config, TrainingConfig
from strata.data import Loader, Prepared, document_numbers
from strata.training.device import Runtime
from strata.training.distributed import Processes
from strata.training.growth import batch_size_at, context_length_at, cut_sequences
from strata.training.step import MicroBatch


def share_of_batch(training: TrainingConfig, processes: Processes) -> int:
    """Sequences of a whole batch that one process takes.

    Raises:
        ValueError: if batches cannot be shared out evenly.
    """
    for name in ("batch_size", "initial_batch_size"):
        if getattr(training, name) % processes.size:
            raise ValueError(
                f"training.{name} = {getattr(training, name)}: expected a multiple of the "
                f"{processes.size} processes"
            )
    return training.batch_size // processes.size


def open_loader(
    config: Config, prepared: Prepared, processes: Processes, runtime: Runtime
) -> Loader:
    """The training text at its beginning, as this process reads it."""
    return Loader(
        prepared.train,
        batch_size=share_of_batch(config.training, processes),
        context_length=config.model.context_length,
        seed=config.training.seed,
        rank=processes.rank,
        world_size=processes.size,
        packing=config.data.packing,
        # on a CPU a batch is read sooner than another thread is woken
        prefetch=2 if runtime.device.type == "cuda" else 0,
        device=runtime.device,
    )


def next_batch(
    loader: Loader,
    step: int,
    config: Config,
    processes: Processes,
    runtime: Runtime,
    separator: int,
) -> MicroBatch:
    """The tokens and targets of a step on this process, and their documents if asked for.

    Args:
        separator: the token that stands before each document.
    """
    batch = loader.next(batch_size_at(step, config.training) // processes.size)
    tensors: MicroBatch = batch
    if config.data.document_masks:
        tokens = batch.tokens.to(runtime.device, non_blocking=True)
        tensors = (*batch, document_numbers(tokens, separator))
    length = context_length_at(step, config.training, config.model.context_length)
    return tuple(cut_sequences(tensor, length) for tensor in tensors)
