"""What drills have found: a line of JSON a call, added up over all of them."""

import datetime
import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from strata.drill.aims import AIMS, Aim
from strata.drill.small_run import CHECKPOINT_EVERY
from strata.storage import write_whole
from strata.training.device import processor_name
from strata.training.folder import code_hash, code_version


@dataclass
class Hit:
    """One kill, or one request to stop.

    Attributes:
        aim: what it was aimed at; a "stop" is a request, anything else a kill.
        struck: which of the processes it hit.
        step: the last step in the log.
        saving: whether a checkpoint was being written.
        torn: whether the last line of the log was cut off.
        resumed: the last step of which the next start kept the line; None where there was no
            next step.
    """

    aim: Aim
    struck: str
    step: int
    saving: bool
    torn: bool
    resumed: int | None = None


@dataclass
class Outcome:
    """One run that was hit, and what became of it.

    Attributes:
        parallelism: what its processes share, as `training.parallelism`; empty for one process.
        lost: why it did not come back; empty where it did.
        differences: from the run that nobody disturbed.
    """

    name: str
    processes: int
    parallelism: str = ""
    hits: list[Hit] = field(default_factory=list)
    lost: str = ""
    differences: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """How many processes train it, and where it is several, what they share: `2 fsdp`."""
        return f"{self.processes} {self.parallelism}".strip()

    @property
    def kills(self) -> list[Hit]:
        """Those of its hits that were kills, that is by SIGKILL."""
        return [hit for hit in self.hits if hit.aim != "stop"]

    @property
    def problem(self) -> str:
        """What is wrong with it; empty where nothing is."""
        return self.lost or "; ".join(self.differences)


@dataclass(frozen=True)
class Totals:
    """What all drills of a record came to."""

    kills: int
    runs: int
    lost: int
    differing: int


def add_to_record(path: Path, seed: int, outcomes: Sequence[Outcome]) -> None:
    """Add the line of one call."""
    hits = [hit for outcome in outcomes for hit in outcome.hits]
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    kinds = Counter[str]()
    for outcome in outcomes:
        kinds[outcome.kind] += len(outcome.kills)
    commit, dirty = code_version()
    line = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "commit": commit,
        "dirty": dirty,
        "code": code_hash(),
        "seed": seed,
        "kills": len(kills),
        "runs": len(outcomes),
        "lost": sum(bool(outcome.lost) for outcome in outcomes),
        "differing": sum(bool(outcome.differences) for outcome in outcomes),
        "stops": len(hits) - len(kills),
        "aims": Counter(hit.aim for hit in hits),
        "killed_with": kinds,
        "struck": Counter(kill.struck for kill in kills),
        "saves_in_progress": sum(kill.saving for kill in kills),
        "torn_lines": sum(kill.torn for kill in kills),
        "steps_lost": sum(hit.step - hit.resumed for hit in hits if hit.resumed is not None),
        # from a checkpoint that stands in no plan
        "resumed_as_asked": sum(
            hit.resumed is not None and hit.resumed % CHECKPOINT_EVERY > 0 for hit in hits
        ),
        "problems": [f"{each.name}: {each.problem}" for each in outcomes if each.problem],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def save_kills(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write every hit of one call, kill or stop, a line each."""
    lines = [
        {
            "run": outcome.name,
            "processes": outcome.processes,
            "parallelism": outcome.parallelism,
            **asdict(hit),
        }
        for outcome in outcomes
        for hit in outcome.hits
    ]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))


def sum_record(path: Path) -> Totals:
    """Add up all lines of a record.

    Raises:
        FileNotFoundError: there is none.
        ValueError: naming a line that is damaged.
    """
    sums = Counter[str]()
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            sums.update({name: line[name] for name in ("kills", "runs", "lost", "differing")})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected what a drill found") from error
    return Totals(sums["kills"], sums["runs"], sums["lost"], sums["differing"])


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Lines that say what was hit, and what came of it; a stop is not counted as a kill."""
    order = sorted({(outcome.processes, outcome.kind) for outcome in outcomes})
    kinds = [kind for _, kind in order]
    aims = Counter((hit.aim, outcome.kind) for outcome in outcomes for hit in outcome.hits)
    rows = [["aim", *(kind if " " in kind else f"{kind} process" for kind in kinds)]]
    rows += [[aim, *(str(aims[aim, kind]) for kind in kinds)] for aim in AIMS]
    for name, counted in (
        ("kills", [len(outcome.kills) for outcome in outcomes]),
        ("runs", [1] * len(outcomes)),
        ("lost", [int(bool(outcome.lost)) for outcome in outcomes]),
        ("differing", [int(bool(outcome.differences)) for outcome in outcomes]),
    ):
        sums = Counter[str]()
        for outcome, count in zip(outcomes, counted, strict=True):
            sums[outcome.kind] += count
        rows.append([name, *(str(sums[kind]) for kind in kinds)])
    return ["".join([row[0].ljust(10), *(cell.rjust(13) for cell in row[1:])]) for row in rows]
