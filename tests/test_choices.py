"""What tunings choose is kept, taken by whom it concerns, and a sweep spares what is done."""

import json
import math

import pytest
from small_suites import GELU, TINY, StandIn, suite_of, sweep

from strata.ablations import outlook
from strata.ablations.choices import read_choices, takers
from strata.ablations.hopeless import Hopeless, StopsHopeless, loss_at, read_stopped, stopped_runs
from strata.ablations.ingredients import GPT3, STRATA, add_one_in
from strata.ablations.plan import check_one_text, finished_runs, planned_runs
from strata.ablations.summary import load_suite
from strata.ablations.sweep import SweepError, run_suite
from strata.ablations.variants import Search, Suite, Tuning, Variant
from strata.config import Config
from strata.training import read_metrics

RATE = "optimizer.learning_rate"


def rate_of(place):
    return Config.load(place / "config.toml").optimizer.learning_rate


# ---- Choices -------------------------------------------------------------------------------------


def test_a_choice_is_kept_and_spares_the_trials_even_where_they_are_gone(tmp_path):
    suite = suite_of(STRATA, GELU, tunings=(Tuning("gelu", RATE, (0.001, 0.01, 0.1)),))
    sweep(suite, tmp_path, StandIn(best_rate=0.012))
    (entry,) = read_choices(tmp_path)
    assert entry["chosen"] == {RATE: 0.01}
    assert entry["tried"] == {RATE: [0.001, 0.01, 0.1]}
    assert [one["outcome"] for one in entry["results"]] == ["finished"] * 3
    losses = [one["bits_per_byte"] for one in entry["results"]]
    assert entry["bits_per_byte"] == min(losses) == losses[1]
    for trial in tmp_path.glob("gelu@*"):
        trial.rename(tmp_path / f"gone-{trial.name.rpartition('=')[2]}")
    again = StandIn(best_rate=0.1)
    sweep(suite, tmp_path, again)
    assert again.made == []


def test_another_question_is_tuned_again(tmp_path):
    suite = suite_of(STRATA, GELU, tunings=(Tuning("gelu", RATE, (0.001, 0.01, 0.1)),))
    sweep(suite, tmp_path, StandIn(best_rate=0.012))
    wider = suite_of(STRATA, GELU, tunings=(Tuning("gelu", RATE, (0.01, 0.03, 0.1)),))
    train = StandIn(best_rate=0.03)
    sweep(wider, tmp_path, train)
    assert train.made[0] == "gelu@learning_rate=0.03-seed1000"
    assert rate_of(tmp_path / "gelu-seed0") == 0.03
    assert [entry["chosen"] for entry in read_choices(tmp_path)] == [{RATE: 0.03}]


def test_a_choice_is_not_settled_while_a_trial_may_yet_succeed(tmp_path):
    trial = "gelu@learning_rate=0.1-seed1000"
    suite = suite_of(STRATA, GELU, tunings=(Tuning("gelu", RATE, (0.01, 0.1)),))
    train = StandIn(fails=[trial])
    with pytest.raises(SweepError, match="no space left") as caught:
        sweep(suite, tmp_path, train)
    assert list(caught.value.failures) == [trial]
    assert not {"gelu-seed0", "gelu-seed1"} & set(train.made)
    assert read_choices(tmp_path) == []
    again = StandIn(best_rate=0.1)
    sweep(suite, tmp_path, again)
    assert again.made == [trial, "gelu-seed0", "gelu-seed1"]
    assert read_choices(tmp_path)[0]["chosen"] == {RATE: 0.1}


def test_a_trial_that_diverged_is_an_answer_and_is_not_tried_again(tmp_path):
    class Overflows(StandIn):
        def __call__(self, config, folder, callbacks=()):
            super().__call__(config, folder, callbacks)
            if "=0.2" in folder.name:
                path = folder / "summary.json"
                held = json.loads(path.read_text()) | {"validation_bits_per_byte": math.nan}
                path.write_text(json.dumps(held))

    suite = suite_of(STRATA, GELU, tunings=(Tuning("gelu", RATE, (0.01, 0.02, 0.1, 0.2)),))
    sweep(suite, tmp_path, Overflows(diverges=["gelu@learning_rate=0.1-seed1000"]))
    (entry,) = read_choices(tmp_path)
    assert [one["outcome"][:9] for one in entry["results"]] == [
        *["finished"] * 2,
        *["Diverged:"] * 2,
    ]
    again = StandIn()
    sweep(suite, tmp_path, again)
    assert again.made == []


