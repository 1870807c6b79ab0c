"""``forge``: make a zoo, or go on making one."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorascope.errors import ForgeError, OutputError
from lorascope.forge.base import make_base
from lorascope.forge.cohort import COHORT_SIZE, Job, forge_cohort, missing_indices
from lorascope.forge.kinds import KINDS
from lorascope.forge.lock import LOCK, locked
from lorascope.forge.recipe import TRAINING, Recipe
from lorascope.forge.recipes import RECIPES
from lorascope.forge.space import parse_settings, printed
from lorascope.zoo.schema import SCHEMA_VERSION, columns_as_dict, columns_with
from lorascope.zoo.store import (
    ADAPTERS,
    COHORTS,
    HEADER,
    MANIFEST,
    import_pyarrow,
    read_json,
    write_json,
    write_manifest,
)

Progress = Callable[[int], None]
"""Called with the number of adapters that have just come into the zoo (at first: of those already there)."""


@dataclass(frozen=True)
class ForgeResult:
    """What a run did."""

    zoo: Path
    count: int
    forged: int
    already_there: int
    diverged: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "zoo": str(self.zoo)}


def resolve(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings parsed and completed by the recipe's defaults for the whole zoo.

    Raises:
        ForgeError: for an unknown name or an impossible value.
        MissingExtraError: where the recipe needs a package that is not installed.
    """
    recipe.check_packages()
    given = {
        name: ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in settings.items()
    }
    kind = given.get("kind", recipe.kind)
    parsed = parse_settings(recipe.all_settings(KINDS[kind].name), given)
    for name, value in parsed.items():
        if isinstance(value, dict) and name not in recipe.space and name not in TRAINING:
            raise ForgeError("is the same for the whole zoo", key=name, expected="one value", found=given[name])
    return {**recipe.option_defaults, "init": "own", "kind": kind, **parsed}


def forge(
    recipe: str,
    count: int,
    out: str | Path,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    workers: int = 1,
    fresh: bool = False,
    on_progress: Progress | None = None,
) -> ForgeResult:
    """Train ``count`` adapters and measure their labels, into the zoo at ``out``.

    A run that was interrupted or killed goes on where it stopped when it is called again in the same way, and
    a larger ``count`` extends a zoo. The result does not depend on ``workers``, on interruptions, or on how
    the count was reached.

    Args:
        recipe: the name of a recipe, such as ``digits-vit``.
        count: how many adapters the zoo is to hold.
        out: the folder of the zoo; made where it does not exist.
        seed: everything random follows from it.
        settings: name → value, to fix what the recipe would draw.
        workers: processes, each with one thread. More than one needs the caller's main module to be guarded
            by ``if __name__ == "__main__"``.
        fresh: delete the zoo that is there.
        on_progress: called with the number of adapters that have just been finished.

    Raises:
        LorascopeError: for an unknown recipe.
        ForgeError: for an unknown setting, or where ``out`` holds a zoo made otherwise.
        OutputError: where ``out`` cannot be written or is a folder of something else.
    """
    began = time.monotonic()
    member = RECIPES[recipe]
    resolved = resolve(member, settings or {})
    for name, value in (("count", count), ("workers", workers)):
        if value < 1:
            raise ForgeError("must be positive", key=name, expected="at least 1", found=value)
    import_pyarrow()
    zoo = Path(out)
    _check_is_zoo_or_empty(zoo)
    try:
        (zoo / ADAPTERS).mkdir(parents=True, exist_ok=True)
        with locked(zoo):
            return _forge_locked(member, count, zoo, seed, resolved, workers, fresh, on_progress, began)
    except OSError as error:
        raise OutputError("cannot write", file=zoo, found=error.strerror or error) from error


