"""``forge``: make a zoo, or go on making one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorascope.errors import ForgeError, LorascopeError, OutputError, ZooError
from lorascope.forge.base import make_base
from lorascope.forge.cohort import Job, missing_indices
from lorascope.forge.kinds import KINDS
from lorascope.forge.launch import Team, kind_of_device, team
from lorascope.forge.recipe import RUN, TRAINING, Recipe
from lorascope.forge.recipe_file import RecipeFile, failure_of, find_recipe
from lorascope.forge.space import ONE_OF, Distribution, parse_settings, printed
from lorascope.forge.workers import results_of
from lorascope.formats.source import SHARDS
from lorascope.zoo.lock import LOCK, locked
from lorascope.zoo.log import LOG, logged
from lorascope.zoo.schema import SCHEMA_VERSION, columns_as_dict, columns_with
from lorascope.zoo.splitting import SPLIT
from lorascope.zoo.store import (
    ADAPTERS,
    COHORTS,
    DIVERGED,
    HEADER,
    MANIFEST,
    cohort_path,
    import_pyarrow,
    read_cohort,
    read_json,
    write_json,
    write_manifest,
)

MOST = 10**8
"""Adapters of one zoo: their numbers have eight digits."""

Progress = Callable[[int], None]
"""Called with the number of adapters that have just come into the zoo (at first: of those already there)."""


@dataclass(frozen=True)
class ForgeResult:
    """What a run did, in ``seconds``, of which the base model took ``base_seconds``."""

    zoo: Path
    count: int
    forged: int
    already_there: int
    diverged: int
    seconds: float
    base_seconds: float = 0.0

    @property
    def per_minute(self) -> float:
        """Adapters forged a minute, the time of the base left aside."""
        return 60 * self.forged / max(self.seconds - self.base_seconds, 1e-3)

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "zoo": str(self.zoo)}


def resolve(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings parsed and completed by the recipe's defaults for the whole zoo.

    Raises:
        ForgeError: for an unknown name or an impossible value, or where what the recipe's options name is not there.
        MissingExtraError: where the recipe needs a package that is not installed.
    """
    recipe.check_packages()
    kind = KINDS[str(settings.get("kind", recipe.kind))].name
    known = recipe.all_settings(kind)
    given = {name: as_text(value, known.get(name)) for name, value in settings.items()}
    parsed = parse_settings(known, given)
    for name, value in parsed.items():
        is_of_each = name in recipe.space or name in TRAINING or name in KINDS[kind].options
        if isinstance(value, dict) and (not is_of_each or name in KINDS[kind].common):
            raise ForgeError("is the same for the whole zoo", key=name, expected="one value", found=given[name])
    whole = completed(recipe, parsed)
    device = kind_of_device(whole["device"])
    recipe.check_options(recipe.options_of(whole))  # may fetch what is large, so last
    return whole | {"device": device}


def as_text(value: Any, of: Distribution | None) -> str:
    """A setting as the command line takes it: a list is one value where values are lists, else one of several.

    >>> from lorascope.forge.space import Subset
    >>> as_text(True, None), as_text([2, 4], None), as_text([0, 7], Subset(of=10, low=1, high=4)), as_text(4.0, None)
    ('1', '2|4', '0,7', '4')
    """
    if isinstance(value, dict) and set(value) == {ONE_OF}:
        return "|".join(as_text(one, of) for one in value[ONE_OF])
    if isinstance(value, list | tuple):
        return ("," if of is not None and of.type == "list<int>" else "|").join(as_text(one, None) for one in value)
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer() and abs(value) < 2**53):
        value = int(value)
    return str(value)


