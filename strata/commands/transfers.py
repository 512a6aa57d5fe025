"""Commands that take a run to a training machine and bring it home."""

import sys
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from strata.commands import Run, print_table

if TYPE_CHECKING:
    from strata.transfer import Status, Transferred

Target = Annotated[
    Positional[str],
    arg(help="A folder there, as user@host:folder, or a name from ~/.config/strata/targets.toml."),
]


def transfer_push(run: Run, target: Target, preset: str = "", dry_run: bool = False) -> None:
    """Send code, run and token shards to a training machine: what it lacks of them.

    Example: strata transfer push runs/mine me@gpu:strata

    See what would go: strata transfer push runs/mine gpu --dry-run

    Args:
        preset: A named configuration to begin the run with, if it has none yet.
        dry_run: List what would go, and change nothing.
    """
    from strata import transfer

    sent = transfer.push(run, target, preset=preset, dry_run=dry_run)
    for name in sent.left_out:
        print(f"left out, it looks like a secret: {name}", file=sys.stderr)
    _tell(sent, dry_run)


def transfer_run(run: Run, target: Target) -> None:
    """Start training there; it goes on when this machine is gone.

    Example: strata transfer run runs/mine me@gpu:strata
    """
    from strata import transfer

    started = transfer.run(run, target)
    if started.state in ("failed", "killed"):
        raise RuntimeError(str(started))
    print(started)


def transfer_status(run: Run, target: Target, follow: bool = False) -> None:
    """Ask how far a run has come there.

    Example: strata transfer status runs/mine me@gpu:strata

    Until it ends: strata transfer status runs/mine me@gpu:strata --follow

    Args:
        follow: Watch it until its job ends, and fail if that does; Ctrl-C ends the watching alone.
    """
    from strata import transfer

    if follow:
        transfer.watch(run, target)
    else:
        print(transfer.status(run, target))


def transfer_logs(run: Run, target: Target, follow: bool = False, lines: int = 50) -> None:
    """Show what the job there prints.

    Example: strata transfer logs runs/mine me@gpu:strata --follow

    Args:
        follow: Go on until the job ends; Ctrl-C ends the listening alone.
        lines: How many of the last lines to begin with.
    """
    from strata import transfer

    if lines < 1:
        raise ValueError(f"--lines {lines}: expected 1 or more")
    empty = True
    try:
        for line in transfer.logs(run, target, lines=lines, follow=follow):
            print(line, flush=True)
            empty = False
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped listening; the job of {run.name} goes on") from None
    if empty:
        print(f"nothing was printed yet: {transfer.status(run, target)}", file=sys.stderr)


def transfer_stop(run: Run, target: Target) -> None:
    """Let the job there save a checkpoint and end.

    Example: strata transfer stop runs/mine me@gpu:strata
    """
    from strata import transfer

    print(transfer.stop(run, target))


def transfer_pull(
    run: Run, target: Target, checkpoints: tuple[str, ...] = ("newest",), dry_run: bool = False
) -> None:
    """Bring home what the run there has made.

    Example: strata transfer pull runs/mine me@gpu:strata

    With all that it kept: strata transfer pull runs/mine me@gpu:strata --checkpoints all

    Args:
        checkpoints: Which to bring besides everything else: newest, all, none, or their steps.
        dry_run: List what would come, and change nothing.
    """
    from strata import transfer

    wanted: str | tuple[int, ...]
    if checkpoints in (("newest",), ("all",), ("none",)):
        wanted = checkpoints[0]
    elif checkpoints and all(step.isdecimal() for step in checkpoints):
        wanted = tuple(int(step) for step in checkpoints)
    else:
        raise ValueError(
            f"--checkpoints {' '.join(checkpoints)}: expected newest, all, none, or steps"
        )
    _tell(transfer.pull(run, target, checkpoints=wanted, dry_run=dry_run), dry_run)


def transfer_list(target: Target) -> None:
    """List the runs of a target's folder.

    Example: strata transfer list me@gpu:strata
    """
    from strata import transfer

    found = transfer.list_runs(target)
    header = ["run", "steps", "loss", "bits/byte", "tok/s", "memory", "left", "state"]
    print_table(target, header, [_row(one) for one in found])
    for one in found:
        if one.problem:
            print(f"{one.name} is damaged: {one.problem}", file=sys.stderr)


def _row(run: "Status") -> list[str]:
    from strata.data.progress import duration

    return [
        run.name,
        f"{run.step or 0:,}/{'?' if run.max_steps is None else f'{run.max_steps:,}'}",
        "-" if run.loss is None else f"{run.loss:.4f}",
        "-" if run.bits_per_byte is None else f"{run.bits_per_byte:.4f}",
        "-" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
        f"{run.memory_bytes / 1e9:.1f} GB" if run.memory_bytes else "-",
        "-" if run.seconds_left is None or not run.running else duration(run.seconds_left),
        run.state.replace("ready", "not started"),
    ]


def _tell(moved: "Transferred", dry_run: bool) -> None:
    """Say what was carried, or list what would be."""
    n_bytes, of_bytes = (sum(part.values()) / 1e6 for part in (moved.carried, moved.sizes))
    amount = f"{len(moved.carried):,} of {len(moved.sizes):,} files"
    amount += f", {n_bytes:,.1f} of {of_bytes:,.1f} MB"
    if dry_run:
        rows = [[name, f"{size:,}"] for name, size in sorted(moved.carried.items())]
        print_table(f"would carry {amount}: {moved.place}", ["file", "bytes"], rows)
    else:
        print(f"carried {amount}: {moved.place}")
