"""What a signal does to a run: it saves, and where it was asked to stop it stops."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
import torch
from safetensors.torch import load_file
from two_processes import Started, run_on_two_processes

from strata.config import Config
from strata.training import Callback, Interrupted, Trainer, read_metrics
from strata.training.signals import Requests

# Trains, and at step 4 says so in a file and waits until a signal asks to stop.
WAITING = """
import time
from pathlib import Path
from strata import Config, Trainer
from strata.training import Callback

class WaitForASignal(Callback):
    def on_step(self, trainer, result):
        if result.step == 4:
            (trainer.run_dir / "waits").touch()
            while not trainer.requests.stop:
                time.sleep(0.01)
"""


def without_timing(run_dir: Path) -> list[dict[str, object]]:
    return [line | {"timing": None} for line in read_metrics(run_dir)]


def assert_same_run(left: Path, right: Path) -> None:
    """The same numbers to the last digit, and the same weights to the last bit."""
    assert without_timing(left) == without_timing(right)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (left, right))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def wait_for(path: Path, process: subprocess.Popen | Started | None = None) -> None:
    for _ in range(6_000):
        if path.exists():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{path} did not come")


@pytest.fixture(scope="module")
def whole_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    Trainer(tiny_config, folder, progress=False).fit()
    return folder


# Requests ---------------------------------------------------------------------------------------


def send(number: int) -> None:
    """Send this process a signal, and let its handler run."""
    os.kill(os.getpid(), number)
    time.sleep(0.001)


def test_a_signal_is_noted_and_the_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    calls = []
    with Requests(on_stop=lambda: calls.append(1)) as requests:
        assert requests.take() == (False, False)
        send(signal.SIGUSR1)
        assert requests.take() == (False, True)
        assert requests.take() == (False, False)
        with requests:  # as a step within a whole run
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert requests.take() == (True, False)
        assert (requests.stop, calls) == (signal.SIGTERM, [1])
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_second_ctrl_c_does_not_wait_and_a_launchers_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with Requests() as requests:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert requests.stop == signal.SIGINT
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        send(signal.SIGINT)


def test_in_another_thread_nothing_is_changed() -> None:
    found: queue.Queue = queue.Queue()

    def run() -> None:
        with Requests():
            found.put(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found.get() == signal.getsignal(signal.SIGINT)


# A run ------------------------------------------------------------------------------------------


class Send(Callback):
    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step
        self.saved: list[str] = []

    def on_step(self, trainer, result) -> None:
        if result.step == self.step:
            send(self.number)

    def on_checkpoint(self, trainer, path) -> None:
        self.saved.append(path.name)


def test_sigusr1_saves_and_goes_on(whole_run: Path, tiny_config: Config, tmp_path: Path) -> None:
    asked = Send(signal.SIGUSR1, step=4)
    Trainer(tiny_config, tmp_path / "run", [asked], progress=False).fit()
    assert asked.saved == ["step-00000003", "step-00000004", "step-00000006"]
    assert_same_run(whole_run, tmp_path / "run")


def test_sigterm_saves_and_stops(whole_run: Path, tiny_config: Config, tmp_path: Path) -> None:
    asked = Send(signal.SIGTERM, step=4)
    told = "^stopped after step 4, saved; run again to continue$"
    with pytest.raises(Interrupted, match=told) as stopped:
        Trainer(tiny_config, tmp_path / "run", [asked], progress=False).fit()
    assert stopped.value.signal == signal.SIGTERM
    resumed = Trainer(tiny_config, tmp_path / "run", progress=False)
    assert resumed.step == 4
    resumed.fit()
    assert_same_run(whole_run, tmp_path / "run")


def test_a_stop_in_the_last_step_lets_the_run_end(tiny_config: Config, tmp_path: Path) -> None:
    asked = Send(signal.SIGTERM, step=8)
    assert Trainer(tiny_config, tmp_path / "run", [asked], progress=False).fit().finished


@pytest.mark.parametrize(
    ("number", "status", "cold"),
    [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)],
    ids=["ctrl-c", "sigterm"],
)
def test_the_command_line_ends_with_a_status_that_schedulers_know(
    whole_run: Path, tiny_config: Config, tmp_path: Path, number: int, status: int, cold: bool
) -> None:
    tiny_config.save(tmp_path / "tiny.toml")
    command = ["train", str(tmp_path / "tiny.toml"), "--run-dir", str(tmp_path / "run")]
    script = (
        f"{WAITING}\nimport sys\nfrom strata import cli, evaluation\n"
        f"evaluation.SampleWriter = WaitForASignal\nstatus = cli.main({command!r})\n"
        f"if {cold}:\n"  # what takes long to load, and this run does without
        "    slow = {'torch._dynamo', 'huggingface_hub', 'scipy.stats', 'matplotlib'}\n"
        "    assert not slow & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    if cold:
        command = [sys.executable, "-c", script]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    else:
        process = Started(tmp_path / "train.py", script)
    wait_for(tmp_path / "run" / "waits", process)
    process.send_signal(number)
    told = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == status, told
    assert told[-1] == "strata: stopped after step 4, saved; run again to continue"
    assert not any("Traceback" in line for line in told)
    resumed = Trainer(tiny_config, tmp_path / "run", progress=False)
    assert resumed.step == 4
    resumed.fit()
    assert_same_run(whole_run, tmp_path / "run")


def test_all_processes_stop_at_the_step_in_which_one_was_asked_to(
    tiny_config: Config, tmp_path: Path
) -> None:
    tiny_config.save(tmp_path / "config.toml")
    printed = run_on_two_processes(
        tmp_path / "train.py",
        "import os, signal\nfrom strata import Config, Trainer\n"
        "from strata.training import Interrupted\n"
        f"trainer = Trainer(Config.load({str(tmp_path / 'config.toml')!r}), "
        f"{str(tmp_path / 'run')!r}, progress=False)\n"
        "try:\n"
        "    for result in trainer:\n"
        "        if result.step == 4 and trainer.processes.rank == 1:\n"
        "            trainer.requests.stop = signal.SIGTERM\n"
        "except Interrupted as stopped:\n"
        "    os.write(1, f'{stopped} {stopped.signal}\\n'.encode())\n",
    )
    told = "stopped after step 5, saved; run again to continue 15"
    assert [line for line in printed.splitlines() if line.startswith("stopped")] == [told, told]


# Notebooks --------------------------------------------------------------------------------------


def test_the_stop_button_of_a_notebook_saves(
    whole_run: Path, tiny_config: Config, tmp_path: Path
) -> None:
    from jupyter_client.manager import start_new_kernel

    tiny_config.save(tmp_path / "tiny.toml")
    cell = (
        f"{WAITING}\nTrainer(Config.load({str(tmp_path / 'tiny.toml')!r}), "
        f"{str(tmp_path / 'run')!r}, [WaitForASignal()], progress=False).fit()"
    )
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        # else the kernel drops, for a moment, what it is asked after an error
        asked = client.execute(cell, stop_on_error=False)
        wait_for(tmp_path / "run" / "waits")
        manager.interrupt_kernel()
        messages = iter(lambda: client.get_shell_msg(timeout=60), None)
        # before it there may be answers to what the client asked while the kernel started
        reply = next(m["content"] for m in messages if m["parent_header"]["msg_id"] == asked)
        assert (reply["status"], reply["ename"]) == ("error", "Interrupted")
        assert reply["evalue"] == "stopped after step 4, saved; run again to continue"
        # and the kernel, with all that it holds, is there: the cell is run again
        again = cell.replace("[WaitForASignal()]", "[]")
        assert client.execute_interactive(again, timeout=60)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert_same_run(whole_run, tmp_path / "run")


def test_a_workbook_that_is_stopped_saves_what_its_cell_trains(
    whole_run: Path, tiny_config: Config, tmp_path: Path
) -> None:
    tiny_config.save(tmp_path / "tiny.toml")
    parameters = nbformat.v4.new_code_cell(
        'preset = "nano"\ncorpus = "installed"\nrun_dir = ""', metadata={"tags": ["parameters"]}
    )
    training = nbformat.v4.new_code_cell(
        f"{WAITING}\nconfig = Config.load({str(tmp_path / 'tiny.toml')!r})\n"
        "Trainer(config, run_dir, [WaitForASignal()], progress=False).fit()"
    )
    after = nbformat.v4.new_code_cell("(Path(run_dir) / 'after').touch()")
    notebook = nbformat.v4.new_notebook(cells=[parameters, training, after])
    (tmp_path / "chapters").mkdir()
    nbformat.write(notebook, tmp_path / "chapters" / "03_training.ipynb")
    script = (
        "import sys\nfrom strata import cli, workbook\n"
        f"workbook.run_workbook.__kwdefaults__['notebooks'] = {str(tmp_path / 'chapters')!r}\n"
        f"sys.exit(cli.main(['workbook', '--output', {str(tmp_path / 'run')!r}]))\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        wait_for(tmp_path / "run" / "waits", process)
        process.send_signal(signal.SIGTERM)
        told = process.communicate()[1].decode().splitlines()
    assert process.returncode == 143, told
    assert told[-1:] == ["strata: stopped in 03_training; run again to continue"]
    assert not (tmp_path / "run" / "after").exists()
    resumed = Trainer(tiny_config, tmp_path / "run", progress=False)
    assert resumed.step == 4
    resumed.fit()
    assert_same_run(whole_run, tmp_path / "run")
