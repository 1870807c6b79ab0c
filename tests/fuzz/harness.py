"""Mutants against the reader, in worker processes: what is allowed to happen, and what is a failure.

Allowed: an adapter that can be summarised, or one ``AdapterError`` or ``MissingExtraError`` with a readable message. A
failure is everything else: another exception, a warning of this package, a crash, a pickle's code that ran, more than
``MAX_SECONDS`` of processor time, more memory than the file, one widened site and ``MAX_MEMORY``.

    PYTHONPATH=tests python -m fuzz.harness --seed 0 --index 1234        # one mutant again, with its traceback
    PYTHONPATH=tests python -m fuzz.harness --seed 0 --count 20000       # many
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_SECONDS = 5.0
MAX_MEMORY = 200 << 20
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the workers: threads that wait for one another count as work
HANG = 30.0  # seconds of wall time after which a worker is ended
_ADDRESS_SPACE = 6 << 30  # beyond what a worker has at its start: a hog ends itself and not the machine
_BATCH = 50
_MEASURED = 6  # sites of which every measure is taken; the summary has looked at all of them


@dataclass(frozen=True)
class Result:
    """What one mutant did.

    Args:
        index: its number in the run.
        sample, format, mutations: as in ``Mutant``.
        outcome: ``read``, ``refused`` or ``missing``, which are allowed; else the sort of failure.
        detail: the error's sentence, or what went wrong.
        seconds: processor time of reading it.
        memory: bytes by which the peak of the process rose.
    """

    index: int
    sample: str
    format: str
    mutations: tuple[str, ...]
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    memory: int = 0

    @property
    def is_failure(self) -> bool:
        return self.outcome not in ("read", "refused", "missing")


@dataclass
class Tally:
    """The results of a run, added up."""

    seed: int
    count: int = 0
    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    messages: set[str] = field(default_factory=set)
    failures: list[Result] = field(default_factory=list)
    max_seconds: float = 0.0
    max_memory: int = 0

    def add(self, result: Result) -> None:
        self.count += 1
        self.outcomes[result.format, result.mutations[-1] if result.mutations else "", result.outcome] += 1
        if result.outcome == "refused":
            self.messages.add(result.detail)
        self.max_seconds, self.max_memory = max(self.max_seconds, result.seconds), max(self.max_memory, result.memory)
        if result.is_failure:
            self.failures.append(result)

    def replays(self) -> list[str]:
        """One line a failure: what went wrong, and the command that does it again."""
        return [
            f"{one.outcome}: {one.sample} {'+'.join(one.mutations)}: {one.detail}\n"
            f"    PYTHONPATH=tests python -m fuzz.harness --seed {self.seed} --index {one.index}"
            for one in self.failures
        ]


Target = Callable[[Path], int]
"""Reads what is in a folder's file and gives the bytes that one widened site of it may take."""


def examine(path: Path) -> int:
    """Read, measure and describe an adapter; the bytes of its largest widened site."""
    from lorascope import formats
    from lorascope.errors import AdapterError
    from lorascope.formats.headers import read_headers
    from lorascope.report import summarise

    adapter = formats.read(path)
    repr(adapter)
    json.dumps(summarise(adapter), allow_nan=False)
    largest = 0
    for place, update in enumerate(adapter.values()):
        largest = max(largest, _widened_bytes(update))
        if place < _MEASURED:
            _measure(update, AdapterError)
    headers = read_headers(path)
    for site, update in adapter.items():
        if (headers[site].base_shape, headers[site].scale, headers[site].kind) != (
            update.base_shape,
            update.scale,
            update.kind,
        ):
            raise RuntimeError(f"the headers say something else at {site!r}")
    json.dumps(summarise(headers, has_values=False), allow_nan=False)
    return largest


def _widened_bytes(update: Any) -> int:
    """Bytes of the stored tensors and of ΔW in float64, the latter as far as the package forms it."""
    from lorascope.adapter.widening import MAX_DENSE

    stored = sum(tensor.size for tensor in update.stored.values())
    out, in_ = (max(axis, 0) for axis in update.shape)
    factors = max(update.rank, 0) * (out + in_)
    return 8 * (stored + min(out * in_, MAX_DENSE) + min(factors, MAX_DENSE))


