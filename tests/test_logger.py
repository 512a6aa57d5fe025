"""The record of a run: whole, without gaps or doubles; and what is made from it."""

import itertools
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from small_disks import fill, small_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from strata.config import Config
from strata.storage import write_whole
from strata.training import Callback, Trainer, read_metrics
from strata.training import logger as logger_module
from strata.training.logger import RunLogger, write_tensorboard


def line_of(step: int, loss: float = 3.0, **more: object) -> dict[str, object]:
    timing = {"seconds": 0.5, "tokens_per_second": 1234.5, "utilisation": 0.25}
    return {"step": step, "loss": loss, "tokens": 128 * step, **more, "timing": timing}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run of nine steps that has begun."""
    Config.preset("nano").save(tmp_path / "run" / "config.toml")
    return tmp_path / "run"


def write(folder: Path, *lines: dict[str, object], step: int = 0, progress: bool = False) -> None:
    """Log some lines of a run that stands at `step`."""
    with RunLogger(folder, step, max_steps=9, progress=progress) as logger:
        for line in lines:
            logger.log(line)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads: steps and values by name."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


# metrics.jsonl ----------------------------------------------------------------------------------


def test_a_resumed_log_has_every_step_once_whatever_the_crash_left(folder: Path) -> None:
    """Lines beyond the checkpoint, a torn one and what a loss of power writes are all dropped."""
    write(folder, *(line_of(step) for step in range(1, 6)))
    for debris in (b'{"step": 6, "lo', b"\0\0\0\n\0\0", b'{"step": 6}\nnonsense\n'):
        with (folder / "metrics.jsonl").open("ab") as file:
            file.write(debris)
        write(folder, line_of(4, 2.5), line_of(5, 2.0), step=3)
        found = read_metrics(folder)
        assert [line["step"] for line in found] == [1, 2, 3, 4, 5]
        assert [line["loss"] for line in found] == [3.0, 3.0, 3.0, 2.5, 2.0]


def test_a_gap_below_the_checkpoint_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, line_of(1), line_of(2))
    write(folder, line_of(6), step=5)
    assert "lacks 3 of the first 5 lines" in capsys.readouterr().err


def test_a_damaged_line_is_named_and_not_passed_over(folder: Path) -> None:
    write(folder, line_of(1), line_of(2), line_of(3))
    text = (folder / "metrics.jsonl").read_text().replace('"step": 2', '"step": ')
    (folder / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected the numbers of a step"):
        read_metrics(folder)


def test_a_run_that_goes_back_forgets_the_lines_beyond(folder: Path) -> None:
    with RunLogger(folder, 0, max_steps=9, progress=False) as logger:
        for step in (1, 2, 3, 4):
            logger.log(line_of(step))
        logger.rewind(2)
        logger.log(line_of(3, 1.5))
        logger.sync()
    assert [(line["step"], line["loss"]) for line in read_metrics(folder)] == [
        (1, 3.0), (2, 3.0), (3, 1.5)
    ]  # fmt: skip
    assert curves(folder)["loss"] == [(1, 3.0), (2, 3.0), (3, 1.5)]


class ReadsTheLog(Callback):
    def __init__(self) -> None:
        self.last_lines: list[dict[str, object]] = []

    def on_step(self, trainer, result) -> None:
        self.last_lines.append(read_metrics(trainer.run_dir)[-1])


def test_a_steps_line_is_in_the_file_before_any_callback(
    tiny_config: Config, tmp_path: Path
) -> None:
    reader = ReadsTheLog()
    config = tiny_config.override({"training.max_steps": 3})
    results = list(Trainer(config, tmp_path / "run", [reader], progress=False))
    assert reader.last_lines == [result.metrics for result in results]


# What is made from it ---------------------------------------------------------------------------


def test_tensorboard_holds_every_number_and_can_be_made_again(folder: Path) -> None:
    lines = [line_of(step, gradient_norms={"matrix": 0.25 * step}) for step in (1, 2, 3, 4)]
    write(folder, *lines)
    write(folder, line_of(3, 1.5), step=2)  # a crash after step 4; the checkpoint was step 2's
    seen = curves(folder)
    assert seen["loss"] == [(1, 3.0), (2, 3.0), (3, 1.5)]
    assert seen["gradient_norms/matrix"] == [(1, 0.25), (2, 0.5)]
    assert seen["timing/seconds"] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert "step" not in seen
    write_tensorboard(folder)
    assert curves(folder) == seen


class FakeWandb(ModuleType):
    """Keeps what Weights & Biases would have been sent."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, object]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended: list[int] = []

    def init(self, **options: object) -> "FakeWandb":
        self.begun.append(options)
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def ask_for_wandb(folder: Path) -> None:
    Config.preset("nano").override({"training.wandb_project": "mine"}).save(folder / "config.toml")