def _forge_locked(
    recipe: Recipe,
    count: int,
    zoo: Path,
    seed: int,
    settings: dict[str, Any],
    workers: int,
    fresh: bool,
    on_progress: Progress | None,
    began: float,
) -> ForgeResult:
    if fresh:
        _empty(zoo)
    for left in (
        *zoo.glob(".tmp-*"),
        *zoo.glob(f"{COHORTS}/.tmp-*"),
        *zoo.glob("base/.tmp-*"),
    ):  # by a run that was killed; the lock says that no other is alive
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    base_hash = _begin(recipe, count, zoo, seed, settings)
    jobs = [
        Job(zoo.resolve(), recipe.name, seed, settings, base_hash, cohort, count)
        for cohort in range(-(-count // COHORT_SIZE))
    ]
    missing = {job.cohort: len(missing_indices(job)) for job in jobs}
    already = count - sum(missing.values())
    advance = on_progress or (lambda _: None)
    advance(already)
    forged = diverged = 0
    try:
        for rows in _results([job for job in jobs if missing[job.cohort]], workers):
            forged += len(rows)
            diverged += sum(row["status"] == "diverged" for row in rows)
            advance(len(rows))
    finally:
        write_manifest(zoo)
    return ForgeResult(zoo, count, forged, already, diverged, time.monotonic() - began)


def _begin(recipe: Recipe, count: int, zoo: Path, seed: int, settings: dict[str, Any]) -> str:
    """Write or check ``zoo.json``, and make the base; gives the base's hash."""
    made = {"recipe": recipe.name, "seed": seed, "settings": settings}
    header: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        **made,
        "count": count,
        "space": {
            name: printed(settings.get(name, drawn)) for name, drawn in recipe.all_settings(settings["kind"]).items()
        },
        "base_hash": None,
        "columns": columns_as_dict(columns_with(recipe.hyperparameters(settings["kind"]), recipe.labels)),
    }
    if (zoo / HEADER).exists():
        there = read_json(zoo / HEADER)
        for name, value in made.items():
            if there.get(name) != value:
                raise ForgeError(
                    f"there is a zoo with another {name} here",
                    file=zoo,
                    key=name,
                    expected=_difference(there.get(name), value),
                    found=_difference(value, there.get(name)),
                    hint="forge into another folder, or delete this zoo with --fresh",
                )
        header |= {"base_hash": there.get("base_hash"), "count": max(count, there.get("count", 0))}
    write_json(zoo / HEADER, header)
    (zoo / COHORTS).mkdir(exist_ok=True)
    options = {name: settings[name] for name in recipe.options}
    header["base_hash"] = make_base(recipe, options, zoo, header["base_hash"])
    write_json(zoo / HEADER, header)
    return header["base_hash"]


def _difference(other: Any, value: Any) -> str:
    if not (isinstance(other, dict) and isinstance(value, dict)):
        return str(value)
    names = [name for name in {**value, **other} if value.get(name) != other.get(name)]
    return ", ".join(f"{name}={value.get(name, 'drawn')}" for name in names)


def _check_is_zoo_or_empty(zoo: Path) -> None:
    if (zoo / HEADER).is_file():
        if "settings" not in read_json(zoo / HEADER):
            raise OutputError(
                "is a zoo that was not forged: nothing is added to it and nothing deleted",
                file=zoo,
                hint="name another folder with --out",
            )
        return
    if not zoo.exists():
        return
    if not zoo.is_dir():
        raise OutputError("is a file, not a folder", file=zoo)
    # a run killed in its first moments leaves a lock and an empty folder
    others = [path.name for path in zoo.iterdir() if path.name not in (LOCK, ADAPTERS) and path.name[:5] != ".tmp-"]
    if others or any(zoo.glob(f"{ADAPTERS}/*")):
        raise OutputError(
            "is a folder of something else: nothing in it was touched",
            file=zoo,
            expected="a new or empty folder, or a zoo",
            found=", ".join(sorted(others)[:3]) or ADAPTERS,
            hint="name another folder with --out",
        )


def _empty(zoo: Path) -> None:
    """Delete a forged zoo's own files, the header last, so that a killed deletion is still seen to be a zoo."""
    for name in (ADAPTERS, COHORTS, "base", MANIFEST, HEADER):
        path = zoo / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    (zoo / ADAPTERS).mkdir()


def _results(jobs: list[Job], workers: int) -> Iterator[list[dict[str, Any]]]:
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
