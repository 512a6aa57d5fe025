"""The model of a run folder, whether its training has ended or not."""

from pathlib import Path
from typing import NamedTuple

from strata.config import Config
from strata.model import Transformer
from strata.storage import sha256_of
from strata.training.device import Runtime


class Trained(NamedTuple):
    """A model and what its weights are called.

    model: on the runtime's device, ready to be asked.
    weights: a hash that stands for them.
    source: the file or folder that they came from.
    """

    model: Transformer
    weights: str
    source: Path


def load_trained(run_dir: str | Path, runtime: Runtime) -> Trained:
    """The final weights of a run, or those of its newest good checkpoint.

    Raises:
        FileNotFoundError: if the folder holds no run, or a run without either.
        ValueError: if there are checkpoints and none is whole.
    """
    folder = Path(run_dir)
    if not (folder / "config.toml").is_file():
        raise FileNotFoundError(f"{folder}: no run is there; expected a folder with a config.toml")
    final = folder / "model.safetensors"
    if final.is_file():
        model = Transformer.load(folder, runtime.device)
        return Trained(model, sha256_of(final), final)
    # a second of imports, for checkpoints alone
    from strata.training.checkpoint import latest_checkpoint, load_tensors
    from strata.training.distributed import Processes

    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{folder} has neither final weights nor a checkpoint yet; "
            f"train it first: strata train --run-dir {folder}"
        )
    model = Transformer(Config.load(folder / "config.toml").model)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    load_tensors(checkpoint, tensors, Processes())
    weights = sha256_of(checkpoint / "manifest.json")  # which holds the sums of all the files
    return Trained(model.to(runtime.device).eval(), weights, checkpoint)