def test_no_run_is_made_of_a_variant_that_could_not_be_tuned(tmp_path):
    suite = suite_of(STRATA, GELU, tunings=(Tuning("gelu", RATE, (0.01,)),))
    train = StandIn(fails=["gelu@learning_rate=0.01-seed1000"])
    with pytest.raises(SweepError) as caught:
        sweep(suite, tmp_path, train)
    assert train.made == ["gelu@learning_rate=0.01-seed1000", "strata-seed0", "strata-seed1"]
    assert [run.variant for run in caught.value.finished] == ["strata", "strata"]


def test_a_choice_goes_to_whoever_had_the_same_value_and_has_no_tuning_of_its_own():
    added = add_one_in(TINY)
    adamw = Variant("adamw", {"optimizer.name": "adamw"}, "")
    suite = suite_of(
        STRATA, adamw, GELU, GPT3, *added,
        tunings=(
            Tuning("strata", RATE, (0.01, 0.02), also=("*",)),
            Tuning("adamw", RATE, (0.001, 0.01)),
            Tuning("gpt3", RATE, (0.001, 0.01), also=("gpt3+*",)),
        ),
    )  # fmt: skip
    ours, _, theirs = (set(takers(suite, tuning)) for tuning in suite.tunings)
    muon = {"gpt3+muon", "gpt3+even-muon"}
    assert ours == {"strata", "gelu"} | muon
    assert theirs == {"gpt3", *(one.name for one in added)} - muon


def test_scaling_runs_take_what_was_chosen_for_their_recipe(tmp_path):
    wide = Variant("gelu-wide", {**GELU.changes, "model.width": 16}, "", recipe="gelu")
    narrow = Variant("narrow", {"model.width": 4}, "", recipe="strata")
    tuning = Tuning("gelu", RATE, (0.01, 0.02))
    suite = suite_of(STRATA, GELU, scaling=(wide, narrow), tunings=(tuning,))
    sweep(suite, tmp_path, StandIn(best_rate=0.01))
    assert rate_of(tmp_path / "gelu-wide-seed0") == 0.01
    assert rate_of(tmp_path / "narrow-seed0") == TINY.optimizer.learning_rate


def test_damaged_choices_are_named(tmp_path):
    (tmp_path / "choices.json").write_text('[{"variant": "gelu"}]')
    with pytest.raises(ValueError, match=r"choices\.json is damaged"):
        read_choices(tmp_path)


def test_a_real_search_chooses_is_kept_and_is_continued_by_more_trials(tiny_config, tmp_path):
    base = tiny_config.override({"training.max_steps": 4, "training.validate_every": 2})
    space = {RATE: "log:0.0001:0.1", "optimizer.beta2": "0.9,0.99"}
    search = Search("gpt3", space, trials=2, steps=2, also=("gpt3-cap",))
    capped = Variant("gpt3-cap", {**GPT3.changes, "model.logit_softcap": 15.0}, "")
    suite = suite_of(STRATA, GPT3, capped, seeds=(0,), tunings=(search,))
    suite = Suite("real", base, suite.variants, (0,), suite.tunings)
    run_suite(suite, tmp_path, progress=False, workers=1)
    (entry,) = read_choices(tmp_path)
    assert entry["chosen"].keys() == space.keys()
    assert (entry["steps"], entry["suite_steps"]) == (2, 4)
    assert len(entry["results"]) == 2
    best = min(entry["results"], key=lambda one: one["bits_per_byte"])
    assert entry["chosen"] == best["values"]
    trial = Config.load(tmp_path / best["folder"] / "config.toml")
    assert (trial.training.seed, trial.training.max_steps) == (1000, 2)
    for name in ("gpt3-seed0", "gpt3-cap-seed0"):
        made = Config.load(tmp_path / name / "config.toml")
        assert made.optimizer.learning_rate == entry["chosen"][RATE], name
    assert Config.load(tmp_path / "strata-seed0" / "config.toml") == base
    before = (tmp_path / "search-gpt3" / "study.db").stat().st_mtime_ns
    assert len(run_suite(suite, tmp_path, progress=False, workers=1)) == 3
    assert (tmp_path / "search-gpt3" / "study.db").stat().st_mtime_ns == before
    longer = Search("gpt3", space, trials=3, steps=2, also=("gpt3-cap",))
    run_suite(Suite("real", base, suite.variants, (0,), (longer,)), tmp_path,
              progress=False, workers=1)  # fmt: skip
    (entry,) = read_choices(tmp_path)
    assert len(entry["results"]) == 3