def test_wandb_gets_the_numbers_and_a_resumed_run_is_the_same_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    ask_for_wandb(folder)
    write(folder, line_of(1, update_ratios={"head": 1e-3}))
    with pytest.raises(KeyError, match="timing"):
        write(folder, {"step": 2, "loss": 3.0}, step=1)
    first, second = wandb.begun
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("mine", "run", "allow")
    assert first["config"] == Config.load(folder / "config.toml").to_dict()
    assert [step for step, _ in wandb.logged] == [1, 2]
    assert wandb.logged[0][1]["update_ratios/head"] == 1e-3
    assert wandb.ended == [0, 1]


def test_wandb_is_loaded_only_when_asked_for_and_told_how_to_get(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails, as where it is not
    write(folder, line_of(1))
    ask_for_wandb(folder)
    with pytest.raises(ValueError, match=r"pip install 'strata-workbook\[wandb\]'"):
        write(folder, line_of(1))


def test_no_weight_depends_on_the_wandb_project() -> None:
    config = Config.preset("nano")
    assert config.override({"training.wandb_project": "mine"}).hash() == config.hash()


# Progress ---------------------------------------------------------------------------------------


def test_in_a_log_file_progress_is_whole_rounded_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line when enough time has passed since the one before, and one at the end."""
    clock = iter([0.0, 10.0, 31.0, 40.0, 62.0, 70.0])
    monkeypatch.setattr(logger_module.time, "monotonic", lambda: next(clock))
    held_out = {"validation_bits_per_byte": 2.34567}
    lines = [line_of(5), line_of(6, **held_out), line_of(7), line_of(8), line_of(9, 2.5)]
    write(folder, *lines, step=4, progress=True)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run:")]
    rest = "2.346 bits/byte held out, 1,234 tok/s, 25% of peak"
    assert told == [
        f"run: step 6 of 9, loss 3.000, {rest}, 46 s left",
        f"run: step 8 of 9, loss 3.000, {rest}, 16 s left",
        f"run: step 9 of 9, loss 2.500, {rest}, in 70 s",
    ]


def test_without_progress_nothing_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, *(line_of(step) for step in range(1, 10)))
    assert capsys.readouterr().err == ""


def test_in_a_terminal_progress_is_a_bar_and_at_the_end_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    write(folder, *(line_of(step) for step in range(1, 10)), progress=True)
    *bars, line = capsys.readouterr().err.split("\r")
    assert re.search(r"0/9 ", bars[1])
    assert line.startswith("run: step 9 of 9, loss 3.000")
    assert line.endswith(" s\n")


# When writing fails -----------------------------------------------------------------------------


@pytest.fixture(name="small_disk")
def small_disk_of_256k(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "256k") as folder:
        yield folder


def begin(folder: Path, on_write_failure: str) -> RunLogger:
    config = Config.preset("nano").override({"training.on_write_failure": on_write_failure})
    config.save(folder / "config.toml")
    return RunLogger(folder, 0, max_steps=500, progress=False)


def run_into_a_full_disk(disk: Path, on_write_failure: str) -> None:
    with begin(disk / "run", on_write_failure) as logger:
        fill(disk)
        for step in range(1, 500):
            logger.log(line_of(step))


def test_a_full_disk_leaves_whole_lines_and_stops_a_run_that_is_to_stop(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as error:
        run_into_a_full_disk(small_disk, "stop")
    path = small_disk / "run" / "metrics.jsonl"
    assert error.value.filename == str(path)
    assert path.read_bytes()[-1:] in (b"", b"\n")
    found = [line["step"] for line in read_metrics(path.parent)]
    assert found == list(range(1, len(found) + 1))


def test_a_run_does_not_end_well_without_all_of_its_lines(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        run_into_a_full_disk(small_disk, "continue")


def test_a_run_that_is_to_go_on_holds_its_lines_until_there_is_room(
    small_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger_module, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    run, lines = small_disk / "run", [line_of(step) for step in range(1, 200)]
    with begin(run, "continue") as logger:
        logger.log(lines[0])
        assert logger.sync()
        filler = fill(small_disk)
        for line in lines[1:]:
            logger.log(line)
        assert not logger.sync()
        assert (run / "metrics.jsonl").read_bytes().endswith(b"\n")
        told = capsys.readouterr().err
        assert told.count("training goes on and holds the lines in memory") == 1
        assert told.count("TensorBoard's curves end before step") == 1
        assert "Traceback" not in told
        filler.unlink()
        logger.log(line_of(200))
        assert [line["step"] for line in read_metrics(run)] == list(range(1, 201))
        assert logger.sync()
    assert capsys.readouterr().err.count("can be written again; no line is lost") == 1
    curves_before = curves(run)["loss"]  # what there is of them can still be read
    assert curves_before[0] == (1, 3.0)
    write_tensorboard(run)
    assert len(curves(run)["loss"]) == 200


def test_going_back_while_nothing_can_be_written_is_made_up_for(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger_module, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    run = small_disk / "run"
    with begin(run, "continue") as logger:
        for step in range(1, 51):
            logger.log(line_of(step))
        assert logger.sync()
        filler = fill(small_disk)
        for step in range(51, 150):
            logger.log(line_of(step))
        logger.rewind(20)
        for step in range(21, 30):
            logger.log(line_of(step, 1.5))
        filler.unlink()
        assert logger.sync()
    found = [(line["step"], line["loss"]) for line in read_metrics(run)]
    assert found == [(step, 3.0 if step <= 20 else 1.5) for step in range(1, 30)]


def test_a_folder_that_is_gone_is_told_and_its_return_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a mount that is lost and comes back, perhaps without what had not reached the disk."""
    run, away = tmp_path / "run", tmp_path / "away"
    with begin(run, "continue") as logger:
        logger.log(line_of(1))
        assert logger.sync()
        logger.log(line_of(2))
        run.rename(away)
        assert not logger.sync()
        assert not logger.sync()
        assert not run.exists()  # nothing is written where the mount was
        with (away / "metrics.jsonl").open("r+b") as file:
            file.truncate(len(file.readline()))
        away.rename(run)
        logger.log(line_of(3))
        assert logger.sync()
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3]
    assert capsys.readouterr().err.count(str(run / "metrics.jsonl")) == 2


