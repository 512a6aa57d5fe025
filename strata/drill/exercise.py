"""The drill itself: an undisturbed run, then runs that are killed, started again and compared."""

import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from math import ceil
from pathlib import Path
from typing import NamedTuple

from strata.drill.aims import (
    AIMS,
    Aim,
    EndedFirst,
    Observer,
    Pace,
    begun_checkpoints,
    is_saving,
    is_torn,
    last_step,
    log_lines,
    newest_checkpoint,
)
from strata.drill.comparison import find_differences
from strata.drill.jobs import Job, prepare_warm_jobs
from strata.drill.record import Hit, Outcome
from strata.drill.small_run import write_small_run

KILLS_A_RUN = 15
# So many runs in a row that could not be killed, because they failed or were too fast, end a drill.
_FRUITLESS_RUNS = 3
_LINES_TOLD = 12  # of what a job printed before it was lost


def drill(
    folder: Path,
    kills: int,
    processes: Sequence[int] = (1, 2),
    runs: int = 0,
    seed: int = 0,
    tell: Callable[[str], None] = print,
) -> Iterator[Outcome]:
    """Kill training at random instants, now and then ask it to stop, and yield each run as it ends.

    In `folder` are left what is trained and on what text (`config.toml`, `corpus/`), the
    undisturbed runs (`reference-1`, `reference-2-ddp`, `reference-2-fsdp`) and, of the others,
    those that were lost or differ, each with what its processes printed (`run-003`, `run-003.log`).

    Args:
        kills: how many, over all runs.
        processes: how many train: each number has its share of the runs, and several processes have
            one with `training.parallelism` "ddp" and one with "fsdp".
        runs: over how many runs the kills are spread; 0 = fifteen kills each. A run that ends
            before its kills are spent leaves them to another.
        seed: of the instants, and of what is killed.
        tell: is given a line for each kill and each run.

    Raises:
        ValueError: a number is less than one, or the folder holds a run.
        RuntimeError: an undisturbed run failed.
    """
    for name, value in (("kills", kills), *(("processes", number) for number in processes)):
        if value < 1:
            raise ValueError(f"{name} = {value}: expected at least 1")
    kinds = [
        Kind(number, parallelism)
        for number in processes
        for parallelism in (("ddp", "fsdp") if number > 1 else ("",))
    ]
    if (folder / "provenance.json").is_file():
        raise ValueError(f"{folder} holds a run: expected a folder for the drill alone")
    runs = max(runs or ceil(kills / KILLS_A_RUN), len(kinds))
    kills_a_run = ceil(kills / runs)
    config = write_small_run(folder.absolute(), kills_a_run)
    exercise = _Exercise(config, kills, random.Random(seed), tell)
    for index, kind in enumerate(kinds):
        run_dir = exercise.train_reference(kind, warm=index > 0)
        if index == 0:
            prepare_warm_jobs(run_dir / "tokenizer.json")
    number = fruitless = 0
    while exercise.spent < kills and fruitless < _FRUITLESS_RUNS:
        kind = kinds[number % len(kinds)]
        most = min(kills - exercise.spent, kills_a_run)
        outcome = exercise.drill_run(f"run-{number:03}", kind, most)
        yield outcome
        number += 1
        fruitless = 0 if outcome.hits else fruitless + 1


class Kind(NamedTuple):
    """How a run is trained: by how many processes, and what several of them share."""

    processes: int
    parallelism: str = ""


