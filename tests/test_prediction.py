"""A prediction is written once, before its run, and held against the run that was meant."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored_runs import BASE, write_run

from strata.ablations.power_law import fit_power_law
from strata.ablations.prediction import check, hash_of, read_prediction, register, tokens_of
from strata.ablations.scaling import ScalingLaw, fit_scaling_law
from strata.ablations.stored import load_stored, store_runs
from strata.ablations.summary import load_suite, summarise
from strata.model import count_parameters, flops_per_token

LAW = ScalingLaw(E=1.0, A=20.0, B=8.0, alpha=0.4, beta=0.4)
MEANT = {"model.width": 64, "training.max_steps": 64}


def expected_loss(changes):
    config = BASE.override(changes)
    n, steps = count_parameters(config.model)["total"], config.training.max_steps
    return float(LAW.loss(n, steps * 2 * 8))


def fit_of(runs, **options):
    columns = ([getattr(run, name) for run in runs] for name in
               ("parameters", "tokens", "bits_per_byte"))  # fmt: skip
    return fit_scaling_law(*columns, bootstrap_samples=40, **options)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Runs of a known law with noise of 0.2 %, and their fit."""
    suite = tmp_path_factory.mktemp("grid")
    noise = np.random.default_rng(1)
    for width in (8, 16, 24, 32):
        for steps in (4, 8, 16, 32):
            changes = {"model.width": width, "training.max_steps": steps}
            loss = expected_loss(changes) * np.exp(0.002 * noise.standard_normal())
            write_run(suite, f"width{width}-steps{steps}", 0, changes, loss=loss)
    runs = load_suite(suite)
    return suite, runs, fit_of(runs)


def register_meant(path, grid, run_dir, **changes):
    _, runs, fit = grid
    arguments = {"name": "far", "config": BASE.override(MEANT), "run_dir": run_dir, **changes}
    return register(path, arguments.pop("fit", fit), arguments.pop("runs", runs), **arguments)


def test_a_line_through_the_least_losses_may_predict_beside_the_law(grid, tmp_path):
    line = fit_power_law([1e6, 1e7, 1e8], [4.0, 2.0, 1.0])
    path = register_meant(tmp_path / "far.json", grid, tmp_path / "far-seed0", frontier=line)
    held = read_prediction(path)
    assert held["predicted_bits_per_byte"]["estimate"] == pytest.approx(line.loss(held["flops"]))
    plain = read_prediction(register_meant(tmp_path / "law.json", grid, tmp_path / "far-seed0"))
    assert plain["predicted_bits_per_byte"] == plain["by_the_law"] == held["by_the_law"]
    assert held["predicted_by"] != plain["predicted_by"]


def begin(folder, moment):
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": moment}))


def test_a_run_is_held_against_what_was_written_before_it(grid, tmp_path):
    path = register_meant(tmp_path / "new" / "far.json", grid, tmp_path / "far-seed0")
    held = read_prediction(path)
    config = BASE.override(MEANT)
    assert (held["tokens"], held["config_hash"]) == (64 * 2 * 8, config.hash())
    assert held["parameters"] == count_parameters(config.model)["total"]
    assert held["flops"] == held["tokens"] * flops_per_token(config.model)
    assert held["runs"] == [run.name for run in grid[1]]
    assert held["fit"]["law"]["alpha"] == grid[2].law.alpha

    truth = expected_loss(MEANT)
    folder = write_run(tmp_path, "far", 0, MEANT, loss=truth)
    begin(folder, "2999-01-01T00:00:00+00:00")
    found = check(path, summarise(folder))
    assert (found.measured, found.inside) == (truth, True)
    assert found.same_configuration
    assert found.began_after
    assert abs(found.error_percent) < 1.0
    estimate = held["predicted_bits_per_byte"]["estimate"]
    assert found.error_percent == pytest.approx(100 * (truth / estimate - 1), rel=0.02)


def test_another_run_or_an_earlier_one_is_called_so(grid, tmp_path):
    path = register_meant(tmp_path / "far.json", grid, tmp_path / "far-seed0")
    other = write_run(tmp_path, "other", 0, MEANT | {"optimizer.learning_rate": 0.5}, loss=9.0)
    found = check(path, summarise(other))
    assert [found.inside, found.same_configuration, found.began_after] == [False] * 3
    assert found.error_percent > 50
    otherwise = MEANT | {"training.validation_sequences": 1}
    measured = write_run(tmp_path, "measured-otherwise", 0, otherwise)
    assert not check(path, summarise(measured)).same_configuration


