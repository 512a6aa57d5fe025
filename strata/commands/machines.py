"""Commands of machines: what this one can do and bear, and training on another."""

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from strata.commands import Run

Target = Annotated[Positional[str], arg(help="A folder there, as user@host:folder.")]


def doctor() -> None:
    """Say what this machine can do, what is missing, and which preset fits it.

    Example: strata doctor
    """
    from strata.doctor import examine

    examine()


def drill(
    folder: Annotated[Positional[Path], arg(metavar="RUN")],
    kills: int = 30,
    processes: tuple[int, ...] = (1, 2),
    runs: int = 0,
    seed: int | None = None,
    record: Path | None = None,
) -> None:
    """Kill a small run at random instants, and show that it ends as if nobody had.

    Example: strata drill runs/drill --kills 30

    Args:
        folder: Where the drill takes place; runs that fail are kept there.
        kills: How many in all.
        processes: How many train; each number has its share of the runs, 2 and more have one with
            training.parallelism ddp and one with fsdp.
        runs: Over how many runs the kills are spread; 0 = about fifteen kills each.
        seed: Of the instants; from the clock if it is not given.
        record: A file that the result is added to; RUN/drill.jsonl if it is not given.
    """
    import time

    from strata import drill as exercise

    seed = time.time_ns() % 1_000_000 if seed is None else seed
    record = folder / "drill.jsonl" if record is None else record
    outcomes: list[exercise.Outcome] = []
    try:
        outcomes.extend(exercise.drill(folder, kills, processes, runs, seed))
    finally:  # a drill that is stopped has found out something too
        if outcomes:
            exercise.add_to_record(record, seed, outcomes)
            exercise.save_kills(folder / "kills.jsonl", outcomes)
    for line in exercise.table(outcomes):
        print(line)
    total = exercise.sum_record(record)
    print(
        f"record: {total.kills:,} kills in {total.runs:,} runs, {total.lost:,} lost, "
        f"{total.differing:,} differing: {record}"
    )
    if wrong := [outcome for outcome in outcomes if outcome.problem]:
        places = ", ".join(str(folder / outcome.name) for outcome in wrong)
        raise RuntimeError(f"{len(wrong)} of {len(outcomes)} runs did not come back: {places}")


def transfer_push(run: Run, target: Target) -> None:
    """Send code, run and token shards to a training machine.

    Example: strata transfer push runs/mine me@gpu:strata
    """
    from strata import transfer

    sent = transfer.push(run, target)
    for name in sent.left_out:
        print(f"left out, it looks like a secret: {name}", file=sys.stderr)
    print(f"{len(sent.sizes):,} files, {sum(sent.sizes.values()) / 1e6:,.1f} MB: {sent.place}")


def transfer_run(run: Run, target: Target) -> None:
    """Start training there; it goes on when this machine is gone.

    Example: strata transfer run runs/mine me@gpu:strata
    """
    from strata import transfer

    print(f"{target}: {transfer.run(run, target)}")


def transfer_status(run: Run, target: Target) -> None:
    """Ask how far a run has come there.

    Example: strata transfer status runs/mine me@gpu:strata
    """
    from strata import transfer

    print(f"{target}: {transfer.status(run, target)}")


def transfer_pull(run: Run, target: Target) -> None:
    """Bring home what the run there has made.

    Example: strata transfer pull runs/mine me@gpu:strata
    """
    from strata import transfer

    brought = transfer.pull(run, target)
    n_bytes = sum(brought.sizes.values())
    print(f"{len(brought.sizes):,} files, {n_bytes / 1e6:,.1f} MB: {brought.place}")
