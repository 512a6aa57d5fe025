"""Variants are valid differences of configuration, and a sweep makes each run once."""

import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from small_suites import GELU, TINY, StandIn, suite_of, sweep

from strata.ablations.analysis import compare
from strata.ablations.choices import best_choices
from strata.ablations.ingredients import STRATA
from strata.ablations.summary import (
    final_losses,
    learning_curves,
    load_suite,
    scaling_runs,
    summarise,
)
from strata.ablations.sweep import SweepError, run_suite
from strata.ablations.variants import Suite, Tuning, Variant
from strata.config import Config
from strata.model import count_parameters
from strata.training.folder import code_hash


def test_runs_go_seed_by_seed_and_come_back_as_summaries(tmp_path):
    train = StandIn()
    summaries = sweep(suite_of(STRATA, GELU), tmp_path, train)
    assert train.made == ["strata-seed0", "gelu-seed0", "strata-seed1", "gelu-seed1"]
    assert [(s.variant, s.seed) for s in summaries] == [
        ("strata", 0),
        ("gelu", 0),
        ("strata", 1),
        ("gelu", 1),
    ]
    assert summaries[3].bits_per_byte == pytest.approx(2.3)
    assert summaries[0].config_hash == TINY.hash()
    curve = summaries[0].curve
    assert curve.tokens.tolist() == [32, 64]
    assert curve.flops.tolist() == [320, 640]
    assert curve.seconds.tolist() == [1.0, 2.0]
    assert curve.bits_per_byte.tolist() == [4.0, 2.0]


def test_what_is_done_is_skipped_and_a_new_seed_adds_its_runs_alone(tmp_path):
    sweep(suite_of(STRATA, GELU), tmp_path, StandIn())
    again, wider = StandIn(), StandIn()
    assert len(sweep(suite_of(STRATA, GELU), tmp_path, again)) == 4
    assert again.made == []
    sweep(suite_of(STRATA, GELU, seeds=(0, 1, 2)), tmp_path, wider)
    assert wider.made == ["strata-seed2", "gelu-seed2"]


@pytest.mark.parametrize(
    "changes", [{"optimizer.learning_rate": 0.03}, {"training.validate_every": 1}]
)
def test_a_changed_configuration_is_made_anew(tmp_path, changes):
    sweep(suite_of(STRATA, GELU), tmp_path, StandIn())
    left_over = tmp_path / "gelu-seed0" / "checkpoints"
    left_over.mkdir()
    train = StandIn()
    changed = Variant("gelu", {**GELU.changes, **changes}, "GELU.")
    sweep(suite_of(STRATA, changed), tmp_path, train)
    assert train.made == ["gelu-seed0", "gelu-seed1"]
    assert not left_over.exists()


def test_an_interrupted_run_keeps_its_checkpoints_and_is_continued(tmp_path):
    sweep(suite_of(STRATA), tmp_path, StandIn())
    (tmp_path / "strata-seed1" / "summary.json").unlink()
    checkpoint = tmp_path / "strata-seed1" / "checkpoints"
    checkpoint.mkdir()
    train = StandIn()
    sweep(suite_of(STRATA), tmp_path, train)
    assert train.made == ["strata-seed1"]
    assert checkpoint.exists()


def test_a_failed_run_is_reported_and_the_others_are_kept(tmp_path):
    with pytest.raises(SweepError, match=r"strata-seed0.*no space left") as caught:
        sweep(suite_of(STRATA, GELU), tmp_path, StandIn(fails=["strata-seed0"]))
    assert list(caught.value.failures) == ["strata-seed0"]
    assert len(load_suite(tmp_path)) == 3
    train = StandIn()
    assert len(sweep(suite_of(STRATA, GELU), tmp_path, train)) == 4
    assert train.made == ["strata-seed0"]


