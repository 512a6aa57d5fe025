"""Jobs in processes of their own: each done once, and one that dies takes nothing with it."""

import os
import signal

import pytest

from strata.ablations import processes
from strata.ablations.processes import side_by_side


def do(job: str) -> str:
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{job} in {os.getpid()}, GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}"


def test_a_process_that_dies_loses_its_job_alone_and_the_job_can_be_given_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine with two GPUs, which the two workers share out."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    waiting = ["one", "die", "two"]
    outcomes: dict[str, str | None] = {}
    for job, outcome in side_by_side(lambda: waiting.pop(0) if waiting else None, do, 2):
        if outcome is None:  # now that nothing is waiting any more
            waiting.append("again")
        outcomes[job] = outcome
    assert outcomes.pop("die") is None
    assert set(outcomes) == {"one", "two", "again"}
    for job, outcome in outcomes.items():
        assert outcome is not None
        assert outcome.startswith(f"{job} in ")
        assert outcome.endswith(("GPU 5", "GPU 7"))
        assert f"in {os.getpid()}," not in outcome


def test_a_single_worker_is_this_process() -> None:
    waiting = ["one", "two"]
    outcomes = list(side_by_side(lambda: waiting.pop(0) if waiting else None, do, 1))
    assert [job for job, _ in outcomes] == ["one", "two"]
    assert all(f"in {os.getpid()}," in str(outcome) for _, outcome in outcomes)


def test_a_single_gpu_is_left_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert processes._gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 3)
    assert processes._gpus() == ["0", "1", "2"]
