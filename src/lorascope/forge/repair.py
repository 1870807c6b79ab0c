"""``repair``: forge anew what a zoo has lost, and nothing else.

What an adapter is follows from its id, and a cohort with slots that take no steps gives the others the same bits. So a
damaged adapter comes back as it was, and the record of its hash says whether it did.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorascope.errors import ForgeError, OutputError, ZooError
from lorascope.forge.base import make_base, recipe_of_zoo
from lorascope.forge.cohort import Job, id_of, missing_indices
from lorascope.forge.recipe import Recipe
from lorascope.forge.recipe_file import RecipeFile
from lorascope.forge.run import Progress, recorded_settings, remove_leftovers
from lorascope.forge.workers import results_of
from lorascope.zoo import Verification, Zoo, verify_zoo, write_manifest
from lorascope.zoo.lock import locked
from lorascope.zoo.log import logged
from lorascope.zoo.schema import SCHEMA_VERSION
from lorascope.zoo.store import BASE, MANIFEST


@dataclass(frozen=True)
class RepairResult:
    """What was done: the adapters that were forged anew, and what the zoo still has that is not as recorded."""

    zoo: Path
    repaired: tuple[str, ...]
    left: Verification
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        left = [asdict(one) for one in self.left.defects]
        return {
            "schema_version": SCHEMA_VERSION,
            "zoo": str(self.zoo),
            "repaired": list(self.repaired),
            "left": left,
            "seconds": self.seconds,
        }


def repair(
    zoo: str | Path,
    *,
    workers: int = 1,
    recipe: str | Path | None = None,
    on_progress: Progress | None = None,
) -> RepairResult:
    """Forge the damaged and missing adapters of a forged zoo anew, each equal to its recorded hash.

    A damaged record is deleted and its cohort forged anew; so is a damaged base. Extra files are left alone.

    Args:
        zoo: its folder.
        workers: processes, as for ``forge``.
        recipe: the recipe's file, for a zoo that was made with one: it is executed, so the zoo alone does not name it.
        on_progress: called with the number of adapters that have just been put back.

    Raises:
        ZooError: where no recipe made the zoo, so that nothing here can make its adapters again.
        ForgeError: where an adapter comes out otherwise than recorded, as with another torch; it is not put back. Or
            where what made the zoo is not here: its device, a package, its data.
        OutputError: where the zoo cannot be written.
    """
    opened = Zoo.open(zoo)
    if not opened.is_forged:
        source = opened.header.get("source")
        raise ZooError(
            "the zoo was not forged: its adapters cannot be made again",
            file=zoo,
            hint=f"get the files again from {source or 'where they came from'}; `lorascope zoo verify` lists them",
        )
    member, file = recipe_of_zoo(opened.header, recipe, opened.path)
    _check_version(opened, member)
    settings = recorded_settings(member, opened.header, opened.path)
    began = time.monotonic()
    try:
        with locked(opened.path), logged(opened.path, "repair", {"workers": workers}) as counts:
            result = _repair_locked(opened, member, file, settings, workers, on_progress or (lambda _: None), began)
            counts |= {"repaired": len(result.repaired), "left": len(result.left.defects)}
        return result
    except OSError as error:
        raise OutputError("cannot write", file=zoo, found=error.strerror or error) from error


def _check_version(zoo: Zoo, recipe: Recipe) -> None:
    made, known = zoo.header.get("recipe_version", 1), recipe.version
    if made != known:
        raise ForgeError(
            "the recipe has changed since the zoo was made: its adapters would come out otherwise",
            file=zoo.path,
            key="recipe_version",
            expected=made,
            found=known,
            hint="use the lorascope that made the zoo",
        )


def _indices(ids: Collection[str]) -> set[int]:
    """The numbers at the end of ids."""
    ends = (name.rpartition("-")[2] for name in ids)
    return {int(end) for end in ends if len(end) == 8 and end.isdecimal()}


def _repair_locked(
    zoo: Zoo,
    recipe: Recipe,
    file: RecipeFile | None,
    settings: dict[str, Any],
    workers: int,
    advance: Progress,
    began: float,
) -> RepairResult:
    remove_leftovers(zoo.path)
    found = verify_zoo(zoo.path)
    lost = {one.path for one in found.defects if one.problem == "record" and one.id is None}
    for path in lost:
        (zoo.path / path).unlink()
    problems = {one.problem for one in found.defects}
    if "base" in problems:
        (zoo.path / BASE).unlink(missing_ok=True)
    base_hash = make_base(recipe, recipe.options_of(settings), zoo.path, zoo.header["base_hash"])
    if "manifest" in problems:
        (zoo.path / MANIFEST).unlink()
    jobs: list[Job] = []
    seed = zoo.header["seed"]
    ends = {Path(path).stem for path in lost}
    lost_cohorts = {int(end) for end in ends if end.isdecimal() and int(end) * settings["cohort"] < found.asked}
    index_of = {id_of(recipe.name, seed, row_index): row_index for row_index in _indices(found.ids())}
    hit = {index // settings["cohort"] for name, index in index_of.items() if name in found.ids()}
    for cohort in sorted(hit | lost_cohorts):
        is_lost = cohort in lost_cohorts
        # no more is forged than was there: a record that was never written belongs to the forge
        count = found.asked if is_lost else 0
        job = Job(
            zoo.path.resolve(), recipe.name, seed, settings, base_hash, cohort, count, file, device=settings["device"]
        )
        again = found.ids() & {id_of(recipe.name, seed, index) for index in job.indices}
        if is_lost or again:
            jobs.append(replace(job, again=frozenset(again)))
    repaired: list[str] = []
    try:
        for rows in results_of([job for job in jobs if missing_indices(job)], workers):
            repaired += [row["id"] for row in rows]
            advance(len(rows))
        for one in found.defects:
            if one.problem == "shard":  # all that it held is there again
                (zoo.path / one.path).unlink()
    finally:
        write_manifest(zoo.path)
    return RepairResult(zoo.path, tuple(sorted(repaired)), verify_zoo(zoo.path), time.monotonic() - began)
