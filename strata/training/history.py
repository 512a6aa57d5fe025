"""Runs side by side: what each is, how far it came, and where they differ.

A run is a folder with a `config.toml`. `read_run` reads one, `find_runs` all under a folder;
`runs_table` lists them, `compare_runs` sets a few beside each other, and `plot_runs` draws their
curves. Nothing here changes a run, and one that is damaged is listed as such.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from strata.config import Config
from strata.data.progress import duration
from strata.model import count_parameters
from strata.training.logger import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# How deep under a folder runs are looked for: runs/<suite>/<kind>/<run> and one to spare.
DEPTH = 4


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says of it; numbers that it does not say are NaN."""

    folder: Path
    name: str
    # "unfinished" is one under way as well as one that was stopped: the folder cannot tell
    state: Literal["finished", "unfinished", "damaged"]
    problem: str = ""  # what is damaged
    config: Config = field(default_factory=Config)
    provenance: dict[str, Any] = field(default_factory=dict)
    parameters: float = math.nan
    steps: int = 0  # updates done
    tokens: int = 0  # trained on
    loss: float = math.nan  # nats a token, of the last batch
    curve: tuple[tuple[int, float], ...] = ()  # tokens and bits per byte, at each validation
    seconds: float = math.nan  # of training and validation

    @property
    def bits_per_byte(self) -> float:
        """The lowest of the validations."""
        return min((bits for _, bits in self.curve), default=math.nan)

    @property
    def final_bits_per_byte(self) -> float:
        """That of the last validation."""
        return self.curve[-1][1] if self.curve else math.nan

    @property
    def started(self) -> str:
        """When, in UTC, as ISO 8601; empty where the folder does not say."""
        return str(self.provenance.get("started", ""))


def read_run(folder: str | Path, name: str = "") -> RunRecord:
    """Read a run's folder; `name` is what to call it, the folder's own name if empty.

    Raises:
        FileNotFoundError: if there is no such folder, or it holds no run.
    """
    folder = Path(folder)
    name = name or folder.resolve().name
    if not (folder / "config.toml").is_file():
        raise FileNotFoundError(f"{folder / 'config.toml'}: no such file; expected a run's folder")
    finished = (folder / "summary.json").is_file()
    try:
        config = Config.load(folder / "config.toml")
        provenance = _read_object(folder / "provenance.json")
        if finished:
            _read_object(folder / "summary.json")
        lines = read_metrics(folder)
        nothing = {"step": 0, "tokens": 0, "loss": math.nan}
        last: dict[str, Any] = lines[-1] if lines else nothing
        clocks = [line["timing"] for line in lines]
        return RunRecord(
            folder,
            name,
            "finished" if finished else "unfinished",
            config=config,
            provenance=provenance,
            parameters=count_parameters(config.model)["total"],
            steps=last["step"],
            tokens=last["tokens"],
            loss=last["loss"],
            curve=tuple(
                (line["tokens"], line["validation_bits_per_byte"])
                for line in lines
                if "validation_bits_per_byte" in line
            ),
            seconds=sum(one["seconds"] + one.get("validation_seconds", 0.0) for one in clocks),
        )
    except (OSError, ValueError) as error:
        return RunRecord(folder, name, "damaged", str(error))
    except (KeyError, TypeError) as error:
        problem = f"{folder / 'metrics.jsonl'}: not as a run writes it ({error})"
        return RunRecord(folder, name, "damaged", problem)


