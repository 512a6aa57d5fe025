"""Jobs at the far end: most of it called where it stands, some of it over a real sshd.

The code that a job runs is the real `strata/transfer/job.py` beside a stand-in for the trainer,
which counts steps slowly, and saves when it gets SIGTERM. SLURM's commands are stand-ins too, which
behave as those of SLURM 22.05 did, on which the same was tried by hand.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from strata import transfer
from strata.transfer import TransferError, control, watching
from strata.transfer.connection import LineCut
from strata.transfer.control import Status
from strata.transfer.far import environment, jobs, slurm
from strata.transfer.job import choose_processes
from strata.transfer.loopback import loopback, missing_tools
from strata.transfer.watching import watch

ROOT = Path(__file__).parents[1]

needs_sshd = pytest.mark.skipif(
    bool(missing_tools()), reason=f"needs a real sshd: install {', '.join(missing_tools())}"
)

TRAINER = """
import json, os, signal, sys, time, tomllib
from pathlib import Path

asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
run = Path(sys.argv[sys.argv.index("--run-dir") + 1])
training = tomllib.loads((run / "config.toml").read_text())["training"]
if training.get("fails"):
    print("strata: it cannot be done", file=sys.stderr)
    sys.exit(1)
steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")]
(run / "seen.json").write_text(json.dumps([os.environ["STRATA_CACHE"], sys.argv[1:]]))
for step in range(max(steps, default=0) + 1, training["max_steps"] + 1):
    time.sleep(training["seconds"])
    timing = {"seconds": training["seconds"], "tokens_per_second": 64.0, "memory_bytes": 2 * 10**9}
    line = json.dumps({"step": step, "loss": 10 / step, "timing": timing})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + chr(10))
    print(f"step {step}", flush=True)
    if asked:
        (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        print(f"strata: stopped after step {step}, saved", file=sys.stderr)
        sys.exit(143)
(run / "summary.json").write_text("{}")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A target folder as a push leaves it, of an awkward name, with the run `mine`."""
    folder = tmp_path / "the far 'side' é"
    code = folder / ".strata" / "code" / "1"
    (code / "strata" / "transfer").mkdir(parents=True)
    for package in ("strata", "strata/transfer"):
        (code / package / "__init__.py").touch()
    for module in ("storage.py", "transfer/job.py"):
        shutil.copy(ROOT / "strata" / module, code / "strata" / module)
    (code / "strata" / "cli.py").write_text(TRAINER)
    (code / "torch.py").write_text("class cuda:\n    device_count = staticmethod(lambda: 0)\n")
    (folder / "code").symlink_to(code.relative_to(folder))
    make_run(folder)
    monkeypatch.setattr(jobs, "FIRST_SECONDS", 0.0)
    yield folder
    for run_dir in (folder / "runs").iterdir():
        with contextlib.suppress(TransferError, ProcessLookupError):
            if pid := jobs.look(folder, run_dir.name)["pid"]:
                os.kill(pid, signal.SIGKILL)


def make_run(
    folder: Path,
    name: str = "mine",
    *,
    max_steps: int = 1000,
    seconds: float = 0.05,
    more: str = "",
) -> Path:
    run_dir = folder / "runs" / name
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.toml").write_text(
        f"[training]\nmax_steps = {max_steps}\nseconds = {seconds}\n{more}"
    )
    return run_dir


@pytest.fixture
def patient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a job that ends at once, however slow the machine is."""
    monkeypatch.setattr(jobs, "FIRST_SECONDS", 30.0)


def start(folder: Path, name: str = "mine", **options) -> dict:
    return jobs.start(folder, name, sys.executable, **options)


def wait_for(folder: Path, state: str, name: str = "mine") -> Status:
    """The status once a run is in a state, or has trained a step where that is "step"."""
    patience = time.monotonic() + 30
    while True:
        slurm.forget()
        found = Status(**jobs.look(folder, name))
        if found.state == state or (state == "step" and found.step):
            return found
        assert time.monotonic() < patience, f"not {state}: {found}"
        time.sleep(0.05)


# ---- a job of its own ----------------------------------------------------------------------------


def test_a_job_trains_says_how_far_it_is_and_finishes(folder: Path) -> None:
    run_dir = make_run(folder, max_steps=60)
    assert jobs.look(folder, "mine")["state"] == "ready"
    started = Status(**start(folder))
    assert started.running
    assert started.host
    seen = wait_for(folder, "step")
    assert (seen.max_steps, seen.tokens_per_second, seen.memory_bytes) == (60, 64.0, 2 * 10**9)
    assert seen.seconds_left == pytest.approx((60 - seen.step) * 0.05)
    assert re.fullmatch(
        r"mine: running \(process \d+ on \S+\), step \d+ of 60, loss \d+\.\d{4} nats, 64 tok/s, "
        r"2\.0 GB of memory, \d s left",
        str(seen),
    )
    assert wait_for(folder, "finished").step == 60
    cache, arguments = json.loads((run_dir / "seen.json").read_text())
    assert cache == str(folder / "cache")
    assert arguments[:3] == ["train", "--run-dir", str(run_dir)]
    assert arguments[3:] == ["--nproc", "1", "--restarts", "3"]
    assert json.loads((run_dir / "job-end.json").read_text())["status"] == 0


def test_a_stopped_job_has_saved_and_the_next_goes_on_from_there(folder: Path) -> None:
    start(folder)
    wait_for(folder, "step")
    assert jobs.stop(folder, "mine")["state"] in ("running", "stopped")
    stopped = wait_for(folder, "stopped")
    assert (stopped.exit_status, stopped.checkpoint) == (143, stopped.step)
    assert jobs.stop(folder, "mine")["state"] == "stopped"  # once more does no harm
    assert stopped.last_log_line == f"strata: stopped after step {stopped.step}, saved"
    assert "stopped" in str(stopped)
    make_run(folder, max_steps=stopped.step + 1)
    start(folder)
    assert wait_for(folder, "finished").step == stopped.step + 1


@pytest.mark.usefixtures("patient")
def test_a_job_that_fails_at_once_is_told_with_its_last_words(folder: Path) -> None:
    make_run(folder, more="fails = true\n")
    with pytest.raises(TransferError, match="ended at once there: strata: it cannot be done"):
        start(folder)
    failed = Status(**jobs.look(folder, "mine"))
    assert (failed.state, failed.exit_status) == ("failed", 1)
    assert str(failed).endswith("its log ends: strata: it cannot be done")


def test_a_job_that_was_killed_is_known_by_its_silence(folder: Path) -> None:
    pid = start(folder)["pid"]
    wait_for(folder, "step")
    os.kill(pid, signal.SIGKILL)
    killed = wait_for(folder, "killed")
    assert (killed.pid, killed.exit_status) == (None, None)
    assert start(folder)["state"] == "running"


def test_of_two_starts_at_once_one_wins_and_the_other_says_who(folder: Path) -> None:
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            outcomes.append(f"process {start(folder)['pid']}")
        except TransferError as refusal:
            outcomes.append(str(refusal))

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner, loser = sorted(outcomes, key=len)
    assert loser.startswith(f"a job is training mine there ({winner} on ")


def test_a_job_of_another_machine_is_not_signalled(folder: Path) -> None:
    start(folder)
    about = folder / "runs" / "mine" / "job.json"
    job = json.loads(about.read_text())
    about.write_text(json.dumps(job | {"host": "node7"}))
    with pytest.raises(TransferError, match=f"on node7.* there, kill -TERM {job['pid']}"):
        jobs.stop(folder, "mine")
    assert jobs.look(folder, "mine")["state"] == "running"


@pytest.mark.parametrize(
    ("batch", "micro", "n_gpus", "chosen"),
    [(64, 0, 8, 8), (64, 0, 6, 4), (64, 16, 8, 4), (64, 64, 8, 1), (7, 0, 4, 1), (8, 4, 0, 1)],
)
def test_as_many_gpus_train_as_divide_the_batch(
    batch: int, micro: int, n_gpus: int, chosen: int
) -> None:
    assert choose_processes(batch, micro, n_gpus) == chosen


@pytest.mark.usefixtures("patient")
def test_several_nodes_are_refused_with_the_way_that_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(TransferError, match=r"submit docs/slurm/train\.sbatch by hand"):
        start(folder)


@pytest.mark.usefixtures("patient")
def test_gpus_that_torch_cannot_use_are_no_reason_to_train_for_weeks_on_the_processor(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path / "bin" / "nvidia-smi", "echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (folder / "code" / "torch.py").open("a").write('__version__ = "2.13.0+cpu"\n')
    with pytest.raises(TransferError, match=r"torch 2\.13\.0\+cpu cannot use the GPUs"):
        start(folder)


# ---- what it says --------------------------------------------------------------------------------


def test_the_end_of_a_long_record_is_enough(folder: Path) -> None:
    path = folder / "runs" / "mine" / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 40_001):
            line: dict = {"step": step, "loss": 2.0, "padding": "x" * 2_000}
            if step == 39_900:
                line["validation_bits_per_byte"] = 1.25
            file.write(json.dumps(line | {"timing": {"seconds": 0.5}}) + "\n")
        file.write('{"step": 40001, "lo')  # half of a line
    began = time.perf_counter()
    seen = Status(**jobs.look(folder, "mine"))
    assert time.perf_counter() - began < 0.5
    assert (seen.step, seen.bits_per_byte, seen.problem) == (40_000, 1.25, "")
    assert seen.seconds_left == pytest.approx((1000 - 40_000) * 0.5)


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 8, 20, 1 << 20])
def test_lines_are_read_from_the_end_as_they_are_from_the_beginning(
    tmp_path: Path, n_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RECENT_BYTES", 7)
    for text in (b"", b"\n", b"one\n", b"one\ntwo", b"one\n\nthree is long\nfour\n", b"torn"):
        path = tmp_path / "lines"
        path.write_bytes(text)
        first = max(0, len(text) - n_bytes)
        whole = text[first:].split(b"\n")[:-1]
        if first:
            whole = whole[1:]  # what the first byte lies in began before it
        assert list(jobs.lines_from_the_end(path, n_bytes)) == whole[::-1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.toml", b"[training\n", "its config.toml is damaged"),
        ("config.toml", b"x = 1\n", "its config.toml is damaged"),
        ("metrics.jsonl", b'{"step": 7, "loss": 1.5}\n\0\0\0\0\n', "metrics.jsonl is damaged"),
        ("metrics.jsonl", b"[7]\n", "metrics.jsonl is damaged"),
        ("metrics.jsonl", b'{"step": "x", "loss": "y"}\n', "metrics.jsonl is damaged"),
        ("job.json", b"{", ""),
        ("job-end.json", b"[]", ""),
        ("job.log", b"\xff\xfe\n", ""),
    ],
)
def test_a_damaged_file_is_named_and_hides_nothing_else(
    folder: Path, name: str, content: bytes, said: str
) -> None:
    make_run(folder, "other")
    (folder / "runs" / "mine" / name).write_bytes(content)
    mine, other = (Status(**found) for found in jobs.list_runs(folder)["runs"])
    assert mine.problem.startswith(said)
    assert bool(mine.problem) == bool(said)
    assert said in str(mine)
    assert mine.step == (7 if b"7," in content else None)
    assert (mine.state, other.state, other.problem) == ("ready", "ready", "")


def test_a_log_is_read_from_where_one_was_and_its_bytes_are_kept(folder: Path) -> None:
    log = folder / "runs" / "mine" / "job.log"
    assert jobs.read_log(folder, "mine", -2) == {"text": "", "offset": 0}
    log.write_bytes("eins\nzwei\nfünf ".encode() + b"\xff\n")
    read = jobs.read_log(folder, "mine", -2)
    assert read["text"].encode("utf-8", "surrogateescape") == "zwei\nfünf ".encode() + b"\xff\n"
    log.open("ab").write(b"more")
    assert jobs.read_log(folder, "mine", read["offset"])["text"] == "more"
    log.write_bytes(b"new")
    assert jobs.read_log(folder, "mine", read["offset"]) == {"text": "new", "offset": 3}


# ---- a cluster's queue ---------------------------------------------------------------------------

# One file for all of SLURM's commands. The queue is a folder: a file for each job, with its state,
# and the processes of its script and of what srun started in it.
CLUSTER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

queue, command, words = Path(os.environ["QUEUE"]), Path(sys.argv[0]).name, sys.argv[1:]


def alive(pid):
    return pid and Path(f"/proc/{pid}/stat").exists() and ") Z " not in Path(
        f"/proc/{pid}/stat").read_text()


def jobs():
    for path in sorted(queue.glob("*.job")):
        job = json.loads(path.read_text())
        if job["state"] == "RUNNING" and not alive(job["pid"]):
            path.unlink()
        else:
            yield path, job


def launch(path, job):
    step = queue / f"{path.stem}.step"
    step.unlink(missing_ok=True)
    with open(os.path.join(job["cwd"], "job.log"), "a") as log:
        job["pid"] = subprocess.Popen(
            ["bash", job["script"]], cwd=job["cwd"], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
            env={**os.environ, "SLURM_JOB_ID": path.stem, "SLURM_JOB_NUM_NODES": "1"}).pid
    job["state"] = "RUNNING"
    path.write_text(json.dumps(job))


if command == "sbatch":
    if "--gpus=999" in words:
        sys.exit("sbatch: error: Batch job submission failed: Requested node configuration is "
                 "not available")
    (queue / "words").write_text(json.dumps(words))
    number = 8 + sum(1 for _ in queue.glob("*.job"))
    path = queue / f"{number}.job"
    job = {"state": "PENDING", "script": words[-1], "cwd": os.getcwd(), "pid": 0, "requeue": 1}
    path.write_text(json.dumps(job))
    if not (queue / "busy").exists():
        launch(path, job)
    print(f"{number};cluster")
elif command == "squeue":
    if (queue / "down").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
    assert f"--user={os.getuid()}" in words and "--format=%A|%T|%r|%N" in words, words
    for path, job in jobs():
        waits = job["state"] == "PENDING"
        print(f"{path.stem}|{job['state']}|{'Resources' if waits else 'None'}|"
              f"{'' if waits else 'node1'}")
elif command == "scancel":
    path = queue / f"{words[-1]}.job"
    job = json.loads(path.read_text())
    if words[0] == "--state=PENDING" and job["state"] == "PENDING":
        path.unlink()
    elif words[0] == "--signal=TERM":
        step = queue / f"{words[-1]}.step"
        if step.exists() and alive(int(step.read_text())):
            os.kill(int(step.read_text()), signal.SIGTERM)
elif command == "scontrol":
    if words[0] == "show":
        print("   PreemptTime=None")
        sys.exit()
    path = queue / f"{words[1].removeprefix('JobId=')}.job"
    job = json.loads(path.read_text())
    if words[0] == "update":
        job["requeue"] = int(words[2].removeprefix("Requeue="))
        path.write_text(json.dumps(job))
    elif not job["requeue"]:
        sys.exit("Requested operation is presently disabled for job " + words[1])
    else:  # as an administrator's queue would, without the two minutes
        path.write_text(json.dumps(job | {"state": "PENDING"}))
elif command == "srun":
    while words[0].startswith("-"):
        del words[0]
    (queue / f"{os.environ['SLURM_JOB_ID']}.step").write_text(str(os.getpid()))
    os.execv(words[0], words)
"""


def tool(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cluster's queue, with SLURM's commands on the PATH."""
    # a shell cannot trap what it was born to ignore, and `strata train` ignores this one
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    queue = tmp_path / "queue"
    queue.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "srun"):
        path = tmp_path / "slurm" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{CLUSTER}")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUE", str(queue))
    slurm.forget()
    return queue


