"""What the loop does when a run does not go straight: memory, spikes, growth, early ends."""

import dataclasses
import json
import math

import pytest
import torch
from two_processes import run_on_two_processes

from strata import Config, Trainer
from strata.config import TrainingConfig
from strata.data import IGNORED
from strata.model import Transformer, flops_per_token
from strata.training import (
    Callback,
    EarlyStopping,
    LivePlot,
    Profiler,
    build_optimizer,
    read_metrics,
    train_step,
)
from strata.training.growth import batch_size_at, context_length_at, cut_sequences
from strata.training.guard import FEWEST, SpikeGuard
from strata.training.memory import Memory, split_batch


def losses(run_dir):
    return [line["loss"] for line in read_metrics(run_dir)]


# Memory -----------------------------------------------------------------------------------------


class SmallDevice:
    """A loss function that runs out of memory with more than `rows` sequences."""

    def __init__(self, model, rows):
        self.model, self.rows, self.tried = model, rows, []

    def __call__(self, tokens, targets):
        self.tried.append(len(tokens))
        if len(tokens) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.model.loss(tokens, targets)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(tiny_config, tmp_path, capsys):
    plain = Trainer(tiny_config, tmp_path / "plain", progress=False)
    small = Trainer(tiny_config, tmp_path / "small", progress=False)
    device = SmallDevice(small.model, rows=1)
    small.memory._loss_function = device
    for step, (ours, theirs) in enumerate(zip(plain, small, strict=True)):
        assert theirs.loss == pytest.approx(ours.loss, rel=1e-5)
        if step == 1:
            break
    assert device.tried == [4, 2] + 8 * [1]  # two failures, then two steps of four sequences
    said = capsys.readouterr().err
    assert "micro-batches of 2 sequences" in said
    assert "micro-batches of 1 sequences from here on; the batch of 4 stays" in said


def test_a_model_too_large_for_one_sequence_says_so(tiny_config, tmp_path):
    trainer = Trainer(tiny_config, tmp_path / "run", progress=False)
    trainer.memory._loss_function = SmallDevice(trainer.model, rows=0)
    with pytest.raises(RuntimeError, match=r"not even one sequence fits.*model\.context_length"):
        trainer.fit()


def test_an_update_that_ran_out_of_memory_half_way_is_not_taken_twice(tiny_config, tmp_path):
    trainer = Trainer(tiny_config, tmp_path / "run", progress=False)
    step = trainer.optimizer.step

    def greedy(*arguments, **options):
        step(*arguments, **options)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.optimizer.step = greedy
    with pytest.raises(torch.OutOfMemoryError):
        trainer.fit()
    assert trainer.optimizer.updates == 1


def test_other_errors_are_not_taken_for_a_full_memory(tiny_config, tmp_path):
    trainer = Trainer(tiny_config, tmp_path / "run", progress=False)

    def broken(tokens, targets):
        raise RuntimeError("shapes do not match")

    trainer.memory._loss_function = broken
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.fit()


class OtherProcess:
    size = 2

    def least(self, value):
        return min(value, 2)


def test_processes_agree_on_what_fits_on_all_of_them(tiny_config, tmp_path):
    trainer = Trainer(tiny_config, tmp_path / "run", progress=False)
    optimizer = build_optimizer(trainer.model, tiny_config.optimizer)
    memory = Memory(trainer.model, trainer.model.loss, optimizer, tiny_config, share=4)
    memory.agree(OtherProcess())
    assert memory.micro_batch_size == 2
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_micro_batches_are_of_equal_size_and_hold_every_sequence():
    batch = torch.arange(12).view(6, 2), torch.arange(6)
    pieces = split_batch(batch, 4)  # 4 does not divide 6, 3 does
    assert [len(tokens) for tokens, _ in pieces] == [3, 3]
    assert torch.equal(torch.cat([tokens for tokens, _ in pieces]), batch[0])


# The guard --------------------------------------------------------------------------------------


