"""Suites are read from files, ingredients stand in both directions, grids cost what they say."""

import re
from pathlib import Path

import pytest

from strata.ablations.grid import Grid, at_length, run_flops, steps_for
from strata.ablations.ingredients import GPT3, INGREDIENTS, STRATA, add_one_in, leave_one_out
from strata.ablations.plan import planned_runs, planned_trials
from strata.ablations.suites import read_suite, shipped_suites
from strata.ablations.variants import Search, Suite
from strata.config import Config
from strata.model import count_parameters, flops_per_token
from strata.presets import GPT3_RECIPE

SMALL = """
name = "small"
preset = "nano"
seeds = [0, 1]

[base]
training.max_steps = 60
"model.width" = 96

[[variants]]
name = "strata"
"""


@pytest.fixture
def suite_of(tmp_path: Path):
    """A function that reads a suite of the given text."""

    def read(text: str, **overrides: object) -> Suite:
        path = tmp_path / "small.toml"
        path.write_text(text, encoding="utf-8")
        return read_suite(path, overrides or None)

    return read


def test_a_file_says_what_a_suite_is(suite_of) -> None:
    suite = suite_of(
        SMALL
        + """
[[variants]]
name = "gpt3"
from = "gpt3"
changes = { training.gradient_clip = 0.5, "optimizer.beta2" = 0.9 }
description = "Clipped."

[[tunings]]
variant = "gpt3"
field = "optimizer.learning_rate"
values = [1e-3, 3e-3]
steps = 20

[[tunings]]
variant = "strata"
search = { optimizer.learning_rate = "log:0.001:0.1" }
trials = 4
seed = 7
also = ["*"]
"""
    )
    assert (suite.name, suite.seeds) == ("small", (0, 1))
    assert suite.base == Config.preset("nano").override(
        {"training.max_steps": 60, "model.width": 96}
    )
    ours = suite.variant("gpt3").apply(suite.base, 5)
    theirs = suite.base.override(
        {**GPT3_RECIPE, "training.gradient_clip": 0.5, "optimizer.beta2": 0.9, "training.seed": 5}
    )
    assert ours == theirs
    assert suite.variant("gpt3").description == "Clipped."
    grid, search = suite.tunings
    assert (grid.variant, grid.values, grid.steps) == ("gpt3", (1e-3, 3e-3), 20)
    assert search == Search(
        "strata", {"optimizer.learning_rate": "log:0.001:0.1"}, 4, seed=7, also=("*",)
    )


def test_overrides_reach_whatever_is_made_of_the_base(suite_of) -> None:
    text = SMALL + (
        '[[variants]]\nname="half"\nchanges={training.batch_size=4}\nsame_compute_as="strata"\n'
        "[scaling]\nsizes=[{width=48,n_heads=3}]\nshares=[0.5]\n"
    )
    suite = suite_of(text, **{"training.max_steps": 200, "data.corpus": "files:mine/*.txt"})
    assert suite.base.data.corpus == "files:mine/*.txt"
    assert suite.variant("half").apply(suite.base, 0).training.max_steps == 400
    assert [variant.name for variant in suite.scaling] == ["width48-steps100"]