def _measure(update: Any, refusal: type[Exception]) -> None:
    """Every measure of one site, ΔW only where it is small, or so large that it must be refused."""
    import numpy as np

    from lorascope.adapter.widening import MAX_DENSE

    shape = tuple(axis if axis >= 0 else 8 for axis in update.base_shape)
    count = int(np.prod(shape, dtype=object))
    calls: list[Callable[[], Any]] = [update.norm, lambda: update.factors(np.float64), lambda: repr(update)]
    if min(update.shape) <= 64:
        calls.append(update.spectrum)
    if count <= 1 << 14:
        calls += [update.delta_weight, lambda: update.delta_weight(np.float64, base=np.ones(shape))]
        calls += [update.delta_bias, lambda: update.apply(np.ones((1, max(update.shape[1], 0))))]
    elif count > MAX_DENSE:
        calls += [update.delta_weight]
    if count <= 1 << 22 or count > MAX_DENSE:
        for call in calls:
            try:
                call()
            except refusal as error:
                str(error)
            else:
                if call == update.delta_weight and count > MAX_DENSE:
                    raise RuntimeError("a ΔW beyond all room was formed")


def _peak() -> int:
    """The peak of this process's memory in bytes, since it was last asked to forget it."""
    try:
        status = Path("/proc/self/status").read_bytes()
        return int(status.partition(b"VmHWM:")[2].split(maxsplit=1)[0]) << 10
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def _forget_peak() -> None:
    try:
        with open("/proc/self/clear_refs", "wb", buffering=0) as stream:  # noqa: PTH123
            stream.write(b"5")
    except OSError:
        return


def judged(seed: int, index: int, folder: Path, target: Target) -> Result:
    """Make one mutant in the folder and see what reading it does."""
    from fuzz.corpus import corpus
    from lorascope.errors import AdapterError, MissingExtraError
    from lorascope.testing.archive_damage import MARKER
    from lorascope.testing.mutations import mutant
    from lorascope.testing.samples import materialised

    one = mutant(corpus(), seed, index)
    materialised(one.files, folder)
    size = sum(len(entry) for entry in one.files.values() if isinstance(entry, bytes))
    name = one.main if index % 3 else ""  # the folder, too, is something that can be read
    _forget_peak()
    before, start = _peak(), time.process_time()
    room, outcome, detail = 0, "read", ""
    try:
        room = target(folder / name)
    except (AdapterError, MissingExtraError) as error:
        outcome, detail = ("refused", error.what) if isinstance(error, AdapterError) else ("missing", error.what)
        if problem := _message_problem(error, folder):
            outcome, detail = "message", problem
    except Warning as warning:
        outcome, detail = "warning", f"{_where(warning)} {type(warning).__name__}: {warning}"[:300]
    except Exception as error:
        outcome, detail = "exception", f"{_where(error)} {type(error).__name__}: {error}"[:300]
    seconds, memory = time.process_time() - start, _peak() - before
    if os.path.exists(MARKER):  # noqa: PTH110
        os.unlink(MARKER)  # noqa: PTH108
        outcome, detail = "executed", "the pickle's code was run"
    elif seconds > MAX_SECONDS:
        outcome, detail = "slow", f"{seconds:.1f} s after: {outcome} {detail}"
    elif memory > MAX_MEMORY + size + room:
        outcome, detail = "memory", f"{memory >> 20} MiB for {size} bytes after: {outcome} {detail}"
    return Result(index, one.sample, one.format, one.mutations, outcome, detail, seconds, memory)


def _message_problem(error: Any, folder: Path) -> str:
    """What is wrong with an error's text: it must be printable, short and say which file."""
    text = str(error)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return f"not printable: {ascii(text)[:200]}"
    if len(text) > 10_000:
        return f"{len(text)} letters: {text[:100]}"
    if error.file is None or str(folder) not in error.file:
        return f"does not name the file: {text[:200]}"
    return ""