def completed(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the defaults of what is the same for a whole zoo, also for a zoo that was made before some were."""
    general: dict[str, Any] = {name: of.values[0] for name, of in RUN.items()}
    return {**recipe.option_defaults, **general, "kind": recipe.kind, "cohort": recipe.cohort, **settings}


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
    on_base: Callable[[], Any] | None = None,
) -> ForgeResult:
    """Train ``count`` adapters and measure their labels, into the zoo at ``out``.

    A run that was interrupted or killed goes on where it stopped when it is called again in the same way, and
    a larger ``count`` extends a zoo. The result does not depend on ``workers``, on interruptions, or on how
    the count was reached.

    Args:
        recipe: the name of a recipe, such as ``digits-vit``, or the path of a Python file that defines one.
        count: how many adapters the zoo is to hold.
        out: the folder of the zoo; made where it does not exist.
        seed: everything random follows from it.
        settings: name → value, text as for ``--set`` or itself (a list is one of several), to fix what the recipe would
            draw, and how it is forged: ``kind``, ``precision``, ``fast``, ``cohort``, and ``device``, such as ``cuda``
            (processes take the devices in turn) or ``cuda:1``. Another kind of device gives other bits, so a zoo goes
            on with the kind that it was begun with.
        workers: processes, each with one thread. More than one needs the caller's main module to be guarded
            by ``if __name__ == "__main__"``.
        fresh: delete the zoo that is there.
        on_progress: called with the number of adapters that have just been finished.
        on_base: called where the base model has to be made first, which is once for a zoo and may take minutes.

    Raises:
        LorascopeError: for an unknown recipe.
        ForgeError: for an unknown setting, or where ``out`` holds a zoo made otherwise.
        OutputError: where ``out`` cannot be written or is a folder of something else.
    """
    began = time.monotonic()
    member, file = find_recipe(recipe)
    resolved = resolve(member, settings or {})
    for name, value, most in (("count", count, MOST), ("workers", workers, 4096)):
        if not 1 <= value <= most:
            raise ForgeError("cannot be", key=name, expected=f"1 to {most}", found=value)
    import_pyarrow()
    order = _Order(member, file, count, Path(out), seed, resolved, workers, str((settings or {}).get("device", "cpu")))
    zoo, together = order.zoo, team()
    together.wait()
    try:
        if not together.is_first:
            return _forge_beside(order, together, began)
        _check_is_zoo_or_empty(zoo)
        (zoo / ADAPTERS).mkdir(parents=True, exist_ok=True)
        with locked(zoo):
            if fresh:
                _empty(zoo)
            asked = {"recipe": member.name, "count": count, "seed": seed, "settings": resolved}
            with logged(zoo, "forge", asked | {"workers": workers * together.size}) as counts:
                result = _forge_locked(order, together, on_progress or (lambda _: None), on_base, began)
                counts |= {name: getattr(result, name) for name in ("forged", "already_there", "diverged")}
            return result
    except LorascopeError:
        raise
    except OSError as error:
        raise OutputError("cannot write", file=zoo, found=error.strerror or error) from error
    except (Exception, SystemExit) as error:
        if file is None:
            raise
        raise failure_of(file, error) from error


@dataclass(frozen=True)
class _Order:
    """What was asked for."""

    recipe: Recipe
    file: RecipeFile | None
    count: int
    zoo: Path
    seed: int
    settings: dict[str, Any]
    workers: int
    device: str

    def jobs(self, base_hash: str) -> list[Job]:
        """All cohorts, whether or not anything of them is missing."""
        zoo, name = self.zoo.resolve(), self.recipe.name
        return [
            Job(zoo, name, self.seed, self.settings, base_hash, cohort, self.count, self.file, device=self.device)
            for cohort in range(-(-self.count // self.settings["cohort"]))
        ]


def _forge_locked(
    order: _Order, together: Team, advance: Progress, on_base: Callable[[], Any] | None, began: float
) -> ForgeResult:
    remove_leftovers(order.zoo)
    base_hash, base_seconds = _begin(order, on_base)
    jobs = order.jobs(base_hash)
    # what is there before any process of the team adds to it
    before, diverged_before = _missing(jobs), _diverged(jobs)
    known = missing = sum(before.values())
    advance(order.count - missing)
    together.wait()
    try:
        own = [job for job in jobs[:: together.size] if before[job.cohort]]
        for rows in results_of(own, order.workers, together.local):
            # of a team, what the others have done meanwhile is seen in the zoo
            left = known - len(rows) if together.size == 1 else sum(_missing(jobs).values())
            advance(known - left)
            known = left
        together.wait()
        advance(known - sum(_missing(jobs).values()))
    finally:
        write_manifest(order.zoo)
    diverged = _diverged(jobs) - diverged_before
    seconds = time.monotonic() - began
    return ForgeResult(order.zoo, order.count, missing, order.count - missing, diverged, seconds, base_seconds)


def _missing(jobs: Sequence[Job]) -> dict[int, int]:
    return {job.cohort: len(missing_indices(job)) for job in jobs}


def _diverged(jobs: Sequence[Job]) -> int:
    rows = (row for job in jobs for row in read_cohort(cohort_path(job.zoo, job.cohort)))
    return sum(row["status"] == "diverged" for row in rows)


def _forge_beside(order: _Order, together: Team, began: float) -> ForgeResult:
    """The part of another process of the team than the first, which holds the lock and began the zoo."""
    together.wait()
    own = order.jobs(read_json(order.zoo / HEADER)["base_hash"])[together.rank :: together.size]
    forged = diverged = 0
    for rows in results_of([job for job in own if missing_indices(job)], order.workers, together.local):
        forged += len(rows)
        diverged += sum(row["status"] == "diverged" for row in rows)
    together.wait()
    return ForgeResult(order.zoo, order.count, forged, order.count - forged, diverged, time.monotonic() - began)


def _begin(order: _Order, on_base: Callable[[], Any] | None) -> tuple[str, float]:
    """Write or check ``zoo.json``, and make the base; gives the base's hash, and the seconds that it took."""
    recipe, zoo, settings = order.recipe, order.zoo, order.settings
    made = {"recipe": recipe.name, "recipe_version": recipe.version, "seed": order.seed, "settings": settings}
    recorded = None if order.file is None else order.file.as_dict()
    header: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        **made,
        "recipe_file": recorded,
        "count": order.count,
        "space": {
            name: printed(settings.get(name, drawn)) for name, drawn in recipe.all_settings(settings["kind"]).items()
        },
        "base_hash": None,
        "columns": columns_as_dict(columns_with(recipe.hyperparameters(settings["kind"]), recipe.labels)),
    }
    has_old_manifest = False
    if (zoo / HEADER).exists():
        there = read_json(zoo / HEADER)
        there.setdefault("recipe_version", 1)  # zoos of before it was recorded
        there["settings"] = completed(recipe, there.get("settings") or {})
        if (there.get("recipe_file") or {}).get("sha256") != (recorded or {}).get("sha256"):
            raise ForgeError(
                "there is a zoo of another version of the recipe's file here",
                file=zoo,
                key="recipe_file",
                expected=there.get("recipe_file"),
                found=recorded,
                hint="forge into another folder, or delete this zoo with --fresh",
            )
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
        check_header(there, zoo)
        header |= {"base_hash": there.get("base_hash"), "count": max(order.count, there["count"])}
        has_old_manifest = header["columns"] != there.get("columns") and (zoo / COHORTS).is_dir()
    else:
        write_json(zoo / HEADER, header)  # so that what a killed run leaves is known to be a zoo
    (zoo / COHORTS).mkdir(exist_ok=True)
    began = time.monotonic()
    header["base_hash"] = make_base(recipe, recipe.options_of(settings), zoo, header["base_hash"], on_base)
    base_seconds = time.monotonic() - began
    write_json(zoo / HEADER, header)
    if has_old_manifest:  # the recipe has gained columns since
        write_manifest(zoo)
    return header["base_hash"], base_seconds


