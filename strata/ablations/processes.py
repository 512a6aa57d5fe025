"""Jobs side by side, each in a process of its own: what sweeps and searches are spread by."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(
    take: Callable[[], Job | None], do: Callable[[Job], Outcome], workers: int
) -> Iterator[tuple[Job, Outcome | None]]:
    """Jobs and what came of them, as they end, `workers` at a time.

    Each worker is a pool of one process: if it dies, killed for its memory perhaps, it takes one
    job with it and is replaced. Processes are fresh ones, since a forked one would inherit locks
    of PyTorch's threads. Where there are several GPUs, each worker sees one. A single worker is
    this process.

    Args:
        take: gives the next job, None where there is none. Called whenever a worker is idle, and
            again after each outcome, which may have brought new jobs.
        do: what is done with a job; to be found by its name in a fresh process. What it raises
            ends everything.
        workers: processes at a time.

    Yields:
        a job with its outcome; the outcome is None where its process died.
    """
    if workers == 1:
        while (job := take()) is not None:
            yield job, do(job)
        return
    gpus = _gpus()

    def new_pool(worker: int) -> ProcessPoolExecutor:
        gpu = gpus[worker % len(gpus)] if gpus else None
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, initializer=_begin, initargs=(gpu,))

    pools = [new_pool(worker) for worker in range(workers)]
    busy: dict[Future[Outcome], tuple[int, Job]] = {}
    idle = list(range(workers))
    try:
        while True:
            while idle and (job := take()) is not None:
                worker = idle.pop()
                busy[pools[worker].submit(do, job)] = worker, job
            if not busy:
                return
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                worker, job = busy.pop(future)
                idle.append(worker)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    pools[worker].shutdown(wait=False)
                    pools[worker] = new_pool(worker)
                    yield job, None
                else:
                    yield job, outcome
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


def _gpus() -> list[str]:
    """Names of the GPUs of this machine, as CUDA_VISIBLE_DEVICES takes them, if several."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = chosen.split(",") if chosen else [str(n) for n in range(torch.cuda.device_count())]
    return names if len(names) > 1 else []


def _begin(gpu: str | None) -> None:
    """In a worker: see one GPU, and end when the parent is gone, even if it was killed."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA reads it at its first use, later than this
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch(sentinel: int) -> None:
            multiprocessing.connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