def _where(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "lorascope" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def _prepare() -> None:
    """Imports before memory is measured, warnings of the package as errors, and a limit for hogs."""
    import torch

    import lorascope.report

    torch.set_num_threads(1)
    assert lorascope.report
    # what PyTorch says about strange pickles is not ours; what happens in our own lines is
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", module=r"lorascope(\.(?!testing)|$)")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if _has_proc() else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _has_proc() -> bool:
    return Path("/proc/self/statm").exists()


def _work(place: str, seed: int, indices: Any, current: Any, results: Any, target: Target) -> None:
    folder = Path(place) / f"{os.getpid()}"
    folder.mkdir()
    os.chdir(place)
    with open(os.devnull, "w") as silence:  # noqa: PTH123
        os.dup2(silence.fileno(), 2)  # a crash is told by its signal
        _prepare()
        batch: list[Result] = []
        for index in indices:
            current[0], current[1] = index, time.monotonic()
            batch.append(judged(seed, index, folder, target))
            if len(batch) == _BATCH:
                results.send(batch)
                batch = []
        results.send(batch)
        results.send(None)


def results_of(
    seed: int, indices: Sequence[int], target: Target = examine, *, until: float | None = None, hang: float = HANG
) -> Iterator[Result]:
    """Judge the mutants of these numbers in one worker process, which is started anew where it dies.

    Args:
        seed: of the run.
        indices: numbers of mutants.
        target: what reads them; it must be importable by name.
        hang: seconds of wall time after which a worker is ended.
        until: a time of ``time.monotonic`` after which no more results are waited for.
    """
    context = multiprocessing.get_context("spawn")
    memory = Path("/dev/shm")
    place = tempfile.mkdtemp(prefix="lorascope-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)
    left = list(indices)
    try:
        while left and (until is None or time.monotonic() < until):
            current = context.RawArray("d", [left[0], float("inf")])
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(place, seed, left, current, sender, target), daemon=True)
            worker.start()
            sender.close()
            done = 0
            ended = ""
            while not ended:
                try:
                    batch = receiver.recv() if receiver.poll(0.2) else ...
                except EOFError:
                    worker.join()
                    code = worker.exitcode or 0
                    ended = signal.Signals(-code).name if code < 0 else f"exit {code}"
                    break
                if batch is None:
                    worker.join()
                    return
                if batch is not ...:
                    done += len(batch)
                    yield from batch
                if until is not None and time.monotonic() > until:
                    worker.kill()
                    worker.join()
                    return
                if time.monotonic() - current[1] > hang:
                    worker.kill()
                    worker.join()
                    ended = "hang"
            # the results since the last batch died with the worker: those before the culprit are judged again
            culprit = int(current[0])
            again = [index for index in left[done:] if index != culprit]
            yield _lost(seed, culprit, ended)
            left = again
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _lost(seed: int, index: int, ended: str) -> Result:
    from fuzz.corpus import corpus
    from lorascope.testing.mutations import mutant

    one = mutant(corpus(), seed, index)
    outcome = "hang" if ended == "hang" else "crash"
    return Result(index, one.sample, one.format, one.mutations, outcome, f"the process ended: {ended}", HANG)


def shown(text: str) -> str:
    """A message without its numbers and names, so that equal sentences are counted once."""
    return re.sub(r"\d+", "0", text)[:120]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, help="judge this one mutant in this process")
    parser.add_argument("--keep", type=Path, help="with --index: leave the files of the mutant in this folder")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=20_000)
    arguments = parser.parse_args()
    if arguments.index is not None:
        _replay(arguments.seed, arguments.index, arguments.keep)
        return
    tally, start = Tally(arguments.seed), time.monotonic()
    for result in results_of(arguments.seed, range(arguments.first, arguments.first + arguments.count)):
        tally.add(result)
        if result.is_failure:
            sys.stdout.write(Tally(arguments.seed, failures=[result]).replays()[0] + "\n")
            sys.stdout.flush()
    rate = tally.count / (time.monotonic() - start)
    sys.stdout.write(
        f"{tally.count} mutants, {len(tally.failures)} failures, {rate:.0f} a second, "
        f"{len({shown(text) for text in tally.messages})} different messages, "
        f"at most {tally.max_seconds:.2f} s and {tally.max_memory >> 20} MiB\n"
    )
    sys.exit(bool(tally.failures))


def _replay(seed: int, index: int, keep: Path | None) -> None:
    from fuzz.corpus import corpus
    from lorascope.testing.mutations import mutant
    from lorascope.testing.samples import materialised

    faulthandler.enable()
    folder = keep or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    os.chdir(tempfile.mkdtemp())
    _prepare()
    result = judged(seed, index, folder, examine)
    sys.stdout.write(f"{result}\n")
    one = mutant(corpus(), seed, index)
    materialised(one.files, folder)
    try:
        examine(folder / (one.main if index % 3 else ""))
    except Exception:
        traceback.print_exc()


if __name__ == "__main__":
    main()