def test_a_queued_job_waits_trains_and_finishes(folder: Path, queue: Path) -> None:
    make_run(folder, max_steps=40)
    (queue / "busy").touch()
    queued = Status(**start(folder, scheduler="slurm", sbatch=["--gpus=4"]))
    assert str(queued) == "mine: queued as job 8, Resources, no step of 40 yet"
    words = json.loads((queue / "words").read_text())
    assert words[-2:] == ["--gpus=4", str(folder / "runs" / "mine" / "job.sbatch")]
    assert words.index("--nodes=1") < words.index("--gpus=4")  # so the target's word is the last
    with pytest.raises(TransferError, match=r"job 8 of its queue, PENDING"):
        start(folder, scheduler="slurm")
    (queue / "8.job").unlink()
    (queue / "busy").unlink()
    slurm.forget()
    start(folder, scheduler="slurm", setup="export FROM_SETUP='a b'")
    running = wait_for(folder, "step")
    assert (running.state, running.host, running.pid) == ("running", "node1", None)
    assert "running (job " in str(running)
    assert "'a b'" in (folder / "runs" / "mine" / "job.sbatch").read_text()
    assert wait_for(folder, "finished").step == 40


def test_a_job_in_the_queue_is_cancelled_and_a_running_one_saves_and_stays_ended(
    folder: Path, queue: Path
) -> None:
    (queue / "busy").touch()
    start(folder, scheduler="slurm")
    assert jobs.stop(folder, "mine")["state"] == "stopped"
    assert not list(queue.glob("*.job"))
    (queue / "busy").unlink()
    start(folder, scheduler="slurm")
    wait_for(folder, "step")
    jobs.stop(folder, "mine")
    stopped = wait_for(folder, "stopped")
    assert stopped.checkpoint == stopped.step
    assert not list(queue.glob("*.job"))