MISTAKES = {
    "a key": (SMALL.replace("seeds", "seed"), r"unknown key 'seed'.*did you mean 'seeds'"),
    "a missing key": (SMALL.replace('name = "small"', ""), r"name is missing: expected"),
    "a kind": (SMALL.replace("[0, 1]", '"0"'), r"seeds = '0': expected a list of whole numbers"),
    "no preset": (SMALL.replace("nano", "nanno"), r"did you mean 'nano'"),
    "a field": (SMALL.replace("max_steps", "steps"), r"\[base\]: unknown field 'training.steps'"),
    "a variant's key": (SMALL + "changed = {}\n", r"\[\[variants\]\] 1: unknown key 'changed'"),
    "a recipe": (SMALL + 'from = "gpt4"\n', r'1: from = \'gpt4\': expected "strata" or "gpt3"'),
    "a change": (
        SMALL + '[[variants]]\nname = "b"\nchanges = { model.widht = 3 }\n',
        r"variant 'b': unknown field 'model.widht'",
    ),
    "a later variant": (
        SMALL + 'same_compute_as = "gpt3"\n',
        r"\[\[variants\]\] 1: same_compute_as = 'gpt3': expected a variant that stands before",
    ),
    "an ingredient": (
        SMALL.replace("seeds", 'leave_one_out = ["gulu"]\nseeds'),
        r"leave_one_out: no ingredient 'gulu'.*did you mean 'gelu'",
    ),
    "both ways of tuning": (
        SMALL + '[[tunings]]\nvariant = "strata"\nfield = "a.b"\nvalues = [1]\ntrials = 3\n',
        r"\[\[tunings\]\] 1: unknown key 'field'",
    ),
    "a tuning of nobody": (
        SMALL + '[[tunings]]\nvariant = "x"\nfield = "optimizer.beta2"\nvalues = [0.9]\n',
        r"no variant 'x'",
    ),
    "a search of nothing": (
        SMALL + '[[tunings]]\nvariant = "strata"\nsearch = { optimizer.lr = "1:2" }\ntrials = 3\n',
        r"the tuning of 'strata': unknown field 'optimizer.lr'",
    ),
    "a search by numbers": (
        SMALL + '[[tunings]]\nvariant = "strata"\nsearch = { optimizer.beta2 = 1 }\ntrials = 3\n',
        r"search.optimizer.beta2 = 1: expected text",
    ),
    "nobody to take it": (
        SMALL
        + '[[tunings]]\nvariant = "strata"\nfield = "optimizer.beta2"\nvalues = [0.9]\n'
        + 'also = ["gpt3+*"]\n',
        r"no variant 'gpt3\+\*'",
    ),
    "two ways of length": (
        SMALL + "[scaling]\nsizes = [{ width = 64 }]\nshares = [1]\nflops = [1e9]\n",
        r"\[scaling\]: expected either shares",
    ),
    "a size that is none": (
        SMALL + "[scaling]\nsizes = [{ width = 65 }]\nshares = [1]\n",
        r"\[scaling\]: model.width = 65",
    ),
    "no TOML": (SMALL + "[[", r"small\.toml: "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_is_named_with_its_place(mistake: str, suite_of) -> None:
    text, said = MISTAKES[mistake]
    with pytest.raises(ValueError, match=said) as caught:
        suite_of(text)
    assert "small.toml" in str(caught.value)


def test_the_example_in_the_documentation_is_a_suite(suite_of) -> None:
    from strata.ablations import suites

    assert suites.__doc__
    example = "\n".join(
        line.removeprefix("    ") for line in suites.__doc__.splitlines() if line.startswith("    ")
    )
    suite = suite_of(example.replace("seed = 1000", "seed = 1001"))
    assert suite.tunings[0].seed == 1001
    assert {"gpt3+rotary", "no-softcap"} <= {one.name for one in suite.variants}


def test_a_suite_that_there_is_not_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"mine\.toml: no such file"):
        read_suite(tmp_path / "mine.toml")
    with pytest.raises(ValueError, match="did you mean 'nano'"):
        read_suite("nan")


@pytest.mark.parametrize("name", shipped_suites())
def test_every_suite_that_comes_with_strata_can_be_read(name: str) -> None:
    suite = read_suite(name)
    assert suite.name == name
    assert planned_runs(suite)
    assert len(suite.left_out) == (4 if name == "scaling" else 0)


# ---- The ingredients -----------------------------------------------------------------------------


def test_the_ingredients_are_all_in_which_the_recipes_differ() -> None:
    """But for the rates, which go with the optimizer, and the head, which is the same in both."""
    base = Config()
    stated = {field: value for one in INGREDIENTS for field, value in one.gpt3.items()}
    differing = {
        name: value for name, (_, value) in base.differences(base.override(GPT3_RECIPE)).items()
    }
    rates = {name for name in differing if name.endswith("learning_rate")}
    assert stated == {name: differing[name] for name in differing.keys() - rates}


def test_adding_every_ingredient_to_gpt3_gives_strata() -> None:
    base = Config().override({"model.tie_embeddings": False})
    together = dict(GPT3_RECIPE)
    for variant in add_one_in(base):
        changed = {k: v for k, v in variant.changes.items() if GPT3_RECIPE[k] != v}
        assert changed, variant.name
        together |= changed
    assert base.override(together) == base


def test_an_ingredient_alone_changes_its_own_fields_and_muon_brings_its_rates() -> None:
    base = Config()
    gpt3 = base.override(GPT3.changes)
    changed = {
        one.name: set(gpt3.differences(base.override(one.changes))) for one in add_one_in(base)
    }
    assert changed["gpt3+rotary"] == {"model.positions"}
    assert changed["gpt3+muon"] == {
        "optimizer.name",
        "optimizer.learning_rate",
        "optimizer.embedding_learning_rate",
        "optimizer.head_learning_rate",
        "optimizer.scalar_learning_rate",
        "optimizer.weight_decay",
    }
    assert changed["gpt3+even-muon"] == changed["gpt3+muon"] | {"optimizer.normalise_rows"}
    assert "gpt3+untied-head" not in changed  # both tie it
    assert len(changed) == len(INGREDIENTS)


def test_leaving_one_out_changes_one_thing_that_gpt3_changes_too() -> None:
    base = Config()
    gpt3 = GPT3.apply(base, 0)
    for variant in leave_one_out(base):
        changed = variant.apply(base, 0)
        assert changed != base, variant.name
        if "head" not in variant.name:
            for name, (_, value) in base.differences(changed).items():
                assert base.differences(gpt3)[name][1] == value, (variant.name, name)


def test_the_head_is_left_out_the_other_way_from_the_base() -> None:
    untied = Config().override({"model.tie_embeddings": False})
    assert leave_one_out(Config())[-1].apply(Config(), 0).model.tie_embeddings is False
    assert leave_one_out(untied)[-1].apply(untied, 0).model.tie_embeddings is True


# ---- Grids ---------------------------------------------------------------------------------------


def test_a_run_costs_its_tokens_times_its_flops_a_token() -> None:
    config = read_suite("nano").base
    weights = 12 * 2 * 96**2 + 1_024 * 96
    a_token = 6 * weights + 12 * 2 * 96 * 128
    assert flops_per_token(config.model) == a_token
    assert run_flops(config) == 150 * 2 * 128 * a_token
    assert steps_for(config, run_flops(config)) == 150
    assert steps_for(config, 0.5 * run_flops(config) + 1) == 75


def test_a_length_keeps_the_shape_of_the_schedule() -> None:
    config = Config().override(
        {
            "training.max_steps": 100,
            "training.warmup_steps": 10,
            "training.validate_every": 20,
            "training.initial_batch_size": 2,
            "training.batch_growth_steps": 40,
        }
    )
    assert at_length(config, 50) == {
        "training.max_steps": 50,
        "training.warmup_steps": 5,
        "training.validate_every": 10,
        "training.batch_growth_steps": 20,
    }
    shortest = config.override(at_length(config, 1)).training
    assert (shortest.warmup_steps, shortest.validate_every, shortest.batch_growth_steps) == (
        0,
        1,
        1,
    )


def test_runs_of_one_compute_cost_the_same_whatever_their_size_and_recipe() -> None:
    base = read_suite("nano").base
    sizes = [{"n_layers": n, "width": 32 * n, "n_heads": n} for n in (1, 2, 3, 4)]
    computes = (1e10, 1e11)
    runs, left_out = Grid(sizes, flops=computes).runs(base, [STRATA, GPT3])
    assert not left_out
    assert len(runs) == 2 * 4 * 2
    for index, run in enumerate(runs):
        config = run.apply(base, 0)
        wanted = computes[index % 2]
        assert run_flops(config) == pytest.approx(wanted, rel=0.5 / config.training.max_steps)
        assert config.model.activation == ("relu2" if index < 8 else "gelu")
        assert run.recipe == ("strata" if index < 8 else "gpt3")
    assert runs[0].name == "layers1-width32-steps" + str(runs[0].changes["training.max_steps"])
    assert runs[8].name.startswith("gpt3-layers1-width32-steps")


def test_runs_out_of_range_are_left_out_and_said() -> None:
    base = read_suite("nano").base
    cost = run_flops(base)
    size = {"width": 96, "n_heads": 3}
    grid = Grid([size], flops=(cost / 10, cost / 2, cost * 10), min_steps=20, max_steps=1_000)
    runs, left_out = grid.runs(base, [STRATA])
    assert [run.name for run in runs] == ["width96-steps75"]
    assert [re.findall(r"[\d,]+ updates", sentence)[0] for sentence in left_out] == [
        "15 updates",
        "1,500 updates",
    ]


def test_what_a_recipe_is_itself_is_no_run_of_its_grid() -> None:
    base = read_suite("nano").base
    runs, _ = Grid([{"width": 96, "n_heads": 3}], shares=(0.5, 1.0)).runs(base, [STRATA, GPT3])
    assert [run.name for run in runs] == ["width96-steps75", "gpt3-width96-steps75"]


def test_a_tuning_at_a_shorter_length_keeps_the_shape_of_the_schedule(suite_of) -> None:
    suite = suite_of(
        SMALL
        + '[[tunings]]\nvariant = "strata"\nfield = "optimizer.beta2"\nvalues = [0.9]\nsteps = 30\n'
    )
    (trial,) = planned_trials(suite)
    training = suite.base.training
    assert trial.config.training.max_steps == 30
    assert trial.config.training.warmup_steps == training.warmup_steps // 2
    assert trial.config.training.validate_every == round(training.validate_every / 2)


# ---- The suites that come with Strata ------------------------------------------------------------


def test_the_nano_suite_is_what_its_arithmetic_says() -> None:
    suite = read_suite("nano")
    assert len(suite.variants) == 13
    assert suite.variants[:2] == (STRATA, GPT3)
    runs, trials = planned_runs(suite), planned_trials(suite)
    assert (len(runs), len(trials)) == (13 * 3, 7)
    base_run = run_flops(suite.base)
    assert sum(run.flops for run in runs + trials) == pytest.approx(46 * base_run, rel=0.03)


def test_the_recipes_of_the_nano_suite_have_bodies_of_one_size() -> None:
    suite = read_suite("nano")
    body = count_parameters(suite.base.model)["body"]
    for variant in suite.variants:
        ours = count_parameters(variant.apply(suite.base, 0).model)["body"]
        assert ours == pytest.approx(body, rel=0.015), variant.name


@pytest.mark.parametrize("name", ["micro", "ingredients"])
def test_a_suite_tunes_both_recipes_alike(name: str) -> None:
    suite = read_suite(name)
    ours, theirs = (next(t for t in suite.tunings if t.variant == n) for n in ("strata", "gpt3"))
    assert isinstance(ours, Search)
    assert isinstance(theirs, Search)
    assert ours.trials == theirs.trials
    assert len(ours.space) == len(theirs.space)


def test_the_ingredients_suite_has_each_in_both_directions() -> None:
    suite = read_suite("ingredients")
    names = {variant.name for variant in suite.variants}
    assert names >= {"gpt3", "gpt3+muon", "no-softcap", "cosine"}
    assert len(suite.variants) == 3 + len(leave_one_out(suite.base)) + len(add_one_in(suite.base))


def test_the_vocabulary_suite_is_even_in_compute_and_in_parameters() -> None:
    suite = read_suite("vocabulary")
    configs = [one.apply(suite.base, 0) for one in suite.variants]
    bodies = configs[:4]
    assert [one.model.vocab_size for one in bodies] == [86_400, 32_768, 16_384, 8_192]
    assert len({count_parameters(one.model)["body"] for one in bodies}) == 1
    wide = [configs[0], *configs[4:]]
    assert [one.model.vocab_size for one in wide] == [86_400, 32_768, 16_384, 8_192]
    totals = [count_parameters(one.model)["total"] for one in wide]
    assert totals == pytest.approx([totals[0]] * 4, rel=0.03)
    costs = [run_flops(config) for config in configs]
    assert costs == pytest.approx([costs[0]] * 7, rel=2e-3)