class Poison(Callback):
    """Make the weights useless after some steps, once each, or whenever these come."""

    def __init__(self, *steps, always=False):
        self.steps, self.always = list(steps), always

    def on_step(self, trainer, result):
        if result.step in self.steps:
            if not self.always:
                self.steps.remove(result.step)
            with torch.no_grad():
                trainer.model.embedding.weight.fill_(float("nan"))


def test_a_loss_that_is_no_number_sends_the_run_back_and_past_the_data(
    tiny_config, tmp_path, capsys
):
    trainer = Trainer(tiny_config, tmp_path / "run", [Poison(4)], progress=False).fit()
    # step 5 was no number: back to the checkpoint of step 3, without the batches of steps 4 and 5
    assert "the loss is nan at step 5: back to step 3" in capsys.readouterr().err
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["tokens"] for line in lines] == [4 * 32 * step for step in range(1, 9)]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert trainer.loader.position == 4 * (8 + 2)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["rollbacks"], summary["tokens"]) == (1, 4 * 32 * 8)


def test_weights_that_are_no_numbers_are_never_kept(tiny_config, tmp_path, capsys):
    """Step 3 writes a checkpoint and step 8 the final weights, but not these."""
    trainer = Trainer(tiny_config, tmp_path / "run", [Poison(3, 8)], progress=False).fit()
    said = capsys.readouterr().err
    assert "a weight is no number at step 3: back to step 0" in said
    assert "a weight is no number at step 8: back to step 6" in said
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 9))


def test_a_gradient_that_is_no_number_sends_the_run_back(tiny_config, tmp_path, capsys):
    trainer = Trainer(tiny_config, tmp_path / "run", progress=False)
    clip = trainer.optimizer.clip

    def overflow(limit):
        if trainer.step == 5 and not trainer.guard.rollbacks:
            trainer.model.embedding.weight.grad[0, 0] = float("inf")
        clip(limit)

    trainer.optimizer.clip = overflow
    trainer.fit()
    assert "the norm of the gradient is inf at step 5: back to step 3" in capsys.readouterr().err


def test_without_a_checkpoint_a_run_goes_back_to_its_beginning(tiny_config, tmp_path):
    first = Trainer(tiny_config, tmp_path / "first", progress=False)
    start = {name: weight.clone() for name, weight in first.model.state_dict().items()}
    restarted = Trainer(tiny_config, tmp_path / "run", [Poison(1)], progress=False)
    steps = iter(restarted)
    next(steps)
    restarted._go_back("the test says so", None)
    assert restarted.step == restarted.tokens == 0
    assert all(torch.equal(start[k], v) for k, v in restarted.model.state_dict().items())


def test_a_run_that_never_recovers_ends_with_advice(tiny_config, tmp_path):
    poison = Poison(1, always=True)
    with pytest.raises(RuntimeError, match=r"the loss is nan at step 2: lower optimizer\.learning"):
        Trainer(tiny_config, tmp_path / "run", [poison], progress=False).fit()


def test_a_run_killed_after_going_back_ends_as_if_it_had_not_been(tiny_config, tmp_path):
    class Bad(Callback):
        """The batch at one place of the stream is bad, whichever step reads it."""

        def on_step(self, trainer, result):
            if trainer.loader.position == 16:
                with torch.no_grad():
                    trainer.model.embedding.weight.fill_(float("nan"))

    Trainer(tiny_config, tmp_path / "whole", [Bad()], progress=False).fit()
    for result in Trainer(tiny_config, tmp_path / "broken", [Bad()], progress=False):
        if result.step == 7:
            break
    Trainer(tiny_config, tmp_path / "broken", [Bad()], progress=False).fit()
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def test_three_losses_far_above_the_usual_are_a_spike_and_two_are_not():
    usual = [3.0 + 0.01 * (step % 5) for step in range(FEWEST)]
    for high, expected in ((2, False), (3, True)):
        guard = SpikeGuard(TrainingConfig(spike_deviations=8))
        said = [guard.judge(loss) for loss in [*usual, *high * [4.0], 3.0]]
        assert any(said) == expected


