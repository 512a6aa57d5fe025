"""Results go from a notebook to the article one way, and nothing that is missing goes unnoticed."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from strata import paper
from strata.config import Config
from strata.paper import latex, results

matplotlib.use("agg")

HAS_LATEX = all(shutil.which(tool) for tool in ("latexmk", "pdflatex", "bibtex"))
needs_latex = pytest.mark.skipif(not HAS_LATEX, reason="LaTeX is not installed")

ARTICLE_DIR = Path(__file__).parents[1] / "paper"
ARTICLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}\usepackage{textcomp,graphicx,booktabs,tabularx}
\graphicspath{{figures/}}
\input{numbers}
\pdfinfoomitdate=1 \pdftrailerid{}
\begin{document}
BODY
\end{document}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in use, set up as the trainer leaves it."""
    monkeypatch.setattr(results, "_run", None)
    folder = paper.use_run(tmp_path / "runs" / "tiny", "03_training")
    Config.preset("nano").save(folder / "config.toml")
    origin = {"commit": "0123456789abcdef", "dirty": True, "started": "2026-01-02T03:04:05+00:00"}
    (folder / "provenance.json").write_text(json.dumps(origin))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with an article that uses one value, one table and one figure."""
    body = r"\runLoss{} \includegraphics{curve} \input{tables/scores} % \runComment{}"
    write_article(tmp_path / "root" / "paper", body)
    return tmp_path / "root"


def write_article(folder: Path, body: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "strata.tex").write_text(ARTICLE.replace("BODY", body))
    (folder / "references.bib").write_text("")


def a_figure() -> Figure:
    figure = Figure(figsize=paper.HALF)
    figure.subplots().plot([1, 2, 3], label="line")
    return figure


def record_everything() -> None:
    paper.record("loss", 1.234)
    paper.record_table("scores", ["Name", "Score"], [["a", 1.5], ["b", None]])
    paper.save_figure(a_figure(), "curve", "It rises.")


def numbers(root: Path) -> dict[str, str]:
    lines = (root / "paper" / "numbers.tex").read_text().splitlines()
    pairs = [line.removeprefix(r"\newcommand{").split("}{", 1) for line in lines if line[0] != "%"]
    return {name: text.removesuffix("}") for name, text in pairs}


# --- recording -----------------------------------------------------------------------------------


def test_recording_without_a_run_says_what_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_run", None)
    with pytest.raises(RuntimeError, match="use_run"):
        paper.record("loss", 1.0)


def test_what_was_recorded_is_read_back(run: Path) -> None:
    paper.record("loss", np.float32(1.5), unit="bits", digits=2)
    paper.record("tokens", np.int64(86_400))
    paper.record("machine", "two cores")
    paper.record("multiplier", (2.0, 1, float("inf")), unit="×")
    values = paper.read_values(run)
    assert values["loss"] == paper.Value(1.5, None, None, "bits", 2, "1.5\u202fbits", "03_training")
    assert values["tokens"].value == 86_400
    assert values["machine"].value == "two cores"
    assert (values["multiplier"].low, values["multiplier"].high) == (1.0, float("inf"))


def test_recording_again_replaces_the_value(run: Path) -> None:
    paper.record("loss", 2.0)
    paper.record("loss", 1.0)
    assert paper.read_values(run)["loss"].value == 1.0


def test_the_file_of_results_is_plain_json(run: Path) -> None:
    paper.record("multiplier", (2.0, 1.0, float("inf")))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((run / "values.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("value", [float("nan"), True, None, [1.0, 2.0], (1.0, 3.0, 2.0), {}])
def test_what_is_no_result_is_refused(run: Path, value: object) -> None:
    with pytest.raises(ValueError, match="loss"):
        paper.record("loss", value)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["Loss", "final loss", "2nd_loss", "loss_", "", "../loss"])
def test_a_name_that_is_not_snake_case_is_refused(run: Path, name: str) -> None:
    with pytest.raises(ValueError, match="snake_case"):
        paper.record(name, 1.0)


def test_a_row_that_does_not_fit_the_header_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="row 1 has 1 cells"):
        paper.record_table("scores", ["a", "b"], [["x", 1], ["y"]])


def test_reading_a_run_without_results_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"values\.json"):
        paper.read_values(tmp_path)


def test_nothing_is_left_beside_the_files_written(run: Path) -> None:
    record_everything()
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]


# --- figures -------------------------------------------------------------------------------------


def test_the_same_figure_gives_the_same_bytes(run: Path) -> None:
    first = paper.save_figure(a_figure(), "curve", "It rises.")
    before = [first.read_bytes(), first.with_suffix(".png").read_bytes()]
    second = paper.save_figure(a_figure(), "curve", "It rises.")
    assert [second.read_bytes(), second.with_suffix(".png").read_bytes()] == before
    assert b"CreationDate" not in before[0]
    assert b"It rises." in before[0]


def test_figures_embed_outlines_and_not_bitmaps_of_letters(run: Path) -> None:
    content = paper.save_figure(a_figure(), "curve").read_bytes()
    assert b"/Type3" not in content
    assert b"/FontFile2" in content


def test_the_style_ends_with_its_block() -> None:
    before = matplotlib.rcParams["axes.spines.top"]
    with paper.figure_style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.rcParams["axes.spines.top"] == before


def test_lines_differ_in_more_than_colour() -> None:
    with paper.figure_style():
        styles = [str(style["linestyle"]) for style in matplotlib.rcParams["axes.prop_cycle"]]
    assert len(set(styles)) == len(styles)


def test_figures_are_as_wide_as_the_columns_of_the_article() -> None:
    style = (ARTICLE_DIR / "strata.sty").read_text()
    text = re.search(r"textwidth=([\d.]+)in", style)
    half = re.search(r"\\setlength\{\\halfwidth\}\{([\d.]+)in\}", style)
    assert text is not None
    assert half is not None
    assert (float(text[1]), float(half[1])) == (paper.FULL[0], paper.HALF[0])
    assert 2 * paper.HALF[0] < paper.FULL[0]


# --- numbers and text ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (86_400, 3, "86,400"),
        (-3, 3, "−3"),
        (0.0, 3, "0.00"),
        (1.2, 3, "1.20"),
        (9.996, 3, "10.0"),
        (123_456.0, 3, "123,000"),
        (0.031249, 2, "0.031"),
        (1.0e9, 3, "1.00\u202f×\u202f10⁹"),
        (-2.5e-7, 2, "−2.5\u202f×\u202f10⁻⁷"),
        (float("inf"), 3, "∞"),
    ],
)
def test_numbers_read_as_people_write_them(value: float, digits: int, text: str) -> None:
    assert latex.number_text(value, digits) == text


def test_an_interval_has_the_decimals_of_its_value() -> None:
    assert latex.interval_text(10.04, 9.5, 12.345, "%", 3) == "9.5 to 12.3%"
    assert latex.interval_text(2.0, 1.0, float("inf"), "×", 2) == "1.0 to ∞×"


def test_numbers_of_a_column_line_up() -> None:
    texts, numeric = latex.table_texts([["a", 4.8, 7], ["b", 12.34, None]], 3)
    assert texts == [["a", "4.80", "7"], ["b", "12.34", "–"]]
    assert numeric == [False, True, True]


def test_a_column_of_many_magnitudes_is_not_forced_into_line() -> None:
    texts, _ = latex.table_texts([[0.00123], [123.0]], 3)
    assert texts == [["0.00123"], ["123"]]


def test_special_characters_do_not_reach_latex_as_commands() -> None:
    assert latex.escape(r"50% & $x_1 \dots #{}") == (r"50\% \& \$x\_1 \textbackslash{}dots \#\{\}")


def test_a_character_the_fonts_lack_is_shown_by_its_code() -> None:
    assert latex.escape("中") == r"\texttt{[U+4E2D]}"


def test_dates_and_dashes_print_as_they_are() -> None:
    assert latex.escape("2026-01-02 --x it's ''") == "2026-01-02 -{}-{}x it's '{}'{}"


def test_a_table_is_shown_as_html_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    paper.show_table(["Name", "Score"], [["<b>", 1.5]])
    assert list(shown[0]) == ["text/html"]
    assert "&lt;b&gt;" in shown[0]["text/html"]
    assert "1.50" in shown[0]["text/html"]


# --- publishing ----------------------------------------------------------------------------------


def test_publishing_writes_macros_tables_and_figures_with_their_provenance(
    run: Path, root: Path
) -> None:
    record_everything()
    paper.record("gpt3_loss", (2.5, 2.25, 2.75), unit="%")
    paper.publish(run, root)
    macros = numbers(root)
    assert macros["\\runLoss"] == "1.23"
    assert macros["\\runGptThreeLoss"] == r"2.50\%"
    assert macros["\\runGptThreeLossInterval"] == r"2.25 to 2.75\%"
    assert macros["\\runDate"] == "2026-01-02"
    digest = Config.preset("nano").hash()
    for file in ("numbers.tex", "tables/scores.tex"):
        text = (root / "paper" / file).read_text()
        stamp = "run tiny, commit 0123456789abcdef with uncommitted changes, "
        assert f"{stamp}configuration {digest}, 2026-01-02" in text
    assert (root / "figures" / "curve.pdf").read_bytes() == (
        run / "figures" / "curve.pdf"
    ).read_bytes()
    record = json.loads((root / "paper" / "provenance.json").read_text())
    assert record["run"]["configuration"] == digest
    assert record["figures"]["curve"]["chapter"] == "03_training"
    for suffix, digest in record["figures"]["curve"]["sha256"].items():
        content = (root / "figures" / f"curve.{suffix}").read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest


def test_publishing_twice_gives_the_same_files(run: Path, root: Path) -> None:
    record_everything()
    first = {path: path.read_bytes() for path in paper.publish(run, root)}
    second = {path: path.read_bytes() for path in paper.publish(run, root)}
    assert first == second


def test_what_the_run_lacks_is_listed_before_anything_is_written(run: Path, root: Path) -> None:
    write_article(
        root / "paper",
        r"\runGptThreeLoss{} \runLossInterval{} \includegraphics[width=1cm]{map} "
        r"\input{tables/sizes}",
    )
    record_everything()
    with pytest.raises(ValueError, match="did not record") as error:
        paper.publish(run, root)
    for name in ("gpt3_loss", "loss as (value, low, high)", "map", "sizes"):
        assert name in str(error.value)
    assert not (root / "paper" / "numbers.tex").exists()
    assert not (root / "figures").exists()


def test_two_names_of_one_macro_are_refused(run: Path, root: Path) -> None:
    record_everything()
    paper.record("gpt3", 1)
    paper.record("gpt_three", 1)
    with pytest.raises(ValueError, match="runGptThree"):
        paper.publish(run, root)


def test_publishing_removes_what_an_earlier_run_left_and_nothing_else(
    run: Path, root: Path
) -> None:
    record_everything()
    paper.record_table("old", ["a"], [["x"]])
    paper.save_figure(a_figure(), "old")
    paper.publish(run, root)
    (root / "figures" / "by_hand.png").write_bytes(b"")
    recorded = json.loads((run / "values.json").read_text())
    del recorded["tables"]["old"], recorded["figures"]["old"]
    (run / "values.json").write_text(json.dumps(recorded))
    paper.publish(run, root)
    assert sorted(path.name for path in (root / "figures").iterdir()) == [
        "by_hand.png",
        "curve.pdf",
        "curve.png",
    ]
    assert [path.name for path in (root / "paper" / "tables").iterdir()] == ["scores.tex"]


def test_a_draft_touches_nothing_outside_the_run(
    run: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no LaTeX
    record_everything()
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert paper.draft(run, root / "paper") is None
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert (run / "paper" / "numbers.tex").exists()


# --- building ------------------------------------------------------------------------------------


def test_without_latex_the_run_goes_on_and_says_how_to_get_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert paper.build_pdf(root / "paper", tmp_path / "out") is None
    said = capsys.readouterr().out
    assert "latexmk is not installed" in said
    assert "apt-get install" in said


def test_building_without_an_article_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"strata\.tex"):
        paper.build_pdf(tmp_path, tmp_path / "out")


@needs_latex
def test_a_draft_with_any_text_becomes_a_pdf(run: Path, root: Path) -> None:
    printable = "".join(map(chr, range(32, 127)))
    paper.record("sample", f"{printable}\n\n  [* “quoted” – α ≤ β → 中 é ²\t{printable * 3}\n")
    paper.record("machine", f"{printable} µ · … ∞ ± ≈ ³ ‘x’ — × 10⁻⁷")
    paper.record_table("scores", ["Na_me", "x"], [[printable, 1.5], ["b & c", None]], "95 % of it")
    paper.save_figure(a_figure(), "curve")
    body = r"\runSample{} \runMachine{} \includegraphics{curve} \input{tables/scores}"
    write_article(root / "paper", rf"\setlength{{\parindent}}{{\halfwidth}} {body}")
    tex = root / "paper" / "strata.tex"
    styled = tex.read_text().replace(r"\input{numbers}", r"\usepackage{strata}\input{numbers}")
    tex.write_text(styled)
    shutil.copy(ARTICLE_DIR / "strata.sty", root / "paper")
    built = paper.draft(run, root / "paper")
    assert built == run / "paper" / "strata.pdf"
    assert built.read_bytes().startswith(b"%PDF")


@needs_latex
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (r"Text \undefinedmacro{} text.", r"\\undefinedmacro"),
        (r"Text \cite{nobody}.", "nobody"),
        (r"Text \ref{nowhere}.", "nowhere"),
        (r"\includegraphics{nothing}", "nothing"),
    ],
)
def test_what_is_undefined_stops_the_build_with_the_reason(
    tmp_path: Path, body: str, reason: str
) -> None:
    write_article(tmp_path, body)
    (tmp_path / "numbers.tex").write_text("")
    with pytest.raises(RuntimeError, match=reason):
        paper.build_pdf(tmp_path, tmp_path / "out")
