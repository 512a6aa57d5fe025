"""Transfers over a real sshd on loopback, with keys, known hosts and configuration of their own."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from far_runs import (
    FAR_NAME,
    TRAINER,
    add_step,
    make_run,
    pull,
    push,
    run,
    snapshot,
    status,
    wait_until,
)

from strata.config import Config
from strata.training import Trainer, read_metrics
from strata.transfer import TransferError, receiving, rules
from strata.transfer.far import folder as far_folder


def test_a_run_is_pushed_trained_there_and_pulled_home(
    far: str, source: Path, tmp_path: Path
) -> None:
    home = make_run(tmp_path / "runs" / '-my $run\'s "né"', steps=2)
    there = tmp_path / FAR_NAME

    pushed = push(home, far)
    assert pushed.place.endswith(f"/runs/{home.name}")
    assert (there / "code" / "strata" / "cli.py").read_text() == TRAINER
    assert {p.name for p in (there / "runs" / home.name / "checkpoints").iterdir()} == {
        "step-00000002"
    }

    run(home, far)
    wait_until(lambda: status(home, far).finished)
    seen = status(home, far)
    assert not seen.running
    assert seen.step == seen.max_steps == 6
    cache, arguments, _ = json.loads((there / "runs" / home.name / "seen.json").read_text())
    assert cache == str(there / "cache")
    run_there = str(there / "runs" / home.name)
    assert arguments == ["train", "--run-dir", run_there, "--nproc", "1", "--restarts", "3"]

    pulled = pull(home, far)
    assert len(pulled.sizes) > 5
    assert [line["step"] for line in rules.read_history(home)] == [1, 2, 3, 4, 5, 6]
    assert (home / "model.safetensors").read_bytes() == b"weights after 6"
    assert (
        rules.newest_good_checkpoint(home, rules.Sums()) == home / "checkpoints" / "step-00000006"
    )
    assert not (home / ".pull").exists()
    assert not list((there / ".strata").glob("pu*"))


def test_a_push_takes_neither_secrets_nor_ignored_files_nor_other_runs(
    far: str, source: Path, tmp_path: Path
) -> None:
    for name in (".env", "deploy.pem", "keys/id_ed25519", "ignored/big.bin", "new.py"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    make_run(source / "elsewhere" / "other", steps=1)
    home = make_run(source / "mine", steps=1)
    (home / "notes.txt").write_text("mine alone")
    left_out = push(home, far).left_out
    sent = set(snapshot(tmp_path / FAR_NAME / "code"))
    ours = set(subprocess.check_output(["git", "-C", source, "ls-files"], text=True).split())
    assert sent == {*ours, "new.py"}
    assert set(left_out) == {".env", "deploy.pem", "keys/id_ed25519"}
    assert not (tmp_path / FAR_NAME / "runs" / "mine" / "notes.txt").exists()


def test_a_push_takes_the_token_shards_of_the_run_and_no_others(
    far: str, source: Path, tmp_path: Path
) -> None:
    for corpus in ("aa", "cc"):
        shards = tmp_path / "cache" / "shards" / f"{corpus}-bb-train"
        shards.mkdir(parents=True)
        (shards / "shard-00000.bin").write_bytes(b"tokens")
        origin = {"corpus_identity": corpus, "tokenizer_identity": "bb"}
        manifest = {**origin, "shards": [{"name": "shard-00000.bin"}]}
        (shards / "manifest.json").write_text(json.dumps(manifest))
    push(make_run(tmp_path / "runs" / "mine"), far)
    assert set(snapshot(tmp_path / FAR_NAME / "cache")) == {
        "shards/aa-bb-train/manifest.json",
        "shards/aa-bb-train/shard-00000.bin",
    }


def test_a_second_push_replaces_the_code_as_a_whole_and_mends_a_flipped_far_file(
    far: str, source: Path, tmp_path: Path
) -> None:
    home, there = make_run(tmp_path / "runs" / "mine"), tmp_path / FAR_NAME
    push(home, far)
    first = (there / "code").resolve()
    flipped = there / "code" / "torch.py"
    stamp = flipped.stat()
    flipped.write_text(flipped.read_text().replace("0", "9"))
    os.utime(flipped, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a bad disk would leave it
    (source / "strata" / "cli.py").unlink()
    (source / "strata" / "other.py").write_text("new = True\n")
    push(home, far)
    assert (there / "code" / "torch.py").read_text() == (source / "torch.py").read_text()
    assert not (there / "code" / "strata" / "cli.py").exists()
    assert (there / "code" / "strata" / "other.py").exists()
    assert not first.exists()


def test_one_job_trains_a_run_and_no_push_disturbs_it(
    far: str, source: Path, tmp_path: Path
) -> None:
    home = make_run(tmp_path / "runs" / "mine", max_steps=500, seconds=0.1)
    push(home, far)
    started = run(home, far)
    try:
        assert started.running
        with pytest.raises(TransferError, match="a job is training mine there"):
            run(home, far)
        with pytest.raises(TransferError, match="a job is training mine there"):
            push(home, far)
        code = (tmp_path / FAR_NAME / "code").resolve()
        (source / "new.py").touch()
        push(make_run(tmp_path / "runs" / "another"), far)  # new code; the job keeps its own
        assert code.exists()
        assert (tmp_path / FAR_NAME / "code").resolve() != code
        pull(home, far)  # while it runs
        assert rules.newest_good_checkpoint(home, rules.Sums()) is not None
    finally:
        assert started.pid is not None
        os.kill(started.pid, signal.SIGKILL)
    wait_until(lambda: not status(home, far).running)
    assert not status(home, far).finished


def test_a_push_cut_while_switching_is_finished_by_the_next_question(
    far: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, there = make_run(tmp_path / "runs" / "mine", steps=1), tmp_path / FAR_NAME
    push(home, far)
    staged = there / ".strata" / "push-cut"
    add_step(shutil.copytree(there / "runs" / "mine", staged / "tree" / "run"), 2)
    shutil.copytree(there / "code", staged / "tree" / "code")
    (staged / "tree" / "code" / "arrived.py").touch()
    (staged / "VERIFIED").write_text(json.dumps({"run": "mine", "code": "later"}))
    with monkeypatch.context() as patch:  # the power fails between two renames
        calls: list[Path] = []

        def fail_on_the_third(source: Path, destination: Path, place: Callable = rules.place):
            calls.append(source)
            if len(calls) == 3:
                raise KeyboardInterrupt
            place(source, destination)

        for module in (rules, far_folder):
            patch.setattr(module, "place", fail_on_the_third)
        with pytest.raises(KeyboardInterrupt), far_folder.locked(there):
            pass
    assert not (there / "code" / "arrived.py").exists()
    pull(home, far)
    assert (there / "code" / "arrived.py").exists()
    assert not staged.exists()
    assert (
        rules.newest_good_checkpoint(home, rules.Sums()) == home / "checkpoints" / "step-00000002"
    )


def test_pulling_twice_changes_nothing(far: str, source: Path, tmp_path: Path) -> None:
    home = make_run(tmp_path / "runs" / "mine", steps=1)
    push(home, far)
    add_step(tmp_path / FAR_NAME / "runs" / "mine", 2)
    pull(home, far)
    before = snapshot(home)
    pull(home, far)
    assert snapshot(home) == before


def test_a_real_run_continued_there_is_bit_for_bit_the_run_that_stayed_at_home(
    far: str, tiny_config: Config, tmp_path: Path
) -> None:
    stayed, went = tmp_path / "stayed", tmp_path / "runs" / "went"
    Trainer(tiny_config, stayed, progress=False).fit()
    for step in Trainer(tiny_config, went, progress=False):
        if step.step == 4:  # one more than the last checkpoint
            break
    corpus = Path(tiny_config.data.corpus.removeprefix("files:")).parent
    hidden = corpus.rename(corpus.with_name("hidden"))  # the far machine has the shards alone
    try:
        push(went, far)
        run(went, far)
        wait_until(lambda: not status(went, far).running)
    finally:
        hidden.rename(corpus)
    pull(went, far)
    ours, theirs = read_metrics(stayed), read_metrics(went)
    assert rules.without_clock(ours) == rules.without_clock(theirs)
    assert (stayed / "model.safetensors").read_bytes() == (went / "model.safetensors").read_bytes()
    assert Trainer(tiny_config, went, progress=False).finished


def test_a_folder_that_is_no_run_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.toml"):
        push(tmp_path, "host:folder")


def test_a_run_that_is_behind_gives_its_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    home, staged = make_run(tmp_path / "home", steps=3), make_run(tmp_path / "far", steps=2)
    (home / "model.safetensors").write_bytes(b"newer")
    (staged / "model.safetensors").write_bytes(b"older")
    record = (home / "metrics.jsonl").read_bytes()
    shutil.rmtree(home / "checkpoints" / "step-00000001")
    (home / "checkpoints" / "step-00000002" / "state.json").write_text("torn")
    rules.choose(staged, home, rules.Sums(), replace_inputs=False)
    rules.place(staged, home)
    assert (home / "model.safetensors").read_bytes() == b"newer"
    assert (home / "metrics.jsonl").read_bytes() == record
    assert all(rules.is_good(path, rules.Sums()) for path in (home / "checkpoints").iterdir())
    assert len(list((home / "checkpoints").iterdir())) == 3


def test_steps_after_the_last_checkpoint_are_provisional(tmp_path: Path) -> None:
    home, staged = make_run(tmp_path / "home", steps=2), make_run(tmp_path / "far", steps=2)
    shutil.rmtree(add_step(home, 3, loss=1.0))
    add_step(staged, 3, loss=2.0)
    rules.choose(staged, home, rules.Sums(), replace_inputs=False)
    rules.place(staged, home)
    assert rules.read_history(home)[-1]["loss"] == 2.0


def test_runs_that_went_different_ways_are_not_mixed(tmp_path: Path) -> None:
    home, staged = make_run(tmp_path / "home", steps=2), make_run(tmp_path / "far", steps=2)
    add_step(home, 3, loss=1.0)
    add_step(staged, 3, loss=2.0)
    add_step(staged, 4)
    before = snapshot(home)
    with pytest.raises(TransferError, match="went on at both ends"):
        rules.choose(staged, home, rules.Sums(), replace_inputs=False)
    (staged / "config.toml").write_text("[training]\nmax_steps = 9\n")
    staged_again = make_run(tmp_path / "again", steps=3, max_steps=9)
    with pytest.raises(TransferError, match=r"different config\.toml"):
        rules.choose(
            staged_again, make_run(tmp_path / "third", steps=3), rules.Sums(), replace_inputs=True
        )
    assert snapshot(home) == before


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../out",
        "checkpoints/../../out",
        "checkpoints//step-2/state.json",
        "checkpoints/./step-2/state.json",
        "checkpoints",
        "writer.lock",
        ".pull/x",
        "",
    ],
)
def test_no_name_from_the_far_end_leads_out_of_the_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(TransferError, match="outside the run"):
        receiving.check({name: ["0" * 64, 1, False, 0, False]}, rules.is_of_run)


def test_a_link_is_never_taken_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    sums = rules.Sums()
    entry = receiving.describe({"file": tmp_path / "file"}, sums)["file"]
    assert receiving.is_whole(tmp_path / "file", entry, sums)
    assert not receiving.is_whole(tmp_path / "link", entry, sums)
