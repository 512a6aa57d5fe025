"""LaTeX at work: the article's PDF, and what the log of a build has to say.

`build_pdf` runs latexmk, for the paper and its drafts. `log_errors` and `log_warnings` turn a log
into lines for people, the latter with the file and line that each is about.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from strata.paper.article import Place, sources
from strata.storage import write_whole

_HINT = """\
The paper's PDF was not built: {reason}.
  Debian, Ubuntu:  sudo apt-get install --no-install-recommends latexmk \\
                     texlive-latex-recommended texlive-latex-extra texlive-fonts-recommended
  macOS:           brew install --cask mactex-no-gui
Its text, numbers and tables are in {folder}."""

_OVERFULL = 1.0  # points by which a box may stick out unnoticed


def build_pdf(paper_dir: str | Path, out_dir: str | Path) -> Path | None:
    """Build `paper_dir/strata.tex` into `out_dir/strata.pdf` with latexmk and pdfLaTeX.

    Figures are those in `paper_dir/../figures/`. LaTeX works on copies in a temporary folder, so
    that nothing of an earlier build has a part in this one; its PDF, log and bibliography are kept.
    On one installation of TeX the same sources give the same bytes (`strata.sty` sees to that).
    Returns the PDF's path; where LaTeX is missing or lacks a package, prints how to get it and
    returns None, so that a run is not lost for it.

    Raises:
        FileNotFoundError: when there is no `strata.tex`.
        RuntimeError: with the lines of the log that say why, for any LaTeX error (an undefined
            macro, a missing figure) and for an undefined citation or reference.
    """
    folder, out = Path(paper_dir).resolve(), Path(out_dir).resolve()
    if not (folder / "strata.tex").is_file():
        raise FileNotFoundError(f"no paper to build: {folder / 'strata.tex'} does not exist")
    for tool in ("latexmk", "pdflatex", "bibtex"):
        if shutil.which(tool) is None:
            print(_HINT.format(reason=f"{tool} is not installed", folder=folder))
            return None
    with tempfile.TemporaryDirectory() as place:
        for name in sources(folder):
            if (folder / name).is_file():  # what is missing LaTeX will say, with the line
                write_whole(Path(place, in_build(name)), (folder / name).read_bytes())
        command = ["latexmk", "-norc", "-pdf", "-interaction=nonstopmode", "-halt-on-error"]
        status, said = run_tex([*command, "-file-line-error", "strata.tex"], Path(place))
        for suffix in ("log", "bbl", "pdf"):
            made = Path(place, f"strata.{suffix}")
            (out / made.name).unlink(missing_ok=True)
            if made.is_file():
                write_whole(out / made.name, made.read_bytes())
    log_path = out / "strata.log"
    log = log_path.read_text(errors="replace") if log_path.exists() else said
    if missing := re.search(r"File `([^']+\.(?:sty|cls|fd|tfm))' not found", log):
        print(_HINT.format(reason=f"LaTeX lacks {missing[1]}", folder=folder))
        return None
    reasons = log_errors(log)
    if not reasons and status != 0:
        reasons = said.splitlines()[-15:]
    if reasons:
        raise RuntimeError(f"the paper does not build (see {log_path}):\n" + "\n".join(reasons))
    return out / "strata.pdf"


def in_build(name: str) -> str:
    """A source, named from the article's folder, as it is named from that of a build."""
    return name.removeprefix("../")


def run_tex(command: list[str], folder: Path) -> tuple[int, str]:
    """Run one of TeX's programs in a folder; its exit status and what it printed."""
    finished = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "max_print_line": "1000"},  # unwrapped log lines, to be searched
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
    )
    return finished.returncode, finished.stdout


def log_errors(log: str) -> list[str]:
    """The lines of a LaTeX log that say what is wrong, each with the line of source it quotes."""
    lines = log.splitlines()
    errors, undefined = [], []
    for i, line in enumerate(lines):
        if re.match(r"!|[\w./-]+\.(?:tex|bbl|sty):\d+: ", line) and "==> Fatal" not in line:
            quoted = [near for near in lines[i + 1 : i + 8] if near.startswith("l.")]
            errors.append(" ".join([line, *quoted[:1]]))
        elif re.search(r"Warning: (?:Citation|Reference) .*undefined", line):
            undefined.append(line)
    # a build that an error stopped has not read its references yet
    return list(dict.fromkeys(errors or undefined))


def log_warnings(log: str) -> Iterator[tuple[Place, str]]:
    """Every warning of a log, and every box that sticks out by more than a point, with its place.

    TeX marks the files that it opens and closes by parentheses; the innermost open one is the file
    that a message is about. Boxes that are too empty are no fault of the source and are left out.
    """
    open_files = ["strata.tex"]
    quoting = False  # TeX quotes what is in a bad box, parentheses and all, up to an empty line
    lines = log.splitlines()
    for i, line in enumerate(lines):
        if not line:
            quoting = False
        box = re.match(r"(?:Over|Under)full \\[hv]box \((?:([\d.]+)pt too (\w+)|badness)", line)
        warning = re.match(r"(?:LaTeX(?: Font)?|Package [\w-]+|pdfTeX) [Ww]arning[:\s].*", line)
        if box or warning:
            quoting = True
            more = takewhile(lambda near: near.startswith("("), lines[i + 1 :])  # "(Font)   using"
            number = re.search(r"(?:at lines?|on input line) (\d+)", " ".join([line, *more]))
            place = Place(open_files[-1], int(number[1]) if number else 0)
            if warning:
                yield place, line.strip()
            elif box and box[1] and float(box[1]) > _OVERFULL:
                yield place, f"a box is {box[1]} pt too {box[2]}"
        elif not quoting:
            for mark in re.finditer(r"\(((?:\.{0,2}/)[^\s(){}]+)?|\)", line):
                if mark[0] == ")":
                    if len(open_files) > 1:
                        open_files.pop()
                else:
                    open_files.append((mark[1] or open_files[-1]).removeprefix("./"))
