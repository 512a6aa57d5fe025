"""The loop: exact, resumable after any end, and one run whatever the number of processes."""

import json
import math
import os
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from two_processes import Started, run_on_two_processes

from strata.config import Config, OptimizerConfig, TrainingConfig
from strata.evaluation import SampleWriter
from strata.model import Transformer
from strata.training import (
    Callback,
    Interrupted,
    Trainer,
    build_optimizer,
    choose_runtime,
    read_metrics,
    train_step,
)


def without_timing(run_dir):
    return [
        {name: value for name, value in line.items() if name != "timing"}
        for line in read_metrics(run_dir)
    ]


def assert_same_run(left, right):
    """The same numbers to the last digit, and the same weights to the last bit."""
    assert without_timing(left) == without_timing(right)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (left, right))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def whole_run(tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    Trainer(tiny_config, folder, progress=False).fit()
    return folder


# One update -------------------------------------------------------------------------------------


def test_micro_batches_change_the_memory_and_not_the_update(tiny_config):
    tokens = torch.randint(0, 320, (4, 33), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    gradients = []
    for pieces in (1, 4):
        torch.manual_seed(0)
        model = Transformer(tiny_config.model)
        optimizer = build_optimizer(model, OptimizerConfig(name="adamw", learning_rate=0.01))
        batches = list(zip(inputs.chunk(pieces), targets.chunk(pieces), strict=True))
        loss = train_step(model, optimizer, batches, tiny_config.training)
        assert loss.item() == pytest.approx(math.log(320), rel=0.05)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_step_is_gradient_clipping_and_update_of_the_plain_loss(tiny_config):
    tokens = torch.randint(0, 320, (2, 33), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    torch.manual_seed(0)
    model, reference = Transformer(tiny_config.model), Transformer(tiny_config.model)
    reference.load_state_dict(model.state_dict())
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw"))
    train_step(model, optimizer, [(inputs, targets)], tiny_config.training)

    F.cross_entropy(reference(inputs).flatten(0, 1), targets.flatten()).backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    assert optimizer.gradient_norm == pytest.approx(norm.item(), rel=1e-4)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


# A run ------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_a_whole_folder(whole_run, tiny_config):
    metrics = read_metrics(whole_run)
    assert [line["step"] for line in metrics] == list(range(1, 9))
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.2
    assert [line["step"] for line in metrics if "validation_bits_per_byte" in line] == [4, 8]
    assert Config.load(whole_run / "config.toml") == tiny_config
    assert json.loads((whole_run / "provenance.json").read_text())["packages"]["torch"]
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["tokens"] == 8 * 4 * 32
    assert summary["validation_bits_per_byte"] == metrics[-1]["validation_bits_per_byte"]
    assert any((whole_run / "tensorboard").iterdir())
    assert Transformer.load(whole_run)(torch.zeros(1, 4).long()).isfinite().all()


def test_two_runs_of_one_configuration_are_equal(whole_run, tiny_config, tmp_path):
    Trainer(tiny_config, tmp_path / "run", progress=False).fit()
    assert_same_run(whole_run, tmp_path / "run")


def test_a_finished_run_is_opened_and_not_trained_again(whole_run, tiny_config):
    before = (whole_run / "metrics.jsonl").read_bytes()
    trainer = Trainer(tiny_config, whole_run, progress=False).fit()
    assert trainer.step == 8
    assert (whole_run / "metrics.jsonl").read_bytes() == before
    weights = load_file(whole_run / "model.safetensors")
    assert all(torch.equal(weights[k], v) for k, v in trainer.model.state_dict().items())


def test_stepping_half_way_and_going_on_later_gives_the_same_run(whole_run, tiny_config, tmp_path):
    for result in Trainer(tiny_config, tmp_path / "run", progress=False):
        if result.step == 5:  # two updates beyond the last checkpoint
            break
    resumed = Trainer(tiny_config, tmp_path / "run", progress=False)
    assert resumed.step == 3
    resumed.fit()
    assert_same_run(whole_run, tmp_path / "run")


class KillYourself(Callback):
    def on_step(self, trainer, result):
        if result.step == 7:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_killed_and_resumed_equals_the_one_never_interrupted(
    whole_run, tiny_config, tmp_path
):
    tiny_config.save(tmp_path / "config.toml")
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_training import KillYourself\n"
        "from strata import Config, Trainer\n"
        f"config = Config.load({str(tmp_path / 'config.toml')!r})\n"
        f"Trainer(config, {str(tmp_path / 'run')!r}, [KillYourself()], progress=False).fit()\n"
    )
    killed = Started(tmp_path / "train.py", script)
    complained = killed.communicate()[1]
    assert killed.returncode == -signal.SIGKILL, complained
    assert len(read_metrics(tmp_path / "run")) == 7
    Trainer(tiny_config, tmp_path / "run", progress=False).fit()
    assert_same_run(whole_run, tmp_path / "run")


class PressCtrlC(Callback):
    def on_step(self, trainer, result):
        if result.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


def test_ctrl_c_saves_stops_and_continues(whole_run, tiny_config, tmp_path):
    with pytest.raises(Interrupted, match="stopped after step 2"):
        Trainer(tiny_config, tmp_path / "run", [PressCtrlC()], progress=False).fit()
    resumed = Trainer(tiny_config, tmp_path / "run", progress=False)
    assert resumed.step == 2
    resumed.fit()
    assert_same_run(whole_run, tmp_path / "run")


def test_the_trainer_that_was_stopped_goes_on_itself(whole_run, tiny_config, tmp_path):
    trainer = Trainer(tiny_config, tmp_path / "run", [PressCtrlC()], progress=False)
    with pytest.raises(Interrupted):
        trainer.fit()
    assert trainer.fit().step == 8
    assert_same_run(whole_run, tmp_path / "run")


def test_another_configuration_in_the_same_folder_is_refused(whole_run, tiny_config):
    other = tiny_config.override({"optimizer.learning_rate": 0.5})
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate is 0\.02 there and 0\.5 here"):
        Trainer(other, whole_run, progress=False)


def test_a_corpus_smaller_than_a_batch_is_refused_before_training(tiny_config, tmp_path):
    greedy = tiny_config.override({"training.batch_size": 4_096})
    with pytest.raises(ValueError, match="batch"):
        Trainer(greedy, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_two_processes_see_the_batches_of_one_and_agree_to_rounding(
    whole_run, tiny_config, tmp_path
):
    tiny_config.save(tmp_path / "config.toml")
    run_on_two_processes(
        tmp_path / "train.py",
        "from strata import Config, Trainer\n"
        f"config = Config.load({str(tmp_path / 'config.toml')!r})\n"
        f"Trainer(config, {str(tmp_path / 'run')!r}, progress=False).fit()\n",
    )
    ours, theirs = read_metrics(whole_run), read_metrics(tmp_path / "run")
    assert [line["step"] for line in theirs] == list(range(1, 9))
    for one, two in zip(ours, theirs, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert theirs[-1]["validation_bits_per_byte"] == pytest.approx(
        ours[-1]["validation_bits_per_byte"], rel=1e-4
    )


def test_samples_are_written_at_intervals_and_change_nothing(whole_run, tiny_config, tmp_path):
    config = tiny_config.override({"training.sample_every": 4})
    trainer = Trainer(config, tmp_path / "run", [SampleWriter("the")], progress=False).fit()
    text = (tmp_path / "run" / "samples.txt").read_text()
    assert [line for line in text.splitlines() if line.startswith("====")] == [
        "==== after step 4 ====",
        "==== after step 8 ====",
    ]
    assert text.count("the") >= 2
    assert_same_run(whole_run, tmp_path / "run")
    SampleWriter("the").on_end(trainer)  # a step taken again replaces its sample
    assert (tmp_path / "run" / "samples.txt").read_text() == text


# The decision -----------------------------------------------------------------------------------


def test_the_runtime_says_why_and_refuses_what_is_not_there():
    runtime = choose_runtime(TrainingConfig(device="cpu", precision="float32"))
    assert runtime.dtype == torch.float32
    assert not runtime.compile
    assert any("float32" in reason for reason in runtime.reasons)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"training\.device = 'cuda'"):
            choose_runtime(TrainingConfig(device="cuda"))


def test_bfloat16_training_follows_float32(whole_run, tiny_config, tmp_path):
    config = tiny_config.override({"training.precision": "bfloat16"})
    for rough in Trainer(config, tmp_path / "run", progress=False):
        exact = read_metrics(whole_run)[rough.step - 1]
        assert rough.loss == pytest.approx(exact["loss"], rel=0.01)
        if rough.step == 2:  # slow where the processor has no bfloat16
            break
