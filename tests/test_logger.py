"""The record of a run: whole, without gaps or doubles; and what is made from it."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from strata.config import Config
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
