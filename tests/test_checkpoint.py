"""Checkpoints: what harms one, what is kept, and that the whole of a run is in it."""

import hashlib
import json
import os
import pickle
import random
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from small_disks import fill, small_disk
from test_training import assert_same_run

from strata.tokenizer import Tokenizer
from strata.training import Callback, EarlyStopping, Trainer, checkpoint, read_metrics
from strata.training.checkpoint import (
    Checkpoints,
    find_damage,
    latest_checkpoint,
    read_manifest,
    write_manifest,
)
from strata.training.distributed import Processes
from strata.training.signals import Interrupted
from strata.training.state import generator_states, set_generators

FILES = [
    "shard-00001-model-00001-of-00002.safetensors",
    "shard-00001-model-00002-of-00002.safetensors",
    "state.json",
    "manifest.json",
]


def steps(run_dir):
    return [int(path.name[5:]) for path in sorted((run_dir / "checkpoints").glob("step-*"))]


def abandon_after(config, run_dir, step, callbacks=()):
    for result in Trainer(config, run_dir, callbacks, progress=False):
        if result.step == step:
            break


@pytest.fixture(scope="module")
def whole_run(tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    Trainer(tiny_config, folder, progress=False).fit()
    return folder


@pytest.fixture(scope="module")
def left_at_seven(tiny_config, tmp_path_factory):
    """A run with checkpoints of steps 3 and 6, not to be changed."""
    folder = tmp_path_factory.mktemp("left") / "run"
    abandon_after(tiny_config, folder, 7)
    assert steps(folder) == [3, 6]
    return folder


@pytest.fixture
def left_run(left_at_seven, tmp_path):
    return shutil.copytree(left_at_seven, tmp_path / "run")


# Faults: one test a row -------------------------------------------------------------------------


def assert_continues(config, run_dir, step, whole_run):
    resumed = Trainer(config, run_dir, progress=False)
    assert resumed.step == step
    resumed.fit()
    assert_same_run(whole_run, run_dir)


@pytest.mark.parametrize("name", FILES)
def test_a_torn_file_is_reported_and_the_checkpoint_before_it_used(
    name, left_run, tiny_config, whole_run, capsys
):
    path = left_run / "checkpoints" / "step-00000006" / name
    os.truncate(path, path.stat().st_size // 2)
    assert_continues(tiny_config, left_run, 3, whole_run)
    assert f"{name} is not as it was written; trying" in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_in_a_file_is_found(name, left_run):
    folder = left_run / "checkpoints" / "step-00000006"
    content = (folder / name).read_bytes()
    bits = random.Random(0).sample(range(8 * len(content)), 60)
    for bit in [0, 8 * len(content) - 1, *bits]:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(flipped)
        # in JSON, white space and the case of some letters mean nothing
        same = name == "manifest.json" and _meaning(flipped) == _meaning(content)
        assert same or find_damage(folder), bit
    (folder / name).write_bytes(content)
    assert not find_damage(folder)


def _meaning(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


@pytest.mark.parametrize("name", FILES)
def test_after_a_flipped_bit_the_checkpoint_before_it_is_used(
    name, left_run, tiny_config, whole_run, capsys
):
    path = left_run / "checkpoints" / "step-00000006" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert_continues(tiny_config, left_run, 3, whole_run)
    assert f"{name} is not as it was written; trying" in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name, left_run, tiny_config, whole_run, capsys):
    (left_run / "checkpoints" / "step-00000006" / name).unlink()
    assert_continues(tiny_config, left_run, 3, whole_run)
    assert f"{name} is missing; trying" in capsys.readouterr().err


def test_a_newer_format_is_refused_and_left_alone(left_run, tiny_config):
    folder = left_run / "checkpoints" / "step-00000006"
    write_manifest(folder, read_manifest(folder) | {"format": checkpoint.FORMAT + 1})
    with pytest.raises(ValueError, match="a newer version of Strata"):
        Trainer(tiny_config, left_run, progress=False)
    assert steps(left_run) == [3, 6]


def test_an_older_format_is_refused_and_left_alone(left_run, tiny_config):
    """Format 2 had a manifest of sums and nothing else."""
    for step in (3, 6):
        folder = left_run / "checkpoints" / f"step-{step:08}"
        sums = read_manifest(folder)["files"]
        (folder / "manifest.json").write_text(json.dumps(sums, indent=1))
    with pytest.raises(ValueError, match="format 2, of an older version of Strata"):
        Trainer(tiny_config, left_run, progress=False)
    assert steps(left_run) == [3, 6]
    assert len(read_metrics(left_run)) == 7


def test_where_no_checkpoint_is_whole_nothing_is_begun_again_unasked(left_run, tiny_config):
    for path in (left_run / "checkpoints").glob("*/state.json"):
        path.unlink()
    with pytest.raises(ValueError, match="none of its checkpoints is whole"):
        Trainer(tiny_config, left_run, progress=False)
    assert steps(left_run) == [3, 6]
    assert len(read_metrics(left_run)) == 7


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_damaged(
    left_run, tiny_config, whole_run, monkeypatch
):
    def fail(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(checkpoint, "sha256_of", fail)
    with pytest.raises(OSError, match=r"cannot be read: .*Input/output error"):
        Trainer(tiny_config, left_run, progress=False)
    monkeypatch.undo()
    assert_continues(tiny_config, left_run, 6, whole_run)


class FillTheDisk(Callback):
    """Leaves no room after step 4, and makes some again after step 7."""

    def on_step(self, trainer, result):
        if result.step == 4:
            trainer.checkpoints.wait()  # that of step 3 is whole
            self.filler = fill(trainer.run_dir)
        if result.step == 7:
            self.filler.unlink()


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_full_disk_costs_no_more_than_the_checkpoints_that_it_did_not_take(
    policy, tiny_config, whole_run, tmp_path, capsys
):
    config = tiny_config.override({"training.on_write_failure": policy})
    with small_disk(tmp_path / "disk", "4m") as disk:
        trainer = Trainer(config, disk / "run", [FillTheDisk()], progress=False)
        if policy == "stop":
            with pytest.raises(OSError, match=r"No space left .*continue from .*step-00000003"):
                trainer.fit()
            (disk / "run" / "filler").unlink(missing_ok=True)
            assert_continues(config, disk / "run", 3, whole_run)
        else:
            trainer.fit()
            told = capsys.readouterr().err
            assert "No space left" in told
            assert "training goes on" in told
            assert steps(disk / "run") == [3]
            assert_same_run(whole_run, disk / "run")


def test_a_clock_that_was_set_back_changes_nothing(left_run, tiny_config, whole_run, monkeypatch):
    """Every file of the newer checkpoint is older than those of the older one, and time runs on
    from before both."""
    for path in (left_run / "checkpoints" / "step-00000006").rglob("*"):
        os.utime(path, (1, 1))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 86_400.0)
    assert_continues(tiny_config, left_run, 6, whole_run)


def test_a_run_folder_that_was_moved_goes_on(left_run, tiny_config, whole_run, tmp_path):
    moved = tmp_path / "elsewhere" / "another name"
    moved.parent.mkdir()
    left_run.rename(moved)
    assert_continues(tiny_config, moved, 6, whole_run)


def test_another_tokenizer_in_the_folder_is_refused(left_run, tiny_config):
    path = left_run / "tokenizer.json"
    Tokenizer.train(["another text altogether, and not much of it"], vocab_size=280).save(path)
    with pytest.raises(ValueError, match=r"the tokenizer is another \(\w{12} there, \w{12} here\)"):
        Trainer(tiny_config, left_run, progress=False)


def test_another_corpus_under_the_run_is_refused(left_run, tiny_config, tmp_path, monkeypatch):
    """The files were changed, and the shards that the run was begun with are gone."""
    folder = tmp_path / "texts"
    pattern = tiny_config.data.corpus.removeprefix("files:")
    shutil.copytree(os.path.dirname(pattern), folder)
    here = tiny_config.override({"data.corpus": f"files:{folder}/*.txt"})
    abandon_after(here, tmp_path / "here", 4)
    next(folder.iterdir()).write_text("Somebody was here.")
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"the corpus is another \(\w{12} there, \w{12} here\)"):
        Trainer(here, tmp_path / "here", progress=False)


def test_a_changed_file_does_not_matter_while_the_shards_are_there(
    tiny_config, whole_run, tmp_path
):
    folder = tmp_path / "texts"
    shutil.copytree(os.path.dirname(tiny_config.data.corpus.removeprefix("files:")), folder)
    here = tiny_config.override({"data.corpus": f"files:{folder}/*.txt"})
    Trainer(here, tmp_path / "undisturbed", progress=False).fit()
    abandon_after(here, tmp_path / "here", 4)
    next(folder.iterdir()).write_text("Somebody was here.")
    Trainer(here, tmp_path / "here", progress=False).fit()
    assert_same_run(tmp_path / "undisturbed", tmp_path / "here")


def test_a_checkpoint_of_another_run_is_refused(left_run, tiny_config, tmp_path):
    other = tiny_config.override({"training.seed": 1})
    abandon_after(other, tmp_path / "other", 4)
    stranger = left_run / "checkpoints" / "step-00000006"
    shutil.rmtree(stranger)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step-00000003", stranger)
    with pytest.raises(ValueError, match="another configuration"):
        Trainer(tiny_config, left_run, progress=False)


def test_what_a_killed_write_left_is_no_checkpoint_and_goes_with_the_next(
    left_run, tiny_config, whole_run
):
    folder = left_run / "checkpoints"
    (folder / "step-00000006").rename(folder / ".step-00000006.partial")
    assert_continues(tiny_config, left_run, 3, whole_run)
    assert not list(folder.glob(".*"))


# What is kept -----------------------------------------------------------------------------------


def test_the_last_are_kept_and_those_of_every_so_many_steps(tmp_path):
    kept = Checkpoints(tmp_path, Processes(), keep=2, keep_every=4)
    for step in range(1, 11):
        kept.save(step, {"model.weight": torch.ones(2)}, {}, scheduled=step != 9)
    kept.wait()
    assert steps(tmp_path) == [4, 8, 10]
    kept.save(11, {"model.weight": torch.ones(2)}, {})
    kept.wait()
    assert steps(tmp_path) == [4, 8, 10, 11]
    kept.save(12, {"model.weight": torch.ones(2)}, {}, scheduled=False)
    kept.wait()
    assert steps(tmp_path) == [4, 8, 10, 11, 12]
    assert kept.latest().name == "step-00000012"
    assert kept.latest(scheduled=True).name == "step-00000011"


class PressCtrlC(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer, result):
        if result.step == self.step:
            os.kill(os.getpid(), 2)
            time.sleep(0.01)


class Poison(Callback):
    """Makes the weights useless after a step, once in all the runs that share `spent`."""

    def __init__(self, step, spent):
        self.step, self.spent = step, spent

    def on_step(self, trainer, result):
        if result.step == self.step and not self.spent:
            self.spent.append(True)
            with torch.no_grad():
                trainer.model.embedding.weight.fill_(float("nan"))


def test_a_run_goes_back_to_where_it_would_have_without_the_extra_checkpoint(tiny_config, tmp_path):
    """Stopped by hand after step 4, it must not go back to there but to step 3."""
    undisturbed = Trainer(tiny_config, tmp_path / "one", [Poison(5, [])], progress=False).fit()
    assert undisturbed.guard.rollbacks == 1
    spent = []
    callbacks = [Poison(5, spent), PressCtrlC(4)]
    with pytest.raises(Interrupted):
        Trainer(tiny_config, tmp_path / "two", callbacks, progress=False).fit()
    assert steps(tmp_path / "two") == [3, 4]
    Trainer(tiny_config, tmp_path / "two", [Poison(5, spent)], progress=False).fit()
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_before_the_first_checkpoint_of_its_plan_a_run_goes_back_to_the_start(
    tiny_config, tmp_path
):
    config = tiny_config.override({"training.checkpoint_every": 6})
    undisturbed = Trainer(config, tmp_path / "one", [Poison(5, [])], progress=False).fit()
    assert undisturbed.guard.rollbacks == 1
    spent = []
    callbacks = [Poison(5, spent), PressCtrlC(2)]
    with pytest.raises(Interrupted):
        Trainer(config, tmp_path / "two", callbacks, progress=False).fit()
    Trainer(config, tmp_path / "two", [Poison(5, spent)], progress=False).fit()
    assert_same_run(tmp_path / "one", tmp_path / "two")


# The whole of a run -----------------------------------------------------------------------------


def test_a_checkpoint_is_hardly_larger_than_its_state(left_run):
    folder = left_run / "checkpoints" / "step-00000006"
    known = checkpoint.tensor_shapes(folder)
    state = sum(shape.numel() * dtype.itemsize for shape, dtype in known.values())
    tensors = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert state < tensors < 1.05 * state


def test_nothing_in_a_run_is_loaded_as_a_pickle(left_run, tiny_config, whole_run, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a pickle was loaded")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert_continues(tiny_config, left_run, 6, whole_run)
    names = {path.suffix for path in (left_run / "checkpoints").rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json"}


def test_the_manifest_says_which_run_it_is_and_holds_the_sums_of_all_files(left_run, tiny_config):
    folder = left_run / "checkpoints" / "step-00000006"
    manifest = read_manifest(folder)
    assert manifest["step"] == 6
    assert manifest["configuration"] == tiny_config.hash()
    assert manifest["tokenizer"] == Tokenizer.load(left_run / "tokenizer.json").identity
    assert manifest["files"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES[:3]
    }


def test_generators_go_on_where_they_stood():
    device = torch.device("cpu")
    random.seed(3)
    legacy = np.random
    legacy.seed(4)
    random.gauss(0, 1), legacy.normal()  # leaves half of a pair behind
    torch.manual_seed(5)

    def draw():
        numbers = random.gauss(0, 1), random.random(), legacy.normal(), legacy.rand()
        return *numbers, torch.rand(()).item()

    states = json.loads(json.dumps(generator_states(device)))
    first = draw()
    assert draw() != first
    set_generators(states, device)
    assert draw() == first


def test_early_stopping_and_the_best_so_far_survive(tiny_config, tmp_path):
    config = tiny_config.override({"training.validate_every": 1})
    patience = {"patience": 4, "least": 9.0}
    whole = Trainer(config, tmp_path / "one", [EarlyStopping(**patience)], progress=False).fit()
    assert whole.step == 5
    abandon_after(config, tmp_path / "two", 4, [EarlyStopping(**patience)])
    resumed = Trainer(config, tmp_path / "two", [EarlyStopping(**patience)], progress=False)
    assert resumed.step == 3
    assert resumed.best[0] == 3
    resumed.fit()
    assert (resumed.step, resumed.best) == (whole.step, whole.best)
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_packed_rows_of_half_read_documents_go_on(tiny_config, tmp_path):
    config = tiny_config.override({"data.packing": "best-fit", "data.document_masks": True})
    Trainer(config, tmp_path / "one", progress=False).fit()
    abandon_after(config, tmp_path / "two", 5)
    Trainer(config, tmp_path / "two", progress=False).fit()
    assert_same_run(tmp_path / "one", tmp_path / "two")


class Remember(Callback):
    """Keeps a list that goes on growing while a checkpoint with it is written."""

    def __init__(self):
        self.seen = []

    def on_step(self, trainer, result):
        self.seen.append(result.step)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state.get("seen", [])


def test_callbacks_of_one_class_come_back_each_as_it_was_at_that_step(
    tiny_config, tmp_path, monkeypatch
):
    save = checkpoint.state_dict_saver.save
    slow = lambda *given, **options: (time.sleep(0.3), save(*given, **options))  # noqa: E731
    monkeypatch.setattr(checkpoint.state_dict_saver, "save", slow)
    before = [Remember(), Remember()]
    before[1].seen.append(-1)
    abandon_after(tiny_config, tmp_path / "run", 5, before)
    after = [Remember(), Remember()]
    Trainer(tiny_config, tmp_path / "run", after, progress=False)
    assert [each.seen for each in after] == [[1, 2, 3], [-1, 1, 2, 3]]


def test_what_fitted_into_memory_is_remembered(tiny_config, tmp_path):
    """Other micro-batches are added up in another order."""

    class Halve(Callback):
        def on_step(self, trainer, result):
            if result.step == 2:
                trainer.memory.micro_batch_size = 2

    Trainer(tiny_config, tmp_path / "one", [Halve()], progress=False).fit()
    abandon_after(tiny_config, tmp_path / "two", 5, [Halve()])
    resumed = Trainer(tiny_config, tmp_path / "two", progress=False)
    assert resumed.memory.micro_batch_size == 2
    resumed.fit()
    assert_same_run(tmp_path / "one", tmp_path / "two")


# Written while training goes on -----------------------------------------------------------------


def test_training_goes_on_while_a_checkpoint_is_written(
    tiny_config, whole_run, tmp_path, monkeypatch
):
    """The checkpoint of step 3 is held up until step 5 is done, and yet it is that of step 3."""
    free, save = threading.Event(), checkpoint.state_dict_saver.save

    def slowly(*arguments, **options):
        assert free.wait(60)
        return save(*arguments, **options)

    monkeypatch.setattr(checkpoint.state_dict_saver, "save", slowly)
    told = []

    class Watch(Callback):
        def on_checkpoint(self, trainer, path):
            told.append((path.name, trainer.step))

    for result in Trainer(tiny_config, tmp_path / "run", [Watch()], progress=False):
        if result.step == 5:
            assert steps(tmp_path / "run") == told == []
            free.set()
            break
    assert told == [("step-00000003", 5)]
    monkeypatch.undo()
    assert_continues(tiny_config, tmp_path / "run", 3, whole_run)


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_checkpoint_that_cannot_be_written_is_told_and_the_last_one_kept(
    policy, tiny_config, whole_run, tmp_path, monkeypatch, capsys
):
    config = tiny_config.override({"training.on_write_failure": policy})
    save, calls = checkpoint.state_dict_saver.save, []

    def fail_the_second_time(*arguments, **options):
        calls.append(True)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return save(*arguments, **options)

    monkeypatch.setattr(checkpoint.state_dict_saver, "save", fail_the_second_time)
    trainer = Trainer(config, tmp_path / "run", progress=False)
    if policy == "stop":
        with pytest.raises(OSError, match=r"could not be written .*No space left"):
            trainer.fit()
        assert steps(tmp_path / "run") == [3]
        Trainer(config, tmp_path / "run", progress=False).fit()
    else:
        trainer.fit()
        assert "No space left" in capsys.readouterr().err
    assert latest_checkpoint(tmp_path / "run").name in ("step-00000003", "step-00000006")
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    assert_same_run(whole_run, tmp_path / "run")
