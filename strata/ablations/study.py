"""A search on disk: what was tried and what came of it, in SQLite, as Optuna keeps it.

base.toml     the configuration that is searched around
study.db      the study, with what is searched among its attributes
search.lock   held by the process that is searching
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study

from strata.ablations.search import Space, base_values
from strata.config import Config

_NAME = "strata"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second search out of a folder; the lock goes with the process that holds it.

    Raises:
        ValueError: if another process holds it.
    """
    with closing(sqlite3.connect(folder / "search.lock", timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            raise ValueError(
                f"{folder} is in use by another `strata tune`: wait for it to end"
            ) from None
        yield


def open_study(folder: Path, config: Config, space: Space, seeds: Sequence[int]) -> Study:
    """A new study with the configuration's own values before it, or the one that is there.

    Raises:
        ValueError: if the folder holds another search.
    """
    if not (folder / "study.db").is_file() and any(folder.glob("trial-*")):
        raise ValueError(f"{folder} holds trials of a search that is gone; choose another folder")
    study = optuna.create_study(
        storage=_storage(folder), study_name=_NAME, direction="minimize", load_if_exists=True
    )
    asked = {name: str(what) for name, what in space.items()} | {"seeds": str(list(seeds))}
    if "search" not in study.user_attrs:
        config.save(folder / "base.toml")
        if (values := base_values(space, config)) is not None:
            study.enqueue_trial(values, skip_if_exists=True)
        study.set_user_attr("search", asked)
    elif differences := _differences(folder, study.user_attrs["search"], asked, config):
        raise ValueError(
            f"{folder} holds another search: {'; '.join(differences)}; choose another folder"
        )
    return study


def load_study(folder: str | Path) -> Study:
    """The study of a search, for a look at what was tried.

    Raises:
        FileNotFoundError: if the folder holds no search.
    """
    path = Path(folder) / "study.db"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of a search")
    return optuna.load_study(study_name=_NAME, storage=_storage(Path(folder)))


def _differences(
    folder: Path, held: dict[str, str], asked: dict[str, str], config: Config
) -> list[str]:
    """In what the search that is there is not the one that is asked for."""
    before = Config.load(folder / "base.toml")
    found: dict[str, tuple[Any, Any]] = {
        name: (held.get(name, "not searched"), asked.get(name, "not searched"))
        for name in {**held, **asked}
        if held.get(name) != asked.get(name)
    }
    measure = ("training.validate_every", "training.validation_sequences")
    changed = before.differences(config)
    if before.hash() != config.hash() or changed.keys() & set(measure):
        found |= changed
    return [f"{name} is {there} there and {here} here" for name, (there, here) in found.items()]


def _storage(folder: Path) -> optuna.storages.RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # `tune` says a trial in a line of its own
    patient = {"connect_args": {"timeout": 60}}  # seconds, while another worker writes
    path = (folder / "study.db").absolute().as_posix()
    return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs=patient)
