"""Scores in the middle of a run: those of the model as it is then, and no other run for them."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from strata import Corpus, Trainer, evaluate
from strata.cli import main
from strata.evaluation import TaskMonitor, bits_per_byte
from strata.training import Callback, read_metrics

SCORED = [3, 6, 8]  # every third update, and the last
LETTERS = {"letters": ["The rat ate the toast.", "Then a horse ran on it."]}


@pytest.fixture(scope="module")
def config(tiny_config):
    """A context that holds most of an item; checkpoints and scores at different steps."""
    return tiny_config.override(
        {
            "model.context_length": 128,
            "training.checkpoint_every": 4,
            "training.evaluate_every": 3,
            "evaluation.training_limit": 20,
        }
    )


@pytest.fixture(scope="module")
def monitored(config, tmp_path_factory):
    return Trainer(
        config, tmp_path_factory.mktemp("runs") / "run", [TaskMonitor(LETTERS)], progress=False
    ).fit()


def scores(run_dir):
    """By step, what is no part of a line of a run without a monitor."""
    return {
        line["step"]: found
        for line in read_metrics(run_dir)
        if (found := {key: value for key, value in line.items() if "/" in key})
    }


def lines(run_dir):
    return [
        {key: value for key, value in line.items() if key != "timing"}
        for line in read_metrics(run_dir)
    ]


def assert_same_weights(one, other):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_scores_and_their_intervals_stand_in_the_lines_of_the_updates_asked_for(monitored):
    found = scores(monitored.run_dir)
    assert list(found) == SCORED
    for numbers in found.values():
        assert set(numbers) == {
            *("task/cloze", "task/cloze/low", "task/cloze/high"),
            *("task/continuation", "task/continuation/low", "task/continuation/high"),
            "bits_per_byte/letters",
        }
        for task in ("cloze", "continuation"):
            score, low, high = (numbers[f"task/{task}{end}"] for end in ("", "/low", "/high"))
            assert 0 <= low <= score <= high <= 1
    assert found[8]["bits_per_byte/letters"] < found[3]["bits_per_byte/letters"]
    seconds = [line["timing"].get("evaluation_seconds", 0) for line in monitored.metrics]
    assert [step for step, spent in enumerate(seconds, start=1) if spent > 0] == SCORED


def test_the_last_scores_are_those_of_the_finished_model_on_the_documents_of_the_corpus(monitored):
    data = monitored.config.data
    corpus = Corpus.open(data.corpus, validation_fraction=data.validation_fraction)
    with monitored.runtime.autocast():
        results = evaluate(
            monitored.model,
            monitored.tokenizer,
            ["cloze", "continuation"],
            documents=corpus.documents("validation"),
            limit=20,
            progress=False,
        )
        bits = bits_per_byte(monitored.model, monitored.tokenizer, LETTERS["letters"])
    last = scores(monitored.run_dir)[8]
    for task, result in results.items():
        assert last[f"task/{task}"] == result.score
        assert (last[f"task/{task}/low"], last[f"task/{task}/high"]) == result.interval
    assert last["bits_per_byte/letters"] == bits


def test_tensorboard_has_their_curves(monitored):
    events = EventAccumulator(str(monitored.run_dir / "tensorboard"))
    events.Reload()
    found = scores(monitored.run_dir)
    for name in ("task/cloze", "task/continuation/high", "bits_per_byte/letters"):
        curve = [(event.step, event.value) for event in events.Scalars(name)]
        assert curve == [(step, pytest.approx(found[step][name])) for step in SCORED]


def test_a_run_with_scores_has_the_weights_and_the_other_numbers_of_one_without(
    monitored, config, tmp_path
):
    unasked = config.override({"training.evaluate_every": 0})
    with pytest.raises(ValueError, match="evaluate_every = 0"):
        Trainer(unasked, tmp_path / "run", [TaskMonitor(LETTERS)], progress=False)
    Trainer(unasked, tmp_path / "run", [TaskMonitor()], progress=False).fit()
    assert not scores(tmp_path / "run")
    rest = [
        {key: value for key, value in line.items() if "/" not in key}
        for line in lines(monitored.run_dir)
    ]
    assert rest == lines(tmp_path / "run")
    assert_same_weights(monitored.run_dir, tmp_path / "run")


def test_a_run_that_was_left_and_taken_up_again_has_the_same_lines(monitored, config, tmp_path):
    for result in Trainer(config, tmp_path / "run", [TaskMonitor(LETTERS)], progress=False):
        if result.step == 7:  # scored at 6, the last checkpoint at 4
            break
    assert list(scores(tmp_path / "run")) == [3, 6]
    resumed = Trainer(config, tmp_path / "run", [TaskMonitor(LETTERS)], progress=False)
    assert resumed.step == 4
    resumed.fit()
    assert lines(tmp_path / "run") == lines(monitored.run_dir)
    assert_same_weights(monitored.run_dir, tmp_path / "run")


class GoBackOnce(Callback):
    def __init__(self):
        self.gone = False

    def on_step(self, trainer, result):
        if result.step == 7 and not self.gone:
            self.gone = True
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(float("nan"))


def test_a_run_that_goes_back_scores_the_steps_that_it_takes_again(config, tmp_path):
    monitor = TaskMonitor()
    Trainer(config, tmp_path / "run", [GoBackOnce(), monitor], progress=False).fit()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rollbacks"] == 1
    assert list(scores(tmp_path / "run")) == SCORED


def test_what_cannot_be_asked_costs_a_line_once_and_the_rest_is_scored(
    tiny_config, tmp_path, capsys
):
    (tmp_path / "copa_val.jsonl").write_text('{"premise": "The rat ran."}\n')
    config = tiny_config.override(
        {
            "training.evaluate_every": 1,
            "evaluation.training_tasks": ["cloze", "continuation", "lambada", "copa"],
            "evaluation.training_limit": 5,
            "evaluation.data_dir": str(tmp_path),
        }
    )
    for result in Trainer(config, tmp_path / "run", [TaskMonitor()], progress=False):
        if result.step == 3:
            break
    missing, damaged, too_long = capsys.readouterr().err.splitlines()
    assert missing.startswith("lambada: skipped, no lambada_openai_test.jsonl in")
    assert damaged.startswith("copa: skipped; ")
    assert "copa_val.jsonl, line 1: no field" in damaged
    assert too_long.startswith("continuation: skipped; ")
    assert "the model's context holds 32" in too_long
    found = scores(tmp_path / "run")
    assert list(found) == [1, 2, 3]
    assert all(set(numbers) == set(found[1]) for numbers in found.values())
    assert {key.split("/")[1] for key in found[1]} == {"cloze"}


def test_a_misspelt_task_is_an_error_before_anything_is_made(tiny_config, tmp_path, capsys):
    config = tiny_config.override({"evaluation.training_tasks": ["lambda"]})
    message = r"evaluation\.training_tasks: unknown task 'lambda'; did you mean 'lambada'\?"
    with pytest.raises(ValueError, match=message):
        Trainer(config, tmp_path / "run", [TaskMonitor()], progress=False)
    assert not (tmp_path / "run").exists()
    config.save(tmp_path / "mine.toml")
    command = ["train", str(tmp_path / "mine.toml"), "--run-dir", str(tmp_path / "run")]
    assert main(command) == 1
    assert "did you mean 'lambada'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_task_that_has_no_examples_is_an_error_with_them_before_anything_is_made(
    tiny_config, tmp_path
):
    changes = {"evaluation.training_tasks": ["wikitext2"], "evaluation.shots": 1}
    with pytest.raises(ValueError, match=r"evaluation\.training_tasks: .*wikitext2"):
        Trainer(tiny_config.override(changes), tmp_path / "run", [TaskMonitor()], progress=False)
    assert not (tmp_path / "run").exists()


def test_a_monitor_travels_to_other_processes_and_wants_text_under_each_name():
    assert pickle.loads(pickle.dumps(TaskMonitor({"one": "a b"}))).texts == {"one": ["a b"]}
    with pytest.raises(ValueError, match=r"texts\['prose'\] holds no text"):
        TaskMonitor({"prose": ["", ""]})
