"""The runner, on notebooks of a few lines: order, parameters, skipping, failing, continuing."""

import json
from pathlib import Path

import nbformat
import pytest

from strata import paper
from strata.workbook import (
    NOTEBOOKS,
    WorkbookError,
    begin_chapter,
    default_run_dir,
    read_stamps,
    run_workbook,
)

PARAMETERS = 'preset = "nano"\ncorpus = "installed"\nrun_dir = ""'


def write_notebook(path: Path, *sources: str) -> None:
    notebook = nbformat.v4.new_notebook()
    first = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook.cells = [nbformat.v4.new_markdown_cell(f"# {path.stem}"), first, *rest]
    nbformat.write(notebook, path)


def counting(name: str) -> str:
    """A cell that adds a line to `<run>/log` each time it is executed."""
    return (
        "from pathlib import Path\n"
        f"with open(Path(run_dir) / 'log', 'a') as log: print('{name}', preset, corpus, file=log)"
    )


def test_notebooks_run_in_order_and_again_only_when_something_they_depend_on_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chapters, run_dir = tmp_path / "chapters", tmp_path / "run"
    chapters.mkdir()
    write_notebook(chapters / "02_second.ipynb", counting("second"), "1 / 0  # by zero")
    write_notebook(chapters / "01_first.ipynb", counting("first"))

    def run() -> list[str]:
        run_workbook("micro", "installed", run_dir, notebooks=chapters)
        return (run_dir / "log").read_text().splitlines()

    with pytest.raises(
        WorkbookError, match=r"02_second failed in cell \[4\], `1 / 0.*Zero"
    ) as error:
        run()
    assert str(run_dir / "notebooks" / "02_second.ipynb") in str(error.value)

    # Mended: it continues with the notebook that failed, and the first is not run again.
    write_notebook(chapters / "02_second.ipynb", counting("second"))
    once = ["first micro installed", "second micro installed"]
    assert run() == [once[0], once[1], once[1]]
    capsys.readouterr()

    # Nothing changed: nothing is run, and where everything lies is still said.
    assert run() == [once[0], once[1], once[1]]
    printed = capsys.readouterr().out
    assert printed.count("unchanged") == 2
    assert str(run_dir / "notebooks") in printed

    # Outputs do not count as a change; an executed notebook has lost none of its cells.
    executed = nbformat.read(run_dir / "notebooks" / "01_first.ipynb", as_version=4)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    stamps = read_stamps(run_dir / "notebooks")
    assert list(stamps) == ["01_first", "02_second"]


def test_digest_follows_cells_earlier_code_and_corpus_files(tmp_path: Path) -> None:
    from strata.workbook import digest_notebooks

    text = tmp_path / "corpus.txt"
    text.write_text("one")
    paths = [tmp_path / "01_a.ipynb", tmp_path / "02_b.ipynb"]
    for path in paths:
        write_notebook(path, "print(1)")
    parameters = {"preset": "nano", "corpus": f"files:{text}", "run_dir": "here"}
    before = digest_notebooks(paths, parameters)
    assert digest_notebooks(paths, {**parameters, "run_dir": "there"}) == before

    write_notebook(paths[1], "print(2)")
    after = digest_notebooks(paths, parameters)
    assert (after["01_a"] == before["01_a"], after["02_b"] == before["02_b"]) == (True, False)

    write_notebook(paths[0], "print(3)")
    assert digest_notebooks(paths, parameters)["02_b"] != after["02_b"]

    text.write_text("one and two")
    assert digest_notebooks(paths, parameters)["01_a"] != after["01_a"]


def test_digest_follows_stored_runs_where_a_chapter_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strata import workbook

    monkeypatch.setattr(workbook, "REPOSITORY", tmp_path)
    stored = tmp_path / "paper" / "runs" / "micro.jsonl"
    stored.parent.mkdir(parents=True)
    paths = [tmp_path / "01_a.ipynb", tmp_path / "02_b.ipynb"]
    write_notebook(paths[0], "print(1)")
    write_notebook(paths[1], "load_stored")
    parameters = {"preset": "nano", "corpus": "installed", "run_dir": "here"}
    before = workbook.digest_notebooks(paths, parameters)
    stored.write_text("{}")
    after = workbook.digest_notebooks(paths, parameters)
    assert (after["01_a"] == before["01_a"], after["02_b"] == before["02_b"]) == (True, False)


def test_a_relative_corpus_reaches_the_kernels_as_seen_from_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chapters, run_dir = tmp_path / "chapters", tmp_path / "run"
    chapters.mkdir()
    (tmp_path / "a.txt").write_text("text")
    write_notebook(chapters / "01_first.ipynb", counting("first"))
    monkeypatch.chdir(tmp_path)
    run_workbook("micro", "files:*.txt", run_dir, notebooks=chapters)
    assert (run_dir / "log").read_text().split() == ["first", "micro", f"files:{tmp_path}/*.txt"]


def test_unknown_preset_or_missing_notebooks_are_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nanno"):
        run_workbook("nanno", notebooks=tmp_path)
    with pytest.raises(FileNotFoundError, match="no notebooks"):
        run_workbook("nano", output=tmp_path / "run", notebooks=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_chapter_begins_with_its_run_folder_and_configuration(tmp_path: Path) -> None:
    chapter = begin_chapter("micro", tmp_path / "run", "files:a.txt", {"model.n_layers": 2})
    assert chapter.run_dir == tmp_path / "run"
    assert chapter.config.data.corpus == "files:a.txt"
    assert chapter.config.model.n_layers == 2
    paper.record("answer", 42)
    assert paper.read_values(tmp_path / "run")["answer"].value == 42
    assert default_run_dir("micro").parts[-2:] == ("runs", "micro")


@pytest.mark.skipif(not NOTEBOOKS.is_dir(), reason="the notebooks are not written yet")
def test_the_workbook_is_five_executed_notebooks_with_literal_parameters() -> None:
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert [path.stem[:2] for path in paths] == ["01", "02", "03", "04", "05"]
    for path in paths:
        cells = [
            cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"
        ]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1, f"{path.name}: one cell must bear the tag `parameters`"
        values: dict[str, object] = {}
        exec("".join(tagged[0]["source"]), {"__builtins__": {}}, values)  # literals, so no names
        common = {"preset": "nano", "corpus": "installed", "run_dir": ""}
        assert values | common == values, path.name
        for index, cell in enumerate(cells):
            assert cell["execution_count"], f"{path.name}: code cell {index} was not executed"