def test_no_checkpoint_is_written_inside_a_spike(tiny_config, tmp_path, capsys):
    """Weights spoiled before a checkpoint is due, so that losses are high and finite after it."""
    config = tiny_config.override(
        {"training.max_steps": 30, "training.checkpoint_every": 5, "training.validate_every": 30}
    )

    class Spoil(Callback):
        happened = False

        def on_step(self, trainer, result):
            if result.step == 23 and not self.happened:
                self.happened = True
                with torch.no_grad():
                    trainer.model.embedding.weight.mul_(-3)

    trainer = Trainer(config, tmp_path / "run", [Spoil()], progress=False).fit()
    assert "at step 26: back to step 20" in capsys.readouterr().err
    assert trainer.guard.rollbacks == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["wasted_flops"] == pytest.approx(6 / 30 * summary["flops"])


def test_a_loss_that_falls_or_wavers_is_no_spike():
    torch.manual_seed(0)
    guard = SpikeGuard(TrainingConfig(spike_deviations=8))
    noise = torch.randn(2_000).tolist()
    assert not any(guard.judge(9 * 0.999**step + 0.2 * noise[step]) for step in range(2_000))


def test_the_guard_goes_on_from_its_state():
    stream = [3.0 + 0.01 * (step % 7) for step in range(40)] + 5 * [3.5]
    whole, first = SpikeGuard(TrainingConfig()), SpikeGuard(TrainingConfig())
    expected = [whole.judge(loss) for loss in stream]
    for loss in stream[:41]:
        first.judge(loss)
    second = SpikeGuard(TrainingConfig())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.judge(loss) for loss in stream[41:]] == expected[41:]
    assert any(expected[41:])


# Growth -----------------------------------------------------------------------------------------


def test_batch_and_context_double_at_equal_intervals():
    training = TrainingConfig(
        batch_size=32,
        initial_batch_size=4,
        batch_growth_steps=9,
        initial_context_length=64,
        context_growth_steps=4,
    )
    sizes = [batch_size_at(step, training) for step in range(1, 12)]
    assert sizes == [4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32]
    lengths = [context_length_at(step, training, 256) for step in range(1, 7)]
    assert lengths == [64, 64, 128, 128, 256, 256]
    assert batch_size_at(1, TrainingConfig(batch_size=32)) == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.initial_batch_size": 3, "training.batch_growth_steps": 5}, "power of two"),
        ({"training.initial_batch_size": 4}, "expected both or neither"),
        ({"training.context_growth_steps": 4}, "expected both or neither"),
        ({"training.initial_context_length": 100, "training.context_growth_steps": 5}, "256"),
    ],
)
def test_growth_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Config.preset("nano").override(changes)


def test_a_run_that_grows_sees_the_same_text_in_other_pieces(tiny_config, tmp_path):
    config = tiny_config.override(
        {
            "training.initial_batch_size": 2,
            "training.batch_growth_steps": 3,
            "training.initial_context_length": 8,
            "training.context_growth_steps": 4,
        }
    )
    trainer = Trainer(config, tmp_path / "run", progress=False)
    shapes = []
    update = trainer.memory.update
    trainer.memory.update = lambda batch, measure, predicted: (
        shapes.append(tuple(batch[0].shape)),
        update(batch, measure, predicted),
    )[1]
    trainer.fit()
    assert shapes == [(8, 8), (8, 8), (4, 16), (8, 16), *4 * [(4, 32)]]
    tokens = [line["tokens"] for line in read_metrics(tmp_path / "run")]
    assert tokens == [64, 128, 192, *(192 + 128 * more for more in range(1, 6))]
    whole = config.model
    shorter = [dataclasses.replace(whole, context_length=length) for length in (8, 16)]
    expected = 128 * flops_per_token(shorter[0]) + (64 + 128) * flops_per_token(shorter[1])
    assert trainer.flops == pytest.approx(expected + 4 * 128 * flops_per_token(whole))
    rows = torch.arange(64).view(2, 32)
    assert torch.equal(cut_sequences(rows, 8).flatten(), rows.flatten())


