"""Stored runs are the runs, and equal runs make equal bytes wherever their folders lie."""

import json
import math
import shutil
from pathlib import Path

import pytest
from stored_runs import BASE, write_run

from strata.ablations.multipliers import compute_multiplier
from strata.ablations.stored import load_stored, store_runs, stored_choices, stored_left_out
from strata.ablations.summary import (
    final_losses,
    learning_curves,
    load_suite,
    size_curves,
    summarise,
)

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def suite(tmp_path):
    folder = tmp_path / "suite"
    for seed in (1, 0, 10, 2):
        write_run(folder, "strata", seed, loss=2.0 + seed / 30)
        write_run(folder, "gelu", seed, {"model.activation": "gelu"}, loss=2.1 + seed / 30)
    trial = {"model.activation": "gelu", "optimizer.learning_rate": 0.01}
    write_run(folder, "gelu@learning_rate=0.01", 1000, trial)
    return folder


def test_what_is_loaded_equals_what_the_folders_hold(suite, tmp_path):
    there = load_suite(suite)
    path = store_runs(suite, tmp_path / "stored" / "runs.jsonl")
    stored = load_stored(path)
    assert stored == there
    assert [run.name for run in stored][:3] == ["gelu-seed0", "gelu-seed1", "gelu-seed2"]
    assert {run.folder for run in stored} == {None}
    assert stored[0].config == BASE.override({"model.activation": "gelu"})
    assert stored[0].config_hash == stored[0].config.hash()
    assert stored[0].memory_bytes == 1004
    assert stored[0].seconds == 2.25
    assert stored[0].provenance["commit"] == "c0ffee"
    assert final_losses(stored, ["strata", "gelu"]) == final_losses(there, ["strata", "gelu"])
    ours, theirs = (learning_curves(stored, name) for name in ("strata", "gelu"))
    again = compute_multiplier(*(learning_curves(there, name) for name in ("strata", "gelu")))
    assert compute_multiplier(ours, theirs) == again


def test_equal_runs_make_equal_bytes_wherever_they_lie(suite, tmp_path):
    first = store_runs(suite, tmp_path / "first.jsonl").read_bytes()
    moved = tmp_path / "elsewhere"
    for folder in sorted(suite.iterdir(), reverse=True):
        shutil.copytree(folder, moved / folder.name)
    assert store_runs(moved, tmp_path / "second.jsonl").read_bytes() == first
    half = tmp_path / "half"
    half.mkdir()
    for folder in list(moved.glob("gelu-*")):
        folder.rename(half / folder.name)
    assert store_runs([moved, half], tmp_path / "third.jsonl").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_runs_without_a_result_are_named_and_not_mixed_with_the_others(suite, tmp_path):
    write_run(suite, "hot", 0, {"optimizer.learning_rate": 9.0}, finished=False)
    write_run(suite, "hotter", 0, {"optimizer.learning_rate": 99.0}, loss=math.nan)
    stopped = write_run(suite, "poor", 0, {"optimizer.learning_rate": 8.0}, finished=False)
    (stopped / "stopped.json").write_text("{}")
    path = store_runs(suite, tmp_path / "runs.jsonl")
    assert len(load_stored(path)) == 9
    assert stored_left_out(path) == {
        "hot-seed0": "not finished: 2 of 4 steps",
        "hotter-seed0": "diverged: 4 of 4 steps",
        "poor-seed0": "stopped: 2 of 4 steps",
    }


def test_what_the_tunings_chose_is_stored_with_the_runs(suite, tmp_path):
    assert stored_choices(store_runs(suite, tmp_path / "before.jsonl")) == []
    chosen = [{"variant": "gelu", "chosen": {"optimizer.learning_rate": 0.01}, "trials": 1}]
    (suite / "choices.json").write_text(json.dumps(chosen))
    path = store_runs(suite, tmp_path / "runs.jsonl")
    assert stored_choices(path) == chosen
    assert len(load_stored(path)) == 9


def test_a_path_of_this_machine_is_named_otherwise_or_refused(tmp_path):
    suite, path = tmp_path / "suite", tmp_path / "runs.jsonl"
    spec = "0.5 installed + 0.5 files:/home/me/texts/*.txt,/home/me/texts2/*.txt"
    write_run(suite, "strata", 0, {"data.corpus": spec})
    with pytest.raises(ValueError, match=r"the base, base, data, corpus.*places"):
        store_runs(suite, path)
    with pytest.raises(ValueError, match="texts2"):
        store_runs(suite, path, places={"/home/me/texts": "texts"})
    assert not path.exists()
    store_runs(suite, path, places={"/home/me/texts": "texts", "/home/me": "home"})
    (run,) = load_stored(path)
    assert run.config.data.corpus == "0.5 installed + 0.5 files:texts/*.txt,home/texts2/*.txt"
    assert run.config_hash == summarise(suite / "strata-seed0").config.hash()