def find_runs(folder: str | Path) -> list[RunRecord]:
    """All runs in a folder and the folders in it, by name.

    Raises:
        FileNotFoundError: if there is no such folder, or no run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    places = [
        path.parent
        for depth in range(DEPTH + 1)
        for path in folder.glob("*/" * depth + "config.toml")
    ]
    if not places:
        raise FileNotFoundError(f"{folder}: no run in it; `strata train` makes one")
    return [
        read_run(place, "" if place == folder else place.relative_to(folder).as_posix())
        for place in sorted(places)
    ]


def runs_table(runs: Sequence[RunRecord], sort: str = "name") -> tuple[list[str], list[list[str]]]:
    """The header and a row a run, in the order of a column; what is not known comes last.

    Raises:
        ValueError: if there is no such column.
    """
    header = [
        "run", "parameters", "steps", "loss", "best bits/byte", "tokens", "time", "state", "started"
    ]  # fmt: skip
    rows = [
        [
            run.name,
            _amount(run.parameters),
            f"{run.steps:,}/{run.config.training.max_steps:,}",
            _decimal(run.loss),
            _decimal(run.bits_per_byte),
            _amount(run.tokens),
            duration(run.seconds),
            run.state,
            run.started[:16].replace("T", " ") or "-",
        ]
        if run.state != "damaged"
        else [run.name, *["-"] * 6, run.state, "-"]
        for run in _sorted(runs, sort)
    ]
    return header, rows


def compare_runs(runs: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """A column a run: what differs in their configuration and origin, then their numbers.

    Raises:
        ValueError: if a run is damaged.
    """
    for run in runs:
        if run.problem:
            raise ValueError(f"{run.name} is damaged: {run.problem}")
    fields = dict.fromkeys(name for run in runs for name in runs[0].config.differences(run.config))
    rows = []
    for dotted in fields:
        section, key = dotted.split(".")
        rows.append([dotted, *(str(run.config.to_dict()[section][key]) for run in runs)])
    for name in ("code", "corpus", "tokenizer", "device"):
        found = [str(run.provenance.get(name, "-")) for run in runs]
        if len(set(found)) > 1:  # a name of hashing may be long; its first digits tell it apart
            rows.append([name, *(text[:16] for text in found)])
    rows += [
        ["state", *(run.state for run in runs)],
        ["steps", *(f"{run.steps:,}/{run.config.training.max_steps:,}" for run in runs)],
        ["parameters", *(_amount(run.parameters) for run in runs)],
        ["tokens", *(_amount(run.tokens) for run in runs)],
        ["time", *(duration(run.seconds) for run in runs)],
        ["loss, nats/token", *(_decimal(run.loss) for run in runs)],
        ["final bits/byte", *(_decimal(run.final_bits_per_byte) for run in runs)],
        ["best bits/byte", *(_decimal(run.bits_per_byte) for run in runs)],
    ]
    return ["", *(run.name for run in runs)], rows


def plot_runs(runs: Sequence[RunRecord]) -> "Figure":
    """Bits per byte of held-out text over tokens trained on, one curve a run.

    Raises:
        ValueError: if none of the runs has been validated yet.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    drawn = sorted(
        (run for run in runs if run.curve),
        key=lambda run: (math.isnan(run.final_bits_per_byte), run.final_bits_per_byte),
    )
    if not drawn:
        raise ValueError("nothing to draw: none of the runs has been validated yet")
    best, many = drawn[0], len(drawn) > 7  # more than the style's cycle tells apart
    figure, axis = plt.subplots()
    if many:  # from the best to the poorest
        axis.set_prop_cycle(color=plt.colormaps["cividis"](np.linspace(0.0, 0.9, len(drawn))))
    for run in drawn:
        tokens, bits = zip(*run.curve, strict=True)
        axis.plot(tokens, bits, marker=".", label=run.name)
    axis.set(xscale="log", xlabel="tokens trained on", ylabel="held-out text, bits per byte")
    low, high = axis.get_xlim()
    if high > 5 * low:  # a few round numbers; a narrower axis needs all that there are
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(EngFormatter(sep=""))
    axis.set_title(
        f"{best.name} ends{' lowest,' if len(drawn) > 1 else ''} "
        f"at {best.final_bits_per_byte:.3f} bits per byte"
    )
    if many:
        figure.legend(loc="outside right upper", ncols=math.ceil(len(drawn) / 14))
    else:
        axis.legend()
    return figure


def _sorted(runs: Sequence[RunRecord], column: str) -> list[RunRecord]:
    def place(run: RunRecord) -> tuple[bool, Any]:
        values: dict[str, Any] = {
            "name": run.name,
            "parameters": run.parameters,
            "steps": run.steps,
            "loss": run.loss,
            "bits-per-byte": run.bits_per_byte,
            "tokens": run.tokens,
            "time": run.seconds,
            "started": run.started,
        }
        if column not in values:
            raise ValueError(f"sort = {column!r}: expected one of {', '.join(values)}")
        value = values[column]
        unknown = value == "" or value != value  # NaN alone differs from itself
        return unknown, 0 if unknown else value

    return sorted(runs, key=place)


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file; an empty one where there is none yet."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def _amount(number: float) -> str:
    """Three digits and a unit: 1.23M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _decimal(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.3f}"
