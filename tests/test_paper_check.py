"""The article as it is committed is free of faults, and each kind of fault is found where it is."""

import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from strata import paper
from strata.cli import main
from strata.config import Config
from strata.paper import results
from strata.paper.article import read_article, typed_numbers

ROOT = Path(__file__).parents[1]
HAS_LATEX = all(shutil.which(tool) for tool in ("latexmk", "pdflatex", "bibtex"))
needs_latex = pytest.mark.skipif(not HAS_LATEX, reason="LaTeX is not installed")

ARTICLE = r"""\pdfoutput=1
\documentclass[10pt]{article}
\usepackage{strata}
\input{numbers}
\title{A small article}\author{Nobody}\date{}
\begin{document}
\maketitle
\begin{abstract}
The loss is \runLoss{}.
\end{abstract}
\section{Method}
There are 8 bits in a byte.
\resultssection{Results}
\label{sec:results}
The loss is \runLoss{} (\runLossInterval{}), as in \cref{fig:curve} and by
\citet{knuth1984literate}.
It counts \fixed{256}{the values of a byte} bytes.
\begin{figure}
\includegraphics{curve}
\caption{It rises.}
\label{fig:curve}
\end{figure}
\begin{table}
\caption{Scores.}
\input{tables/scores}
\end{table}
\bibliographystyle{plainnat}
\bibliography{references}
\appendix
\section{Sources}
\input{provenance}
\end{document}
"""
REFERENCES = """@article{knuth1984literate,
  title = {Literate Programming}, author = {Knuth, Donald E.},
  journal = {The Computer Journal}, year = {1984},
}
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose article was published from a run, and built where LaTeX is installed."""
    place = tmp_path_factory.mktemp("published")
    run, root = place / "runs" / "tiny", place / "root"
    (root / "paper" / "runs").mkdir(parents=True)
    (root / "paper" / "runs" / "micro.jsonl").write_text('{"loss": 2}\n')
    (root / "paper" / "strata.tex").write_text(ARTICLE)
    (root / "paper" / "references.bib").write_text(REFERENCES)
    shutil.copy(ROOT / "paper" / "strata.sty", root / "paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_run", None)
        patch.setattr(results, "REPOSITORY", root)
        paper.use_run(run, "05_ablations")
        Config.preset("nano").save(run / "config.toml")
        (run / "provenance.json").write_text(
            json.dumps({"commit": "0123456789abcdef", "started": "2026-01-02T03:04:05+00:00"})
        )
        figure = Figure(figsize=paper.HALF)
        figure.subplots().plot([1, 2, 3])
        stored = paper.stored_source(
            "paper/runs/micro.jsonl",
            "suite micro",
            ["fedcba9876543210"] * 2,
            "c0ffee",
            "2026-01-01",
        )
        paper.record("loss", (1.5, 1.25, 1.75))
        paper.record_table("scores", ["Name", "Score"], [["a", 1.5]], source=stored)
        paper.save_figure(figure, "curve", "It rises.")
        paper.publish(run, root)
    paper.build_article(root)
    return root


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "root"))


@pytest.fixture
def without_latex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def edit(root: Path, old: str, new: str, file: str = "strata.tex") -> int:
    """Replace a text of the article, and return the number of the line on which it began."""
    path = root / "paper" / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def findings(root: Path, about: str = "") -> list[str]:
    """What is found; not that the PDF is older than a source, which every edit brings with it."""
    found = [str(finding) for finding in paper.check(root)[0]]
    return [line for line in found if about in line and "paper/strata.pdf" not in line]


def test_the_article_of_the_repository_has_nothing_to_mend() -> None:
    found, _ = paper.check(ROOT)
    assert [str(finding) for finding in found] == []


@needs_latex
def test_a_published_article_has_nothing_to_mend(root: Path) -> None:
    assert paper.check(root) == ([], "")


