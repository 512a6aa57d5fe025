"""Tests of scripts/english.py: the English corpus from repositories of one file each.

The repositories are made here, and git is led to them by its own url.<base>.insteadOf, as a user
would lead it to a mirror; nothing leaves the machine.
"""

import gzip
import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

english = importlib.import_module("english")
fetching = importlib.import_module("english_corpus.fetching")
documents = importlib.import_module("english_corpus.documents")
list_of_works = importlib.import_module("english_corpus.works")

PROSE = (
    "It is said of the {0} that they came down to the water in the evening, and that those who had "
    "seen them from the hill were never again as they had been before the summer of that year. "
)
# No 13 words of it stand anywhere else.
RARE = (
    "The keeper of the lighthouse counted nine ships, two of them under foreign flags, and wrote "
    "their names into a ledger that nobody but his daughter had ever opened."
)


def prose(subject: str, paragraphs: int) -> list[str]:
    """Paragraphs of English, no two alike."""
    return [PROSE.format(f"{subject} of house {number}") * 2 for number in range(paragraphs)]


def article() -> str:
    lead, body, notes = prose("herons", 3)
    return (
        f"For other uses, see Heron (disambiguation).\n\nKingdom\nAnimalia\n\n{lead}[1][citation "
        f"needed]\n\nContents\n\n\n1 Life\n2 See also\n\n\n\nLife[edit]\n{body * 3}[2]\n"
        f"A heron at a lake\n\nSee also[edit]\n{notes}\n"
    )


def book() -> str:
    chapters = (
        f"## Chapter {number}\n\n" + "\n\n".join(prose(f"_people_ in chapter {number}", 40))
        for number in range(3)
    )
    heading = "# Title: The Hill\n\n## Author: A. Writer\n\n## Year: 1901\n\n-------\n\n"
    return heading + "\n\n".join([*chapters, RARE])


def proposal() -> str:
    first, second = prose("``parsers``", 2)
    return (
        f"PEP: 9999\nTitle: On Parsers\n\nAbstract\n========\n\n{first * 2}\n\nAs here::\n\n"
        f"    def parse(): ...\n\n{second * 2}\n\nCopyright\n=========\n\nPublic domain.\n"
    )


def module() -> str:
    first, second = prose("cells", 2)
    return (
        '<document xmlns="http://cnx.rice.edu/cnxml"><title>Cells</title><metadata>gone</metadata>'
        f'<content><para id="a">{first * 2} (<link target-id="f"/>)<sup>2</sup></para>'
        '<figure id="f"><caption>gone</caption></figure><section><title>Exercises</title>'
        f"<exercise><problem><para>gone</para></problem></exercise></section><para>{second * 2}"
        '<math xmlns="http://www.w3.org/1998/Math/MathML"><mi>a</mi><mo>=</mo><mfrac><mi>b</mi>'
        "<mi>c</mi></mfrac></math></para></content><glossary><definition><term>cell</term>"
        "<meaning>a small room</meaning></definition></glossary></document>"
    )


WORKS = {
    "wikipedia": ("wiki/Heron", article()),
    "classic-books": ("book/A. Writer/The Hill.md", book()),
    "python-peps": ("pep/peps/pep-9999.rst", proposal()),
    "openstax/astronomy": (
        "openstax/openstax+osbooks-astronomy/modules/m1/index.cnxml",
        module(),
    ),
}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of repositories in GitHub's place, the list of their works, and git led there."""
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f'[url "{(tmp_path / "hub").as_uri()}/"]\n\tinsteadOf = https://github.com/\n'
        "[uploadpack]\n\tallowFilter = true\n\tallowAnySHA1InWant = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    sources, lines = [], ["source\twork\tblob\tsplit\tdocuments\tbytes"]
    for source in english.SOURCES:
        if source.name not in WORKS:
            continue
        name, text = WORKS[source.name]
        folder = tmp_path / "hub" / f"{source.repository}.git"
        path = folder / list_of_works.path_of(name)
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        (folder / "picture.bin").write_bytes(os.urandom(50_000))
        git(folder, "init", "--quiet")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message", "one")
        sources.append(source._replace(commit=git(folder, "rev-parse", "HEAD")))
        blob = git(folder, "hash-object", str(path))[:16]
        lines.append(f"{source.name}\t{name}\t{blob}\ttrain\t1\t{len(text)}")
    write_list(tmp_path / "list.tsv.gz", lines)
    monkeypatch.setattr(english, "SOURCES", sources)
    monkeypatch.setattr(english, "works", lambda: list_of_works.works(tmp_path / "list.tsv.gz"))
    return tmp_path


def write_list(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))


def run(world: Path, *options: str) -> int:
    return english.main([str(world / "out"), "--cache", str(world / "cache"), *options])


