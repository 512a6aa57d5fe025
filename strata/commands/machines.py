"""Commands of machines: what this one can do, and training on another."""

import sys
from typing import Annotated

from tyro.conf import Positional, arg

from strata.commands import Run

Target = Annotated[Positional[str], arg(help="A folder there, as user@host:folder.")]
Python = Annotated[str, arg(help="The Python there, 3.11 or later.")]


def doctor() -> None:
    """Say what this machine can do, what is missing, and which preset fits it.

    Example: strata doctor
    """
    from strata.doctor import examine

    examine()


def transfer_push(run: Run, target: Target, python: Python = "python3") -> None:
    """Send code, run and token shards to a training machine.

    Example: strata transfer push runs/mine me@gpu:strata
    """
    from strata import transfer

    sent = transfer.push(run, target, python=python)
    for name in sent.left_out:
        print(f"left out, it looks like a secret: {name}", file=sys.stderr)
    print(f"{sent.n_files:,} files, {sent.n_bytes / 1e6:,.1f} MB: {sent.place}")


def transfer_run(run: Run, target: Target, python: Python = "python3") -> None:
    """Start training there; it goes on when this machine is gone.

    Example: strata transfer run runs/mine me@gpu:strata
    """
    from strata import transfer

    print(f"{target}: {transfer.run(run, target, python=python)}")


def transfer_status(run: Run, target: Target, python: Python = "python3") -> None:
    """Ask how far a run has come there.

    Example: strata transfer status runs/mine me@gpu:strata
    """
    from strata import transfer

    print(f"{target}: {transfer.status(run, target, python=python)}")


def transfer_pull(run: Run, target: Target, python: Python = "python3") -> None:
    """Bring home what the run there has made.

    Example: strata transfer pull runs/mine me@gpu:strata
    """
    from strata import transfer

    brought = transfer.pull(run, target, python=python)
    print(f"{brought.n_files:,} files, {brought.n_bytes / 1e6:,.1f} MB: {brought.place}")
