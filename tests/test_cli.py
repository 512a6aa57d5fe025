"""Every command, run for real on a model of seconds; and what is said when one cannot be run."""

import io
import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from strata import cli
from strata.ablations import load_stored
from strata.config import Config
from strata.data import Corpus
from strata.evaluation import load_overlap, load_results, split_result
from strata.tokenizer import Tokenizer

COMMANDS = [
    "workbook", "paper", "doctor", "drill", "train", "runs", "evaluate", "generate",
    "ablate", "tune",
    "tokenizer train", "tokenizer encode", "tokenizer export", "tokenizer import",
    "data prepare", "data tasks", "data overlap",
    "transfer push", "transfer run", "transfer status", "transfer logs", "transfer stop",
    "transfer pull", "transfer list",
]  # fmt: skip

Captured = pytest.CaptureFixture[str]


def strata(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that the command line trained, from a configuration file and one changed field."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    given = folder.with_suffix(".toml")
    tiny_config.save(given)
    assert strata("train", given, "--run-dir", folder, "--optimizer.learning-rate", "3e-4") == 0
    return folder


# ---- What a command does ------------------------------------------------------------------------


def test_training_takes_every_field_of_the_configuration_as_an_option(run: Path) -> None:
    assert Config.load(run / "config.toml").optimizer.learning_rate == 3e-4
    assert (run / "model.safetensors").is_file()


def test_a_finished_run_needs_no_preset_and_is_not_trained_again(
    run: Path, capsys: Captured
) -> None:
    weights = (run / "model.safetensors").stat().st_mtime_ns
    assert strata("train", "--run-dir", run) == 0
    assert "nothing to train" in capsys.readouterr().out
    assert (run / "model.safetensors").stat().st_mtime_ns == weights


def test_runs_are_listed_compared_and_drawn(run: Path, tmp_path: Path, capsys: Captured) -> None:
    assert strata("runs", run.parent, "--sort", "loss") == 0
    assert "8/8" in capsys.readouterr().out
    next((run / "tensorboard").iterdir()).write_bytes(b"not a curve")
    options = ["--plot", tmp_path / "new" / "curves.png", "--tensorboard"]
    assert strata("runs", run, run, *options) == 0
    shown = capsys.readouterr().out
    assert "final bits/byte" in shown
    assert str(tmp_path / "new" / "curves.png") in shown
    assert (tmp_path / "new" / "curves.png").stat().st_size > 10_000
    assert [path.read_bytes() != b"not a curve" for path in (run / "tensorboard").iterdir()] == [
        True
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    try:
        assert strata("runs", run) == 0
        assert "metrics.jsonl, line 9" in capsys.readouterr().err
        assert strata("runs", run, run) == 1
    finally:
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(text.removesuffix("{}\n"))


def test_options_stand_at_the_values_of_the_preset(capsys: Captured) -> None:
    assert strata("train", "micro", "--help") == 0
    shown = capsys.readouterr().out
    assert str(Config.preset("micro").training.max_steps) in shown
    every = {
        f"--{section}.{field}".replace("_", "-")
        for section, values in Config().to_dict().items()
        for field in values
    }
    assert {option for option in every if option not in shown.replace("-no-", "-")} == set()


def test_generating_continues_the_prompt_and_repeats_for_a_seed(
    run: Path, capsys: Captured
) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        options = ["--max-new-tokens", "40", "--seed", seed, "--min-p", "1e-4", "--stop", "zz"]
        assert strata("generate", run, "The ", *options, "--stop", "qq") == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("The ")


def test_generating_from_a_file_continues_every_line(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    options = ["--max-new-tokens", "8", "--repetition-penalty", "1.2", "--top-k", "40"]
    alone = []
    for prompt in ("The ", "Other words"):
        assert strata("generate", run, prompt, *options) == 0
        alone.append(capsys.readouterr().out.removesuffix("\n"))
    file = tmp_path / "prompts.txt"
    file.write_text("The \r\n\nOther words\n", newline="")
    assert strata("generate", run, "--file", file, *options) == 0
    shown = capsys.readouterr().out
    assert shown == f"==== 1 ====\n{alone[0]}\n\n==== 2 ====\n{alone[1]}\n\n"


def test_generating_without_a_prompt_continues_the_lines_of_the_input(
    run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("The \n\nThe"))
    assert strata("generate", run, "--max-new-tokens", "8", "--temperature", "0") == 0
    lines = capsys.readouterr().out.split("The")
    assert len(lines) >= 3
    assert strata("generate", run, "--unprompted", "--max-new-tokens", "8") == 0
    long = "word " * 40
    monkeypatch.setattr("sys.stdin", io.StringIO(f"The\n{long}\n"))
    assert strata("generate", run, "--max-new-tokens", "2") == 1
    assert "context holds 32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([""], "prompt is empty"),
        (["word " * 40], "context holds 32"),
        (["a", "--unprompted"], "but one alone"),
        (["a", "--top-p", "0"], "top_p = 0.0"),
        (["--file", "long.txt"], "long.txt, line 2: the prompt has"),
        (["--file", "blank.txt"], "blank.txt: no prompt in it"),
        (["--file", "bytes.txt"], "bytes.txt: expected text in UTF-8"),
        (["--file", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_cannot_be_continued_is_told(
    run: Path, arguments: list[str], told: str, capsys: Captured,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("long.txt").write_text("a\n" + "word " * 40)
    Path("blank.txt").write_text(" \n\n")
    Path("bytes.txt").write_bytes(b"\xff\xfe")
    assert strata("generate", run, *arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert told in captured.err


def test_a_run_without_final_weights_is_asked_by_its_newest_checkpoint(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    shutil.copytree(run, tmp_path / "cut", ignore=shutil.ignore_patterns("model.safetensors"))
    assert strata("generate", run, "The", "--max-new-tokens", "8") == 0
    assert not capsys.readouterr().err
    newest = max((tmp_path / "cut" / "checkpoints").iterdir())
    for command in (
        ["generate", tmp_path / "cut", "The", "--max-new-tokens", "8"],
        ["evaluate", run, tmp_path / "cut", "--tasks", "cloze", "--limit", "5"],
    ):
        assert strata(*command) == 0
        assert f"is not finished: asking {newest}" in capsys.readouterr().err
    first, second = (load_results(folder / "evaluation.json") for folder in (run, tmp_path / "cut"))
    assert first != second  # the checkpoint is of some updates before the end


def test_a_run_without_any_weights_says_how_to_get_them(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    nothing = shutil.ignore_patterns("model.safetensors", "checkpoints")
    shutil.copytree(run, tmp_path / "cut", ignore=nothing)
    for command in (["generate", tmp_path / "cut", "The"], ["evaluate", tmp_path / "cut"]):
        assert strata(*command) == 1
        assert f"train it first: strata train --run-dir {tmp_path / 'cut'}" in (
            capsys.readouterr().err
        )


def test_evaluating_two_runs_tells_the_difference_and_keeps_every_item(
    run: Path, capsys: Captured
) -> None:
    assert strata("evaluate", run, run, "--tasks", "cloze", "--limit", "5") == 0
    shown = capsys.readouterr().out
    assert "difference" in shown
    assert str(run / "evaluation.json") in shown
    assert len(json.loads((run / "evaluation.json").read_text())["cloze"]["items"]) == 5


def test_where_nothing_is_scored_the_results_that_are_there_stay(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    (run / "evaluation.json").write_text("{}")
    assert strata("evaluate", run, "--tasks", "piqa", "--data-dir", tmp_path) == 1
    told = capsys.readouterr().err
    assert "no task was scored" in told
    assert "strata data tasks piqa" in told
    assert (run / "evaluation.json").read_text() == "{}"


def test_the_configuration_says_how_many_items_unless_told_and_0_is_all(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "few"
    shutil.copytree(run, folder)
    Config.load(run / "config.toml").override({"evaluation.limit": 3}).save(folder / "config.toml")
    counts = []
    for options in ([], ["--limit", "0"]):
        assert strata("evaluate", folder, "--tasks", "cloze", *options) == 0
        counts.append(load_results(folder / "evaluation.json")["cloze"].n_items)
    assert counts[0] == 3 < counts[1]


def test_a_tokenizer_is_trained_used_exported_and_imported(
    tiny_config: Config, tmp_path: Path, capsys: Captured
) -> None:
    path, ids = tmp_path / "new" / "tokenizer.json", tmp_path / "ids.npy"
    options = ["--corpus", tiny_config.data.corpus, "--tokenizer-vocab-size", "400"]
    assert strata("tokenizer", "train", *options, "--output", path) == 0
    tokenizer = Tokenizer.load(path)
    assert tokenizer.vocab_size == 400
    capsys.readouterr()

    assert strata("tokenizer", "encode", path, "Some text.") == 0
    assert tokenizer.decode([int(word) for word in capsys.readouterr().out.split()]) == "Some text."
    assert strata("tokenizer", "encode", path, "Some text.", "--output", ids) == 0
    assert np.load(ids).tolist() == tokenizer.encode("Some text.")

    texts, shards = tmp_path / "some.txt", tmp_path / "shards"
    texts.write_text("Some text.", encoding="utf-8")
    assert strata("tokenizer", "encode", path, "--files", texts, "--output", shards) == 0
    assert f"1 documents, {1 + len(tokenizer.encode('Some text.'))} ids" in capsys.readouterr().out
    assert strata("tokenizer", "encode", path, "--files", texts) == 1
    assert "--output" in capsys.readouterr().err

    names = [str(word) for item in tokenizer.special_tokens.items() for word in item]
    told = ["--pattern", tokenizer.pattern, "--special-tokens", *names]  # what ranks do not say
    for format, options in (("tiktoken", told), ("huggingface", [])):
        exported, back = tmp_path / f"as.{format}", tmp_path / "back" / f"{format}.json"
        assert strata("tokenizer", "export", path, exported, "--format", format) == 0
        assert str(exported) in capsys.readouterr().out
        options = ["--format", format, *options, "--output", back]
        assert strata("tokenizer", "import", exported, *options) == 0
        assert str(back) in capsys.readouterr().out
        assert Tokenizer.load(back).identity == tokenizer.identity
        assert strata("tokenizer", "import", exported, *options[:-1], exported) == 1
        assert "name another --output" in capsys.readouterr().err


def test_preparing_data_says_how_much_there_is_and_where(
    tiny_config: Config, capsys: Captured
) -> None:
    options = ["--corpus", tiny_config.data.corpus, "--tokenizer-vocab-size", "400"]
    assert strata("data", "prepare", *options, "--vocab-size", "320") == 0
    shown = capsys.readouterr().out
    assert "train" in shown
    assert "cache" in shown


def test_an_overlap_is_kept_with_the_run_and_knows_the_items_of_its_scores(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert strata("data", "overlap", run, "--tasks", "cloze", "continuation") == 0
    assert str(run / "overlap.json") in capsys.readouterr().out
    found = load_overlap(run / "overlap.json")
    assert found.n_documents > 0
    assert strata("evaluate", run, "--tasks", "cloze") == 0
    (result,) = load_results(run / "evaluation.json").values()
    assert split_result(result, found.tasks["cloze"]) is not None
    capsys.readouterr()
    # other items than those that were looked for are told, and can be looked for
    other = ["--shots", "1", "--limit", "7"]
    for told in (True, False):
        assert strata("evaluate", run, "--tasks", "cloze", *other) == 0
        assert ("is of other items" in capsys.readouterr().out) is told
        assert strata("data", "overlap", run, "--tasks", "cloze", *other) == 0
        capsys.readouterr()
    # the corpus itself as the sets' data: all of it is dirty
    corpus = Config.load(run / "config.toml").data.corpus
    lines = tmp_path / "lambada_openai_test.jsonl"
    opened = Corpus.open(corpus)
    texts = [document[:400] for document in islice(opened.documents("train"), 20)]
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ["--corpus", corpus, "--output", tmp_path / "found.json"]
    told = ["--tasks", "lambada", "--data-dir", tmp_path]
    assert strata("data", "overlap", *options, *told) == 0
    assert load_overlap(tmp_path / "found.json").tasks["lambada"].dirty_share == 1.0
    assert strata("data", "overlap", run, "--tasks", "piqa", "--data-dir", tmp_path) == 1
    assert "piqa" in capsys.readouterr().err


def test_ablating_trains_the_suite_and_prints_a_row_a_variant(
    tiny_config: Config, tmp_path: Path, capsys: Captured
) -> None:
    fields = {
        f"{section}.{key}": value
        for section, values in tiny_config.to_dict().items()
        for key, value in values.items()
        if value != getattr(getattr(Config(), section), key)
    }
    suite = tmp_path / "smallest.toml"
    suite.write_text(
        tomli_w.dumps(
            {
                "name": "smallest",
                "preset": "nano",
                "seeds": [0, 1],
                "base": fields,
                "variants": [{"name": "strata"}, {"name": "gpt3", "from": "gpt3"}],
            }
        )
    )
    runs = tmp_path / "runs"
    options = [suite, "--seeds", "3", "4", "--output", runs, "--workers", "1"]
    options += ["--training.max-steps", "4"]
    assert strata("ablate", *options, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "4 to do" in shown
    assert not runs.exists()
    assert strata("ablate", *options, "--only", "gpt*") == 0
    assert {path.name for path in runs.glob("*-seed*")} == {"gpt3-seed3", "gpt3-seed4"}
    assert strata("ablate", *options) == 0
    assert {path.name for path in runs.glob("*-seed*")} == {
        "strata-seed3", "strata-seed4", "gpt3-seed3", "gpt3-seed4"
    }  # fmt: skip
    assert Config.load(runs / "gpt3-seed4" / "config.toml").training.max_steps == 4
    shown = capsys.readouterr().out
    assert "gpt3" in shown
    assert str(runs) in shown
    assert strata("ablate", *options, "--dry-run") == 0
    assert "4 finished; left: 0 TFLOP" in capsys.readouterr().out
    assert strata("ablate", *options, "--store", tmp_path / "runs.jsonl") == 0
    assert [run.name for run in load_stored(tmp_path / "runs.jsonl")][:2] == [
        "gpt3-seed3", "gpt3-seed4"
    ]  # fmt: skip
    two = f"files:{tmp_path}/a/text/*.txt held-out files:{tmp_path}/b/text/*.txt"
    named = [*options, "--data.corpus", two, "--store", tmp_path / "two.jsonl"]
    assert strata("ablate", *named) == 1
    assert "by one name: rename a folder" in capsys.readouterr().err
    assert strata("ablate", *options, "--only", "gpt4") == 1
    assert "no variant 'gpt4'" in capsys.readouterr().err
    assert strata("ablate", "--seeds", "0", "--output", runs, suite) == 1
    assert "the suite comes first" in capsys.readouterr().err
    assert strata("ablate", "nan") == 1
    assert "did you mean 'nano'" in capsys.readouterr().err


def test_tuning_searches_and_leaves_a_configuration_to_train(
    tiny_config: Config, tmp_path: Path, capsys: Captured
) -> None:
    tiny_config.override({"training.max_steps": 4}).save(tmp_path / "base.toml")
    command = ["tune", tmp_path / "base.toml", "--search", "optimizer.learning-rate=log:0.001:0.1"]
    command += ["--search", "model.tie-embeddings=true,false", "--trials", "2"]
    assert strata(*command) == 1
    assert "--output" in capsys.readouterr().err
    command += ["--training.batch-size", "2", "--output", tmp_path / "search"]
    assert strata(*command) == 0
    captured = capsys.readouterr()
    assert captured.err.count("bits/byte (best") == 2
    assert str(tmp_path / "search" / "best.toml") in captured.out
    assert "model.tie_embeddings" in captured.out
    best = Config.load(tmp_path / "search" / "best.toml")
    assert best.training.batch_size == 2
    assert strata("runs", tmp_path / "search") == 0
    assert "trial-0001" in capsys.readouterr().out


def test_the_doctor_names_a_device_and_a_preset(capsys: Captured) -> None:
    assert strata("doctor") == 0
    shown = capsys.readouterr().out
    for word in ("cpu", "memory", "LaTeX", "bfloat16", "TFLOP/s", "nano"):
        assert word in shown


def test_the_doctor_recommends_the_largest_preset_that_fits_memory_and_a_day() -> None:
    from strata.doctor import best_fit, estimate

    slow, fast = (
        [estimate(name, speed) for name in ("nano", "micro", "small")] for speed in (1e11, 1e15)
    )
    assert best_fit(slow, 24e9) == "nano"
    assert best_fit(fast, 140e9) == "small"
    assert best_fit(fast, 1e6) == ""
    # six operations a parameter and token, and attention on top of it
    model = Config.preset("small").model
    training = Config.preset("small").training
    tokens = training.max_steps * training.batch_size * model.context_length
    least = 6 * fast[2].parameters * tokens / 1e15 / 3600 / 0.4
    assert least < fast[2].hours < 2 * least


# ---- What is said when it does not work ---------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ("train nanno", 1, "did you mean 'nano'"),
        ("train nano --model.wdth 5", 2, "--model.width"),
        ("train nano --model.width 511", 2, "model.width = 511"),
        ("train nano --model.norm batchnorm", 2, "layernorm"),
        ("train --run-dir nowhere nano", 1, "preset comes first"),
        ("train --run-dir nowhere", 1, "nowhere"),
        ("train", 1, "--run-dir"),
        ("train nowhere.toml --run-dir x", 1, "nowhere.toml"),
        ("evaluate nowhere", 1, "nowhere: no run is there"),
        ("evaluate nowhere --limit -5", 1, "--limit -5: expected -1 or more"),
        ("evaluate nowhere --limits 3", 2, "(strata evaluate --help says more)"),
        ("generate nowhere --seed x", 2, "(strata generate --help says more)"),
        ("data overlap --limt 1", 2, "(strata data overlap --help says more)"),
        ("data --foo", 2, "(strata data --help says more)"),
        ("generate", 2, "RUN"),
        ("tune nano", 1, "nothing to search"),
        ("tune --trials 3 nano", 1, "preset comes first: strata tune nano"),
        ("tune nano --search model.n-layers", 1, "FIELD=WHAT"),
        ("tune nano --search model.n-layer=2:6", 1, "did you mean 'model.n_layers'"),
        ("tune nano --search model.n-layers=0:6", 1, "model.n_layers = 0: expected"),
        ("tune nano.toml --search model.n-layers=1:6", 1, "nano.toml"),
        ("runs nowhere", 1, "nowhere: no such folder"),
        ("runs . nowhere", 1, "config.toml: no such file"),
        ("tokenizer encode nowhere.json text", 1, "nowhere.json"),
        ("tokenizer import nowhere.json --format huggingface", 1, "nowhere.json"),
        ("tokenizer import gpt5 --format published", 1, "'gpt2' or 'cl100k'"),
        ("tokenizer import gpt2 --format published --pattern gpt2", 1, "--pattern belongs to"),
        ("tokenizer import some.tiktoken --format tiktoken", 1, "--pattern belongs to"),
        ("tokenizer import nowhere.json", 2, "--format"),
        ("tokenizer", 2, "export"),
        ("data prepare --corpus files:nowhere/*.txt", 1, "nowhere"),
        ("data tasks helaswag", 1, "did you mean 'hellaswag'"),
        ("data overlap", 1, "Name a run, or give --corpus and --output"),
        ("data overlap nowhere", 1, "nowhere/config.toml"),
        ("transfer push nowhere me@host:there", 1, "nowhere"),
        ("transfer status runs/x there", 1, "user@host:folder"),
        ("paper nowhere", 1, "nowhere"),
        ("workbook --preset nanno", 1, "nano"),
        ("sing", 2, "sing"),
    ],
)
def test_failure_is_one_line_on_stderr_and_a_status(
    arguments: str, status: int, told: str, capsys: Captured,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert strata(*arguments.split()) == status
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("strata: ")
    assert told in lines[0]
    assert "Traceback" not in captured.out + captured.err
    assert not list(tmp_path.iterdir())


def test_debug_raises_what_otherwise_is_told() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        strata("evaluate", "nowhere", "--debug")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: Captured) -> None:
    assert strata(*command.split(), "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: strata {command}" in shown


def test_stopping_ends_with_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("strata.doctor.examine", stop)
    assert strata("doctor") == 130
    assert capsys.readouterr().err == "strata: stopped\n"


def test_the_installed_program_ends_with_the_status(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("strata")
    finished = subprocess.run(
        [program, "paper", "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 1
    assert finished.stderr.count("\n") == 1