# ---- What is kept, and what is made anew ---------------------------------------------------------


def by_other_code(place):
    place.joinpath("provenance.json").write_text(json.dumps({"code": "0" * 16, "commit": "beef"}))


def test_a_finished_run_of_other_code_is_kept_and_said_unless_fresh_ones_are_asked(
    tmp_path, capsys
):
    suite = suite_of(STRATA, GELU)
    sweep(suite, tmp_path, StandIn())
    by_other_code(tmp_path / "gelu-seed1")
    again, fresh = StandIn(), StandIn()
    assert len(run_suite(suite, tmp_path, workers=1, train=again)) == 4
    assert again.made == []
    assert capsys.readouterr().err.count("1 at beef") == 1
    run_suite(suite, tmp_path, progress=False, workers=1, train=fresh, fresh=True)
    assert fresh.made == ["gelu-seed1"]
    assert not (tmp_path / "replaced").exists()


def test_a_run_half_made_by_other_code_is_not_continued(tmp_path):
    suite = suite_of(STRATA, seeds=(0,))
    sweep(suite, tmp_path, StandIn())
    place = tmp_path / "strata-seed0"
    (place / "summary.json").unlink()
    by_other_code(place)
    (place / "checkpoints").mkdir()
    sweep(suite, tmp_path, StandIn())
    assert not (place / "checkpoints").exists()
    assert (tmp_path / "replaced" / f"strata-seed0-{TINY.hash()}" / "checkpoints").exists()


def test_a_finished_run_of_another_configuration_is_put_aside_not_deleted(tmp_path):
    sweep(suite_of(STRATA, GELU, seeds=(0,)), tmp_path, StandIn())
    held = Config.load(tmp_path / "gelu-seed0" / "config.toml")
    other = Variant("gelu", {**GELU.changes, RATE: 0.03}, "")
    sweep(suite_of(STRATA, other, seeds=(0,)), tmp_path, StandIn())
    aside = tmp_path / "replaced" / f"gelu-seed0-{held.hash()}"
    assert (aside / "summary.json").is_file()
    assert [run.folder.name for run in load_suite(tmp_path)] == ["gelu-seed0", "strata-seed0"]


def test_what_was_put_aside_is_never_deleted(tmp_path):
    suite = suite_of(STRATA, seeds=(0,))
    for number in range(3):
        sweep(suite, tmp_path, StandIn())
        (tmp_path / "strata-seed0" / f"kept{number}").touch()
        by_other_code(tmp_path / "strata-seed0")
        (tmp_path / "strata-seed0" / "summary.json").unlink()
    sweep(suite, tmp_path, StandIn())
    kept = {path.parent.name: path.name for path in (tmp_path / "replaced").glob("*/kept*")}
    first = f"strata-seed0-{TINY.hash()}"
    assert kept == {first: "kept0", f"{first}-2": "kept1", f"{first}-3": "kept2"}


def test_runs_that_read_different_text_are_not_compared(tmp_path):
    suite = suite_of(STRATA, GELU, seeds=(0,))
    sweep(suite, tmp_path, StandIn())
    path = tmp_path / "gelu-seed0" / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "corpus": "another"}))
    with pytest.raises(ValueError, match=r"gelu-seed0 and .*strata-seed0 have read different"):
        check_one_text(finished_runs(planned_runs(suite), tmp_path))


