"""The commands of a transfer, against a real sshd: what they print, and how they end."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from far_runs import make_run

from strata import cli, transfer
from strata.transfer.loopback import Loopback

Captured = pytest.CaptureFixture[str]


def strata(*arguments: str | Path) -> int:
    return cli.main(["transfer", *map(str, arguments)])


@pytest.fixture
def there(machine: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the target that targets.toml calls `box`."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "config" / "strata" / "targets.toml"
    path.parent.mkdir(parents=True)
    path.write_text(
        f"""
        [box]
        host = "loopback"
        folder = '{tmp_path / "there"}'
        ssh_config = '{machine.ssh_config}'
        python = '{sys.executable}'
        environment = "present"
        """
    )
    return tmp_path / "there"


def test_a_run_goes_there_and_comes_home(
    there: Path, source: Path, tmp_path: Path, capsys: Captured
) -> None:
    home = make_run(tmp_path / "runs" / "mine", steps=2)
    (source / ".env").write_text("PASSWORD=x")

    assert strata("push", home, "box", "--dry-run") == 0
    said = capsys.readouterr()
    title, header, *rows = said.out.splitlines()
    assert title.startswith("would carry ")
    assert header.split() == ["file", "bytes"]
    assert {row.split()[0] for row in rows} >= {"code/strata/cli.py", "run/config.toml"}
    assert "left out, it looks like a secret: .env" in said.err
    assert not there.exists()

    for carried in (f"carried {len(rows)} of ", "carried 0 of "):
        assert strata("push", home, "box") == 0
        assert capsys.readouterr().out.startswith(carried)
    assert strata("list", "box") == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["mine", "2/6"]

    assert strata("run", home, "box") == 0
    assert strata("status", home, "box", "--follow") == 0
    capsys.readouterr()
    assert strata("status", home, "box") == 0
    assert capsys.readouterr().out.startswith("mine: finished, step 6 of 6")
    assert strata("stop", home, "box") == 0
    assert strata("list", "box") == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:2] + row[-1:] == ["mine", "6/6", "finished"]

    assert strata("pull", home, "box", "--dry-run") == 0
    assert "checkpoints/step-00000006/state.json" in capsys.readouterr().out
    assert not (home / "summary.json").exists()
    assert strata("pull", home, "box", "--checkpoints", "none") == 0
    assert (home / "summary.json").exists()
    assert strata("pull", home, "box", "--checkpoints", "3", "4") == 0
    steps = sorted(path.name[-1] for path in (home / "checkpoints").iterdir())
    assert steps == ["1", "2", "3", "4"]


def test_a_job_that_fails_is_told_with_its_last_words(
    there: Path, source: Path, tmp_path: Path, capsys: Captured
) -> None:
    home = make_run(tmp_path / "runs" / "mine")
    (source / "strata" / "cli.py").write_text(
        "import time\ntime.sleep(3)\nprint('é, no luck')\nraise SystemExit(1)\n"
    )
    assert strata("push", home, "box") == 0
    assert strata("run", home, "box") == 0
    assert "running" in capsys.readouterr().out
    assert strata("status", home, "box", "--follow") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("strata: mine: failed with status 1")
    assert "é, no luck" in last
    assert strata("status", home, "box") == 0
    assert "failed with status 1" in capsys.readouterr().out
    assert strata("logs", home, "box", "--lines", "1") == 0
    assert capsys.readouterr().out == "é, no luck\n"


def test_to_stop_listening_is_not_to_stop_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def interrupted(*_arguments: object, **_options: object) -> Iterator[str]:
        yield "step 1"
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "logs", interrupted)
    assert strata("logs", "runs/mine", "box", "--follow") == 130
    said = capsys.readouterr()
    assert said.out == "step 1\n"
    assert said.err == "strata: stopped listening; the job of mine goes on\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("pull runs/mine box --checkpoints newst", "expected newest, all, none, or steps"),
        ("pull runs/mine box --checkpoints all 3", "expected newest, all, none, or steps"),
        ("logs runs/mine box --lines 0", "expected 1 or more"),
        ("list bax", "did you mean 'box'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_asked(
    there: Path, arguments: str, told: str, capsys: Captured
) -> None:
    assert strata(*arguments.split()) == 1
    assert told in capsys.readouterr().err
