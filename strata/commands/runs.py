"""Commands of runs: training, and what comes of it."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from strata.commands import Run, load_tokenizer, open_corpus, print_table
from strata.config import Config

if TYPE_CHECKING:
    from strata.evaluation import TaskResult

Preset = Annotated[str, arg(help="A named configuration: " + ", ".join(Config.presets()) + ".")]
Spec = Annotated[
    str, arg(help='Where the text comes from: "installed", files:GLOB or hub:OWNER/NAME:GLOB.')
]
# The sections of the configuration as options of their own, without a prefix for the whole.
Everything = Annotated[Config, arg(name="")]


def train(
    config: Everything,
    preset: Positional[str] = "",
    run_dir: Path | None = None,
    nproc: int = 0,
    restarts: int = 0,
) -> None:
    """Train a model, or continue a run that was interrupted.

    Example: strata train nano --run-dir runs/mine --optimizer.learning-rate 3e-4

    Continue: strata train --run-dir runs/mine

    On four of this machine's GPUs: strata train small --nproc 4 --restarts 3

    Args:
        preset: A named configuration or a config.toml; none is needed to continue a run.
        run_dir: Where everything goes; runs/PRESET if it is not given.
        nproc: Processes on this machine; 0 = one for each GPU, or one. Over several machines:
            torchrun --nnodes 2 --nproc-per-node 8 ... -m strata.cli train small
        restarts: Start the processes again, from the last checkpoint, so often after one has died.
    """
    if nproc < 0 or restarts < 0:
        raise ValueError(f"--nproc {nproc} --restarts {restarts}: expected 0 or more of each")
    folder = _run_folder(preset, run_dir)
    from strata.data import absolute_spec
    from strata.evaluation import SampleWriter, TaskMonitor
    from strata.training import launch_training
    from strata.training.signals import ignore_save_requests

    ignore_save_requests()
    if preset:  # a run that is continued keeps what its configuration says
        config = config.override({"data.corpus": absolute_spec(config.data.corpus)})
    finished = (folder / "summary.json").is_file()
    callbacks = [SampleWriter(), TaskMonitor()]
    steps = launch_training(config, folder, nproc, restarts, callbacks)
    if finished:
        _say(f"finished before, nothing to train: {folder}")
    else:
        _say(f"trained {steps:,} steps: {folder}")


def _run_folder(preset: str, run_dir: Path | None) -> Path:
    """Where `train` goes, once it is clear that the defaults were those that the user meant."""
    if run_dir is None:
        if not preset or preset.endswith(".toml"):
            raise ValueError("train where? Name a preset, or give --run-dir")
        from strata.workbook import default_run_dir

        return default_run_dir(preset)
    if not preset and not (run_dir / "config.toml").is_file():
        raise ValueError(
            f"train what? {run_dir} has no config.toml to continue from; name a preset first: "
            f"strata train nano --run-dir {run_dir}"
        )
    return run_dir


def runs(
    folders: Positional[tuple[Path, ...]] = (),
    sort: str = "name",
    plot: Path | None = None,
    tensorboard: bool = False,
) -> None:
    """List the runs in a folder, or compare some: what differs, and their numbers.

    Example: strata runs runs/nano --sort bits-per-byte

    Compare: strata runs runs/nano runs/mine --plot curves.png

    Args:
        folders: A folder to look for runs in (runs if none is given), or several runs to compare.
        sort: The column: name, parameters, steps, loss, bits-per-byte, tokens, time or started.
        plot: A .png or .pdf for their curves: bits per byte of held-out text over tokens.
        tensorboard: Make their TensorBoard curves anew from metrics.jsonl.
    """
    from strata.training import history
    from strata.training.logger import write_tensorboard
    from strata.workbook import default_run_dir

    if len(folders) > 1:
        found = [history.read_run(folder, str(folder)) for folder in folders]
        print_table("differences and numbers", *history.compare_runs(found))
    else:
        place = folders[0] if folders else default_run_dir("nano").parent
        found = history.find_runs(place)
        print_table(str(place), *history.runs_table(found, sort))
    for run in found:
        if run.problem:
            print(f"{run.name} is damaged: {run.problem}", file=sys.stderr)
        elif tensorboard:
            print(f"TensorBoard: {write_tensorboard(run.folder)}")
    if plot is not None:
        from strata.paper import figure_style

        with figure_style():
            figure = history.plot_runs(found)
            plot.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(plot, dpi=160)
        print(f"curves: {plot}")


def evaluate(
    run: Run,
    other: Positional[Path | None] = None,
    tasks: tuple[str, ...] = (),
    shots: int = -1,
    limit: int = -1,
    data_dir: str = "",
) -> None:
    """Score a run on its tasks, beside GPT-3, or compare two runs item by item.

    Example: strata evaluate runs/nano --tasks cloze hellaswag --limit 200

    Compare: strata evaluate runs/nano runs/mine

    On four GPUs: torchrun --nproc-per-node 4 -m strata.cli evaluate runs/small

    What is interrupted goes on where it was when the same command is given again. A run that is
    not finished is asked by its newest checkpoint.

    Args:
        other: The folder of a second run, to be compared with the first.
        tasks: Names of tasks; those of the run's configuration if none are given.
        shots: Solved examples before each item; -1 = what the run's configuration says.
        limit: Items a task; 0 = all, -1 = what the run's configuration says.
        data_dir: Folder with the tasks' data; else the configuration's, or where downloads go.
    """
    from strata import evaluation
    from strata.config import TrainingConfig
    from strata.training import choose_runtime, load_trained
    from strata.training.device import apply_runtime
    from strata.training.distributed import join_processes, leave_processes

    if min(shots, limit) < -1:
        raise ValueError(f"--shots {shots} --limit {limit}: expected -1 or more of each")
    runtime = choose_runtime(TrainingConfig())
    apply_runtime(runtime)
    processes = join_processes(runtime)
    folders = [run] if other is None else [run, other]
    trained = [load_trained(folder, runtime) for folder in folders]
    settings = Config.load(run / "config.toml")
    corpus = open_corpus(settings.data)
    asked = settings.evaluation
    precision: dict[str, Any] = {
        "bootstrap_samples": asked.bootstrap_samples,
        "confidence": asked.confidence,
    }
    results = []
    for folder, (model, weights, source) in zip(folders, trained, strict=True):
        if source.is_dir() and processes.first:
            print(f"{folder} is not finished: asking {source}", file=sys.stderr)
        with runtime.autocast():
            found = evaluation.evaluate(
                model,
                load_tokenizer(folder),
                tasks or asked.tasks,
                data_dir=data_dir or asked.data_dir or None,
                shots=asked.shots if shots < 0 else shots,
                limit=asked.limit if limit < 0 else limit,
                documents=corpus.documents("validation"),
                batch_tokens=asked.batch_tokens,
                journal=folder / "evaluation",
                weights=weights,
                processes=processes,
                **precision,
            )
        results.append(found)
    leave_processes()
    if not processes.first:
        return
    if not all(results):
        raise FileNotFoundError("no task was scored, since none has its data here; see above")
    for folder, found in zip(folders, results, strict=True):
        evaluation.save_results(found, folder / "evaluation.json")
        _print_scores(folder, found, precision)
    if other is not None:
        names = (run.name, other.name) if run.name != other.name else (str(run), str(other))
        table = evaluation.comparison_table(results[0], results[1], names, **precision)
        print_table(f"{names[1]} against {names[0]}", *table)
    if left_out := [name for name in tasks or asked.tasks if name not in results[0]]:
        print(f"left out, their data is not here: {', '.join(left_out)}")
    for folder in folders:
        print(f"every item: {folder / 'evaluation.json'}")


def _print_scores(
    folder: Path, results: Mapping[str, "TaskResult"], precision: dict[str, Any]
) -> None:
    """A run's scores, beside what its corpus holds of the items, if that is known, and GPT-3's."""
    from strata import evaluation

    path = folder / "overlap.json"
    overlap = evaluation.load_overlap(path) if path.is_file() else None
    print_table(str(folder), *evaluation.results_table(results, overlap, **precision))
    looked_for = overlap.tasks if overlap else {}
    unlike = [
        name
        for name, result in results.items()
        if name in looked_for and not evaluation.split_result(result, looked_for[name])
    ]
    if unlike:
        names = " ".join(unlike)
        print(f"{path} is of other items: to look for these, strata data overlap {folder} "
              f"--tasks {names} with the same --limit, --shots and --data-dir")  # fmt: skip
    header, rows = evaluation.gpt3_table(results, **precision)
    if rows:
        print_table("beside GPT-3", header, rows)


def workbook(
    preset: Preset = "nano", corpus: Spec = "installed", output: Path | None = None
) -> None:
    """Run the five notebooks in order; what is unchanged since the last time is skipped.

    Example: strata workbook --preset nano --output runs/nano

    Args:
        output: The run folder; runs/PRESET if it is not given.
    """
    from strata.workbook import run_workbook

    run_workbook(preset, corpus, output)


def paper(
    run: Positional[Path | None] = None,
    draft: bool = False,
    check: bool = False,
    arxiv: bool = False,
) -> None:
    """Publish a run's figures, numbers and tables into figures/ and paper/, and build the PDF.

    Example: strata paper runs/nano

    Without a run it is built again from what is published, in seconds: strata paper

    Args:
        run: The folder of the run to publish, to draft, or to compare with what is published.
        draft: Build inside the run folder instead, and change no tracked file.
        check: Write nothing, but list what is wrong with the article as it is: typed numbers,
            results that are not those of their run, dangling references, boxes that stick out.
        arxiv: Pack the sources for arXiv, and build them with pdfLaTeX alone in an empty folder.
    """
    from strata import paper as article
    from strata.workbook import REPOSITORY

    if draft + check + arxiv > 1 or (draft and run is None) or (arxiv and run is not None):
        raise ValueError("expected one of: strata paper, strata paper RUN, strata paper RUN "
                         "--draft, strata paper [RUN] --check, strata paper --arxiv")  # fmt: skip
    if check:
        found, remark = article.check(REPOSITORY, run)
        print("\n".join(map(str, found)) or f"nothing to mend: {REPOSITORY / 'paper'}")
        if remark:
            print(remark, file=sys.stderr)
        raise SystemExit(1 if found else 0)
    if arxiv:
        archive, same = article.bundle(REPOSITORY)
        outcome = (
            "to the bytes of paper/strata.pdf" if same else "to other bytes than paper/strata.pdf"
        )
        print(f"pdfLaTeX alone builds it, {outcome}")
        print(f"arXiv: {archive} ({archive.stat().st_size:,} bytes)")
        return
    if draft and run is not None:
        built = article.draft(run)
    else:
        written = article.republish(REPOSITORY) if run is None else article.publish(run, REPOSITORY)
        print(f"{len(written)} files: {REPOSITORY / 'figures'}, {REPOSITORY / 'paper'}")
        built = article.build_article(REPOSITORY)
    if built is not None:
        print(f"paper: {built}")


def _say(text: str) -> None:
    """Print once, however many processes torchrun started."""
    if os.environ.get("RANK", "0") == "0":
        print(text)