def test_a_sweep_ends_at_the_first_run_that_read_other_text_than_those_before(tmp_path):
    class Reads(StandIn):
        def __call__(self, config, folder, callbacks=()):
            super().__call__(config, folder, callbacks)
            path = folder / "provenance.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "corpus": "another"}))

    sweep(suite_of(STRATA, GELU, seeds=(0,)), tmp_path, StandIn())
    train = Reads()
    with pytest.raises(ValueError, match="have read different text"):
        sweep(suite_of(STRATA, GELU, seeds=(0, 1)), tmp_path, train)
    assert train.made == ["strata-seed1"]


def test_only_some_variants_are_made_with_the_tunings_behind_them(tmp_path):
    tunings = (Tuning("gelu", RATE, (0.01, 0.02)), Tuning("strata", RATE, (0.01, 0.02)))
    train = StandIn()
    suite = suite_of(STRATA, GELU, seeds=(0,), tunings=tunings)
    run_suite(suite, tmp_path, progress=False, workers=1, train=train, only=["ge*"])
    assert train.made == [*(f"gelu@learning_rate={r}-seed1000" for r in (0.01, 0.02)), "gelu-seed0"]
    sweep(suite, tmp_path, StandIn())
    found = run_suite(suite, tmp_path, False, workers=1, train=train, only=["strata"])
    assert {run.variant for run in found} >= {"strata", "gelu"}  # with what was chosen for it
    with pytest.raises(ValueError, match="no variant 'gelo'"):
        run_suite(suite, tmp_path, progress=False, workers=1, train=train, only=["gelo"])


# ---- What is left to do --------------------------------------------------------------------------


def test_the_outlook_says_what_is_left_and_for_how_long(tmp_path):
    class Timed(StandIn):
        def __call__(self, config, folder, callbacks=()):
            super().__call__(config, folder, callbacks)
            path = folder / "summary.json"
            held = json.loads(path.read_text())
            seconds = 30.0 if "gelu" in folder.name else 10.0
            timing = {"seconds": seconds, "validation_seconds": 2.0}
            path.write_text(json.dumps({**held, "timing": timing}))

    suite = suite_of(STRATA, GELU, tunings=(Tuning("gelu", RATE, (0.02,)),))
    assert math.isnan(outlook.look_out(suite, tmp_path, workers=1).seconds_left)
    assert not any(tmp_path.iterdir())
    run_suite(suite_of(STRATA, GELU, seeds=(0,), tunings=suite.tunings), tmp_path, False,
              workers=1, train=Timed())  # fmt: skip
    (tmp_path / "gelu-seed0" / "summary.json").unlink()
    found = outlook.look_out(suite, tmp_path, workers=2)
    states = {row.name: row.state for row in found.rows}
    assert states == {
        "gelu@learning_rate=0.02-seed1000": "finished",
        "strata-seed0": "finished",
        "gelu-seed0": "begun",
        "strata-seed1": "to do",
        "gelu-seed1": "to do",
    }
    assert found.untuned == ()
    by_name = {row.name: row for row in found.rows}
    a_flop = 12.0 / load_suite(tmp_path)[-1].flops
    assert by_name["strata-seed1"].seconds == pytest.approx(by_name["strata-seed1"].flops * a_flop)
    ratio = by_name["gelu-seed1"].seconds / by_name["strata-seed1"].seconds
    assert ratio == pytest.approx(32 / 12)
    assert found.seconds_left == pytest.approx(sum(row.seconds for row in found.rows) / 2)
    assert "2 finished, 1 begun, 2 to do; left:" in found.sentence()


# ---- Stopping what is hopeless -------------------------------------------------------------------


class Judged(StandIn):
    """Validates the run as it goes, `worse` bits per byte behind the base for a GELU."""

    def __init__(self, worse):
        super().__init__()
        self.worse = worse

    def __call__(self, config, folder, callbacks=()):
        super().__call__(config, folder)
        behind = self.worse * (config.model.activation == "gelu")
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        trainer = type("Trainer", (), {"config": config, "run_dir": folder})()
        for line in lines:
            if "validation_bits_per_byte" in line:
                bits = (2.0 + 0.1 * config.training.seed) * 4 / line["step"] + behind
                line["validation_bits_per_byte"] = bits
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        summary = (folder / "summary.json").read_text()
        (folder / "summary.json").unlink()
        for line in lines:
            for callback in callbacks:
                if "validation_bits_per_byte" in line:
                    callback.on_validation(trainer, line)
        (folder / "summary.json").write_text(summary)