def test_before_its_time_is_up_a_job_saves_and_queues_itself_again(
    folder: Path, queue: Path
) -> None:
    start(folder, scheduler="slurm")
    wait_for(folder, "step")
    (path,) = queue.glob("*.job")
    os.kill(json.loads(path.read_text())["pid"], signal.SIGUSR1)  # what --signal=B:USR1 sends
    waiting = wait_for(folder, "queued")
    assert waiting.checkpoint
    assert json.loads((folder / "runs/mine/job-end.json").read_text())["status"] == 143


def test_a_queue_that_does_not_answer_counts_as_one_in_which_the_job_is(
    folder: Path, queue: Path
) -> None:
    (queue / "busy").touch()
    start(folder, scheduler="slurm")
    (queue / "down").touch()
    slurm.forget()
    seen = Status(**jobs.look(folder, "mine"))
    assert seen.running
    assert "Unable to contact slurm controller" in str(seen)
    with pytest.raises(TransferError, match=r"a job is training mine there \(job 8"):
        start(folder, scheduler="slurm")


def test_what_sbatch_refuses_is_told_and_leaves_no_job(folder: Path, queue: Path) -> None:
    with pytest.raises(TransferError, match=r"sbatch there says: .*configuration is not available"):
        start(folder, scheduler="slurm", sbatch=["--gpus=999"])
    assert jobs.look(folder, "mine")["state"] == "ready"


