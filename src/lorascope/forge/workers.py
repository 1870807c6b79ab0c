"""Cohorts forged one after the other, or by several processes at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from lorascope.errors import ForgeError
from lorascope.forge.cohort import Job, forge_cohort
from lorascope.forge.recipe import Row


def results_of(jobs: list[Job], workers: int) -> Iterator[list[Row]]:
    """The rows of each cohort as it is finished."""
    if workers == 1 or len(jobs) <= 1:
        yield from map(forge_cohort, jobs)
        return
    executor = ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        for future in as_completed([executor.submit(forge_cohort, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise ForgeError(
            "a worker process was killed", hint="was memory short? run the same command with fewer --workers"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which lets cohorts that have begun come to their end; die when it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
