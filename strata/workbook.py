"""The workbook: five notebooks run in order, headless, into one run folder.

`run_workbook` executes `notebooks/0*.ipynb` through papermill. The executed copies go to
`<run>/notebooks/`, with `stamps.json` beside them: for each notebook a digest of all that its
outputs depend on (its own cells and the code of the chapters before it, the sources of this
package, the parameters, the inputs, the stored runs if it reads them) and the time it took. A
notebook whose digest still holds is skipped, so that a second run takes seconds and one that
failed continues where it stopped; inside a notebook, what an earlier attempt finished is loaded
from the run folder.

`begin_chapter` is the other end: what every notebook calls in its first code cell, whether it was
opened by a reader, by papermill or by the tests.
"""

import asyncio
import contextlib
import glob
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from strata.config import Config
from strata.storage import write_whole
from strata.training.signals import Interrupted, Requests

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = REPOSITORY / "notebooks"


class WorkbookError(RuntimeError):
    """A notebook failed: which one, in which cell, with what, and where its executed copy lies."""


@dataclass(frozen=True)
class Chapter:
    """What a notebook starts from."""

    preset: str
    run_dir: Path
    config: Config


def begin_chapter(
    preset: str = "nano",
    run_dir: str | Path = "",
    corpus: str = "installed",
    overrides: Mapping[str, Any] | None = None,
    *,
    chapter: str = "",
) -> Chapter:
    """Resolve a notebook's parameters, and send its figures and values to the run.

    Args:
        preset: name of the configuration.
        run_dir: folder of the run; `""` is `runs/<preset>` of the repository.
        corpus: where the text comes from, as in `DataConfig.corpus`.
        overrides: further changes to the configuration, by dotted name.
        chapter: the notebook's own name, kept beside every value that it records.

    Raises:
        ValueError: an unknown preset or field, or a value that a field does not take.
    """
    from strata import paper

    config = Config.preset(preset).override({"data.corpus": corpus, **(overrides or {})})
    folder = Path(run_dir) if str(run_dir) else default_run_dir(preset)
    paper.use_run(folder, chapter)
    paper.apply_style()
    return Chapter(preset, folder, config)


def default_run_dir(preset: str) -> Path:
    """`runs/<preset>` in the repository, or in the current folder if the package lies elsewhere."""
    return (REPOSITORY if NOTEBOOKS.is_dir() else Path.cwd()) / "runs" / preset


@dataclass(frozen=True)
class Stamp:
    """One executed notebook, as `stamps.json` keeps it."""

    digest: str  # of all that the outputs depend on
    cells: int
    seconds: float


def run_workbook(
    preset: str = "nano",
    corpus: str = "installed",
    output: str | Path | None = None,
    *,
    notebooks: str | Path = NOTEBOOKS,
) -> dict[str, Stamp]:
    """Execute the notebooks in order, skipping what is unchanged, and say where everything lies.

    Args:
        preset: name of the configuration; handed to every notebook.
        corpus: where the text comes from, paths as seen from here; handed to every notebook.
        output: the run folder; None is `runs/<preset>` of the repository.
        notebooks: folder of the notebooks, taken in the order of their names.

    Returns:
        The stamp of every notebook, by name.

    Raises:
        FileNotFoundError: there are no notebooks.
        ValueError: an unknown preset.
        WorkbookError: a notebook failed. What was finished before it stays, and is not run again.
        Interrupted: Ctrl-C or SIGTERM, once the cell that ran has saved what it trains. A second
            Ctrl-C does not wait.
    """
    Config.preset(preset)
    if corpus.startswith("files:"):
        from strata.data import absolute_spec  # seconds, which "installed" need not spend

        corpus = absolute_spec(corpus)  # a kernel's working folder is that of the notebooks
    paths = sorted(Path(notebooks).glob("[0-9]*.ipynb"))
    if not paths:
        raise FileNotFoundError(
            f"{notebooks}: no notebooks; `strata workbook` runs in a clone of the repository"
        )
    run_dir = Path(output).resolve() if output else default_run_dir(preset)
    folder = run_dir / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {"preset": preset, "corpus": corpus, "run_dir": str(run_dir)}
    digests = digest_notebooks(paths, parameters)
    stamps = read_stamps(folder)
    for path in paths:
        name, executed = path.stem, folder / path.name
        before = stamps.pop(name, None)
        if before and before.digest == digests[name] and executed.exists():
            stamps[name] = before
            _report(name, before, unchanged=True)
            continue
        # Without its stamp first: a notebook that is cut off half-way has not been executed.
        _write_stamps(folder, stamps)
        start = time.monotonic()
        cells = _execute(path, executed, parameters)
        stamps[name] = Stamp(digests[name], cells, round(time.monotonic() - start, 1))
        _write_stamps(folder, stamps)
        _report(name, stamps[name], unchanged=False)
    stamps = {path.stem: stamps[path.stem] for path in paths}
    _write_stamps(folder, stamps)
    _say_where_everything_lies(run_dir, stamps)
    return stamps