class _Exercise:
    """What the runs of one call share.

    Attributes:
        spent: kills so far.
    """

    def __init__(
        self, config: Path, kills: int, rng: random.Random, tell: Callable[[str], None]
    ) -> None:
        self.config, self.kills, self.rng, self.tell = config, kills, rng, tell
        self.folder = config.parent
        self.spent = 0
        self.paces: dict[Kind, Pace] = {}

    def train_reference(self, kind: Kind, warm: bool) -> Path:
        """Train undisturbed, and return the run's folder."""
        name = _reference(kind)
        self._clear(name)
        self.paces[kind] = pace = Pace()
        with self._job(name, kind, warm) as job:
            Observer(self.folder / name, job, pace).await_end()
            if problem := self._failure(name, job):
                raise RuntimeError(f"the undisturbed run failed: {problem}")
        self.tell(f"{name}: undisturbed, {last_step(self.folder / name)} steps")
        return self.folder / name

    def drill_run(self, name: str, kind: Kind, most: int) -> Outcome:
        """Train one run that is hit up to `most` times."""
        self._clear(name)
        run_dir, outcome = self.folder / name, Outcome(name, *kind)
        aims = self.rng.choices(list(AIMS), weights=list(AIMS.values()), k=most)
        aims.sort(key=lambda aim: aim == "end")
        for aim in (*aims, None):  # the last start is left alone
            before, hits = log_lines(run_dir), list(outcome.hits)
            ended = self._start(outcome, kind, aim)
            if (lines := log_lines(run_dir)) != before:
                kept = takewhile(lambda pair: pair[0] == pair[1], zip(before, lines, strict=False))
                came_back_to = len(list(kept))
                for hit in hits:
                    hit.resumed = came_back_to if hit.resumed is None else hit.resumed
                    if hit.aim == "stop" and hit.resumed < hit.step and not outcome.lost:
                        outcome.lost = f"stopped after step {hit.step}, went on from {hit.resumed}"
            if ended:
                break
        if not outcome.lost:
            outcome.differences = find_differences(run_dir, self.folder / _reference(kind))
        if outcome.problem:
            self.tell(f"{name}: {'LOST' if outcome.lost else 'DIFFERS'}: {outcome.problem}")
        else:
            self.tell(f"{name}: after {_told(outcome)} the same to the last bit")
            self._clear(name)
        return outcome

    def _start(self, outcome: Outcome, kind: Kind, aim: Aim | None) -> bool:
        """Start a run and hit it; return whether it ended instead, or is lost."""
        name, run_dir = outcome.name, self.folder / outcome.name
        before = newest_checkpoint(run_dir)
        with self._job(name, kind) as job:
            observer = Observer(run_dir, job, self.paces[kind])
            try:
                if aim is None:
                    observer.await_end()
                elif aim == "start":
                    observer.await_moment(aim, self.rng)
                    job.choose(self.rng)
                    struck = job.strike()
                else:
                    observer.await_start()
                    job.choose(self.rng)
                    observer.await_moment(aim, self.rng)
                    if aim == "ask":
                        begun = begun_checkpoints(run_dir)
                        job.ask_to_save()
                        observer.await_answer(begun, self.rng)
                    struck = job.stop() if aim == "stop" else job.strike()
            except EndedFirst:
                aim = None
            except TimeoutError as error:
                outcome.lost = f"{error}; {self._printed(name)}"
                return True
            if aim is None:
                outcome.lost = self._failure(name, job)
                return True
            if aim == "stop" and (run_dir / "summary.json").is_file():
                return True  # it was over before the request came
            if aim == "stop" and (problem := self._disobedience(name, kind, job)):
                outcome.lost = problem
                return True
        hit = Hit(
            aim,
            struck,
            last_step(run_dir),
            # what an earlier kill left is cleared away with the first checkpoint after it
            saving=is_saving(run_dir) and newest_checkpoint(run_dir) != before,
            torn=is_torn(run_dir),
        )
        outcome.hits.append(hit)
        self.spent += aim != "stop"
        notes = ", in a save" * hit.saving + ", in a line" * hit.torn
        self.tell(
            f"{self.spent:4} of {self.kills}  {name}  {aim:5}  {struck} after step {hit.step}"
            + notes
        )
        return False

    def _job(self, name: str, kind: Kind, warm: bool = True) -> Job:
        shared = ["--training.parallelism", kind.parallelism] if kind.parallelism else []
        return Job(
            ["train", str(self.config), *shared, "--run-dir", str(self.folder / name)],
            kind.processes,
            log=self.folder / f"{name}.log",
            warm=warm,
            cache=self.folder / "cache",
        )

    def _failure(self, name: str, job: Job) -> str:
        """Why a job that ended did not end well; empty where it did."""
        if job.status == 0 and (self.folder / name / "summary.json").is_file():
            return ""
        return f"exit status {job.status}; {self._printed(name)}"

    def _disobedience(self, name: str, kind: Kind, job: Job) -> str:
        """How a job that was asked to stop did not do so as it should; empty where it did."""
        status, step = job.status, last_step(self.folder / name)
        # of several it is the launcher's, which knows a process that ended so as a failed one
        if status == 0 or (kind.processes == 1 and status != 128 + signal.SIGTERM):
            return f"asked to stop, it ended with status {status}; {self._printed(name)}"
        if newest_checkpoint(self.folder / name) != f"step-{step:08}":
            return f"asked to stop, it did not save step {step}; {self._printed(name)}"
        return ""

    def _printed(self, name: str) -> str:
        text = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return "it printed: " + "\n".join(text.splitlines()[-_LINES_TOLD:])

    def _clear(self, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / f"{name}.log").unlink(missing_ok=True)


def _reference(kind: Kind) -> str:
    return "-".join(["reference", *filter(None, map(str, kind))])


def _told(outcome: Outcome) -> str:
    stops = len(outcome.hits) - len(outcome.kills)
    return f"{len(outcome.kills)} kills" + f" and {stops} stops" * bool(stops)