def test_a_machine_without_slurm_is_told_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm.forget()
    with pytest.raises(TransferError, match="sbatch is not found there: name a login node"):
        start(folder, scheduler="slurm")


# ---- the environment -----------------------------------------------------------------------------

INSTALLER = """
import sys, time
from pathlib import Path
log = Path("installed.txt")
log.open("a").write(" ".join(sys.argv[1:]) + chr(10))
if Path("hold").exists():
    time.sleep(30)
if Path("fail").exists():
    print("Collecting torch")
    print("ERROR: No space left on device")
    sys.exit("make: pip could not install the packages; its message stands above")
bin = Path(sys.argv[1]) / "bin"
bin.mkdir(parents=True, exist_ok=True)
(bin / "python").unlink(missing_ok=True)
(bin / "python").symlink_to(sys.executable)
"""


@pytest.fixture
def installs(folder: Path) -> Callable[[], int]:
    """Puts a stand-in for the installation there; says how often it has run."""
    code = folder / "code"
    (code / "tools").mkdir()
    (code / "tools" / "make_environment.py").write_text(INSTALLER)
    (code / "constraints.txt").write_text("numpy==2.4\n")
    (code / "pyproject.toml").write_text('[project]\ndependencies = ["numpy>=2.0"]\n')
    log = code / "installed.txt"
    return lambda: len(log.read_text().splitlines()) if log.exists() else 0