# ---- What the outputs depend on -----------------------------------------------------------------


def digest_notebooks(paths: list[Path], parameters: Mapping[str, str]) -> dict[str, str]:
    """For each notebook, in order, a hash of all that its outputs depend on."""
    # Not the run's folder, which the stamps move with.
    chosen = {name: value for name, value in parameters.items() if name != "run_dir"}
    package = _hashes(Path(__file__).parent, ".py", ".npz", ".toml")
    shared = [package, chosen, _inputs(parameters["corpus"])]
    digests: dict[str, str] = {}
    code_before: list[list[str]] = []
    for path in paths:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
        code = [text for kind, text in texts if kind == "code"]
        reads_stored = any("load_stored" in text for text in code)
        stored = _hashes(REPOSITORY / "paper" / "runs", ".jsonl", ".json") if reads_stored else {}
        digests[path.stem] = _hash([shared, code_before, texts, stored])
        code_before.append(code)
    return digests


def _hashes(folder: Path, *suffixes: str) -> dict[str, str]:
    """Hashes of the files in a folder with these suffixes, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix in suffixes
    }


def _inputs(corpus: str) -> list[object]:
    """What is read besides: local corpus files, by size and time, or the packages' own sources."""
    packages = ("torch", "numpy", "numba", "sympy", "matplotlib", "networkx")
    found: list[object] = [sys.version]
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    if corpus.startswith("files:"):
        for pattern in corpus.removeprefix("files:").split(","):
            for name in sorted(glob.glob(pattern, recursive=True)):
                about = os.stat(name)
                found.append([name, about.st_size, about.st_mtime_ns])
    return found