@pytest.mark.parametrize(
    "place", ["files:/a/b.txt", "file:///a/b", "C:\\texts", "C:/texts", "~/texts", "files:a,/b/*"]
)
def test_every_kind_of_absolute_path_is_found(tmp_path, place):
    write_run(tmp_path / "suite", "strata", 0, {"data.text_column": place})
    with pytest.raises(ValueError, match="a path of this machine"):
        store_runs(tmp_path / "suite", tmp_path / "runs.jsonl")


@pytest.mark.parametrize("place", ["files:a/*/b.txt", "hub:a/b@main:c/*.txt", "s3://a/b", "../a"])
def test_what_is_no_absolute_path_is_let_through(tmp_path, place):
    write_run(tmp_path / "suite", "strata", 0, {"data.corpus": place})
    store_runs(tmp_path / "suite", tmp_path / "runs.jsonl")


def test_two_runs_of_one_name_and_no_run_at_all_are_refused(suite, tmp_path):
    other = tmp_path / "other"
    write_run(other, "strata", 0)
    with pytest.raises(ValueError, match="both strata-seed0"):
        store_runs([suite, other], tmp_path / "runs.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nothing to store"):
        store_runs(tmp_path / "empty", tmp_path / "runs.jsonl")


def test_a_damaged_file_is_named_with_its_line(suite, tmp_path):
    path = store_runs(suite, tmp_path / "runs.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    with pytest.raises(FileNotFoundError, match="no such file of stored runs"):
        load_stored(tmp_path / "nothing.jsonl")
    path.write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="expected 9 runs after the first line, found 8"):
        load_stored(path)
    path.write_text("".join([*lines[:4], lines[4][:50] + "\n", *lines[5:]]))
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 5"):
        load_stored(path)
    without = {
        key: value for key, value in json.loads(lines[4]).items() if key not in ("record", "digest")
    }
    path.write_text("".join([*lines[:4], json.dumps(without) + "\n", *lines[5:]]))
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 5: expected a run \('record'\)"):
        load_stored(path)
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1: expected a file of stored runs"):
        load_stored(path)


def test_a_line_that_was_changed_or_stands_there_twice_is_named(suite, tmp_path):
    path = store_runs(suite, tmp_path / "runs.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    changed = lines[4].replace('"memory_bytes": 1004', '"memory_bytes": 1005')
    path.write_text("".join([*lines[:4], changed, *lines[5:]]))
    with pytest.raises(ValueError, match=r"line 5.*its digest is"):
        load_stored(path)
    path.write_text("".join([*lines[:4], lines[3], *lines[5:]]))
    with pytest.raises(ValueError, match=r"line 5.*gelu-seed2 stands in the file twice"):
        load_stored(path)
    other = json.loads(lines[4])
    del other["digest"]  # as in files from before there was one
    other["provenance"]["config_hash"] = "0" * 16
    path.write_text("".join([*lines[:4], json.dumps(other) + "\n", *lines[5:]]))
    with pytest.raises(ValueError, match=r"line 5.*its provenance of 0000"):
        load_stored(path)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "paper" / "runs").glob("*.jsonl")))
def test_the_stored_runs_of_the_repository_can_be_read(path):
    assert load_stored(path)


def test_runs_of_several_sizes_make_a_size_curve_a_seed(tmp_path):
    for seed in (0, 1):
        for width, loss in ((16, 2.0), (8, 2.5), (32, 1.8)):
            changes = {"model.width": width}
            write_run(tmp_path, f"width{width}", seed, changes, loss=loss + seed / 10)
    runs = load_suite(tmp_path)
    curves = size_curves(runs)
    assert sorted(curves) == [0, 1]
    assert curves[1].bits_per_byte.tolist() == pytest.approx([2.6, 2.1, 1.9])
    assert curves[0].sizes.tolist() == sorted({run.parameters for run in runs})
    body = size_curves(runs, "body_parameters")[0]
    assert body.sizes[0] == curves[0].sizes[0] - 300 * 8  # the tied embedding
    write_run(tmp_path, "width8-long", 0, {"model.width": 8, "training.max_steps": 6})
    with pytest.raises(ValueError, match="expected sizes of equal tokens"):
        size_curves(load_suite(tmp_path))
    write_run(tmp_path, "again", 1, {"model.width": 8})
    with pytest.raises(ValueError, match="one run a size"):
        size_curves(run for run in load_suite(tmp_path) if run.seed == 1)