# --- the text ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_latex")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("The loss is \\runLoss{}.\n", "The loss is 1.5.\n", "the number 1.5 is typed"),
        ("It rises.}\n", "It rises by 7\\%.}\n", "the number 7 is typed"),
        ("It counts", "It takes $3.5$ and counts", "the number 3.5 is typed"),
        ("It counts", "The run \\runLos{} counts", "\\runLos is not defined"),
        ("\\title{", "\\newcommand{\\runLoss}{1.4}\\title{", "\\runLoss holds a result"),
        ("\\title{", "\\def\\best{1.4}\\title{", "\\best holds a result"),
        ("\\title{", "\\gdef\\best{1.4}\\title{", "\\best holds a result"),
        ("\\title{", "\\DeclareMathOperator{\\best}{1.4}\\title{", "\\best holds a result"),
        ("as in \\cref{fig:curve}", "as in \\cref{fig:other}", "a reference to fig:other"),
        ("\\label{sec:results}", "\\label{fig:curve}", "the label fig:curve is set 2 times"),
        ("\\citet{knuth1984literate}", "\\citet{knuth1984literate,knuth}", "a citation of knuth,"),
        ("\\includegraphics{curve}", "\\includegraphics{map}", "the figure map does not stand"),
        ("\\input{tables/scores}", "\\input{tables/sizes}", "the table sizes does not stand"),
    ],
)
def test_a_fault_of_the_text_is_found_with_its_line(
    root: Path, old: str, new: str, message: str
) -> None:
    line = edit(root, old, new)
    assert f"paper/strata.tex:{line}" in [f.split(": ", 1)[0] for f in findings(root, message)]


@pytest.mark.usefixtures("without_latex")
def test_an_entry_that_nobody_cites_is_found(root: Path) -> None:
    path = root / "paper" / "references.bib"
    path.write_text(REFERENCES + REFERENCES.replace("knuth1984literate", "nobody"))
    assert findings(root) == ["paper/references.bib:5: nothing cites nobody"]


@pytest.mark.usefixtures("without_latex")
def test_a_part_of_the_text_in_a_file_of_its_own_is_looked_at(root: Path) -> None:
    edit(root, "It counts", "\\input{more}\nIt counts")
    (root / "paper" / "more.tex").write_text("% 12\nText.\nIt took 12 minutes.\n")
    assert findings(root, "typed")[0].startswith("paper/more.tex:3: the number 12 is typed")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("GPT-3 and SHA-256 in float32 on an H200", []),
        ("\\code{--seeds 0 1} of \\citet[Table~2.1]{a2020} in \\cref{tab:2}", []),
        ("of $x^2$, $t_{i+1}$, $1-\\beta$ and $d/2$", []),
        ("\\begin{equation} a = 3.4445 \\end{equation} and \\[ 2 \\]", []),
        ("\\fixed{13}{GPT-3, appendix~{C}} words", []),
        ("\\begin{tabular}{@{}p{3cm}r@{}} a \\\\[2pt] \\end{tabular} \\vspace{2pt}", []),
        ("50\\% of it % and 7 more", ["50"]),
        ("1,234.5 seconds and 2.", ["1,234.5", "2"]),
        ("$3$, $n = 2$, $-4$, $\\approx 5$, $6 \\times n$, $7.5 n$, $n = -8$, $9\\,\\mathrm{s}$",
         ["3", "2", "4", "5", "6", "7.5", "8", "9"]),
        ("\\textbf{11} and \\emph{12th}", ["11", "12"]),
        ("$x \\text{17}$, $17 \\text{ times}$, $n_1 \\mathrm{18}$", ["17", "17", "18"]),
        ("1{.}7, $1{,}700 x$ and $\\frac{17}{10}$", ["1{.}7", "1{,}700", "17", "10"]),
        ("\\href{https://a.b/1}{19} and \\fixed{20}{ }", ["19", "20"]),
    ],
)  # fmt: skip
def test_what_counts_as_a_typed_number(tmp_path: Path, text: str, numbers: list[str]) -> None:
    article = "Of 3 things.\n\\resultssection{R}\n%s\n\\section{Later}\nOf 4 things.\n"
    (tmp_path / "strata.tex").write_text(article % text)
    assert [found.name for found in typed_numbers(read_article(tmp_path))] == numbers


