"""The recipes in docs/ are well formed, name what exists, and the copy in a bucket is whole."""

import io
import os
import re
import shutil
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from test_cli import COMMANDS

from strata import cli
from strata.config import Config
from strata.training import Trainer, latest_checkpoint, read_metrics

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SLURM, SKY, KEEP = (
    DOCS / "slurm" / "train.sbatch",
    DOCS / "sky" / "train.yaml",
    DOCS / "sky/keep.sh",
)
# `strata` where a shell would look for a command, or as a module
CALL = re.compile(r"(?:(?<![\w/.-])|venv/bin/|-m )strata(?:\.cli)? ((?:[a-z]+ )?[a-z]+)\b(.*)")


def shell_parts() -> dict[str, str]:
    """Everything in docs/ that a shell is to run."""
    task = yaml.safe_load(SKY.read_text())
    parts = {
        SLURM.name: SLURM.read_text(),
        KEEP.name: KEEP.read_text(),
        "setup": task["setup"],
        "run": task["run"],
    }
    for page in DOCS.glob("*.md"):
        for number, block in enumerate(re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)):
            parts[f"{page.name}-{number}"] = block
    return parts


def calls_of_strata() -> set[tuple[str, tuple[str, ...]]]:
    """Each command of Strata in docs/, with the options that are given to it there."""
    found = set()
    for text in shell_parts().values():
        for line in text.replace("\\\n", " ").splitlines():
            for words, rest in CALL.findall(line.split(" # ")[0]):
                command = next((name for name in (words, words.split()[0]) if name in COMMANDS), "")
                assert command, f"docs/ names `strata {words}`, which is no command: {line}"
                found.add((command, tuple(re.findall(r"--[a-z][\w.-]*", rest))))
    return found


@pytest.mark.parametrize("name", list(shell_parts()))
def test_a_shell_can_read_every_recipe(name: str) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=shell_parts()[name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_option_of_strata_that_a_recipe_names_exists() -> None:
    calls = calls_of_strata()
    assert {"train", "transfer push"} <= {command for command, _ in calls}
    for command, options in calls:
        preset = ["nano"] if command == "train" else []
        with redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
            cli.parse([*command.split(), *preset, "--help"])
        for option in options:
            assert re.search(rf"{option}(?![\w.-])", shown.getvalue()), (
                f"strata {command}: no {option}"
            )


def test_every_directive_of_the_job_script_stands_where_slurm_reads_it() -> None:
    """sbatch stops reading at the first line that is a command."""
    lines = SLURM.read_text().splitlines()
    command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(lines.index(line) < command for line in lines if line.startswith("#SBATCH"))


def test_the_pages_show_files_that_are_there() -> None:
    for page in DOCS.glob("*.md"):
        for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / name).is_file(), f"{page.name} shows {name}"


# ---- The copy in a bucket -----------------------------------------------------------------------


def keep(what: str, run: Path, bucket: Path) -> None:
    subprocess.run([KEEP, what, run, bucket], check=True, timeout=60)


needs_gnu = pytest.mark.skipif(
    shutil.which("flock") is None, reason="the script is for Linux machines, which have flock"
)


@pytest.fixture(scope="module")
def half_a_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "run"
    for result in Trainer(tiny_config, folder, progress=False):
        if result.step == 7:  # checkpoints after 3 and 6
            return folder
    raise AssertionError


@needs_gnu
def test_a_run_fetched_from_the_bucket_ends_as_the_one_that_stayed(
    half_a_run: Path, tiny_config: Config, tmp_path: Path
) -> None:
    keep("save", half_a_run, tmp_path / "bucket")
    keep("fetch", tmp_path / "back", tmp_path / "bucket")
    stayed = shutil.copytree(half_a_run, tmp_path / "stayed")
    for folder in (stayed, tmp_path / "back"):
        Trainer(tiny_config, folder, progress=False).fit()
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "back", stayed))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert [line["loss"] for line in read_metrics(tmp_path / "back")] == [
        line["loss"] for line in read_metrics(stayed)
    ]


@needs_gnu
def test_the_bucket_keeps_what_the_run_keeps_and_only_files_that_are_whole(
    half_a_run: Path, tmp_path: Path
) -> None:
    run, bucket = shutil.copytree(half_a_run, tmp_path / "run"), tmp_path / "bucket"
    partial = run / "checkpoints" / ".step-00000009.partial"
    partial.mkdir()
    keep("save", run, bucket)
    steps = sorted(os.listdir(bucket / "checkpoints"))
    assert steps == ["step-00000003", "step-00000006"]
    newest = bucket / "checkpoints" / steps[-1]
    (newest / "manifest.json").unlink()  # as if the machine had gone before it was copied
    (newest / "state.json").unlink()
    keep("fetch", tmp_path / "back", bucket)
    found = latest_checkpoint(tmp_path / "back")
    assert found is not None
    assert found.name == "step-00000003"
    shutil.rmtree(run / "checkpoints" / steps[0])
    keep("save", run, bucket)
    assert os.listdir(bucket / "checkpoints") == ["step-00000006"]
    assert (newest / "state.json").read_bytes() == (
        run / "checkpoints" / steps[-1] / "state.json"
    ).read_bytes()


@needs_gnu
def test_neither_side_loses_to_what_is_older(half_a_run: Path, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    keep("save", half_a_run, bucket)
    (tmp_path / "new").mkdir()
    keep("save", tmp_path / "new", bucket)  # a machine on which nothing has begun
    assert len(os.listdir(bucket / "checkpoints")) == 2
    here = shutil.copytree(half_a_run, tmp_path / "here")
    with (here / "metrics.jsonl").open("a") as log:
        log.write("newer")
    keep("fetch", here, bucket)
    assert (here / "metrics.jsonl").read_text().endswith("newer")


@needs_gnu
def test_the_bucket_calls_a_run_finished_once_all_of_it_is_there(
    half_a_run: Path, tmp_path: Path
) -> None:
    run, bucket = shutil.copytree(half_a_run, tmp_path / "run"), tmp_path / "bucket"
    (run / "summary.json").write_text("{}")
    (bucket / "model.safetensors" / "state").mkdir(parents=True)
    (
        run / "model.safetensors"
    ).touch()  # cannot be copied, since a folder of this name is in the way
    with pytest.raises(subprocess.CalledProcessError):
        keep("save", run, bucket)
    assert not (bucket / "summary.json").exists()
