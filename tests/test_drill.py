"""The drill: that ten kills lose nothing, and that it would have told if they had."""

import json
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from strata import cli
from strata.drill import aims, exercise, find_differences, sum_record
from strata.drill.aims import EndedFirst, Observer, Pace
from strata.drill.record import Hit, Outcome

Captured = pytest.CaptureFixture[str]


def test_a_run_comes_back_bit_for_bit_after_each_of_ten_kills(tmp_path: Path) -> None:
    folder = tmp_path / "drill"
    command = [sys.executable, "-m", "strata.cli", "drill", str(folder), "--kills", "10"]
    done = subprocess.run([*command, "--seed", "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"record: 10 kills in \d runs, 0 lost, 0 differing", done.stdout), done.stdout
    found = json.loads((folder / "drill.jsonl").read_text())
    assert {kind for kind, n in found["killed_with"].items() if n} == {"1", "2 ddp", "2 fsdp"}
    assert found["steps_lost"] > 0
    kills = [json.loads(line) for line in (folder / "kills.jsonl").read_text().splitlines()]
    steps = [(kill["resumed"], kill["step"]) for kill in kills if kill["aim"] in ("step", "save")]
    assert all(0 < resumed <= step for resumed, step in steps), "a kill before any checkpoint"
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if str(folder) in p.info["cmdline"]]
    assert not left, "processes of the drill that train on"


# ---- What is found ------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two finished runs that are equal but for the clock."""
    for name, seconds in (("run", 1.0), ("reference", 2.0)):
        (tmp_path / name).mkdir()
        lines = [
            {"step": step, "loss": 1 / step, "odd": float("nan"), "timing": {"seconds": seconds}}
            for step in (1, 2, 3)
        ]
        log = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(log)
        summary = {"steps": 3, "timing": {"seconds": seconds}}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
        (tmp_path / name / "model.safetensors").write_bytes(bytes(range(256)))
        (tmp_path / name / "samples.txt").write_text("==== after step 3 ====\nthe\n\n")
    return tmp_path / "run", tmp_path / "reference"


def test_the_clock_alone_is_no_difference(runs: tuple[Path, Path]) -> None:
    assert find_differences(*runs) == []


def flip_a_bit(run: Path) -> None:
    content = bytearray((run / "model.safetensors").read_bytes())
    content[200] ^= 1
    (run / "model.safetensors").write_bytes(content)


def edit(name: str, old: str, new: str):
    def change(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_a_bit, ["model.safetensors differs from byte 200 on"]),
        (
            edit("metrics.jsonl", '"loss": 0.5', '"loss": 0.5000000000000001'),
            ["metrics.jsonl, line 2: loss is 0.5000000000000001 and should be 0.5"],
        ),
        (
            edit("metrics.jsonl", '"step": 3,', '"step": 3, "validation_loss": 2.0,'),
            ["metrics.jsonl, line 3: validation_loss is 2.0 and should be absent"],
        ),
        (
            lambda run: edit("metrics.jsonl", (run / "metrics.jsonl").read_text(), "")(run),
            ["metrics.jsonl has 0 lines and should have 3"],
        ),
        (
            edit("metrics.jsonl", '{"step": 3', '{"st'),
            ["metrics.jsonl, line 3: cannot be read"],
        ),
        (edit("summary.json", '"steps": 3', '"steps": 4'), ["summary.json: steps is 4"]),
        (edit("samples.txt", "the", "then"), ["samples.txt differs from byte 26 on"]),
        (lambda run: (run / "samples.txt").unlink(), ["samples.txt is missing"]),
    ],
)
def test_every_other_difference_is_told(runs: tuple[Path, Path], damage, told: list[str]) -> None:
    damage(runs[0])
    found = find_differences(*runs)
    assert len(found) == len(told)
    assert all(line.startswith(start) for line, start in zip(found, told, strict=True)), found


