"""The article as arXiv takes it: sources alone, in one archive, which pdfLaTeX turns into the PDF.

    strata.tex strata.sty strata.bbl numbers.tex provenance.tex provenance.json
    tables/…   those that the text takes in          figures/…   those that it shows, as PDF

`strata.tex` finds its figures beside itself here, and beside its folder in the repository. There
is no BibTeX at arXiv, so the finished bibliography goes along and the `.bib` stays. The same files
give the same bytes: members are sorted and bear neither dates nor owners.
"""

import gzip
import io
import re
import shutil
import tarfile
import tempfile
from pathlib import Path

from strata.paper.article import sources
from strata.paper.building import in_build, log_errors, log_warnings, run_tex
from strata.paper.checking import stale
from strata.storage import write_whole

ARCHIVE = "strata-arxiv.tar.gz"
_LARGEST = 50_000_000  # bytes; arXiv asks authors to justify more


def bundle(root: str | Path) -> tuple[Path, bool]:
    """Write `root/build/strata-arxiv.tar.gz` and build the article from it in an empty folder.

    Returns the archive's path, and whether the PDF built from it has the bytes of `strata.pdf`.

    Raises:
        ValueError: when the PDF is older than its sources, or arXiv would not take the archive.
        FileNotFoundError: when pdfLaTeX is not installed; the archive is written nevertheless.
        RuntimeError: when the archive does not build, with the lines of the log that say why.
    """
    root = Path(root)
    folder = root / "paper"
    opening = (folder / "strata.tex").read_text(encoding="utf-8").splitlines()[:5]
    if not any(line.startswith(r"\pdfoutput=1") for line in opening):
        raise ValueError(f"{folder / 'strata.tex'} must say \\pdfoutput=1 in its first five lines")
    if outdated := list(stale(folder)):
        raise ValueError("\n".join(map(str, outdated)))
    files = [name for name in sources(folder) if not name.endswith(".bib")] + ["strata.bbl"]
    content = _archive({in_build(name): folder / name for name in files})
    if len(content) > _LARGEST:
        raise ValueError(f"the archive has {len(content):,} bytes; arXiv takes {_LARGEST:,}")
    archive = write_whole(root / "build" / ARCHIVE, content)
    return archive, _build(archive) == (folder / "strata.pdf").read_bytes()


def _archive(members: dict[str, Path]) -> bytes:
    """The files as a compressed archive, by their names in it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, path in sorted(members.items()):
            if not re.fullmatch(r"[A-Za-z0-9_+.,=/-]+", name):
                raise ValueError(
                    f"arXiv takes no file of the name {name!r}: letters, digits, _+-.,="
                )
            content = path.read_bytes()
            member = tarfile.TarInfo(name)  # mode 644, and no date or owner
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), compresslevel=9, mtime=0)


def _build(archive: Path) -> bytes:
    """The PDF that pdfLaTeX alone makes of an archive where nothing else lies.

    It runs twice, and as arXiv does once or twice more where the log asks for that: citations are
    read in the second run, and where they move a page break, page numbers settle in the third.
    """
    if shutil.which("pdflatex") is None:
        raise FileNotFoundError(f"pdflatex is not installed: {archive} is written, but not tried")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "article"
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error"]
        log_path = folder / "strata.log"
        for turn in range(4):
            status, said = run_tex([*command, "strata.tex"], folder)
            log = log_path.read_text(errors="replace") if log_path.exists() else said
            if turn > 0 and "Rerun to get" not in log:
                break
        reasons = log_errors(log) + [message for _, message in log_warnings(log)]
        if status != 0 or reasons:
            lines = reasons or said.splitlines()[-15:]
            raise RuntimeError(f"{archive} does not build by itself:\n" + "\n".join(lines))
        return (folder / "strata.pdf").read_bytes()