def _hash(tree: object) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def read_stamps(folder: Path) -> dict[str, Stamp]:
    """The stamps of an executed workbook; none where there is no file, or one of another shape."""
    try:
        entries = json.loads((folder / "stamps.json").read_text(encoding="utf-8"))
        return {name: Stamp(**entry) for name, entry in entries.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def _write_stamps(folder: Path, stamps: Mapping[str, Stamp]) -> None:
    entries = {name: asdict(stamp) for name, stamp in stamps.items()}
    write_whole(folder / "stamps.json", json.dumps(entries, indent=1) + "\n")


# ---- Execution, and its one line of progress ----------------------------------------------------


def _execute(path: Path, executed: Path, parameters: Mapping[str, str]) -> int:
    """Execute one notebook through papermill and return the number of its cells."""
    import papermill  # three seconds, which a workbook without changes need not spend
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import NBClientEngine, papermill_engines

    class LiveEngine(NBClientEngine):  # type: ignore[misc]
        """papermill's own engine, whose line of progress also moves while a cell runs."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
            _stop_between_cells(nb_man, requests)
            with _ticking(nb_man):
                super().execute_managed_notebook(nb_man, kernel_name, **options)

    class Kernel(AsyncKernelManager):
        """A kernel that what asks this process to stop can reach."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            kernels.append(self)

    def interrupt() -> None:
        """Do to the kernel what a notebook's stop button does; its cell then saves and ends."""

        async def reach_all() -> None:
            for kernel in kernels:
                await kernel.interrupt_kernel()

        # in a thread, since a signal may come while this one runs papermill's event loop
        threading.Thread(target=lambda: asyncio.run(reach_all())).start()

    kernels: list[Kernel] = []
    requests = Requests(on_stop=interrupt)
    papermill_engines.register("strata", LiveEngine)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it logs is said below
    try:
        with requests, _interrupted(path.stem, requests):
            notebook = papermill.execute_notebook(
                path,
                executed,
                dict(parameters),
                engine_name="strata",
                kernel_name="python3",
                kernel_manager_class=Kernel,
                language="python",
                extra_arguments=["--Application.log_level=ERROR"],  # of the kernel, on our terminal
                cwd=path.parent,
                progress_bar={
                    "desc": path.stem,
                    "bar_format": "{desc:<18} {n_fmt:>3}/{total_fmt} cells  {elapsed}{postfix}",
                    "disable": not sys.stderr.isatty(),
                    "leave": False,
                },
            )
    except papermill.PapermillExecutionError as error:
        lines = f"{error.ename}: {error.evalue}".strip().splitlines()
        raise WorkbookError(
            f"{path.stem} failed in cell [{error.exec_count}], `{_first_line(error.source)}`: "
            f"{lines[-1]}; the notebook with the whole error is {_short(executed)}"
        ) from error
    except DeadKernelError as error:
        raise WorkbookError(
            f"{path.stem} failed: its process died, most likely for lack of memory; the notebook "
            f"as far as it came is {_short(executed)}"
        ) from error
    return len(notebook.cells)


@contextlib.contextmanager
def _interrupted(name: str, requests: Requests) -> Iterator[None]:
    """Turn however a notebook ends that was asked to stop into Interrupted."""
    cause: BaseException | None = None
    try:
        yield
    except BaseException as error:
        if not requests.stop:
            raise
        cause = error
    if requests.stop:  # be it in the last cell, which did not mind
        raise Interrupted(f"stopped in {name}; run again to continue", requests.stop) from cause


def _stop_between_cells(manager: Any, requests: Requests) -> None:
    """Begin no further cell once a stop was asked for, as when no cell was there to notice."""
    begin = manager.cell_start

    def begin_unless_stopped(*arguments: Any, **options: Any) -> None:
        if requests.stop:
            raise KeyboardInterrupt
        begin(*arguments, **options)

    manager.cell_start = begin_unless_stopped


@contextlib.contextmanager
def _ticking(manager: Any) -> Iterator[None]:
    """Refresh papermill's bar every second, with the heading under which the running cell lies."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1.0):
            cells = manager.nb.cells[: manager.pbar.n + 1]
            headings = [_first_line(cell.source) for cell in cells if cell.source.startswith("#")]
            heading = headings[-1].lstrip("# ")[:48] if headings else ""
            manager.pbar.set_postfix_str(heading)

    thread = threading.Thread(target=tick, daemon=True)
    if not manager.pbar.disable:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()


def _first_line(source: str) -> str:
    return source.strip().splitlines()[0][:80] if source.strip() else ""


def _report(name: str, stamp: Stamp, *, unchanged: bool) -> None:
    note = f"unchanged (took {_duration(stamp.seconds)})" if unchanged else _duration(stamp.seconds)
    print(f"{name:<18} {stamp.cells:>3} cells  {note}", flush=True)


def _say_where_everything_lies(run_dir: Path, stamps: Mapping[str, Stamp]) -> None:
    figures = len(list((run_dir / "figures").glob("*.pdf")))
    places = {
        "run folder": run_dir,
        "notebooks": run_dir / "notebooks",
        f"{figures} figures": run_dir / "figures",
        "samples": run_dir / "samples.txt",
        "numbers": run_dir / "values.json",
        "paper": run_dir / "paper" / "strata.pdf",
    }
    print()
    for what, place in places.items():
        if place.exists():
            print(f"{what:<11} {_short(place)}")
        elif what == "paper":
            print(f"{what:<11} strata paper {_short(run_dir)} --draft")
    print(f"{'time':<11} {_duration(sum(stamp.seconds for stamp in stamps.values()))}")


def _short(path: Path) -> str:
    """A path as it would be typed here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _duration(seconds: float) -> str:
    """Seconds as people say them: `41 s`, `2 min 41 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
