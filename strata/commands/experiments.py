"""Commands of many runs: suites that compare recipes, and searches for the best values."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from strata.commands import print_table
from strata.commands.runs import Everything
from strata.config import Config

if TYPE_CHECKING:
    from strata.ablations import RunSummary, Suite


def base_of(suite: str) -> Config:
    """The configuration that a suite's variants are differences from."""
    from strata.ablations import read_suite

    return read_suite(suite).base


def ablate(
    suite: Positional[str],
    config: Everything,
    seeds: tuple[int, ...] = (),
    only: tuple[str, ...] = (),
    workers: int = 0,
    dry_run: bool = False,
    fresh: bool = False,
    stop_hopeless: float = 0.0,
    output: Path | None = None,
    store: Path | None = None,
) -> None:
    """Make the runs of a suite and compare them; the same command goes on where one stopped.

    Example: strata ablate nano --seeds 0 1 2 3 4 --output runs/five-seeds

    What is left of it: strata ablate nano --dry-run

    Args:
        suite: A suite that comes with Strata, or a TOML file; the fields of its base are options
            too, as in strata train.
        seeds: Every variant is trained once with each; those of the suite if none are given.
        only: Make the runs of these variants alone; patterns as "gpt3+*" too.
        workers: Runs side by side; 0 = as many as fit, one on each GPU.
        dry_run: List the runs, their states, their compute and an estimate of the time; make none.
        fresh: Make runs anew that another version of the code has made; else they are kept.
        stop_hopeless: Stop a variant's run that is worse than every finished run of the base by
            more than so many bits per byte at as many tokens, after a third of it; 0 = none.
        output: The folder of the suite's runs; runs/SUITE/ablations if it is not given.
        store: Keep the finished runs in this one small file too (.jsonl), which chapter 5 and the
            paper read. Folders of the corpus are called there by their last name, in which no two
            may agree.
    """
    import dataclasses
    import re

    from strata import ablations
    from strata.data import absolute_spec
    from strata.workbook import default_run_dir

    asked = ablations.read_suite(suite)
    wished = config.override({"data.corpus": absolute_spec(config.data.corpus)})
    changes = {name: value for name, (_, value) in asked.base.differences(wished).items()}
    asked = ablations.read_suite(suite, changes)
    asked = dataclasses.replace(asked, seeds=seeds or asked.seeds)
    folders = set(re.findall(r"(?:files:|,)(/[^,:]*)/[^,/ ]*", asked.base.data.corpus))
    places = {place: Path(place).name for place in folders}
    if store is not None and len(set(places.values())) < len(places):
        raise ValueError(
            f"--store would call {' and '.join(sorted(places))} by one name: rename a folder"
        )
    folder = default_run_dir(asked.name) / "ablations" if output is None else output
    for sentence in asked.left_out:
        print(sentence)
    if dry_run:
        found = ablations.look_out(asked, folder, workers=workers, only=only, fresh=fresh)
        print_table(asked.name, *found.table())
        print(found.sentence())
        print(f"runs: {folder}")
        return
    try:
        finished = ablations.run_suite(
            asked, folder, workers=workers, only=only, fresh=fresh, stop_hopeless=stop_hopeless
        )
    except ablations.SweepError as error:
        _print_ablations(asked, folder, error.finished)
        raise
    _print_ablations(asked, folder, finished)
    if store is not None:
        print(f"stored: {ablations.store_runs(folder, store, places=places)}")


def _print_ablations(suite: "Suite", folder: Path, finished: "list[RunSummary]") -> None:
    """What the finished runs of a suite say, which were stopped, and where all of it lies."""
    from strata import ablations

    names = [variant.name for variant in suite.variants]
    losses = ablations.final_losses(finished, names)
    common = losses.get(names[0], {}).keys()
    losses = {name: by_seed for name, by_seed in losses.items() if by_seed.keys() & common}
    if losses:
        rows = [
            [
                one.variant,
                str(len(one.seeds)),
                f"{one.mean.estimate:.3f}",
                f"{one.difference.estimate:+.3f}",
                f"[{one.difference.low:+.3f}, {one.difference.high:+.3f}]",
                f"{one.p_adjusted:.3f}",
            ]
            for one in ablations.compare(losses, names[0])
        ]
        header = ["variant", "seeds", "bits per byte", "difference", "interval", "p (Holm)"]
        print_table(suite.name, header, rows)
    for name, reason in ablations.stopped_runs(folder).items():
        print(f"{name} is in no table: {reason}")
    if (folder / "choices.json").is_file():
        print(f"what was tuned: {folder / 'choices.json'}")
    print(f"runs: {folder}")


def tune(
    preset: Positional[str],
    search: Annotated[tuple[str, ...], UseAppendAction],
    config: Everything,
    trials: int = 20,
    workers: int = 1,
    pruning: Literal["median", "halving", "none"] = "median",
    seed: int = 0,
    seeds: tuple[int, ...] = (),
    output: Path | None = None,
) -> None:
    """Search for the best values of any fields; the same command continues a search.

    Example: strata tune nano --search optimizer.learning-rate=log:0.001:0.1
    --search model.n-layers=2:6 --search optimizer.name=muon,adamw --trials 40 --workers 2

    Args:
        preset: A named configuration or a config.toml to search around; its other fields are
            options too, as in strata train.
        search: FIELD=LOW:HIGH, FIELD=LOW:HIGH:STEP, FIELD=log:LOW:HIGH or FIELD=A,B,C.
        trials: How many, in all.
        workers: Trials side by side.
        pruning: Which to stop early: those worse than the median of the earlier ones, those that
            fall behind in successive halving, or none.
        seed: Of the search.
        seeds: Train each trial once with each, and take the mean.
        output: The folder of the search; runs/tune-PRESET if it is not given.
    """
    from strata.ablations.search import split_search
    from strata.ablations.tuning import tune as run_search
    from strata.data import absolute_spec
    from strata.workbook import default_run_dir

    if output is None and preset.endswith(".toml"):
        raise ValueError("tune where? Name a preset, or give --output")
    folder = default_run_dir(f"tune-{preset}") if output is None else output
    study = run_search(
        config.override({"data.corpus": absolute_spec(config.data.corpus)}),
        split_search(search),
        folder,
        trials=trials,
        workers=workers,
        pruning=pruning,
        seed=seed,
        seeds=seeds,
    )
    best = [[name, f"{value}"] for name, value in study.best_params.items()]
    print_table(
        f"best of {len(study.trials)}: trial {study.best_trial.number}",
        ["field", "value"],
        [*best, ["bits per byte", f"{study.best_value:.3f}"]],
    )
    print(f"configuration: {folder / 'best.toml'}")
