"""What each command of `strata …` does: one thin function a command.

text.py       tokenizers and token shards
runs.py       training, and what comes of it: scores, ablations, the workbook, the paper
writing.py    what a trained model writes
machines.py   this machine
transfers.py  training on another

A command imports what it needs, calls the package that does the work, and prints where the result
lies. Nothing else is decided here: options are the functions' parameters and, for the
configuration, the fields of the classes in `strata/sections.py`. `strata/cli.py` turns arguments
into the call.

Packages that take long to load (torch, numba, matplotlib) are imported inside the commands.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from strata.config import DataConfig

if TYPE_CHECKING:
    from strata.data import Corpus
    from strata.tokenizer import Tokenizer

Run = Annotated[Positional[Path], arg(help="The folder of a run.")]


def load_tokenizer(path: Path) -> "Tokenizer":
    """The tokenizer in a file, or of a run whose folder this is."""
    from strata.tokenizer import Tokenizer

    return Tokenizer.load(path / "tokenizer.json" if path.is_dir() else path)


def open_corpus(data: DataConfig) -> "Corpus":
    """The corpus that a configuration names, with a progress bar while it is read."""
    from strata.data import Corpus

    return Corpus.open(
        data.corpus,
        text_column=data.text_column,
        validation_fraction=data.validation_fraction,
        progress=True,
    )


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns of strings under a title, all but the first flush right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(title)
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join([row[0].ljust(widths[0]), *cells]))
