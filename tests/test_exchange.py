"""What a push and a pull carry, what they leave as it is, and what cuts do to them: nothing."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from far_runs import FAR_NAME, add_step, make_run, pull, push, snapshot
from small_disks import small_disk

from strata.config import Config
from strata.training import Trainer
from strata.training.lock import OneWriter
from strata.transfer import TransferError, exchange, receiving, rules
from strata.transfer.connection import Connection, LineCut
from strata.transfer.loopback import Loopback

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import transfer_drill


def test_a_second_push_of_the_same_carries_nothing_and_keeps_the_code(
    far: str, source: Path, tmp_path: Path
) -> None:
    home = make_run(tmp_path / "mine", steps=1)
    first = push(home, far)
    assert first.carried == first.sizes
    code = (tmp_path / FAR_NAME / "code").resolve()
    (code / "strata" / "__pycache__").mkdir()  # as running it leaves it
    before = snapshot(tmp_path / FAR_NAME)
    second = push(home, far)
    assert second.sizes == first.sizes
    assert second.carried == {}
    assert (tmp_path / FAR_NAME / "code").resolve() == code
    assert snapshot(tmp_path / FAR_NAME) == before


def test_a_third_push_carries_what_changed_and_no_more(
    far: str, source: Path, tmp_path: Path
) -> None:
    home = make_run(tmp_path / "mine", steps=1)
    push(home, far)
    (source / "new.py").write_text("new = 1\n")
    add_step(home, 2)
    carried = push(home, far).carried
    assert set(carried) == {
        "code/new.py",
        "run/metrics.jsonl",
        "run/checkpoints/step-00000002/state.json",
        "run/checkpoints/step-00000002/manifest.json",
    }


def test_files_keep_their_rights_their_time_and_one_content_under_two_names(
    far: str, source: Path, tmp_path: Path
) -> None:
    for name, mode in (("tool.sh", 0o755), ("copy.sh", 0o644)):
        (source / name).write_text("#!/bin/sh\n")
        (source / name).chmod(mode)
        os.utime(source / name, ns=(10**18, 10**18 + mode))
    push(make_run(tmp_path / "mine"), far)
    code = tmp_path / FAR_NAME / "code"
    assert os.access(code / "tool.sh", os.X_OK)
    assert not (code / "copy.sh").stat().st_mode & 0o111
    assert (code / "tool.sh").read_text() == (code / "copy.sh").read_text()
    assert (code / "tool.sh").stat().st_mtime_ns == 10**18 + 0o755


def test_a_dry_run_says_what_would_go_and_makes_nothing(
    far: str, source: Path, tmp_path: Path
) -> None:
    home, there = make_run(tmp_path / "mine", steps=1), tmp_path / FAR_NAME
    would = push(home, far, dry_run=True)
    assert not there.exists()
    assert would.carried == push(home, far).sizes
    add_step(there / "runs" / "mine", 2)
    before = snapshot(tmp_path)
    coming = pull(home, far, dry_run=True)
    assert set(coming.carried) >= {"metrics.jsonl", "checkpoints/step-00000002/state.json"}
    assert "config.toml" not in coming.carried
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("asked", "steps"), [("newest", {4}), ("all", {2, 3, 4}), ("none", set()), ((2, 3), {2, 3})]
)
def test_the_checkpoints_that_are_asked_for_come_home(
    far: str, source: Path, tmp_path: Path, asked: str | tuple[int, ...], steps: set[int]
) -> None:
    home, there = make_run(tmp_path / "mine"), tmp_path / FAR_NAME / "runs" / "mine"
    push(home, far)
    for step in (1, 2, 3, 4):
        checkpoint = add_step(there, step)
        if step == 1:
            (checkpoint / "state.json").write_text("torn")
    pull(home, far, checkpoints=asked)
    assert set(rules.steps_of(home)) == steps
    assert rules.read_history(home)[-1]["step"] == 4


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(
    far: str, source: Path, tmp_path: Path
) -> None:
    home = make_run(tmp_path / "mine", steps=1)
    push(home, far)
    with pytest.raises(TransferError, match=r"no checkpoint of step 7 .* there are: 1"):
        pull(home, far, checkpoints=(7,))
    with pytest.raises(ValueError, match="expected newest, all, none"):
        pull(home, far, checkpoints="best")


def test_what_was_drawn_at_home_since_is_not_replaced(
    far: str, source: Path, tmp_path: Path
) -> None:
    home, there = make_run(tmp_path / "mine", steps=1), tmp_path / FAR_NAME / "runs" / "mine"
    push(home, far)
    for name in ("values.json", "figures/loss.pdf"):
        for run_dir, age in ((home, 10), (there, 1000)):
            (run_dir / name).parent.mkdir(exist_ok=True)
            (run_dir / name).write_text(str(run_dir))
            os.utime(run_dir / name, (time.time() - age,) * 2)
    (there / "figures" / "other.pdf").touch()
    pull(home, far)
    assert (home / "values.json").read_text() == str(home)
    assert (home / "figures" / "loss.pdf").read_text() == str(home)
    assert (home / "figures" / "other.pdf").exists()


def test_secrets_stay_whether_git_knows_them_or_not(far: str, source: Path, tmp_path: Path) -> None:
    (source / "strata" / "server.pem").touch()
    subprocess.run(["git", "-C", source, "add", "."], check=True)
    (source / ".env").touch()
    pushed = push(make_run(tmp_path / "mine"), far)
    assert set(pushed.left_out) == {"strata/server.pem", ".env"}
    assert not {"code/strata/server.pem", "code/.env"} & pushed.sizes.keys()


def test_a_run_without_text_is_begun_at_home_and_trained_there(
    far: str, source: Path, tiny_config: Config, tmp_path: Path
) -> None:
    home = tmp_path / "begun"
    tiny_config.save(home / "config.toml")
    pushed = push(home, far)
    there = tmp_path / FAR_NAME
    assert {"corpus", "tokenizer"} == json.loads((home / "provenance.json").read_text()).keys()
    assert any(name.startswith("cache/shards/") for name in pushed.sizes)
    trainer = Trainer(tiny_config, there / "runs" / "begun", progress=False)
    assert trainer.finished is False
    pull(home, far)
    assert "code" in json.loads((home / "provenance.json").read_text())


def test_a_folder_that_is_no_run_is_begun_with_a_preset_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.toml; name a preset"):
        exchange.push(tmp_path / "none", "host:folder")
    with pytest.raises(ValueError, match="preset"):
        exchange.push(tmp_path / "none", "host:folder", preset="nanno")
    assert not (tmp_path / "none").exists()


def test_a_line_that_is_cut_is_taken_up_again(
    far: str,
    source: Path,
    machine: Loopback,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(exchange, "PAUSES", (0.1, 0.1))
    send, calls = exchange.send, []

    def cut_twice(*arguments: object, **options: object) -> None:
        calls.append(options["arrived"])
        if len(calls) < 3:
            machine.cut()
        send(*arguments, **options)

    monkeypatch.setattr(exchange, "send", cut_twice)
    home = make_run(tmp_path / "mine", steps=1)
    push(home, far)
    assert (tmp_path / FAR_NAME / "runs" / "mine" / "metrics.jsonl").exists()
    assert capsys.readouterr().err.count("trying again") == 2


def test_a_line_that_never_held_is_not_tried_for_minutes(
    source: Path, tmp_path: Path, machine: Loopback
) -> None:
    machine.stop()
    try:
        with pytest.raises(LineCut):
            exchange.push(make_run(tmp_path / "mine"), machine.target(str(tmp_path / "far")))
    finally:
        machine.restart()


def test_of_two_transfers_of_a_run_at_once_one_is_told_of_the_other(
    far: str, source: Path, tmp_path: Path
) -> None:
    home = make_run(tmp_path / "mine", steps=1)
    script = (
        "import sys; from pathlib import Path; from strata.training.lock import OneWriter\n"
        "with OneWriter(Path(sys.argv[1])): print(1, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline()
        with pytest.raises(BlockingIOError, match=f"in use by process {other.pid}"):
            push(home, far)
    finally:
        other.communicate()


def test_pushes_of_two_runs_at_once_both_arrive_whole(
    far: str, source: Path, tmp_path: Path
) -> None:
    homes = [make_run(tmp_path / name, steps=3) for name in ("one", "two", "three")]
    failed: list[Exception] = []

    def try_push(home: Path) -> None:
        try:
            push(home, far)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=try_push, args=[home]) for home in homes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    there = tmp_path / FAR_NAME
    for home in homes:
        assert rules.newest_good_checkpoint(there / "runs" / home.name, rules.Sums())
    assert (there / "code" / "strata" / "cli.py").exists()
    assert len(list((there / ".strata" / "code").iterdir())) == 1


def test_what_arrives_changed_twice_is_refused_and_the_far_side_stays(
    far: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_run(tmp_path / "mine", steps=1)
    push(home, far)
    before = snapshot(tmp_path / FAR_NAME / "runs")
    add_step(home, 2)
    describe: Callable = receiving.describe

    def describe_then_write(files: dict[str, Path], sums: rules.Sums) -> receiving.Manifest:
        manifest = describe(files, sums)
        with (home / "metrics.jsonl").open("a") as file:
            file.write("\n")
        return manifest

    monkeypatch.setattr(exchange, "describe", describe_then_write)
    with pytest.raises(TransferError, match=r"metrics\.jsonl arrived changed twice"):
        push(home, far)
    assert snapshot(tmp_path / FAR_NAME / "runs") == before


def test_what_lies_in_the_folder_of_arrivals_and_is_not_whole_is_carried_again(
    far: str, source: Path, tmp_path: Path
) -> None:
    home, there = make_run(tmp_path / "mine", steps=1), tmp_path / FAR_NAME
    push(home, far)
    checkpoint = add_step(home, 2)
    incoming = there / ".strata" / f"push-{exchange._key(home)}" / "incoming"
    incoming.mkdir(parents=True)
    entry = receiving.describe({"x": checkpoint / "state.json"}, rules.Sums())["x"]
    (incoming / entry.sum).write_bytes(b"9" * entry.size)  # as long as it should be
    (incoming / "leftover").touch()
    push(home, far)
    assert rules.is_good(there / "runs" / "mine" / "checkpoints" / checkpoint.name, rules.Sums())
    assert not incoming.exists()


@pytest.mark.parametrize(
    "entry",
    [
        ["../out", 1, False, 0, False],
        ["0" * 63, 1, False, 0, False],
        ["0" * 64, "1", False, 0, False],
        ["0" * 64, -5, False, 0, False],
        ["0" * 64, 1, False, "no", False],
        ["0" * 64, 1, False, 10**40, False],
        ["0" * 64, 1],
        None,
    ],
)
def test_a_manifest_that_says_no_sum_or_no_size_is_refused(entry: object) -> None:
    with pytest.raises(TransferError, match="no SHA-256"):
        receiving.check({"samples.txt": entry}, rules.is_of_run)


def test_the_far_end_hears_nothing_of_a_name_that_leads_out_of_its_folder(
    far: str, machine: Loopback, tmp_path: Path
) -> None:
    with Connection(machine.target(str(tmp_path / "there"))) as connection:
        for name in ("../other", "a/b", "", ".", "-x/../y"):
            with pytest.raises(TransferError, match="is no name of a run"):
                connection.ask("look", name=name)


def test_a_file_that_is_written_to_shares_its_bytes_with_no_other(
    far: str, source: Path, tmp_path: Path
) -> None:
    home, there = make_run(tmp_path / "mine"), tmp_path / FAR_NAME
    for name in ("metrics.jsonl", "samples.txt"):
        (home / name).touch()  # as empty as __init__.py
    push(home, far)
    for path in there.rglob("*"):
        assert not path.is_file() or path.stat().st_nlink == 1, path
    add_step(there / "runs" / "mine", 1)
    (there / "runs" / "mine" / "figures").mkdir()
    (there / "runs" / "mine" / "figures" / "empty").touch()
    pull(home, far)
    assert (home / "metrics.jsonl").stat().st_nlink == 1
    assert (home / "figures" / "empty").stat().st_nlink == 1


def test_two_names_that_are_one_are_refused_and_nothing_is_written_over(tmp_path: Path) -> None:
    live, sums = tmp_path / "live", rules.Sums()
    live.write_text("good")
    entry = receiving.describe({"x": live}, sums)["x"]
    tree = tmp_path / "tree"
    names = {"checkpoints/step-1/a": entry, "checkpoints//step-1/a": entry}
    with pytest.raises(TransferError, match="two names are one"):
        receiving.assemble(names, tmp_path / "incoming", lambda name: live, tree, sums)
    assert live.read_text() == "good"


def test_a_torn_checkpoint_does_not_come_home_even_when_asked_for(
    far: str, source: Path, tmp_path: Path
) -> None:
    home, there = make_run(tmp_path / "mine"), tmp_path / FAR_NAME / "runs" / "mine"
    push(home, far)
    for step in (1, 2):
        (add_step(there, step) / "state.json").write_text("torn")
    with pytest.raises(TransferError, match="step-00000002 of mine is damaged there"):
        pull(home, far, checkpoints=(2,))
    pull(home, far, checkpoints="all")
    assert not rules.steps_of(home)


def test_runs_of_other_text_are_not_mixed(tmp_path: Path) -> None:
    home, staged = make_run(tmp_path / "home", steps=1), make_run(tmp_path / "far", steps=2)
    (staged / "provenance.json").write_text('{"corpus": "other", "tokenizer": "bb"}')
    with pytest.raises(TransferError, match=r"different provenance\.json"):
        rules.choose(staged, home, rules.Sums(), replace_inputs=False)


def test_a_finished_run_keeps_its_weights_from_one_that_is_as_far_and_not_finished(
    tmp_path: Path,
) -> None:
    home, staged = make_run(tmp_path / "home", steps=2), make_run(tmp_path / "far", steps=2)
    for name in ("model.safetensors", "summary.json", "samples.txt"):
        (home / name).write_text("ours")
    for name in ("model.safetensors", "samples.txt"):
        (staged / name).write_text("theirs")
        os.utime(staged / name, (1, 1))
    rules.choose(staged, home, rules.Sums(), replace_inputs=False)
    rules.place(staged, home)
    assert (home / "model.safetensors").read_text() == "ours"
    assert (home / "samples.txt").read_text() == "ours"


def test_a_run_whose_folder_links_to_another_disk_is_filled_there(
    far: str, source: Path, tmp_path: Path
) -> None:
    home, there = make_run(tmp_path / "mine", steps=2), tmp_path / FAR_NAME
    with small_disk(tmp_path / "scratch", "4m") as scratch:
        there.mkdir()
        (scratch / "runs").mkdir()
        (there / "runs").symlink_to(scratch / "runs")
        push(home, far)
        add_step(there / "runs" / "mine", 3)
        push(home, far)
        (scratch / "checkpoints").mkdir()
        away = make_run(tmp_path / "away" / "mine")
        (away / "checkpoints").symlink_to(scratch / "checkpoints")
        pull(away, far)
        assert set(rules.steps_of(away)) == {3}
        assert rules.read_history(away)[-1]["step"] == 3


def test_a_push_does_not_slip_in_under_whoever_trains_by_hand(
    far: str, source: Path, tmp_path: Path
) -> None:
    home, there = make_run(tmp_path / "mine", steps=1), tmp_path / FAR_NAME
    push(home, far)
    push(make_run(tmp_path / "other", steps=1), far)
    code = (there / "code").resolve()
    with OneWriter(there / "runs" / "mine"):
        with pytest.raises(TransferError, match="a job is training mine there"):
            push(home, far)
        (source / "new.py").touch()
        push(tmp_path / "other", far)
        assert code.exists()  # it may be what trains
    (source / "newer.py").touch()
    push(home, far)
    assert not code.exists()


def test_nothing_is_lost_or_half_after_twenty_cuts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    found = transfer_drill.drill(tmp_path / "drill", 20, seed=time.time_ns() % 1000)
    assert found.problems == []
    assert sum(found.cuts.values()) >= 20
    assert len(found.cuts) >= 3


@pytest.mark.parametrize("name", ["there/file", "there", ""])
def test_what_holds_other_things_is_not_made_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="but other things"):
        exchange.push(name, "host:folder", preset="nano")
    assert snapshot(tmp_path) == {"there/file": b""}