def prepare(folder: Path) -> str:
    return environment.prepare(folder, sys.executable, "venv")["python"]


def test_an_environment_is_made_once_and_again_when_the_lock_changes(
    folder: Path, installs: Callable[[], int]
) -> None:
    python = folder / "venv" / "bin" / "python"
    assert prepare(folder) == prepare(folder) == str(python)
    assert installs() == 1
    assert (folder / "code" / "installed.txt").read_text() == f"{folder / 'venv'} --dependencies\n"
    kept = folder / "venv" / "kept"
    kept.touch()
    (folder / "code" / "constraints.txt").write_text("numpy==2.5\n")
    prepare(folder)
    assert (installs(), kept.exists()) == (2, True)
    python.unlink()  # as when the Python that it was made with is taken away
    prepare(folder)
    assert (installs(), kept.exists()) == (3, False)


def test_an_installation_that_fails_or_is_cut_is_made_anew_by_the_next(
    folder: Path, installs: Callable[[], int]
) -> None:
    fail = folder / "code" / "fail"
    fail.touch()
    with pytest.raises(TransferError, match=r"made there: ERROR: No space left on device \(all"):
        prepare(folder)
    fail.unlink()
    (folder / "venv" / "half").mkdir(parents=True)
    prepare(folder)
    assert not (folder / "venv" / "half").exists()
    assert installs() == 2


