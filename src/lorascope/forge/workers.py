"""Cohorts forged one after the other, or by several processes at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lorascope.errors import ForgeError
from lorascope.forge.cohort import Job, forge_cohort
from lorascope.forge.recipe import Row


def results_of(jobs: list[Job], workers: int, process: int = 0) -> Iterator[list[Row]]:
    """The rows of each cohort as it is finished; ``process`` numbers this process among the launched of its machine."""
    if workers == 1 or len(jobs) <= 1:
        for job in jobs:
            yield forge_cohort(job, process)
        return
    context = multiprocessing.get_context("spawn")
    stopped = context.Event()
    executor = ProcessPoolExecutor(
        min(workers, len(jobs)),
        context,
        initializer=_start_worker,
        initargs=(context.Value("i", process * workers), stopped),
    )
    try:
        for future in as_completed([executor.submit(_forged, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise ForgeError(
            "a worker process was killed", hint="was memory short? run the same command with fewer --workers"
        ) from error
    except Exception:
        raise  # the others come to the end of what they are at
    except BaseException:
        stopped.set()  # asked to stop: half a cohort is nothing, and is made again
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_number = 0  # of this worker


def _forged(job: Job) -> list[Row]:
    return forge_cohort(job, _number)


def _start_worker(started: Any, stopped: Any) -> None:
    """Take a number; leave Ctrl-C to the parent; die when it says so, and when it dies."""
    global _number
    with started.get_lock():
        _number = started.value
        started.value += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()

    def stop() -> None:
        stopped.wait()
        os._exit(1)

    threading.Thread(target=stop, daemon=True).start()
