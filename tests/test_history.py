"""Runs listed, compared and drawn, from folders with known numbers."""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from strata.config import Config
from strata.training import find_runs, plot_runs, read_run
from strata.training.history import compare_runs, runs_table


def write_run(
    folder: Path,
    bits: dict[int, float],
    finished: bool = True,
    started: str = "",
    **changes: object,
) -> Path:
    """A run of 100 tokens and two seconds a step, with validations at the steps of `bits`."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    Config.preset("nano").override(dotted).save(folder / "config.toml")
    (folder / "provenance.json").write_text(json.dumps({"started": started, "code": "c0de"}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, max(bits, default=0) + 1):
            line = {"step": step, "loss": 5 - step / 10, "tokens": 100 * step}
            line["timing"] = {"seconds": 2.0}
            if step in bits:
                line["validation_bits_per_byte"] = bits[step]
                line["timing"]["validation_seconds"] = 10.0
            file.write(json.dumps(line) + "\n")
    if finished:
        (folder / "summary.json").write_text("{}")
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Four runs at several depths: good, poor, just begun, and damaged."""
    write_run(tmp_path / "good", {2: 3.0, 4: 2.0, 6: 2.5}, started="2026-01-02T03:04:05+00:00")
    poor = tmp_path / "more" / "poor"
    write_run(poor, {2: 3.5}, finished=False, started="2026-01-01T00:00:00+00:00")
    write_run(tmp_path / "more" / "trials" / "begun", {}, finished=False)
    damaged = write_run(tmp_path / "damaged", {2: 1.0})
    (damaged / "metrics.jsonl").write_text('{"step": 1}\n')
    return tmp_path


def test_a_run_says_what_its_folder_holds(suite: Path) -> None:
    run = read_run(suite / "good")
    assert (run.name, run.state, run.steps, run.tokens) == ("good", "finished", 6, 600)
    assert run.loss == pytest.approx(4.4)
    assert (run.bits_per_byte, run.final_bits_per_byte) == (2.0, 2.5)
    assert run.curve == ((200, 3.0), (400, 2.0), (600, 2.5))
    assert run.seconds == 6 * 2 + 3 * 10
    begun = read_run(suite / "more" / "trials" / "begun")
    assert (begun.state, begun.steps, begun.seconds) == ("unfinished", 0, 0.0)
    assert math.isnan(begun.bits_per_byte)


def test_a_run_that_a_trainer_made_reads_as_its_summary(
    tiny_config: Config, tmp_path: Path
) -> None:
    from strata.training import Trainer

    Trainer(tiny_config, tmp_path / "run", progress=False).fit()
    run = read_run(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert run.state == "finished"
    assert run.final_bits_per_byte == summary["validation_bits_per_byte"]
    assert (run.parameters, run.tokens) == (summary["parameters"], summary["tokens"])
    assert run.started.startswith("20")


def test_runs_are_found_in_the_folders_of_a_folder(suite: Path) -> None:
    assert [run.name for run in find_runs(suite)] == [
        "damaged", "good", "more/poor", "more/trials/begun"
    ]  # fmt: skip
    assert [run.name for run in find_runs(suite / "good")] == ["good"]
    (suite / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no run in it"):
        find_runs(suite / "empty")


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("name", ["damaged", "good", "more/poor", "more/trials/begun"]),
        ("bits-per-byte", ["good", "more/poor", "damaged", "more/trials/begun"]),
        ("started", ["more/poor", "good", "damaged", "more/trials/begun"]),
    ],
)
def test_the_table_is_sorted_with_what_is_not_known_last(
    suite: Path, column: str, order: list[str]
) -> None:
    header, rows = runs_table(find_runs(suite), column)
    assert [row[0] for row in rows] == order
    assert all(len(row) == len(header) for row in rows)
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert by_name["good"]["best bits/byte"] == "2.000"
    assert by_name["good"]["steps"] == f"6/{Config.preset('nano').training.max_steps}"
    assert by_name["good"]["started"] == "2026-01-02 03:04"
    assert by_name["damaged"]["state"] == "damaged"


def test_another_column_is_refused_with_those_there_are(suite: Path) -> None:
    with pytest.raises(ValueError, match="sort = 'width': expected one of name, parameters"):
        runs_table(find_runs(suite), "width")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.toml", "[model]\nwdth = 3"),
        ("provenance.json", "{"),
        ("summary.json", "[]"),
        ("metrics.jsonl", "nonsense\n"),
    ],
)
def test_a_damaged_run_names_the_file(suite: Path, file: str, content: str) -> None:
    (suite / "good" / file).write_text(content)
    run = read_run(suite / "good")
    assert run.state == "damaged"
    assert file in run.problem
    with pytest.raises(ValueError, match=f"good is damaged: .*{file}"):
        compare_runs([run])


def test_comparing_tells_what_differs_and_nothing_that_does_not(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", {2: 3.0}, model__n_layers=2)
    two = write_run(tmp_path / "two", {4: 2.0}, model__n_layers=5, optimizer__name="adamw")
    six = write_run(tmp_path / "six", {4: 2.5}, model__n_layers=2)
    header, rows = compare_runs([read_run(folder) for folder in (one, two, six)])
    told = {row[0]: row[1:] for row in rows}
    assert header[1:] == ["one", "two", "six"]
    assert told["model.n_layers"] == ["2", "5", "2"]
    assert told["optimizer.name"] == ["muon", "adamw", "muon"]
    assert told["final bits/byte"] == ["3.000", "2.000", "2.500"]
    assert {name for name in told if "." in name} == {"model.n_layers", "optimizer.name"}
    assert "code" not in told


def test_curves_are_drawn_from_the_validations(suite: Path) -> None:
    write_run(suite / "a_diverged", {2: 3.0, 4: math.nan})
    figure = plot_runs(find_runs(suite))
    axis = figure.axes[0]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}
    assert drawn.pop("a_diverged")[0] == [200, 3.0]
    assert drawn == {
        "good": [[200, 3.0], [400, 2.0], [600, 2.5]],
        "more/poor": [[200, 3.5]],
    }
    assert axis.get_xscale() == "log"
    assert "good ends lowest, at 2.500" in axis.get_title()
    plt.close(figure)
    with pytest.raises(ValueError, match="none of the runs has been validated"):
        plot_runs([read_run(suite / "more" / "trials" / "begun")])
