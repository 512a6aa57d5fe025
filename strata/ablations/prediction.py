"""Predict, then run: the loss of a run is written down before the run is made.

    register("predictions/micro-x10.json", fit, runs, name="micro-x10", config=config,
             run_dir="runs/micro-x10")
    …                                               # commit the file, then make the run
    check("predictions/micro-x10.json", summarise("runs/micro-x10-seed0"))

The file says what run it is about, what is expected of it, and from what: the constants of the fit,
the runs behind it by name with a hash over all that they hold, and the digests of the text and the
tokenizer that they were made of. It is never replaced. That it was there before the run is for the
repository's history to prove; dates and commits in it say where to look.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from strata.ablations.analysis import Interval
from strata.ablations.power_law import PowerLaw
from strata.ablations.scaling import ScalingFit
from strata.ablations.stored import run_line, without_places
from strata.ablations.summary import RunSummary
from strata.config import Config
from strata.model import count_parameters, flops_per_token
from strata.storage import write_whole
from strata.training.folder import code_hash, code_version
from strata.training.growth import batch_size_at

FORMAT = "strata-prediction-2"
# The same without `text`, and with a `runs_hash` in which the place of the corpus counted.
FORMER = "strata-prediction-1"


@dataclass(frozen=True)
class PredictionCheck:
    """What was predicted of a run beside what it came to; losses in bits per byte.

    error_percent: of the measured loss above the predicted one, in percent of the measured.
    inside: whether the measured loss lies in the predicted interval.
    same_configuration: whether the run is the registered one, was validated as it was to be and
        read the text of the runs behind the prediction, as far as the file says which.
    began_after: whether the run began after the registration, by the clocks of both.
    """

    name: str
    predicted: Interval
    measured: float
    error_percent: float
    inside: bool
    same_configuration: bool
    began_after: bool


def register(
    path: str | Path,
    fit: ScalingFit,
    runs: Sequence[RunSummary],
    *,
    name: str,
    config: Config,
    run_dir: str | Path,
    frontier: PowerLaw | None = None,
    confidence: float = 0.95,
    places: Mapping[str, str] | None = None,
) -> Path:
    """Write down what is expected of a run that is yet to be made; returns `path`.

    Args:
        path: of the new file.
        fit: to final losses over all parameters and tokens, with a bootstrap.
        runs: those that were fitted, in the order in which they were.
        frontier: the line through the least losses of each compute. If it is given, it makes the
            prediction, and what `fit` expects is written beside it.
        name: what the run is called.
        config: its whole configuration.
        run_dir: the folder in which it will be made.
        places: names for folders of this machine in the configuration, as `store_runs` takes them.

    Raises:
        ValueError: if the prediction is registered already, the run has begun, `runs` are not what
            was fitted or have read different text, the fit has no law or no bootstrap to make an
            interval of, or the configuration names a place that `places` does not.
    """
    path, run_dir = Path(path), Path(run_dir)
    if path.exists():
        raise ValueError(f"{path} holds a prediction already, and none is ever replaced")
    if (run_dir / "metrics.jsonl").exists():
        raise ValueError(f"{run_dir} has begun: what is predicted now was not predicted before")
    fitted = [(run.parameters, run.tokens, run.bits_per_byte) for run in runs]
    if fitted != list(zip(fit.parameters, fit.tokens, fit.losses, strict=True)):
        raise ValueError("the runs are not those of the fit, in its order: pass what was fitted")
    if other := next((run.name for run in runs if _text(run) != _text(runs[0])), ""):
        raise ValueError(f"{other} and {runs[0].name} have read different text: fit runs of one")
    parameters, tokens = count_parameters(config.model)["total"], tokens_of(config)
    expected = fit.predict_run(parameters, tokens, confidence)
    flops = tokens * flops_per_token(config.model)
    predicted = expected if frontier is None else frontier.predict(flops, confidence)
    intervals = [found for found in (expected, predicted) if found is not None]
    if fit.law is None or not all(np.isfinite(one.high - one.low) for one in intervals):
        reason = "; ".join(fit.problems) or "it was made without a bootstrap, or of too few runs"
        raise ValueError(f"the fit gives no interval to register: {reason}")
    assert expected is not None
    assert predicted is not None
    commit, dirty = code_version()
    document = {
        "format": FORMAT,
        "name": name,
        "registered": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "code": code_hash(),
        "config": without_places(config.to_dict(), places or {}, "config"),
        "config_hash": config.hash(),
        "parameters": parameters,
        "tokens": tokens,
        "flops": flops,
        "predicted_by": "the law" if frontier is None else "the line through the least losses",
        "predicted_bits_per_byte": dataclasses.asdict(predicted),
        "by_the_law": dataclasses.asdict(expected),
        "fit": {
            "law": dataclasses.asdict(fit.law),
            "spread": fit.spread,
            "bootstrap_samples": len(fit.samples),
            "problems": list(fit.problems),
        },
        "runs": [run.name for run in runs],
        "runs_hash": hash_of(runs),
        "text": _text(runs[0]),
    }
    return write_whole(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def check(path: str | Path, run: RunSummary) -> PredictionCheck:
    """Hold a finished run against what was registered of it.

    Raises:
        FileNotFoundError: if nothing is registered there.
        ValueError: naming the file, if it is no registered prediction.
    """
    held = read_prediction(path)
    predicted = Interval(**held["predicted_bits_per_byte"])
    measured = run.bits_per_byte
    asked = Config.from_dict(held["config"]).training.validation_sequences
    registered = datetime.datetime.fromisoformat(held["registered"])
    began = datetime.datetime.fromisoformat(str(run.provenance["started"]))
    return PredictionCheck(
        name=held["name"],
        predicted=predicted,
        measured=measured,
        error_percent=100 * (measured - predicted.estimate) / measured,
        inside=predicted.low <= measured <= predicted.high,
        same_configuration=run.config_hash == held["config_hash"]
        and run.config.training.validation_sequences == asked
        and run.tokens == held["tokens"]
        and _text(run) == held.get("text", _text(run)),
        began_after=began >= registered,
    )


def read_prediction(path: str | Path) -> dict[str, Any]:
    """A registered prediction as it was written; raises as `check` does."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such prediction; register it before the run")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(held, dict) or held.get("format") not in (FORMAT, FORMER):
        raise ValueError(f'{path}: expected a registered prediction, "format": "{FORMAT}"')
    return held


def tokens_of(config: Config) -> int:
    """Tokens that a whole run trains on, its batch grown as its configuration says."""
    training = config.training
    sequences = sum(batch_size_at(step, training) for step in range(1, training.max_steps + 1))
    return sequences * config.model.context_length


def hash_of(runs: Sequence[RunSummary]) -> str:
    """16 hexadecimal digits over all that some runs hold, whatever their order.

    Of the runs as they are in their folders and as they are stored it is the same: where a corpus
    lies does not count, and what it holds stands in the runs' provenance.
    """
    lines = [run_line(run, Config()) for run in runs]
    for line in lines:
        line["changes"].pop("data.corpus", None)
    texts = sorted(json.dumps(line, sort_keys=True) for line in lines)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _text(run: RunSummary) -> dict[str, Any]:
    """Digests of the corpus and the tokenizer of a run, None where it does not say."""
    return {name: run.provenance.get(name) for name in ("corpus", "tokenizer")}
