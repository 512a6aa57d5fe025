"""The drill itself: an undisturbed run, then runs that are killed, started again and compared."""

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from math import ceil
from pathlib import Path

from strata.drill.aims import (
    AIMS,
    Aim,
    EndedFirst,
    Observer,
    Pace,
    is_saving,
    is_torn,
    last_step,
    log_lines,
    newest_checkpoint,
)
from strata.drill.comparison import find_differences
from strata.drill.jobs import Job, prepare_warm_jobs
from strata.drill.record import Kill, Outcome
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
    """Kill training at random instants, and yield each run as it is over.

    In `folder` are left what is trained and on what text (`config.toml`, `corpus/`), the
    undisturbed runs (`reference-1`, `reference-2`) and, of the others, those that were lost or
    differ, each with what its processes printed (`run-003`, `run-003.log`).

    Args:
        kills: how many, over all runs.
        processes: how many train: each number has its share of the runs.
        runs: over how many runs the kills are spread; 0 = fifteen kills each. A run that ends
            before its kills are spent leaves them to another.
        seed: of the instants, and of what is killed.
        tell: is given a line for each kill and each run.

    Raises:
        ValueError: a number is less than one.
        RuntimeError: an undisturbed run failed.
    """
    for name, value in (("kills", kills), *(("processes", number) for number in processes)):
        if value < 1:
            raise ValueError(f"{name} = {value}: expected at least 1")
    runs = max(runs, len(processes)) if runs > 0 else max(ceil(kills / KILLS_A_RUN), len(processes))
    kills_a_run = ceil(kills / runs)
    config = write_small_run(folder.absolute(), kills_a_run)
    exercise = _Exercise(config, kills, random.Random(seed), tell)
    for index, number in enumerate(processes):
        run_dir = exercise.train_reference(number, warm=index > 0)
        if index == 0:
            prepare_warm_jobs(run_dir / "tokenizer.json")
    number = fruitless = 0
    while exercise.spent < kills and fruitless < _FRUITLESS_RUNS:
        share = processes[number % len(processes)]
        most = min(kills - exercise.spent, kills_a_run)
        outcome = exercise.drill_run(f"run-{number:03}", share, most)
        yield outcome
        number += 1
        fruitless = 0 if outcome.kills else fruitless + 1


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
        self.paces: dict[int, Pace] = {}

    def train_reference(self, processes: int, warm: bool) -> Path:
        """Train undisturbed, and return the run's folder."""
        name = f"reference-{processes}"
        self._clear(name)
        self.paces[processes] = pace = Pace()
        with self._job(name, processes, warm) as job:
            Observer(self.folder / name, job, pace).await_end()
            if problem := self._failure(name, job):
                raise RuntimeError(f"the undisturbed run failed: {problem}")
        self.tell(f"{name}: undisturbed, {last_step(self.folder / name)} steps")
        return self.folder / name

    def drill_run(self, name: str, processes: int, most: int) -> Outcome:
        """Train one run that is killed up to `most` times."""
        self._clear(name)
        run_dir, outcome = self.folder / name, Outcome(name, processes)
        aims = self.rng.choices(list(AIMS), weights=list(AIMS.values()), k=most)
        aims.sort(key=lambda aim: aim == "end")
        for aim in (*aims, None):  # the last start is left alone
            before, killed = log_lines(run_dir), list(outcome.kills)
            ended = self._start(outcome, aim)
            if (lines := log_lines(run_dir)) != before:
                kept = takewhile(lambda pair: pair[0] == pair[1], zip(before, lines, strict=False))
                came_back_to = len(list(kept))
                for kill in killed:
                    kill.resumed = came_back_to if kill.resumed is None else kill.resumed
            if ended:
                break
        if not outcome.lost:
            outcome.differences = find_differences(run_dir, self.folder / f"reference-{processes}")
        if outcome.problem:
            self.tell(f"{name}: {'LOST' if outcome.lost else 'DIFFERS'}: {outcome.problem}")
        else:
            self.tell(f"{name}: after {len(outcome.kills)} kills the same to the last bit")
            self._clear(name)
        return outcome

    def _start(self, outcome: Outcome, aim: Aim | None) -> bool:
        """Start a run and kill it; return whether it ended instead, or is lost."""
        name, run_dir = outcome.name, self.folder / outcome.name
        before = newest_checkpoint(run_dir)
        with self._job(name, outcome.processes) as job:
            observer = Observer(run_dir, job, self.paces[outcome.processes])
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
                    struck = job.strike()
            except EndedFirst:
                aim = None
            except TimeoutError as error:
                outcome.lost = f"{error}; {self._printed(name)}"
                return True
            if aim is None:
                outcome.lost = self._failure(name, job)
                return True
        kill = Kill(
            aim,
            struck,
            last_step(run_dir),
            # what an earlier kill left is cleared away with the first checkpoint after it
            saving=is_saving(run_dir) and newest_checkpoint(run_dir) != before,
            torn=is_torn(run_dir),
        )
        outcome.kills.append(kill)
        self.spent += 1
        notes = ", in a save" * kill.saving + ", in a line" * kill.torn
        self.tell(
            f"{self.spent:4} of {self.kills}  {name}  {aim:5}  {struck} after step {kill.step}"
            + notes
        )
        return False

    def _job(self, name: str, processes: int, warm: bool = True) -> Job:
        return Job(
            ["train", str(self.config), "--run-dir", str(self.folder / name)],
            processes,
            log=self.folder / f"{name}.log",
            warm=warm,
            cache=self.folder / "cache",
        )

    def _failure(self, name: str, job: Job) -> str:
        """Why a job that ended did not end well; empty where it did."""
        if job.status == 0 and (self.folder / name / "summary.json").is_file():
            return ""
        return f"exit status {job.status}; {self._printed(name)}"

    def _printed(self, name: str) -> str:
        text = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return "it printed: " + "\n".join(text.splitlines()[-_LINES_TOLD:])

    def _clear(self, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / f"{name}.log").unlink(missing_ok=True)
