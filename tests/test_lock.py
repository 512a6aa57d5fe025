"""One writer a run folder: whom it keeps out, whom it lets in, and that no dead one keeps it."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from strata.config import Config
from strata.training import Callback, Trainer
from strata.training import lock as lock_module
from strata.training.lock import OneWriter
from strata.transfer.far.folder import refuse_if_running
from strata.transfer.rules import TransferError

# Holds the folder until its input ends; a word on stdout when it has it.
HOLD = (
    "import sys\nfrom pathlib import Path\nfrom strata.training.lock import OneWriter\n"
    "with OneWriter(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "PATIENCE", 0.1)


@pytest.fixture
def other(tmp_path: Path):
    """Another process that holds `tmp_path/run`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_who_holds_the_folder_and_stops(
    tiny_config: Config, tmp_path: Path, other: subprocess.Popen
) -> None:
    with pytest.raises(BlockingIOError) as error:
        Trainer(tiny_config, tmp_path / "run", progress=False)
    who = f"in use by process {other.pid} on {socket.gethostname()} since 20"
    assert who in str(error.value)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_no_push_replaces_a_run_that_is_trained_by_hand(
    tmp_path: Path, other: subprocess.Popen
) -> None:
    with pytest.raises(TransferError, match=f"training run there .process {other.pid} on"):
        refuse_if_running(tmp_path / "run")
    other.kill()
    other.wait()
    refuse_if_running(tmp_path / "run")


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path, other: subprocess.Popen) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "run" / "writer.json").is_file()  # of the dead one, and it does not count
    with OneWriter(tmp_path / "run"):
        holder = json.loads((tmp_path / "run" / "writer.json").read_text())
        assert holder["pid"] == os.getpid()


def test_a_process_that_is_just_dying_is_waited_for(
    tmp_path: Path, other: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "PATIENCE", 60.0)
    other.stdin.close()  # it begins to end
    with OneWriter(tmp_path / "run"):
        pass


def test_a_process_made_by_forking_does_not_keep_the_folder(tmp_path: Path) -> None:
    """As the workers of a data loader or a compiler, which may live longer than the training."""
    script = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from strata.training.lock import OneWriter\n"
        "writer = OneWriter(Path(sys.argv[1])).__enter__()\n"
        "child = os.fork()\n"
        "if not child: time.sleep(60)\n"
        "print(child, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.wait()
    try:
        with OneWriter(tmp_path / "run"):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_the_same_process_may_hold_it_twice(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with OneWriter(tmp_path / "run"):
        with OneWriter(tmp_path / "run"):
            pass
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
        assert b"BlockingIOError" in done.stderr  # leaving the inner block let nobody else in
    assert subprocess.run(command, stdin=subprocess.DEVNULL).returncode == 0


def test_a_folder_into_which_nothing_came_is_taken_away(tmp_path: Path) -> None:
    with OneWriter(tmp_path / "run"):
        assert (tmp_path / "run" / "writer.json").is_file()
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with OneWriter(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_between_two_blocks_it_is_noticed_that_the_run_went_on(tmp_path: Path) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    first, second = OneWriter(tmp_path / "run"), OneWriter(tmp_path / "run")
    with first:
        metrics.write_text('{"step": 1, "timing": 0.5}\n')
    with first:
        pass  # nobody was there in between
    with second:
        metrics.write_text('{"step": 1, "timing": 0.6}\n')  # the same step, at another time
    with pytest.raises(ValueError, match=r"trained further .* make the Trainer again"), first:
        pass
    with second:
        pass


def test_a_trainer_does_not_go_on_from_where_another_went_further(
    tiny_config: Config, tmp_path: Path
) -> None:
    early = Trainer(tiny_config, tmp_path / "run", progress=False)
    for result in early:
        if result.step == 2:
            break
    Trainer(tiny_config, tmp_path / "run", progress=False).fit()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="trained further"):
        early.fit()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


class PressCtrlCTwice(Callback):
    def on_step(self, trainer, result) -> None:
        for _ in range(2 if result.step == 5 else 0):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.001)


def test_a_trainer_that_was_broken_off_in_an_update_does_not_go_on(
    tiny_config: Config, tmp_path: Path
) -> None:
    trainer = Trainer(tiny_config, tmp_path / "run", [PressCtrlCTwice()], progress=False)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    with pytest.raises(ValueError, match="make the Trainer again to go on from the last check"):
        trainer.fit()
    assert Trainer(tiny_config, tmp_path / "run", progress=False).step == 3


def test_a_finished_run_is_read_while_another_process_holds_it(
    tiny_config: Config, tmp_path: Path
) -> None:
    Trainer(tiny_config, tmp_path / "run", progress=False).fit()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
        assert Trainer(tiny_config, tmp_path / "run", progress=False).fit().step == 8
        after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
        assert after == stamps  # not even its configuration was written again
        process.stdin.close()


def test_a_file_system_without_locks_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    writer = OneWriter(tmp_path / "run")
    for _ in range(2):
        with writer:
            (tmp_path / "run" / "metrics.jsonl").touch()
    assert capsys.readouterr().err.count("knows no locks") == 1


def test_a_folder_in_which_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=str(tmp_path / "file" / "run")),
        OneWriter(tmp_path / "file" / "run"),
    ):
        pass