def test_a_drill_that_finds_a_difference_fails_and_says_so_in_its_record(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    flip_a_bit(runs[0])
    kills = [Hit("save", "the process", step=12, saving=True, torn=False, resumed=10)]
    stop = Hit("stop", "all ranks", step=13, saving=False, torn=False, resumed=13)
    outcomes = [
        Outcome("run-000", 1, "", kills, differences=find_differences(*runs)),
        Outcome("run-001", 2, "ddp", kills, lost="exit status 1"),
        Outcome("run-002", 2, "fsdp", [*kills * 3, stop]),
    ]
    monkeypatch.setattr("strata.drill.drill", lambda *_arguments, **_options: outcomes)
    record = tmp_path / "record.jsonl"
    for total in (5, 10):
        command = ["drill", str(tmp_path / "drill"), "--kills", "5", "--record", str(record)]
        assert cli.main(command) == 1
        shown = capsys.readouterr()
        assert "2 of 3 runs did not come back" in shown.err
        assert f"record: {total} kills" in shown.out
    totals = sum_record(record)
    assert (totals.kills, totals.runs, totals.lost, totals.differing) == (10, 6, 2, 2)
    line = json.loads(record.read_text().splitlines()[0])
    names = ("steps_lost", "saves_in_progress", "stops", "resumed_as_asked")
    assert [line[name] for name in names] == [10, 5, 1, 1]
    assert line["problems"] == [
        "run-000: model.safetensors differs from byte 200 on",
        "run-001: exit status 1",
    ]
    record.write_text(record.read_text() + '{"kills": 3}\n')
    with pytest.raises(ValueError, match="line 3"):
        sum_record(record)


class JobThatFails:
    """The undisturbed run ends at once, and well; any other start fails."""

    def __init__(self, words, processes, log, warm, cache) -> None:
        run = Path(words[-1])
        self.status = int("reference" not in run.name)
        log.write_text("strata: the disk is full\n")
        if not self.status:
            run.mkdir()
            (run / "summary.json").touch()

    def __enter__(self):
        return self

    def __exit__(self, *_error) -> None:
        pass


def test_a_run_that_does_not_come_back_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exercise, "Job", JobThatFails)
    monkeypatch.setattr(exercise, "prepare_warm_jobs", lambda tokenizer: None)
    outcomes = list(exercise.drill(tmp_path, 30, [1]))
    assert {outcome.lost for outcome in outcomes} == {
        "exit status 1; it printed: strata: the disk is full"
    }
    assert len(outcomes) == 3
    assert (tmp_path / "run-000.log").is_file()
    with pytest.raises(ValueError, match="kills = 0: expected at least 1"):
        list(exercise.drill(tmp_path, 0))


# ---- The instant --------------------------------------------------------------------------------


def write_log(run: Path, steps: int) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("\n".join([*lines, ""]))


def test_a_kill_in_a_save_waits_for_a_new_checkpoint_and_for_the_next_one_to_begin(
    tmp_path: Path,
) -> None:
    """The run had one checkpoint and half of another when it was started again."""
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-00000005").mkdir(parents=True)
    left = checkpoints / ".step-00000010.partial"
    left.mkdir()
    observer = Observer(tmp_path, SimpleNamespace(status=None), Pace(save=0.0))
    found = []

    def watch() -> None:
        observer.await_moment("save", random.Random(0))
        found.append(sorted(path.name for path in checkpoints.iterdir()))

    thread = threading.Thread(target=watch)
    thread.start()
    write_log(tmp_path, 10)
    time.sleep(0.05)
    left.rename(checkpoints / "step-00000010")
    time.sleep(0.05)
    assert not found
    (checkpoints / ".step-00000015.partial").mkdir()
    thread.join(5)
    assert found == [[".step-00000015.partial", "step-00000005", "step-00000010"]]


def test_a_job_that_ends_or_does_nothing_is_not_watched_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EndedFirst):
        Observer(tmp_path, SimpleNamespace(status=0), Pace()).await_moment("step", random.Random(0))
    monkeypatch.setattr(aims, "SECONDS_OF_PATIENCE", 0.05)
    observer = Observer(tmp_path, SimpleNamespace(status=None), Pace())
    with pytest.raises(TimeoutError, match="nothing happened"):
        observer.await_moment("log", random.Random(0))


def test_a_line_that_is_cut_off_is_no_step(tmp_path: Path) -> None:
    assert aims.last_step(tmp_path) == 0
    write_log(tmp_path, 12)
    assert (aims.last_step(tmp_path), aims.is_torn(tmp_path)) == (12, False)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    assert (aims.last_step(tmp_path), aims.is_torn(tmp_path)) == (12, True)