def test_a_hopeless_run_is_stopped_kept_apart_and_finished_when_nobody_asks_to_stop(tmp_path):
    suite = suite_of(STRATA, GELU, seeds=(0,))
    options = {"progress": False, "workers": 1}
    found = run_suite(suite, tmp_path, stop_hopeless=0.2, train=Judged(0.5), **options)
    assert [run.variant for run in found] == ["strata"]
    assert [run.variant for run in load_suite(tmp_path)] == ["strata"]
    held = read_stopped(tmp_path / "gelu-seed0")
    assert (held["step"], held["margin"]) == (2, 0.2)
    assert held["excess"] == pytest.approx(0.5)
    assert list(held["beside"]) == ["strata-seed0"]
    assert "stopped after step 2" in stopped_runs(tmp_path)["gelu-seed0"]
    assert outlook.look_out(suite, tmp_path).rows[1].state == "stopped"
    still = Judged(0.5)
    run_suite(suite, tmp_path, stop_hopeless=0.4, train=still, **options)
    assert still.made == []
    more = Judged(0.5)
    run_suite(suite, tmp_path, stop_hopeless=0.6, train=more, **options)
    assert more.made == ["gelu-seed0"]
    assert stopped_runs(tmp_path) == {}


def test_a_run_without_the_rule_goes_on_with_what_was_stopped(tmp_path):
    suite = suite_of(STRATA, GELU, seeds=(0,))
    run_suite(suite, tmp_path, False, workers=1, stop_hopeless=0.2, train=Judged(0.5))
    assert len(run_suite(suite, tmp_path, False, workers=1, train=Judged(0.5))) == 2


def test_the_rule_asks_for_more_than_the_worst_base_run_by_the_margin_and_after_a_third(tmp_path):
    suite = suite_of(STRATA, seeds=(0, 1))
    base = run_suite(suite, tmp_path, False, workers=1, train=Judged(0.0))
    assert loss_at(base[0].curve, 31) is None
    assert loss_at(base[0].curve, 65) is None
    assert loss_at(base[0].curve, math.sqrt(32 * 64)) == pytest.approx(3.0)  # between 4 and 2
    rule = StopsHopeless(base, 0.1)

    def judge(step, tokens, bits, steps=4):
        config = TINY.override({"training.max_steps": steps})
        trainer = type("Trainer", (), {"config": config, "run_dir": tmp_path / "judged"})()
        line = {"step": step, "tokens": tokens, "validation_bits_per_byte": bits}
        rule.on_validation(trainer, line)

    judge(2, 32, 4.29)  # the worst of the two has 4.2 there
    with pytest.raises(Hopeless, match=r"4\.3100 bits per byte.*4\.2000"):
        judge(2, 32, 4.31)
    judge(2, 32, 9.0, steps=7)  # not a third of the way
    judge(4, 64, 9.0)  # at its end a run is finished, not stopped
    judge(2, 16, 9.0)  # where the base was not measured


def test_a_real_run_that_is_stopped_can_be_finished(tiny_config, tmp_path):
    base = tiny_config.override({"training.max_steps": 6, "training.validate_every": 2})
    slow = Variant("slow", {RATE: 1e-9, "optimizer.embedding_learning_rate": 1e-9}, "")
    suite = Suite("real", base, (STRATA, slow), (0,))
    run_suite(suite, tmp_path, False, workers=1, stop_hopeless=1e-3)
    assert read_stopped(tmp_path / "slow-seed0")["step"] == 2
    assert [run.variant for run in load_suite(tmp_path)] == ["strata"]
    assert len(run_suite(suite, tmp_path, False, workers=1)) == 2
    assert stopped_runs(tmp_path) == {}
    lines = read_metrics(tmp_path / "slow-seed0")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