# --- the record ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_latex")
def test_a_number_that_was_changed_by_hand_is_found(root: Path) -> None:
    line = edit(root, "{1.50}", "{1.40}", "numbers.tex")
    assert findings(root, "numbers.tex")[0].startswith(f"paper/numbers.tex:{line}: is not what")


@pytest.mark.usefixtures("without_latex")
def test_a_table_that_was_changed_by_hand_is_found(root: Path) -> None:
    line = edit(root, "1.50", "1.60", "tables/scores.tex")
    assert findings(root)[0].startswith(f"paper/tables/scores.tex:{line}: is not what")


@pytest.mark.usefixtures("without_latex")
@pytest.mark.parametrize("suffix", ["pdf", "png"])
def test_a_figure_that_is_another_or_is_gone_is_found(root: Path, suffix: str) -> None:
    path = root / "figures" / f"curve.{suffix}"
    path.write_bytes(path.read_bytes() + b"\n")
    assert findings(root) == [
        f"figures/curve.{suffix}:0: is not the figure of provenance.json (SHA-256)"
    ]
    path.unlink()
    assert findings(root) == [
        f"figures/curve.{suffix}:0: is missing, and stands in provenance.json"
    ]


@pytest.mark.usefixtures("without_latex")
def test_a_result_older_than_the_stored_runs_it_comes_from_is_found(root: Path) -> None:
    (root / "paper" / "runs" / "micro.jsonl").write_text('{"loss": 1}\n')
    assert findings(root) == [
        "paper/provenance.json:0: table scores is older than what it comes from, "
        "paper/runs/micro.jsonl"
    ]


@pytest.mark.usefixtures("without_latex")
def test_a_run_that_has_recorded_something_else_since_is_told(root: Path, published: Path) -> None:
    run = Path(shutil.copytree(published.parent / "runs" / "tiny", root.parent / "runs" / "tiny"))
    assert not [found for found in paper.check(root, run)[0] if "tiny" in found.message]
    values = json.loads((run / "values.json").read_text())
    values["values"]["loss"]["value"] = 1.0
    (run / "values.json").write_text(json.dumps(values))
    told = [found.message for found in paper.check(root, run)[0] if "tiny" in found.message]
    assert told == [f"value loss is not that of {run}"]


def test_the_appendix_names_the_source_of_each_result(published: Path) -> None:
    text = (published / "paper" / "provenance.tex").read_text()
    configuration = Config.preset("nano").hash()
    assert re.search(rf"A & run tiny & .*0123456789ab.*{configuration}.*2026-01-02", text)
    assert re.search(r"B & suite micro, \\path\{paper/runs/micro\.jsonl\} & .*fedcba987654\}", text)
    assert re.search(r"tables/scores\.tex.*B, 05\\_ablations", text)
    digest = hashlib.sha256((published / "figures" / "curve.pdf").read_bytes()).hexdigest()
    assert re.search(rf"figures/curve\.pdf.*It rises\..*A, 05\\_ablations.*{digest[:12]}", text)
    assert r"\tracednumber{\code{\textbackslash runLoss}}{1.50 (1.25 to 1.75)}" in text
    assert r"\tracednumber{256}{the values of a byte}" in text


def test_a_source_outside_the_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside"):
        paper.stored_source(tmp_path / "runs.jsonl", "suite", ["a"], "b", "2026-01-01")


# --- the stamp, the typesetting and what is built ------------------------------------------------


@pytest.mark.usefixtures("without_latex")
@needs_latex
def test_a_pdf_older_than_a_source_is_found(root: Path) -> None:
    assert paper.check(root)[0] == []
    edit(root, "It counts", "And it counts")
    edit(root, "Literate Programming", "Literate programming", "references.bib")
    assert [str(finding) for finding in paper.check(root)[0]] == [
        "paper/strata.pdf:0: is older than references.bib: build it again (strata paper)",
        "paper/strata.pdf:0: is older than strata.tex: build it again (strata paper)",
    ]
    (root / "paper" / "strata.sha256").unlink()
    assert "has no strata.sha256" in str(paper.check(root)[0][0])