def test_a_prediction_is_never_replaced_and_never_made_of_a_run_that_has_begun(grid, tmp_path):
    path = register_meant(tmp_path / "far.json", grid, tmp_path / "far-seed0")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="none is ever replaced"):
        register_meant(path, grid, tmp_path / "far-seed0")
    begun = write_run(tmp_path, "far", 0, MEANT, finished=False)
    with pytest.raises(ValueError, match="has begun"):
        register_meant(tmp_path / "late.json", grid, begun)
    assert path.read_bytes() == before
    assert not (tmp_path / "late.json").exists()


def test_what_was_not_fitted_or_bears_no_interval_is_not_registered(grid, tmp_path):
    _, runs, _ = grid
    path, run_dir = tmp_path / "far.json", tmp_path / "far-seed0"
    with pytest.raises(ValueError, match="not those of the fit"):
        register_meant(path, grid, run_dir, runs=runs[::-1])
    with pytest.raises(ValueError, match="cannot show a bend"):
        register_meant(path, grid, run_dir, runs=runs[:4], fit=fit_of(runs[:4]))
    columns = zip(*((run.parameters, run.tokens, run.bits_per_byte) for run in runs), strict=True)
    bare = fit_scaling_law(*columns, bootstrap_samples=0)
    with pytest.raises(ValueError, match="without a bootstrap"):
        register_meant(path, grid, run_dir, fit=bare)
    elsewhere = BASE.override({**MEANT, "data.corpus": "files:/home/me/*.txt"})
    with pytest.raises(ValueError, match="config, data, corpus"):
        register_meant(path, grid, run_dir, config=elsewhere)
    assert not path.exists()
    register_meant(path, grid, run_dir, config=elsewhere, places={"/home/me": "texts"})
    assert read_prediction(path)["config_hash"] == elsewhere.hash()


def test_the_hash_of_the_runs_is_that_of_the_stored_ones_and_changes_with_any_number(
    grid, tmp_path
):
    suite, runs, _ = grid
    stored = load_stored(store_runs(suite, tmp_path / "runs.jsonl"))
    assert hash_of(stored[::-1]) == hash_of(runs)
    assert hash_of([replace(stored[0], memory_bytes=1005), *stored[1:]]) != hash_of(runs)


def test_the_hash_of_the_runs_does_not_depend_on_where_the_corpus_lies(tmp_path):
    write_run(tmp_path / "suite", "strata", 0, {"data.corpus": "files:/home/me/*.txt"})
    path = store_runs(tmp_path / "suite", tmp_path / "runs.jsonl", places={"/home/me": "texts"})
    assert hash_of(load_stored(path)) == hash_of(load_suite(tmp_path / "suite"))


def test_a_run_of_another_text_than_the_runs_behind_the_prediction_is_called_so(grid, tmp_path):
    path = register_meant(tmp_path / "far.json", grid, tmp_path / "far-seed0")
    assert read_prediction(path)["text"] == {"corpus": "cafe", "tokenizer": None}
    run = summarise(write_run(tmp_path, "far", 0, MEANT))
    assert check(path, run).same_configuration
    elsewhere = replace(run, provenance={**run.provenance, "corpus": "dead"})
    assert not check(path, elsewhere).same_configuration
    runs = [*grid[1][:-1], replace(grid[1][-1], provenance=elsewhere.provenance)]
    with pytest.raises(ValueError, match="have read different text"):
        register_meant(tmp_path / "mixed.json", grid, tmp_path / "other-seed0", runs=runs)


def test_the_prediction_of_the_repository_is_still_held_against_its_run():
    paper = Path(__file__).parents[1] / "paper"
    (run,) = load_stored(paper / "runs" / "prediction.jsonl")
    found = check(paper / "predictions" / "scaling.json", run)
    assert found.same_configuration
    assert found.began_after


def test_a_batch_that_grows_is_counted_as_it_is():
    config = BASE.override(
        {
            "training.batch_size": 4,
            "training.initial_batch_size": 1,
            "training.batch_growth_steps": 2,
        }
    )
    assert tokens_of(BASE) == 4 * 2 * 8
    assert tokens_of(config) == (1 + 2 + 4 + 4) * 8


def test_what_is_no_prediction_is_said_with_its_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="register it before the run"):
        read_prediction(tmp_path / "far.json")
    for text in ("{}", "{"):
        (tmp_path / "far.json").write_text(text)
        with pytest.raises(ValueError, match=r"far\.json"):
            read_prediction(tmp_path / "far.json")