def test_a_torn_write_is_taken_back(folder: Path) -> None:
    """A limit on a file's size stops a write in its middle, wherever one may not mount."""
    resource = pytest.importorskip("resource")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(folder, *(line_of(step) for step in range(1, 500)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    content = (folder / "metrics.jsonl").read_bytes()
    assert content.endswith(b"\n")
    assert len(read_metrics(folder)) == content.count(b"\n") > 5


class FillTheDisk(Callback):
    def on_step(self, trainer, result) -> None:
        if result.step == 2:
            fill(trainer.run_dir)


def test_a_trainer_stops_clean_on_a_full_disk_and_says_what_it_can_go_on_from(
    tiny_config: Config, small_disk: Path
) -> None:
    config = tiny_config.override({"training.checkpoint_every": 0, "training.max_steps": 60})
    trainer = Trainer(config, small_disk / "run", [FillTheDisk()], progress=False)
    told = r"metrics\.jsonl: No space left on device; run again .* from the start, having no ch"
    with pytest.raises(OSError, match=told):
        trainer.fit()
    steps = [line["step"] for line in read_metrics(trainer.run_dir)]
    assert steps == list(range(1, len(steps) + 1))
    (trainer.run_dir / "filler").unlink()
    with suppress(OSError):  # the final weights are larger than the disk
        Trainer(config, trainer.run_dir, progress=False).fit()
    assert [line["step"] for line in read_metrics(trainer.run_dir)] == list(range(1, 61))


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(small_disk: Path) -> None:
    path = write_whole(small_disk / "config.toml", "old")
    with pytest.raises(OSError, match="No space left") as error:
        write_whole(path, bytes(1 << 20))
    assert error.value.filename == str(path)
    assert [(file.name, file.read_text()) for file in small_disk.iterdir()] == [
        ("config.toml", "old")
    ]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="Read-only file system") as error:
        write_whole(path, "new")
    assert error.value.filename == str(path)
    assert path.read_text() == "old"


def test_a_failure_of_wandb_is_told_once_and_stops_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    ask_for_wandb(folder)

    def fail(numbers: dict[str, float], step: int) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(wandb, "log", fail)
    write(folder, line_of(1), line_of(2))
    assert capsys.readouterr().err.count("ConnectionError: no network") == 1
    assert len(read_metrics(folder)) == 2


# The clock, and the position --------------------------------------------------------------------


def test_a_clock_that_is_set_back_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(2e9, -3_600.0)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    write(folder, *(line_of(step) for step in (1, 2, 3, 4)))
    write(folder, line_of(3, 1.5), step=2)
    write(folder, line_of(2, 1.25), step=1)
    assert curves(folder)["loss"] == [(1, 3.0), (2, 1.25)]
    assert [line["loss"] for line in read_metrics(folder)] == [3.0, 1.25]


def test_the_kept_lines_stay_the_bytes_that_they_were(folder: Path) -> None:
    write(folder, line_of(1), line_of(2), line_of(3))
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 1', '"step":  1'))  # as another writes JSON
    before, file = path.read_text().splitlines(), path.stat().st_ino
    write(folder, step=2)
    assert path.read_text().splitlines() == before[:2]
    assert path.stat().st_ino == file