@pytest.mark.usefixtures("without_latex")
def test_without_latex_it_is_said_what_was_not_looked_at(root: Path) -> None:
    assert "latexmk is not installed" in paper.check(root)[1]


@needs_latex
def test_faults_of_the_typesetting_are_found_with_their_lines(root: Path) -> None:
    wide, unknown = "\\mbox{\\hspace{6.4in}}", "{\\fontfamily{nil}\\selectfont It} counts"
    line = edit(root, "It counts", f"\n{wide}\n\n{unknown}")
    found = findings(root)
    assert any(
        re.match(rf"paper/strata\.tex:{line + 1}: a box is .* pt too wide", f) for f in found
    )
    assert any(re.match(rf"paper/strata\.tex:{line + 3}: LaTeX Font Warning", f) for f in found)


@needs_latex
def test_a_command_that_does_not_exist_is_found_with_its_line(root: Path) -> None:
    line = edit(root, "It counts", "\\nothing{} counts")
    (found,) = findings(root)
    assert re.match(rf"paper/strata\.tex:{line}: Undefined control sequence.*nothing", found)


@needs_latex
def test_building_again_from_what_is_published_gives_the_same_bytes(
    root: Path, published: Path
) -> None:
    paper.republish(root)
    paper.build_article(root)
    for name in ("strata.pdf", "strata.bbl", "strata.sha256", "provenance.tex", "numbers.tex"):
        assert (root / "paper" / name).read_bytes() == (published / "paper" / name).read_bytes()


@needs_latex
@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_the_stamp_is_one_that_sha256sum_reads(root: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "strata.sha256"]
    assert subprocess.run(command, cwd=root / "paper", capture_output=True).returncode == 0


@needs_latex
@pytest.mark.skipif(shutil.which("pdfdetach") is None, reason="poppler is not installed")
def test_the_pdf_bears_the_record(root: Path, tmp_path: Path) -> None:
    command = ["pdfdetach", "-saveall", "-o", str(tmp_path), str(root / "paper" / "strata.pdf")]
    subprocess.run(command, check=True)
    record = (root / "paper" / "provenance.json").read_bytes()
    assert (tmp_path / "provenance.json").read_bytes() == record


@needs_latex
def test_the_archive_for_arxiv_builds_by_itself_and_is_the_same_each_time(root: Path) -> None:
    (root / "paper" / "tables" / "unused.tex").write_text("")
    archive, same = paper.bundle(root)
    content = archive.read_bytes()
    assert same
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as packed:
        assert packed.getnames() == [
            "figures/curve.pdf", "numbers.tex", "provenance.json", "provenance.tex", "strata.bbl",
            "strata.sty", "strata.tex", "tables/scores.tex",
        ]  # fmt: skip
    assert paper.bundle(root)[0].read_bytes() == content


@needs_latex
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [("It counts", "And it counts", "older than strata.tex"), ("\\pdfoutput=1", "", "pdfoutput")],
)
def test_what_arxiv_would_not_take_is_refused(root: Path, old: str, new: str, reason: str) -> None:
    edit(root, old, new)
    with pytest.raises(ValueError, match=reason):
        paper.bundle(root)


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--draft"], ["--check", "--arxiv"], ["runs/tiny", "--arxiv"]])
def test_options_that_do_not_go_together_are_refused(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["paper", *options]) == 1
    assert "expected one of" in capsys.readouterr().err


def test_the_command_prints_its_findings_and_fails(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check: Callable[..., object] = paper.check
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(paper, "check", lambda _, run: check(root, run))
    line = edit(root, "It counts", "It takes 5 and counts")
    assert main(["paper", "--check"]) == 1
    assert f"paper/strata.tex:{line}: the number 5 is typed" in capsys.readouterr().out