def test_an_installation_goes_on_alone_when_who_started_it_is_killed(
    folder: Path, installs: Callable[[], int]
) -> None:
    (folder / "code" / "hold").touch()
    command = (
        "from strata.transfer.far.environment import prepare; from pathlib import Path; "
        f"prepare(Path({str(folder)!r}), {sys.executable!r}, 'venv')"
    )
    caller = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT)
    while not installs():
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    lock = folder / ".strata" / "environment.lock"
    held = subprocess.run(["flock", "--nonblock", lock, "true"])
    assert held.returncode, "two installations could write one environment"
    holders = subprocess.check_output(["pgrep", "-f", str(folder / "venv")], text=True).split()
    for pid in holders:
        os.kill(int(pid), signal.SIGKILL)
    (folder / "code" / "hold").unlink()
    prepare(folder)
    assert installs() == 2


def test_an_environment_does_not_change_under_a_job(
    folder: Path, installs: Callable[[], int]
) -> None:
    jobs.start(folder, "mine", prepare(folder))
    (folder / "code" / "constraints.txt").write_text("numpy==2.5\n")
    with pytest.raises(TransferError, match=r"brought up to date, and mine trains with it"):
        prepare(folder)
    assert installs() == 1


def test_a_present_python_is_held_against_the_projects_dependencies(folder: Path) -> None:
    code = folder / "code"
    asked = environment.prepare(folder, sys.executable, "present")
    assert asked == {"python": sys.executable}
    (code / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=999.1", "no-such-thing>=1", "pytest>=7.0", '
        '"fsspec[http]>=2024.10", "huggingface_hub>=0.30"]\n'
    )
    with pytest.raises(TransferError) as raised:
        environment.prepare(folder, sys.executable, "present")
    assert "lacks no-such-thing and has numpy 2." in str(raised.value)
    assert ", which has to be 999.1 or later: install that" in str(raised.value)
    assert "\n" not in str(raised.value)
    shutil.copy(ROOT / "pyproject.toml", code)
    environment.prepare(folder, sys.executable, "present")