def texts(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            assert list(row) == ["text", "source", "license"]
            found.setdefault(row["source"], []).append(row["text"])
    return found


def test_one_file_of_each_kind_becomes_clean_text(world: Path) -> None:
    assert run(world) == 0
    found = texts(world / "out")
    lead, body, _ = prose("herons", 3)
    assert found["wikipedia"] == [f"Heron\n\n{lead.strip()}\n\nLife\n\n{(body * 3).strip()}"]
    first, second = (p.replace("``", "").strip() for p in prose("``parsers``", 2))
    assert found["python-peps"] == [
        f"On Parsers\n\nAbstract\n\n{first} {first}\n\n{second} {second}"
    ]
    first, second = (p.strip() for p in prose("cells", 2))
    assert found["openstax/astronomy"] == [
        f"Cells\n\n{first} {first}^2\n\n{second} {second} a = b/c\n\ncell: a small room"
    ]
    records = sorted(found["classic-books"], key=lambda text: not text.startswith("The Hill"))
    assert records[0].startswith("The Hill\nby A. Writer\n\nChapter 0\n\nIt is said of the people")
    assert "_" not in "".join(records)
    assert "".join(records).count("Chapter ") == 3
    assert all(len(record) >= 24_000 for record in records)


def test_a_second_run_needs_no_repository_and_gives_the_same_bytes(world: Path) -> None:
    assert run(world) == 0
    before = {path.name: path.read_bytes() for path in (world / "out").iterdir()}
    (world / "hub").rename(world / "gone")
    assert run(world) == 0
    assert {path.name: path.read_bytes() for path in (world / "out").iterdir()} == before


def test_files_that_are_not_wanted_are_not_fetched(world: Path) -> None:
    assert run(world, "--only", "python-peps") == 0
    assert sum(path.stat().st_size for path in (world / "cache").rglob("*.pack")) < 20_000


def test_attribution_names_sources_commits_licences_and_works(world: Path) -> None:
    assert run(world) == 0
    written = (world / "out" / "ATTRIBUTION.txt").read_text()
    for source in english.SOURCES:
        assert source.repository in written
        assert source.commit in written
        assert source.license in written
    assert "Heron\n" in written


def test_a_copy_contains_itself(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(world, "--check", str(world / "out")) == 0
    row = next(line for line in capsys.readouterr().out.splitlines()[-6:] if "classic" in line)
    assert row.split()[-3:] == ["1.0000", "1.0000", "1.000"]


def test_paragraphs_of_an_evaluation_set_are_dropped(world: Path) -> None:
    assert run(world, "--only", "classic-books") == 0
    assert RARE in "".join(texts(world / "out")["classic-books"])
    (world / "evaluation").mkdir()
    line = f'{{"ctx": "{RARE.upper()[10:110]}"}}'
    (world / "evaluation" / "task.jsonl").write_text(line)
    options = ["--only", "classic-books", "--eval-dir", str(world / "evaluation")]
    assert run(world, *options) == 0
    left = "".join(texts(world / "out")["classic-books"])
    assert RARE not in left
    assert "people in chapter 1 of house 7" in left


def test_a_file_that_differs_from_the_list_is_refused(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = gzip.decompress((world / "list.tsv.gz").read_bytes()).decode().splitlines()
    write_list(world / "list.tsv.gz", [lines[0], *(replace_blob(line) for line in lines[1:])])
    assert run(world) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the list says 0000000000000000…" in said
    assert not (world / "out").exists()


def replace_blob(line: str) -> str:
    fields = line.split("\t")
    return "\t".join([*fields[:2], "0" * 16, *fields[3:]])


def test_a_work_that_is_missing_is_named(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = gzip.decompress((world / "list.tsv.gz").read_bytes()).decode()
    write_list(world / "list.tsv.gz", lines.replace("wiki/Heron", "wiki/Stork").splitlines())
    assert run(world, "--only", "wikipedia") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "has no file 'data/Stork.txt'" in said


def test_without_a_network_one_line_says_so(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "hub").rename(world / "gone")
    assert run(world) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be fetched" in said
    assert "goes on from there" in said


def test_without_git_one_line_says_so(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert run(world) == 1
    assert capsys.readouterr().err == (
        "english.py: git is not installed, or not on the PATH; install it\n"
    )


def test_whole_works_of_the_list_lie_on_the_side_that_their_name_says() -> None:
    listed = [work for works in list_of_works.works().values() for work in works]
    assert len(listed) == 6479
    assert sum(work.documents for work in listed) == 8488
    for work in listed:
        digest = hashlib.sha256(("holdout:" + work.name).encode()).hexdigest()
        assert (int(digest[:8], 16) % 1000 < 5) == (work.split == "validation")
    assert sum(work.documents for work in listed if work.split == "validation") == 43


def test_repeats_and_addresses_go_and_what_is_not_english_goes() -> None:
    keep = documents.Filter()
    whole = [*prose("owls", 3), *prose("owls", 1), "See https://example.org/owls for more of it."]
    assert keep.document(whole, addresses=False) == "\n\n".join(prose("owls", 3))
    assert keep.document(prose("owls", 3), addresses=False) is None
    assert keep.document(["кот сидит на окне и смотрит на снег " * 40], addresses=False) is None
    assert keep.document(["Short."], addresses=False) is None


def test_the_help_says_how_a_run_uses_the_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        english.main(["--help"])
    assert ended.value.code == 0
    assert "train-*.parquet held-out files:OUTPUT/validation.parquet" in capsys.readouterr().out