def test_a_stop_ends_the_sweep_and_the_next_call_goes_on(tmp_path):
    class Stopped(StandIn):
        def __call__(self, config, folder, callbacks=()):
            if folder.name == "gelu-seed0":
                raise KeyboardInterrupt
            super().__call__(config, folder, callbacks)

    with pytest.raises(KeyboardInterrupt):
        sweep(suite_of(STRATA, GELU), tmp_path, Stopped())
    train = StandIn()
    sweep(suite_of(STRATA, GELU), tmp_path, train)
    assert train.made == ["gelu-seed0", "strata-seed1", "gelu-seed1"]


def test_two_sweeps_of_one_folder_do_not_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("strata.training.lock.PATIENCE", 0.1)
    hold = (
        "import sys\nfrom pathlib import Path\nfrom strata.training.lock import OneWriter\n"
        "with OneWriter(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command, train = [sys.executable, "-c", hold, str(tmp_path)], StandIn()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match=f"in use by process {other.pid} on"):
            sweep(suite_of(STRATA), tmp_path, train)
        other.stdin.close()
    assert train.made == []
    assert len(sweep(suite_of(STRATA), tmp_path, train)) == 2


def test_a_folder_that_is_no_run_is_not_removed(tmp_path):
    (tmp_path / "strata-seed0").mkdir()
    precious = tmp_path / "strata-seed0" / "thesis.tex"
    precious.write_text("chapter 1")
    with pytest.raises(SweepError, match="in the way"):
        sweep(suite_of(STRATA), tmp_path, StandIn())
    assert precious.exists()


def test_the_best_value_of_a_tuning_joins_the_reported_runs(tmp_path):
    tuning = Tuning("gelu", "optimizer.learning_rate", (0.001, 0.01, 0.1))
    train = StandIn(best_rate=0.012)
    summaries = sweep(suite_of(STRATA, GELU, tunings=(tuning,)), tmp_path, train)
    assert train.made[:3] == [f"gelu@learning_rate={rate}-seed1000" for rate in (0.001, 0.01, 0.1)]
    assert len(summaries) == 3 + 4
    rates = {
        name: Config.load(tmp_path / name / "config.toml").optimizer.learning_rate
        for name in ("strata-seed0", "gelu-seed0", "gelu-seed1")
    }
    assert rates == {"strata-seed0": 0.02, "gelu-seed0": 0.01, "gelu-seed1": 0.01}
    again = StandIn()
    sweep(suite_of(STRATA, GELU, tunings=(tuning,)), tmp_path, again)
    assert again.made == []


def test_a_trial_may_diverge_but_not_all_of_them(tmp_path):
    tuning = Tuning("gelu", "optimizer.learning_rate", (0.01, 0.1))
    names = [f"gelu@learning_rate={rate}-seed1000" for rate in (0.01, 0.1)]
    suite = suite_of(STRATA, GELU, tunings=(tuning,))
    assert len(sweep(suite, tmp_path / "one", StandIn(diverges=names[1:]))) == 1 + 4
    with pytest.raises(SweepError) as caught:
        sweep(suite, tmp_path / "both", StandIn(diverges=names))
    assert sorted(caught.value.failures) == names


def test_a_best_value_at_the_end_of_its_range_is_a_warning(tmp_path):
    tuning = Tuning("gelu", "optimizer.learning_rate", (0.001, 0.01, 0.1))
    suite = suite_of(STRATA, GELU, tunings=(tuning,))
    with pytest.warns(UserWarning, match="end of the range"):
        sweep(suite, tmp_path, StandIn(best_rate=0.2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert best_choices(suite, []) == {}


def test_the_suites_tables_are_what_the_analysis_takes(tmp_path):
    wide = Variant("width16", {"model.width": 16}, "Wider.")
    suite = suite_of(STRATA, GELU, scaling=(wide,))
    sweep(suite, tmp_path, StandIn())
    summaries = load_suite(tmp_path)
    assert final_losses(summaries, ["strata", "absent", "gelu"]) == {
        "strata": {0: pytest.approx(2.0), 1: pytest.approx(2.1)},
        "gelu": {0: pytest.approx(2.2), 1: pytest.approx(2.3)},
    }
    assert sorted(learning_curves(summaries, "gelu")) == [0, 1]
    assert {run.folder.name for run in scaling_runs(suite, summaries)} == {
        "strata-seed0",
        "strata-seed1",
        "width16-seed0",
    }


def test_reading_what_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the suite first"):
        load_suite(tmp_path / "nothing")
    with pytest.raises(ValueError, match="expected a folder named"):
        summarise(tmp_path / "strata")
    with pytest.raises(FileNotFoundError, match="not finished"):
        summarise(tmp_path / "strata-seed0")


@pytest.mark.parametrize("name", ["", "a/b", "a-seed1", "../up", "two words"])
def test_a_variant_whose_name_makes_no_folder_is_refused(name):
    with pytest.raises(ValueError, match="variant name"):
        Variant(name, {}, "")


def test_a_suite_is_checked_before_anything_runs():
    with pytest.raises(ValueError, match=r"variant 'bad'.*model.activation"):
        suite_of(STRATA, Variant("bad", {"model.activation": "swish"}, ""))
    with pytest.raises(ValueError, match="two variants named 'strata'"):
        suite_of(STRATA, STRATA)
    with pytest.raises(ValueError, match="at least one variant"):
        suite_of()
    with pytest.raises(ValueError, match="repeats a seed"):
        suite_of(STRATA, seeds=(1, 1))
    with pytest.raises(ValueError, match="no variant 'gpt4'"):
        suite_of(STRATA, tunings=(Tuning("gpt4", "optimizer.learning_rate", (0.1,)),))
    with pytest.raises(ValueError, match="also reported"):
        suite_of(STRATA, tunings=(Tuning("strata", "optimizer.learning_rate", (0.1,), seed=1),))


def test_comments_do_not_change_the_hash_of_the_code_and_what_is_kept_of_it_never_goes_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, kept = tmp_path / "strata", tmp_path / "cache" / "code"
    for name in ("config", "sections", "tokenizer/a", "data/a", "model/a", "training/folder"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).with_suffix(".py").write_text("rate = 1\n")
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("strata.training.folder.__file__", str(package / "training" / "folder.py"))
    found = []
    for source in ("rate = 1\n", "rate = 1  # a rate\n", "rate = 2\n", "rate = 1\n"):
        (package / "model" / "a.py").write_text(source)
        found.append(code_hash.__wrapped__())
    assert found[0] == found[1] == found[3] != found[2]
    assert sorted(path.read_text() for path in kept.iterdir()) == sorted(found[:3])
    for path in kept.iterdir():
        path.write_text("half")
    assert code_hash.__wrapped__() == found[0]
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()  # no folder, and nothing can be kept
    assert code_hash.__wrapped__() == found[0]


def test_a_real_sweep_trains_skips_and_can_be_compared(tmp_path, monkeypatch):
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text"
    text.mkdir()
    for index in range(40):
        lines = [f"def add_{index}_{line}(a, b): return a + b * {line}" for line in range(30)]
        (text / f"{index}.txt").write_text("\n".join(lines))
    base = TINY.override(
        {
            "data.corpus": f"files:{text}/*.txt",
            "data.tokenizer_vocab_size": 320,
            "data.validation_fraction": 0.2,
        }
    )
    suite = Suite("real", base, (STRATA, GELU), (0, 1))
    summaries = run_suite(suite, tmp_path / "suite", progress=False, workers=1)
    assert len(summaries) == 4
    for summary in summaries:
        assert math.isfinite(summary.bits_per_byte)
        assert summary.bits_per_byte == summary.curve.bits_per_byte[-1]
        assert summary.flops == pytest.approx(summary.curve.flops[-1])
        assert summary.parameters == count_parameters(base.model)["total"]
    before = (tmp_path / "suite" / "gelu-seed1" / "metrics.jsonl").stat().st_mtime_ns
    again = run_suite(suite, tmp_path / "suite", progress=False, workers=2)
    assert [run.bits_per_byte for run in again] == [run.bits_per_byte for run in summaries]
    assert (tmp_path / "suite" / "gelu-seed1" / "metrics.jsonl").stat().st_mtime_ns == before
    assert len(compare(final_losses(again, ["strata", "gelu"]), "strata")) == 2
