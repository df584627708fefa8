"""Work for several processes: jobs with a progress bar, and a clean start for worker processes of any kind."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from atlas.system.process_control.cores import available_cores
from atlas.system.process_control.interpreter import safe_workers
from atlas.system.progress import progress_bar

_not_started: list[Exception] = []  # in a worker process: the error its start raised


@contextmanager
def worker_start() -> Iterator[None]:
    """Start worker processes inside this block.

    They use one thread each for linear algebra and rendering (set through the environment, since libraries read it
    when they are loaded), and do not run the caller's script: multiprocessing would import it again in each of them,
    so a script that trains at its top level would start itself again.
    """
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
    before = {name: os.environ.get(name) for name in threads}
    script = sys.modules["__main__"].__dict__
    hidden: dict[str, object] = {name: script.pop(name) for name in ("__file__", "__spec__") if name in script}
    script["__spec__"] = None
    os.environ.update({name: before[name] or value for name, value in threads.items()})
    try:
        with safe_workers():
            yield
    finally:
        script.update(hidden)
        for name, value in before.items():
            if value is None:
                del os.environ[name]


def run_jobs(
    title: str,
    total: int,
    jobs: Sequence[Any],
    work: Callable[[Any], object],
    start: Callable[..., None],
    start_with: tuple[Any, ...],
    workers: int | None = None,
    may_stay: bool = False,
    on_done: Callable[[Any], object] = lambda result: None,
) -> None:
    """Do the jobs that are left of `total` in separate processes, in any order, with a progress bar.

    start: called in each process with `start_with` before its first job. workers: None means one per core. may_stay:
    do the jobs in this process if one worker would do them all. on_done: is told here what each job gives. An error in
    `start` or a job ends all, and is raised.
    """
    workers = min(workers or available_cores(), max(1, len(jobs)))
    with progress_bar(title, total=total, done=total - len(jobs)) as advance:
        if workers == 1 and may_stay:
            start(*start_with)
            for job in jobs:
                on_done(work(job))
                advance(1)
            return
        context = multiprocessing.get_context("spawn")
        with worker_start(), ProcessPoolExecutor(workers, context, _begin, (start, start_with)) as pool:
            futures = [pool.submit(_do, work, job) for job in jobs]
            try:
                for future in as_completed(futures):
                    on_done(future.result())
                    advance(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _begin(start: Callable[..., None], start_with: tuple[Any, ...]) -> None:
    """The start of a worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        start(*start_with)
    except Exception as error:  # raised here it would be lost: the executor only says that the process is gone
        _not_started.append(error)


def _do(work: Callable[[Any], object], job: Any) -> object:
    if _not_started:
        raise _not_started[0]
    return work(job)


def _end_with_parent() -> None:
    """End this process when its parent has ended: a parent that is killed cannot tell its workers, which would wait."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