def check_header(header: Mapping[str, Any], zoo: Path) -> None:
    """See that the header of a forged zoo says what one can, since a zoo may come from anyone.

    Raises:
        ZooError: where it does not.
    """
    checks: dict[str, tuple[bool, str]] = {
        "seed": (_is_whole(header.get("seed"), 0, 2**63), "a whole number"),
        "count": (_is_whole(header.get("count"), 0, MOST), f"a whole number, at most {MOST}"),
        "settings": (isinstance(header.get("settings"), dict), "an object"),
        "recipe": (isinstance(header.get("recipe"), str), "a name"),
        "base_hash": (header.get("base_hash") is None or isinstance(header["base_hash"], str), "a hash, or null"),
    }
    for name, (is_right, expected) in checks.items():
        if not is_right:
            raise ZooError("is not what a forged zoo has", file=zoo / HEADER, key=name, expected=expected)


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def recorded_settings(recipe: Recipe, header: Mapping[str, Any], zoo: Path) -> dict[str, Any]:
    """The settings of a zoo's header, completed, if they are such as the recipe takes.

    Raises:
        ZooError: where the header is not that of a forged zoo, or a setting is none of the recipe's or cannot be.
    """
    check_header(header, zoo)
    try:
        return resolve(recipe, header["settings"])
    except ForgeError as error:
        raise ZooError("the recorded settings cannot be", file=zoo / HEADER, found=str(error)) from error


def remove_leftovers(zoo: Path) -> None:
    """Delete what a run that was killed left half made; only the holder of the lock knows that no other is alive."""
    for left in (*zoo.glob(".tmp-*"), *zoo.glob(f"{COHORTS}/.tmp-*"), *zoo.glob("base/.tmp-*")):
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


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
    # a run killed in its first moments leaves a lock, a log and an empty folder
    ours = {LOCK, LOG, ADAPTERS} if (zoo / LOCK).exists() else {ADAPTERS}
    others = [path.name for path in zoo.iterdir() if path.name not in ours and path.name[:5] != ".tmp-"]
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
    for name in (ADAPTERS, DIVERGED, COHORTS, SHARDS, "base", MANIFEST, SPLIT, LOG, HEADER):
        path = zoo / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    (zoo / ADAPTERS).mkdir()
