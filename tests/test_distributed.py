"""One run on several processes: the numbers of one process, and an end that says why.

What takes processes of its own is done once for several tests, since each start costs seconds.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from two_processes import Started, run_on_processes

from strata.config import Config, TrainingConfig
from strata.evaluation import SampleWriter, TaskMonitor
from strata.model import Transformer
from strata.training import Trainer, launch_training
from strata.training.logger import read_metrics
from strata.training.parallelism import choose_parallelism

STEPS = 50

TRAIN = """
import json, os, sys
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from strata import Config, Trainer
from strata.evaluation import SampleWriter, TaskMonitor
from strata.training.guard import are_finite
from strata.training.sharding import local
from strata.training.step import train_step

class Sent(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = {{}}
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            name = str(function)
            self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {{}}))

folder = {folder!r}
config = Config.load(folder + "/config.toml")
found = {{}}
for kind in ("ddp", "fsdp"):
    mine = config.override({{"training.parallelism": kind}})
    tasks = folder + "/tasks-" + os.environ["RANK"]
    callbacks = [SampleWriter("the", 20), TaskMonitor({{"letters": "The rat ate the toast."}})]
    there = mine.override({{"evaluation.data_dir": tasks}})
    trainer = Trainer(there, f"{{folder}}/{{kind}}", callbacks, progress=False).fit()
    again = Trainer(mine, f"{{folder}}/{{kind}}", progress=False)
    found[kind, "reason"] = trainer.runtime.reasons[-1]
    found[kind, "held"] = sum(local(p).numel() for p in again.model.parameters())
    # what four micro-batches send, and what one that is as large does
    again.optimizer.set_rate(0.0)
    tokens = torch.randint(0, 320, (4, 32))
    for pieces in (1, 4):
        batches = list(zip(tokens.split(4 // pieces), tokens.split(4 // pieces)))
        with Sent() as sent:
            train_step(again.loss_function, again.optimizer, batches, mine.training)
        for name, count in sent.counts.items():
            found[kind, pieces, name] = count
    if kind == "fsdp":
        found["finite before"] = are_finite(again.model)
        if dist.get_rank() == 1:
            with torch.no_grad():
                local(again.model.embedding.weight)[0, 0] = float("nan")
        found["finite after"] = are_finite(again.model)
        def full(*batch):
            raise torch.OutOfMemoryError("full")
        again.model.loss = full
        try:
            again.memory.agree(again.processes)
        except RuntimeError as error:
            found["full"] = str(error)
with open(f"{{folder}}/found-{{dist.get_rank()}}.json", "w") as file:
    json.dump({{str(key): value for key, value in found.items()}}, file)
"""


def everything(tiny_config: Config, **changes: object) -> Config:
    """A run with all that several processes could do differently; float32, no checkpoints."""
    return tiny_config.override(
        {
            "training.max_steps": STEPS,
            "training.micro_batch_size": 1,
            "training.checkpoint_every": 0,
            "training.validate_every": 25,
            "training.validation_sequences": 33,  # two passes on one of two processes, one there
            "training.sample_every": 40,
            "training.evaluate_every": 20,
            "evaluation.training_tasks": ["cloze", "copa"],
            "evaluation.training_limit": 20,
            "training.precision": "float32",
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
    )


@pytest.fixture(scope="module")
def runs(tiny_config, tmp_path_factory) -> Path:
    """A folder with the same run of one process, of two that share the batch, and of two that
    share the model."""
    folder = tmp_path_factory.mktemp("shared")
    config = everything(tiny_config)
    config.save(folder / "config.toml")
    callbacks = [SampleWriter("the", 20), TaskMonitor({"letters": "The rat ate the toast."})]
    Trainer(config, folder / "one", callbacks, progress=False).fit()
    for rank in (0, 1):  # the data of a task is there for one of two processes
        (folder / f"tasks-{rank}").mkdir()
    record = {"premise": "It was.", "question": "cause", "choice1": "A", "choice2": "B", "label": 0}
    (folder / "tasks-0" / "copa_val.jsonl").write_text(json.dumps(record))
    run_on_processes(folder / "train.py", TRAIN.format(folder=str(folder)), 2)
    return folder


def found(runs: Path, rank: int = 0) -> dict[str, object]:
    return json.loads((runs / f"found-{rank}.json").read_text())


def assert_same_losses(one: Path, other: Path, steps: int = STEPS) -> None:
    ours, theirs = read_metrics(one)[:steps], read_metrics(other)
    assert [line["step"] for line in theirs] == list(range(1, steps + 1))
    for line, its in zip(ours, theirs, strict=True):
        assert its["loss"] == pytest.approx(line["loss"], rel=1e-5)
        assert its["gradient_norm"] == pytest.approx(line["gradient_norm"], rel=1e-4)
        measured = [name for name in line if name.startswith("validation")]
        assert [its[name] for name in measured] == pytest.approx(
            [line[name] for name in measured], rel=1e-5
        )


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_learn_as_one_does(runs, kind):
    assert_same_losses(runs / "one", runs / kind)


def test_the_model_is_whole_on_each_of_two_processes_or_half(runs):
    whole = sum(p.numel() for p in Transformer.load(runs / "one").parameters())
    for rank in (0, 1):
        said = found(runs, rank)
        assert said["('ddp', 'held')"] == whole
        assert abs(said["('fsdp', 'held')"] / whole - 0.5) < 0.01
        assert said["('ddp', 'reason')"].startswith("2 processes share the batch (DDP)")
        assert said["('fsdp', 'reason')"].startswith("2 processes share the model (FSDP)")


def test_final_weights_are_whole_and_those_of_one_process_to_rounding(runs):
    one = safetensors.torch.load_file(runs / "one" / "model.safetensors")
    for kind in ("ddp", "fsdp"):
        model = Transformer.load(runs / kind)
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(weight, one[name], rtol=1e-3, atol=1e-4)
        summary = json.loads((runs / kind / "summary.json").read_text())
        assert summary["steps"] == STEPS


def test_validation_lines_and_samples_are_written_once(runs):
    for kind in ("ddp", "fsdp"):
        lines = read_metrics(runs / kind)
        assert [line["step"] for line in lines if "validation_loss" in line] == [25, 50]
        text = (runs / kind / "samples.txt").read_text()
        assert re.findall(r"after step (\d+)", text) == ["40", "50"]
        assert text == (runs / "one" / "samples.txt").read_text()


def test_scores_are_those_of_one_process_on_the_tasks_that_all_have(runs):
    names = {"task/cloze", "task/cloze/low", "task/cloze/high", "bits_per_byte/letters"}
    ours = [line for line in read_metrics(runs / "one") if "task/cloze" in line]
    assert [line["step"] for line in ours] == [20, 40, 50]
    for kind in ("ddp", "fsdp"):
        theirs = [line for line in read_metrics(runs / kind) if "task/cloze" in line]
        assert [line["step"] for line in theirs] == [20, 40, 50]
        for one, other in zip(ours, theirs, strict=True):
            assert {name for name in other if "/" in name} == names
            assert other["task/cloze"] == pytest.approx(one["task/cloze"], abs=0.06)
            assert other["bits_per_byte/letters"] == pytest.approx(
                one["bits_per_byte/letters"], rel=1e-4
            )


def test_gradients_travel_once_an_update_however_many_micro_batches_it_has(runs):
    said = found(runs)
    reductions = {"ddp": "allreduce_", "fsdp": "_reduce_scatter_base_"}
    for kind, name in reductions.items():
        counts = {int(key.split(", ")[1]): count for key, count in said.items()
                  if key.startswith(f"('{kind}',") and name in key}  # fmt: skip
        assert counts[1] == counts[4] > 0, (kind, said)


def test_a_weight_that_is_no_number_on_one_process_is_seen_by_all(runs):
    for rank in (0, 1):
        assert found(runs, rank)["finite before"] is True
        assert found(runs, rank)["finite after"] is False


def test_a_sharded_model_that_does_not_fit_says_what_to_set(runs):
    assert "set training.micro_batch_size to fewer" in str(found(runs)["full"])


FOUR = """
import os, sys
os.environ["LOCAL_WORLD_SIZE"] = "2"  # as on two nodes
from strata import Config, Trainer
folder = {folder!r}
config = Config.load(folder + "/config.toml")
for kind in ("hsdp", "fsdp"):
    mine = config.override({{"training.parallelism": kind}})
    trainer = Trainer(mine, f"{{folder}}/{{kind}}", progress=False)
    for step in trainer:
        if step.step == 4:
            break
    if trainer.processes.first:
        print(trainer.runtime.reasons[-1])
"""


def test_four_processes_as_two_nodes_and_as_one_learn_as_one_process_does(tiny_config, tmp_path):
    # of 30 rows four processes hold 8, 8, 8 and 6, and of two residual scalars two hold none
    config = everything(tiny_config, model__n_heads=3, model__width=30)
    config.save(tmp_path / "config.toml")
    for step in Trainer(config, tmp_path / "one", progress=False):
        if step.step == 4:
            break
    said = run_on_processes(tmp_path / "four.py", FOUR.format(folder=str(tmp_path)), 4)
    assert "2 processes on each of 2 nodes share the model (HSDP)" in said
    assert "4 processes share the model (FSDP)" in said
    for kind in ("hsdp", "fsdp"):
        assert_same_losses(tmp_path / "one", tmp_path / kind, steps=4)


# The decision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "processes", "local", "kind", "hold"),
    [
        ("gpt3-xl", 1, 1, "ddp", True),
        ("gpt3-xl", 8, 8, "ddp", True),  # 21 GB of 80
        ("gpt3-6.7b", 8, 8, "fsdp", True),  # 107 GB, an eighth of it and a gradient of 27 GB
        ("gpt3-13b", 8, 8, "fsdp", False),  # 206 GB, an eighth of it and no gradient of 51 GB
        ("gpt3-13b", 16, 8, "hsdp", False),
        ("gpt3-175b", 16, 8, "fsdp", False),  # more than a node holds
    ],
)
def test_a_model_is_shared_once_it_does_not_fit(preset, processes, local, kind, hold, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    about = SimpleNamespace(total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    config = Config.preset(preset).override({"training.micro_batch_size": 1})
    chosen = choose_parallelism(config.training, config.model, "cuda")
    assert (chosen.kind, chosen.hold_gradient) == (kind, hold)
    assert chosen.nodes == (2 if kind == "hsdp" else 1)
    assert chosen.reason


def test_one_process_shares_nothing_whatever_is_asked_and_a_cpu_shares_the_batch(monkeypatch):
    for asked in ("auto", "ddp", "fsdp", "hsdp"):
        assert not choose_parallelism(TrainingConfig(parallelism=asked), None, "cpu").sharded
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    huge = Config.preset("gpt3-175b")
    assert choose_parallelism(huge.training, huge.model, "cpu").kind == "ddp"
    with pytest.raises(ValueError, match="3 processes on nodes of 2"):
        choose_parallelism(TrainingConfig(parallelism="hsdp"), huge.model, "cpu")


# The launcher -----------------------------------------------------------------------------------


STRATA = [sys.executable, "-m", "strata.cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


WARM = """
import sys
from strata import cli
if __name__ == "__main__":  # the processes that train are fresh ones, and import this file
    sys.exit(cli.main({words!r}))
"""


class Launched:
    """`strata train --nproc 2`, or torchrun with `strata train`, in a process of its own.

    A warm launcher has its packages imported; the processes that it starts have not.
    """

    def __init__(
        self, config: Config, run: Path, *options: str, torchrun: bool = False, warm: bool = False
    ) -> None:
        self.run = run
        path = run.with_suffix(".toml")
        config.save(path)
        words = ["train", str(path), "--run-dir", str(run), *options]
        if not torchrun:
            words += ["--nproc", "2"]
        if warm:
            self.process = Started(run.with_suffix(".py"), WARM.format(words=words))
        else:
            command = [*TORCHRUN, "-m", "strata.cli"] if torchrun else STRATA
            self.process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)

    def workers(self) -> list[int]:
        """Process ids in the order of their ranks."""
        listed = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "spawn_main|strata.cli train"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return sorted(int(word) for word in listed.stdout.split())

    def wait_for_step(self, step: int) -> None:
        """Until the log has a line of this step."""
        limit = time.monotonic() + 120
        while not self.steps() or self.steps()[-1] < step:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < limit, "no step in two minutes"
            time.sleep(0.1)

    def steps(self) -> list[int]:
        log = self.run / "metrics.jsonl"
        text = log.read_text() if log.is_file() else ""
        return [
            json.loads(line)["step"] for line in text.splitlines(keepends=True) if line[-1:] == "\n"
        ]

    def end(self) -> tuple[int, str]:
        """Status and what was said, within the minute that is promised."""
        said = self.process.communicate(timeout=60)[1]
        return self.process.returncode, said


@pytest.fixture(scope="module")
def endless(tiny_config) -> Config:
    """A run that only a signal ends."""
    return everything(
        tiny_config, training__max_steps=100_000, training__checkpoint_every=10,
        training__validate_every=100_000, training__sample_every=0, training__micro_batch_size=2,
    )  # fmt: skip


def gone(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_signal_to_the_launcher_saves_and_a_dead_process_is_restarted_and_then_named(
    endless, tmp_path
):
    run = tmp_path / "run"
    first = Launched(endless, run, warm=True)
    first.wait_for_step(3)
    first.process.send_signal(signal.SIGTERM)
    status, said = first.end()
    assert status == 128 + signal.SIGTERM, said
    saved = read_metrics(run)[-1]["step"]
    assert f"stopped after step {saved}" in said
    assert "Traceback" not in said
    assert (run / "checkpoints" / f"step-{saved:08d}").is_dir()

    second = Launched(endless, run, "--restarts", "1", warm=True)
    second.wait_for_step(saved + 15)  # beyond a checkpoint
    before = second.workers()
    os.kill(before[1], signal.SIGKILL)
    limit = time.monotonic() + 60
    while len(second.workers()) < 2 or set(second.workers()) & set(before):
        assert time.monotonic() < limit, "not started again"
        time.sleep(0.1)
    assert second.process.poll() is None
    died_at = second.steps()[-1]
    second.wait_for_step(died_at + 3)  # went on
    victim = second.workers()[1]
    os.kill(victim, signal.SIGKILL)
    status, said = second.end()
    assert status == 1
    lines = [line for line in said.splitlines() if "killed" in line]
    assert len(lines) == 2
    assert f"(rank 1, pid {before[1]}) was killed by SIGKILL; starting again" in lines[0]
    assert f"(rank 1, pid {victim}) was killed by SIGKILL" in lines[1]
    assert "Traceback" not in said
    steps = second.steps()
    assert steps == list(range(1, len(steps) + 1))  # each once, as without the deaths


@pytest.mark.parametrize("torchrun", [False, True], ids=["strata", "torchrun"])
def test_processes_do_not_outlive_their_launcher(torchrun, endless, tmp_path):
    running = Launched(endless, tmp_path / "run", torchrun=torchrun)
    running.wait_for_step(2)
    workers = running.workers()
    assert len(workers) == 2
    running.process.kill()
    running.process.wait()
    limit = time.monotonic() + 60
    while not all(gone(worker) for worker in workers):
        assert time.monotonic() < limit, "still there"
        time.sleep(0.1)
    saved = read_metrics(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{saved:08d}").is_dir()


def test_a_mistake_in_the_configuration_is_told_as_with_one_process(tiny_config, tmp_path):
    wrong = everything(tiny_config, training__batch_size=3)
    told = r"^training\.batch_size = 3: expected a multiple of the 2 processes$"
    with pytest.raises(ValueError, match=told):  # and not tried again
        launch_training(wrong, tmp_path / "run", nproc=2, restarts=2)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # left as it was
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_one_process_is_trained_right_here_and_a_launched_one_launches_none(
    tiny_config, tmp_path, monkeypatch
):
    config = everything(tiny_config, training__max_steps=2)
    assert launch_training(config, tmp_path / "run", nproc=1, progress=False) == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
    assert launch_training(config, tmp_path / "run", progress=False) == 2  # finished before
    with pytest.raises(ValueError, match="torchrun has started"):
        launch_training(config, tmp_path / "run", nproc=2)
