"""A search: what it draws from, that it is one however often it is stopped, and what it keeps."""

import json
import sqlite3
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from strata.ablations import tuning
from strata.ablations.search import base_values, parse_search, split_search
from strata.ablations.study import load_study
from strata.ablations.tuning import tune
from strata.ablations.tuning_figures import (
    plot_history,
    plot_importance,
    plot_slices,
    plot_together,
)
from strata.config import Config
from strata.training import Trainer, find_runs, read_metrics

SEARCH = {"optimizer.learning-rate": "log:0.0001:0.1", "optimizer.name": "muon,adamw"}
TRIALS = 9


@pytest.fixture(scope="module")
def base(tiny_config: Config) -> Config:
    return tiny_config.override({"training.validate_every": 2, "training.checkpoint_every": 2})


@pytest.fixture(scope="module")
def searched(base: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which nine trials were made without a break."""
    folder = tmp_path_factory.mktemp("search") / "whole"
    tune(base, SEARCH, folder, trials=TRIALS, progress=False)
    return folder


def told(folder: Path) -> list[tuple[object, ...]]:
    """All that a study knows of its trials, without the clock."""
    return [
        (one.number, one.state, one.params, one.value, one.intermediate_values)
        for one in load_study(folder).trials
    ]


def final_bits(folder: Path) -> float:
    return json.loads((folder / "summary.json").read_text())["validation_bits_per_byte"]


# What is drawn from ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_a_search_is_read_by_the_type_of_its_field() -> None:
    space = parse_search(
        {
            "optimizer.learning-rate": "log:1e-3:0.1",
            "optimizer.weight_decay": "0:0.3:0.1",
            "optimizer.momentum": "0.8:0.99",
            "optimizer.beta2": "0.9:0.97:0.02",
            "model.n-layers": "2:6",
            "training.batch-size": "log:4:64",
            "model.width": "96:350:96",
            "model.n_heads": "1,3,6",
            "model.tie_embeddings": "true,false",
            "model.norm": "rmsnorm,layernorm",
        },
        Config.preset("nano"),
    )
    assert space == {
        "optimizer.learning_rate": FloatDistribution(1e-3, 0.1, log=True),
        "optimizer.weight_decay": FloatDistribution(0, 0.3, step=0.1),
        "optimizer.momentum": FloatDistribution(0.8, 0.99),
        "optimizer.beta2": FloatDistribution(0.9, 0.96, step=0.02),
        "model.n_layers": IntDistribution(2, 6),
        "training.batch_size": IntDistribution(4, 64, log=True),
        "model.width": IntDistribution(96, 288, step=96),
        "model.n_heads": CategoricalDistribution([1, 3, 6]),
        "model.tie_embeddings": CategoricalDistribution([True, False]),
        "model.norm": CategoricalDistribution(["rmsnorm", "layernorm"]),
    }


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("optimizer.lerning-rate", "0.1:0.2", "did you mean 'optimizer.learning_rate'"),
        ("optimizer", "0.1:0.2", "unknown field 'optimizer'"),
        ("optimizer.learning_rate", "0:0.2", r"optimizer\.learning_rate = 0\.0: expected"),
        ("optimizer.learning_rate", "log:0:0.2", "expected LOW:HIGH"),
        ("optimizer.learning_rate", "0.2:0.1", "LOW below HIGH"),
        ("optimizer.learning_rate", "0.2", "expected LOW:HIGH"),
        ("optimizer.learning_rate", "0.1:nan", "expected LOW:HIGH"),
        ("optimizer.learning_rate", "log:0.1:0.2:0.1", "expected LOW:HIGH"),
        ("optimizer.beta1", "0.5:2", r"optimizer\.beta1 = 2\.0: expected a number from"),
        ("model.n_layers", "2:6.5", "'6.5' is not a whole number"),
        ("model.width", "192:194:1:3", "expected LOW:HIGH"),
        ("model.tie_embeddings", "yes,no", "neither true nor false"),
        ("model.norm", "rmsnorm,batchnorm", "'batchnorm'"),
        ("model.norm", "rmsnorm", "several different values"),
        ("model.n_heads", "3,3", "several different values"),
        ("training.threads", "1:4", "no weight depends on it"),
        ("evaluation.limit", "1:4", "no weight depends on it"),
        ("evaluation.tasks", "cloze,continuation", "a list of names cannot be searched"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_runs(
    field: str, text: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        tune(Config.preset("nano"), {field: text}, tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_arguments_become_a_search() -> None:
    assert split_search(["a.b=1:2", "c.d=x=y,z"]) == {"a.b": "1:2", "c.d": "x=y,z"}
    with pytest.raises(ValueError, match="FIELD=WHAT"):
        split_search(["a.b"])
    with pytest.raises(ValueError, match="given twice"):
        split_search(["a.b-c=1:2", "a.b_c=1:3"])


@pytest.mark.parametrize(
    ("search", "inside"),
    [
        ({"model.n_layers": "2:6", "model.norm": "rmsnorm,layernorm"}, True),
        ({"model.n_layers": "2:6:2"}, True),
        ({"model.n_layers": "3:7:2"}, False),
        ({"model.n_layers": "5:6"}, False),
        ({"optimizer.learning_rate": "0.005:0.1:0.005"}, True),
        ({"model.n_layers": "2:6", "model.n_heads": "2,4"}, False),
    ],
)
def test_the_configurations_own_values_are_known_to_be_inside(
    search: dict[str, str], inside: bool
) -> None:
    config = Config.preset("nano")  # four layers, three heads, a rate of 0.02
    values = base_values(parse_search(search, config), config)
    assert (values is not None) == inside
    if values:
        assert config.override(values) == config


# The search --------------------------------------------------------------------------------------


def test_every_trial_is_a_run_and_the_best_a_configuration(searched: Path, base: Config) -> None:
    study = load_study(searched)
    finished = [one for one in study.trials if one.state == TrialState.COMPLETE]
    assert len(study.trials) == TRIALS
    assert [run.name for run in find_runs(searched)] == [f"trial-{n:04}" for n in range(TRIALS)]
    assert study.trials[0].params == {"optimizer.learning_rate": 0.02, "optimizer.name": "muon"}
    bits = {one.number: final_bits(searched / f"trial-{one.number:04}") for one in finished}
    assert {one.number: one.value for one in finished} == bits
    winner = searched / f"trial-{min(bits, key=bits.get):04}"
    best = Config.load(searched / "best.toml")
    assert best == Config.load(winner / "config.toml")
    assert best == base.override(study.best_params)


def test_a_trial_is_stopped_when_it_is_worse_than_the_median_of_those_before(
    searched: Path,
) -> None:
    """The rule, worked out anew from the runs' own lines."""
    curves = [
        {line["step"]: line["validation_bits_per_byte"]
         for line in read_metrics(searched / f"trial-{number:04}")
         if "validation_bits_per_byte" in line}
        for number in range(TRIALS)
    ]  # fmt: skip
    finished: list[dict[int, float]] = []
    stopped_at = {}
    for number, curve in enumerate(curves):
        for step in (4, 6):  # the validations beyond a third of eight updates, but for the last
            if len(finished) < 5 or step not in curve:
                continue
            lowest = min(bits for at, bits in curve.items() if at <= step)
            if lowest > np.median([other[step] for other in finished]):
                stopped_at[number] = step
                break
        if number not in stopped_at:
            finished.append(curve)
    states = {one.number: one.state for one in load_study(searched).trials}
    assert stopped_at
    assert {n for n, state in states.items() if state == TrialState.PRUNED} == set(stopped_at)
    for number, step in stopped_at.items():
        assert max(curves[number]) == step
        assert not (searched / f"trial-{number:04}" / "summary.json").exists()


def test_a_trial_that_was_stopped_can_be_finished(searched: Path) -> None:
    pruned = load_study(searched).get_trials(states=(TrialState.PRUNED,))[0]
    run = searched / f"trial-{pruned.number:04}"
    before = read_metrics(run)
    config = Config.load(run / "config.toml").override({"training.keep_checkpoints": 1})
    trainer = Trainer(config, run, progress=False)
    assert 0 < trainer.step < config.training.max_steps
    try:
        trainer.fit()
        assert final_bits(run) > 0
    finally:  # for the tests that look at it as the search left it
        (run / "summary.json").unlink()
        text = "".join(json.dumps(line) + "\n" for line in before)
        (run / "metrics.jsonl").write_text(text)


def test_a_search_stopped_within_a_trial_and_continued_is_the_search_never_stopped(
    searched: Path, base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated = tuning._StopsPoorTrials.on_validation
    seen = []

    def press_ctrl_c(self, trainer, metrics) -> None:
        validated(self, trainer, metrics)
        seen.append(trainer.run_dir.name)
        if len(seen) in (2, 14):  # within the first trial, and within the fourth
            raise KeyboardInterrupt

    monkeypatch.setattr(tuning._StopsPoorTrials, "on_validation", press_ctrl_c)
    for trials in (3, TRIALS):
        with pytest.raises(KeyboardInterrupt):
            tune(base, SEARCH, tmp_path, trials=trials, progress=False)
        assert load_study(tmp_path).trials[-1].state == TrialState.RUNNING
        if trials == 3:
            tune(base, SEARCH, tmp_path, trials=trials, progress=False)
    tune(base, SEARCH, tmp_path, trials=TRIALS, progress=False)
    assert told(tmp_path) == told(searched)
    assert (tmp_path / "best.toml").read_text() == (searched / "best.toml").read_text()
    before = told(tmp_path)
    tune(base, SEARCH, tmp_path, trials=TRIALS, progress=False)  # nothing is left to do
    assert told(tmp_path) == before


def test_a_trial_whose_process_dies_twice_fails_and_its_place_is_filled_later(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def dying(take, do, workers):
        while (job := take()) is not None:
            tries.append(job.number)
            yield job, None if job.number == 1 else do(job)

    short = base.override({"training.max_steps": 2})
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "side_by_side", dying)
        study = tune(short, SEARCH, tmp_path, trials=3, progress=False)
    assert tries == [0, 1, 1, 2]
    assert [one.state.name for one in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["reason"] == "its process died twice"
    study = tune(short, SEARCH, tmp_path, trials=3, progress=False)
    assert [one.state.name for one in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_two_workers_share_the_trials_of_two_seeds(base: Config, tmp_path: Path) -> None:
    short = base.override({"training.max_steps": 2, "training.threads": 0})
    search = {"optimizer.learning_rate": "0.01,0.02,0.03"}
    study = tune(short, search, tmp_path, trials=2, workers=2, seeds=(3, 4), progress=False)
    for one in study.trials:
        runs = [tmp_path / f"trial-{one.number:04}-seed{seed}" for seed in (3, 4)]
        configs = [Config.load(run / "config.toml") for run in runs]
        assert [config.training.seed for config in configs] == [3, 4]
        assert all(config.training.threads >= 1 for config in configs)
        assert one.value == pytest.approx(np.mean([final_bits(run) for run in runs]))
    assert Config.load(tmp_path / "best.toml").training.threads == 0


def test_values_that_do_not_go_together_count_as_poor_and_say_why(
    base: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A width of 36 is good for two heads, and four heads for a width of 32."""
    short = base.override({"training.max_steps": 2})
    search = {"model.width": "32,36", "model.n_heads": "2,4"}
    study = tune(short, search, tmp_path, trials=8)
    states = {(one.params["model.width"], one.params["model.n_heads"]): one for one in study.trials}
    assert states[36, 4].state == TrialState.PRUNED
    assert "model.head_dim = 9" in states[36, 4].user_attrs["reason"]
    assert states[32, 2].state == TrialState.COMPLETE
    lines = [line for line in capsys.readouterr().err.splitlines() if " of 8, trial " in line]
    assert [line.split(" of ")[0] for line in lines] == [str(n) for n in range(1, 9)]
    assert lines[0].startswith("1 of 8, trial 0: model.width 32, model.n_heads 2: ")
    assert any("model.head_dim = 9" in line for line in lines)


def test_a_search_of_which_nothing_was_finished_says_why(base: Config, tmp_path: Path) -> None:
    short = base.override({"training.max_steps": 2})
    search = {"training.batch_size": "5000,6000"}  # more than the corpus holds
    with pytest.raises(RuntimeError, match=r"no trial was finished; the last says: .*batch"):
        tune(short, search, tmp_path, trials=2, progress=False)


def test_halving_and_no_pruning_can_be_had(base: Config) -> None:
    halving = tuning._pruner("halving", 160)
    assert (halving._min_resource, halving._reduction_factor) == (10, 4)
    assert type(tuning._pruner("none", 160)).__name__ == "NopPruner"


# The folder --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "search", "said"),
    [
        ({}, {"optimizer.learning_rate": "0.01:0.1"}, r"optimizer\.name is .* not searched here"),
        ({"model.n_layers": 1}, SEARCH, r"model\.n_layers is 2 there and 1 here"),
        ({"training.validate_every": 3}, SEARCH, "validate_every is 2 there and 3 here"),
    ],
)
def test_another_search_in_the_same_folder_is_refused(
    searched: Path, base: Config, changes: dict[str, int], search: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=f"holds another search: .*{said}"):
        tune(base.override(changes), search, searched, progress=False)


def test_a_folder_in_use_is_refused(searched: Path, base: Config) -> None:
    lock = sqlite3.connect(searched / "search.lock", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(ValueError, match="in use by another"):
            tune(base, SEARCH, searched, trials=TRIALS, progress=False)
    finally:
        lock.close()
    tune(base, SEARCH, searched, trials=TRIALS, progress=False)


def test_trials_without_a_study_are_not_taken_for_a_search(base: Config, tmp_path: Path) -> None:
    (tmp_path / "trial-0000").mkdir()
    with pytest.raises(ValueError, match="trials of a search that is gone"):
        tune(base, SEARCH, tmp_path, progress=False)
    with pytest.raises(FileNotFoundError, match=r"study\.db: no such file"):
        load_study(tmp_path)


# Figures -----------------------------------------------------------------------------------------


def test_figures_show_every_trial_and_mark_the_best(searched: Path) -> None:
    study = load_study(searched)
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    stopped = study.get_trials(states=(TrialState.PRUNED,))

    history = plot_history(study)
    lines = {line.get_label(): line for line in history.axes[0].get_lines()}
    assert list(lines["finished"].get_xdata()) == [one.number for one in finished]
    assert list(lines["stopped early"].get_xdata()) == [one.number for one in stopped]
    assert lines["best so far"].get_ydata()[-1] == pytest.approx(study.best_value)
    assert f"to {study.best_value:.3f} bits per byte" in history.axes[0].get_title()

    slices = plot_slices(study)
    by_name = {axis.get_xlabel(): axis for axis in slices.axes}
    assert set(by_name) == {"optimizer.learning_rate", "optimizer.name"}
    assert by_name["optimizer.learning_rate"].get_xscale() == "log"
    star = by_name["optimizer.learning_rate"].get_lines()[-1].get_xydata()[0]
    assert star[0] == pytest.approx(study.best_params["optimizer.learning_rate"])
    assert star[1] == pytest.approx(study.best_value)

    shares = [patch.get_width() for patch in plot_importance(study).axes[0].patches]
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(1.0)

    together = plot_together(study).axes[0].get_lines()
    assert len([line for line in together if len(set(line.get_xdata())) > 1]) == len(finished)
    plt.close("all")


def test_there_is_nothing_to_draw_before_a_trial_is_finished(searched: Path) -> None:
    import optuna

    study = optuna.create_study()
    for plot in (plot_history, plot_slices, plot_importance, plot_together):
        with pytest.raises(ValueError, match="no trial of the search is finished"):
            plot(study)
    study.add_trial(load_study(searched).best_trial)
    with pytest.raises(ValueError, match="two finished trials"):
        plot_importance(study)
