"""A run that goes on with another number of processes: the same batches, losses to rounding."""

import json
import shutil

import pytest
from test_training import assert_same_run
from two_processes import run_on_processes

from strata.training import Trainer, latest_checkpoint, read_metrics
from strata.training.checkpoint import read_manifest

STEPS, LEFT_AT, SAVED_AT = 8, 7, 6

# Trains up to a step and writes down, on every process, which sequences each batch had.
TRAIN = """
import json
from strata import Config, Trainer
config = Config.load({config!r}).override({changes!r})
trainer = Trainer(config, {run!r}, progress=False)
seen, real = {{}}, trainer.loader.next
def record(examples=None):
    batch = real(examples)
    seen[trainer.step] = batch.tokens.tolist()
    return batch
trainer.loader.next = record
for result in trainer:
    if result.step == {until}:
        break
open({run!r} + f"/seen-{{trainer.processes.rank}}.json", "w").write(json.dumps(seen))
"""


def train(count, tmp_path, config, run, until=0, changes=None):
    config.save(tmp_path / "config.toml")
    text = TRAIN.format(
        config=str(tmp_path / "config.toml"), run=str(run), until=until, changes=changes or {}
    )
    if count > 1:
        run_on_processes(tmp_path / "train.py", text, count)
    else:
        exec(compile(text, "train", "exec"), {})
    found: dict[int, list[list[int]]] = {}
    for path in sorted(run.glob("seen-*.json")):
        for step, rows in json.loads(path.read_text()).items():
            found.setdefault(int(step), []).extend(rows)
        path.unlink()
    return found


def assert_equal_to_rounding(run, undisturbed):
    ours, theirs = read_metrics(run), read_metrics(undisturbed)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for name in ("loss", "validation_bits_per_byte"):
        mine, others = ([line[name] for line in lines if name in line] for lines in (ours, theirs))
        assert mine == pytest.approx(others, rel=1e-5)


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
    """The run on one process, undisturbed, and its batches."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "run", train(1, folder, tiny_config, folder / "run")


@pytest.mark.parametrize(("before", "after"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_what_two_processes_saved_one_or_four_go_on_with(
    before, after, whole, tiny_config, tmp_path
):
    undisturbed, batches = whole
    left = tmp_path / "left"
    train(2, tmp_path, tiny_config, left, LEFT_AT, {"training.parallelism": before})
    assert read_manifest(latest_checkpoint(left))["processes"] == 2
    for count in (1, 4):
        run = shutil.copytree(left, tmp_path / f"on-{count}")
        seen = train(count, tmp_path, tiny_config, run, changes={"training.parallelism": after})
        assert seen == {step: batches[step] for step in range(SAVED_AT + 1, STEPS + 1)}
        assert_equal_to_rounding(run, undisturbed)


def test_what_one_process_saved_two_go_on_with_in_parts(whole, tiny_config, tmp_path):
    undisturbed, batches = whole
    for result in Trainer(tiny_config, tmp_path / "run", progress=False):
        if result.step == LEFT_AT:
            break
    changes = {"training.parallelism": "fsdp"}
    seen = train(2, tmp_path, tiny_config, tmp_path / "run", changes=changes)
    assert seen == {step: batches[step] for step in range(SAVED_AT + 1, STEPS + 1)}
    assert_equal_to_rounding(tmp_path / "run", undisturbed)


def test_three_processes_that_were_stopped_end_bit_for_bit_as_if_they_had_not(
    tiny_config, tmp_path
):
    """A sum of three depends on its order, which a sum of two does not."""
    config = tiny_config.override({"training.batch_size": 6})
    train(3, tmp_path, config, tmp_path / "whole")
    train(3, tmp_path, config, tmp_path / "left", until=4)
    train(3, tmp_path, config, tmp_path / "left")
    assert_same_run(tmp_path / "whole", tmp_path / "left")