@pytest.mark.parametrize(
    ("version", "oldest", "enough"),
    [
        ("2.11.0", "2.11", True),
        ("2.11", "2.11.0", True),
        ("2.9.1", "2.11", False),
        ("2.11.0a0+145a3a7", "2.11", True),
        ("2.13.0+cu126", "2.11", True),
        ("2024.9.0", "2024.10", False),
        ("1.0", "0", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, oldest: str, enough: bool) -> None:
    assert (environment.release(version) >= environment.release(oldest)) == enough


# ---- watched ------------------------------------------------------------------------------------


def test_whoever_watches_sees_a_bar_and_then_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watching, "is_live", lambda: True)
    seen = Status(**jobs.look(folder, "mine"))
    at_step = replace(
        seen, state="running", step=250, loss=2.5, tokens_per_second=1e4, memory_bytes=4 * 10**10,
        seconds_left=600.0,
    )  # fmt: skip
    shown = watching._Shown("mine")
    shown.show(replace(seen, state="queued", reason="Resources"))
    shown.show(at_step)
    shown.show(replace(at_step, state="finished", step=1000))
    said = capsys.readouterr().err
    assert re.search(r"mine: +0%.* 0/1000 *, queued, Resources", said)
    drawn = re.search(r"mine: +25%.* 250/1000 *, loss 2\.5000 nats, (.*?)left", said)
    assert drawn
    assert drawn[1] == "10,000 tok/s, 40.0 GB of memory, 10 min "
    assert re.split(r"[\r\n]", said.strip())[-1].startswith("mine: finished, step 1,000 of 1,000")


# ---- over ssh ------------------------------------------------------------------------------------


@pytest.fixture
def target(folder: Path, tmp_path: Path) -> Iterator[transfer.Target]:
    with loopback(tmp_path / "ssh", str(folder)) as target:
        yield replace(target, environment="present")


@needs_sshd
def test_a_run_is_started_stopped_and_listed_from_home(
    folder: Path, target: transfer.Target
) -> None:
    make_run(folder, "other")
    assert control.run("runs/mine", target).running
    wait_for(folder, "step")
    with pytest.raises(TransferError, match=r"a job is training mine there \(process \d+ on"):
        control.run("runs/mine", target)
    stopped = control.stop("runs/mine", target)
    assert (stopped.state, stopped.checkpoint) == ("stopped", stopped.step)
    assert stopped == control.status("runs/mine", target)
    assert [found.state for found in control.list_runs(target)] == ["stopped", "ready"]
    assert list(control.logs("runs/mine", target, lines=1)) == [
        f"strata: stopped after step {stopped.step}, saved"
    ]


@needs_sshd
def test_a_growing_log_is_followed_to_its_end(folder: Path, target: transfer.Target) -> None:
    make_run(folder, max_steps=50)
    start(folder)
    followed = list(control.logs("runs/mine", target, lines=100, follow=True))
    assert followed == [f"step {step}" for step in range(1, 51)]


def cut_once(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Kill ssh when a step has been seen; gives the pauses that are made, none of which is long."""
    pauses: list[float] = []
    connections: list[control.Connection] = []
    ask = control.Connection.ask

    def cut(self: control.Connection, operation: str, **arguments: object) -> dict:
        if self not in connections:
            connections.append(self)
            if len(connections) in (2, 3, 4):
                raise LineCut("far: the line was cut: start again")
        reply = ask(self, operation, **arguments)
        if reply["step"] and len(connections) == 1:
            self._ssh.kill()
        return reply

    def pause(seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        if threading.current_thread() is threading.main_thread():
            pauses.append(seconds)
            seconds = 0.05
        sleep(seconds)

    monkeypatch.setattr(watching, "PAUSE", 0.5)
    monkeypatch.setattr(control.Connection, "ask", cut)
    monkeypatch.setattr(control.time, "sleep", pause)
    return pauses


@needs_sshd
def test_watching_survives_a_line_that_is_cut_and_says_so_once(
    folder: Path,
    target: transfer.Target,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_run(folder, max_steps=60)
    start(folder)
    with monkeypatch.context() as patch:
        pauses = cut_once(patch)
        finished = watch("runs/mine", target)
    assert (finished.state, finished.step) == ("finished", 60)
    assert [pause for pause in pauses if pause != 0.5] == [1.0, 2.0, 4.0, 8.0]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("mine: running")
    assert re.search("the line was cut.*; trying until it answers", said[1])
    assert said[2] == "loopback: the line is back"
    assert said[3:] == [str(finished)]


@needs_sshd
def test_a_job_that_died_ends_the_watching_with_what_to_do(
    folder: Path, target: transfer.Target
) -> None:
    run_dir = make_run(folder)
    pid = start(folder)["pid"]
    wait_for(folder, "step")
    (run_dir / "checkpoints" / "step-00000001").mkdir(parents=True)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TransferError) as raised:
        watch("runs/mine", target)
    said = str(raised.value)
    assert said.startswith("mine: killed, step ")
    words = shlex.join(["runs/mine", f"loopback:{folder}"])
    assert f"`strata transfer logs {words}` shows more" in said
    assert said.endswith("goes on from step 1")
    assert "\n" not in said


@needs_sshd
def test_a_machine_that_never_answered_is_not_waited_for(target: transfer.Target) -> None:
    with pytest.raises(LineCut):
        watch("runs/mine", replace(target, host="127.0.0.1", port=1))