# Callbacks --------------------------------------------------------------------------------------


def test_padding_counts_alike_however_the_batch_is_cut(tiny_config):
    torch.manual_seed(0)
    tokens = torch.randint(0, 300, (4, 16))
    targets = tokens.clone()
    targets[0, 3:] = IGNORED  # one row with few targets
    gradients = []
    for pieces in (1, 4):
        torch.manual_seed(1)
        model = Transformer(tiny_config.model)
        optimizer = build_optimizer(model, tiny_config.optimizer)
        optimizer.step = lambda measure: None
        parts = list(zip(tokens.chunk(pieces), targets.chunk(pieces), strict=True))
        training = dataclasses.replace(tiny_config.training, gradient_clip=0.0)
        loss = train_step(model, optimizer, parts, training)
        torch.testing.assert_close(loss, model.loss(tokens, targets).detach())
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    torch.testing.assert_close(*gradients)


def test_a_run_with_document_masks_is_validated_with_them(tiny_config, tmp_path):
    masked = tiny_config.override({"data.document_masks": True})
    trainer = Trainer(masked, tmp_path / "run", progress=False).fit()
    seen = trainer.validate()["validation_loss"]
    trainer.config = tiny_config
    assert trainer.validate()["validation_loss"] != seen


def test_a_callback_may_end_the_run_and_the_folder_says_why(tiny_config, tmp_path):
    class Enough(Callback):
        def on_step(self, trainer, result):
            if result.step == 3:
                trainer.stop("three are enough")

    trainer = Trainer(tiny_config, tmp_path / "run", [Enough()], progress=False).fit()
    assert trainer.finished
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["stopped"]) == (3, "three are enough")
    assert summary["validation_bits_per_byte"] > 0
    again = Trainer(tiny_config, tmp_path / "run", progress=False).fit()
    assert (again.step, again.stopped) == (3, "three are enough")


def test_early_stopping_waits_for_as_many_validations_as_it_is_told(tiny_config, tmp_path):
    config = tiny_config.override({"training.validate_every": 1})
    impatient = EarlyStopping(patience=2, least=9.0)  # no improvement is that large
    trainer = Trainer(config, tmp_path / "run", [impatient], progress=False).fit()
    assert trainer.step == 3  # the first counts, two bring nothing
    assert trainer.stopped.startswith("no better than")
    patient = EarlyStopping(patience=8)
    assert Trainer(config, tmp_path / "all", [patient], progress=False).fit().step == 8


def test_two_processes_stop_at_one_step(tiny_config, tmp_path):
    tiny_config.save(tmp_path / "config.toml")
    run_on_two_processes(
        tmp_path / "train.py",
        "from strata import Config, Trainer\n"
        "from strata.training import Callback\n"
        "class Enough(Callback):\n"
        "    def on_step(self, trainer, result):\n"
        "        if result.step == 3: trainer.stop('enough')\n"
        f"config = Config.load({str(tmp_path / 'config.toml')!r})\n"
        f"Trainer(config, {str(tmp_path / 'run')!r}, [Enough()], progress=False).fit()\n",
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["stopped"]) == (3, "enough")


def test_the_live_plot_draws_after_each_validation(tiny_config, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    Trainer(tiny_config, tmp_path / "run", [LivePlot()], progress=False).fit()
    assert len(shown) == 2
    held_out = shown[-1].axes[0].lines[1]
    assert len(held_out.get_xdata()) == 2


def test_the_profiler_leaves_a_trace_and_a_table(tiny_config, tmp_path):
    Trainer(tiny_config, tmp_path / "run", [Profiler(first=2, steps=2)], progress=False).fit()
    assert "aten::mm" in (tmp_path / "run" / "profile" / "operators.txt").read_text()
    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())
    assert len(trace["traceEvents"]) > 100
