"""One cohort: 32 adapters that train together, and are in the zoo together or not at all.

Which adapters a cohort has is a pure function of their index, and all 32 slots are always there: those that are
not asked for, or are in the zoo already, take part with no steps. So an adapter comes out the same, bit for bit
on one machine, whatever was done before, at once, or by how many workers.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lorascope.adapter import Adapter, Provenance
from lorascope.errors import ForgeError, OutputError
from lorascope.forge.base import WEIGHTS, frozen_base
from lorascope.forge.determinism import deterministic
from lorascope.forge.evidence import gather
from lorascope.forge.kinds import KINDS
from lorascope.forge.recipe import Recipe, Row
from lorascope.forge.recipe_file import RecipeFile, recipe_of
from lorascope.forge.stack import AdapterStack
from lorascope.forge.training import train
from lorascope.formats import write
from lorascope.zoo.durable import sync_folder, sync_tree
from lorascope.zoo.schema import SCHEMA_VERSION, split_of
from lorascope.zoo.store import ADAPTERS, DIVERGED, cohort_path, hashes_of, read_cohort, write_cohort

COHORT_SIZE = 32
"""Slots of a cohort: fewer waste the processor on small products, more no longer fit its cache."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to forge one cohort up to ``count`` adapters in all.

    ``recipe`` is the recipe's name, and ``recipe_file`` where it is, unless it is one of the package's. ``again`` names
    adapters that are in the record and are forged anew, since their files are lost or damaged.
    """

    zoo: Path
    recipe: str
    zoo_seed: int
    settings: Mapping[str, Any]
    base_hash: str
    cohort: int
    count: int
    recipe_file: RecipeFile | None = None
    again: frozenset[str] = frozenset()


def id_of(recipe: str, zoo_seed: int, index: int) -> str:
    """The name of an adapter.

    >>> id_of("digits-vit", 0, 17)
    'digits-vit-0-00000017'
    """
    return f"{recipe}-{zoo_seed}-{index:08d}"


def missing_indices(job: Job) -> list[int]:
    """The adapters of the cohort that are asked for and are not in the zoo, and those to forge anew."""
    done = {row["id"] for row in read_cohort(cohort_path(job.zoo, job.cohort))}
    first = job.cohort * COHORT_SIZE
    named = [(index, id_of(job.recipe, job.zoo_seed, index)) for index in range(first, first + COHORT_SIZE)]
    return [index for index, name in named if name in job.again or (index < job.count and name not in done)]


def forge_cohort(job: Job) -> list[Row]:
    """Train, measure and write the missing adapters of one cohort; gives their rows."""
    with deterministic():
        return _forge_cohort(job)


def _forge_cohort(job: Job) -> list[Row]:
    missing = missing_indices(job)
    if not missing:
        return []
    recipe = recipe_of(job.recipe, job.recipe_file)
    base = _base(job.zoo, job.base_hash, recipe)
    session = recipe.session(base)
    first = job.cohort * COHORT_SIZE
    rows = [recipe.draw(job.zoo_seed, index, job.settings) for index in range(first, first + COHORT_SIZE)]
    kind = job.settings["kind"]
    stack = train_rows(recipe, base, rows, [first + n in missing for n in range(COHORT_SIZE)], kind)
    with stack.attached() as model, torch.no_grad():
        measured = session.measure(model, rows)

    before = {row["id"]: row for row in read_cohort(cohort_path(job.zoo, job.cohort))}
    staging = job.zoo / f".tmp-cohort-{job.cohort}-{os.getpid()}"
    finished: list[Row] = []
    try:
        staging.mkdir()
        for index in missing:
            row = rows[index - first] | measured[index - first]
            row = _finished(job, recipe, index, row, stack.is_finite(index - first))
            folder = staging / row["id"]
            _write(stack.adapter(index - first, _provenance(job, recipe)), folder)
            row |= hashes_of(folder)
            if row["id"] in before:
                _check_same(before[row["id"]], row, folder)
            finished.append(row)
        sync_tree(staging)  # before the record says that they are there, also after a power cut
        for row in finished:
            target = job.zoo / row["path"]
            target.parent.mkdir(exist_ok=True)
            if target.exists():  # left by a run that was killed before it wrote the record
                shutil.rmtree(target)
            (staging / row["id"]).rename(target)
        staging.rmdir()
        for folder in {(job.zoo / row["path"]).parent for row in finished}:
            sync_folder(folder)
    except OSError as error:
        raise OutputError("cannot write", file=job.zoo, found=error.strerror or error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    rows_by_id = before | {row["id"]: row for row in finished}
    write_cohort(job.zoo, job.cohort, [rows_by_id[name] for name in sorted(rows_by_id)])
    return finished


def train_rows(
    recipe: Recipe, base: torch.nn.Module, rows: Sequence[Row], active: Sequence[bool], kind: str | None = None
) -> AdapterStack:
    """The adapters of these rows, trained together; those that are not active stay as they were initialised."""
    session, member = recipe.session(base), KINDS[kind or recipe.kind]
    batches = session.batches(rows)
    evidence = gather(base, recipe.sites, member, batches, session.loss, len(rows))
    slots = [recipe.slot(row, member.name) for row in rows]
    stack = AdapterStack(base, recipe.sites, slots, member, evidence=evidence)
    trainings = [
        recipe.training(row if is_active else {**row, "steps": 0}) for row, is_active in zip(rows, active, strict=True)
    ]
    train(stack, batches, session.loss, trainings)
    return stack


def _check_same(before: Row, row: Row, folder: Path) -> None:
    for name in ("sha256", "config_sha256"):
        if before.get(name) not in (None, row[name]):
            raise ForgeError(
                "an adapter came out otherwise than it was: nothing of its cohort was put back",
                file=folder.name,
                key=name,
                expected=before[name],
                found=row[name],
                hint="forge with the versions of lorascope and torch, and on the kind of machine, that made the zoo",
            )


@cache
def _base(zoo: Path, base_hash: str, recipe: Recipe) -> torch.nn.Module:
    return frozen_base(recipe, zoo, base_hash)


def _provenance(job: Job, recipe: Recipe) -> Provenance:
    published = recipe.found().get("model")
    return Provenance(kind=job.settings["kind"], base_model=published or f"{job.recipe}/{job.base_hash[:12]}")


def _write(adapter: Adapter, folder: Path) -> None:
    write(adapter, folder, format="peft")


def _finished(job: Job, recipe: Recipe, index: int, row: Row, is_finite: bool) -> Row:
    name = id_of(job.recipe, job.zoo_seed, index)
    is_finite = is_finite and all(math.isfinite(v) for v in row.values() if isinstance(v, float))
    group = recipe.group(row)
    identity: Row = {
        "schema_version": SCHEMA_VERSION,
        "id": name,
        "path": f"{ADAPTERS if is_finite else DIVERGED}/{name}",
        "sha256": None,
        "config_sha256": None,
        "status": "ok" if is_finite else "diverged",
        "recipe": recipe.name,
        "kind": job.settings["kind"],
        "base": recipe.name,
        "base_hash": job.base_hash,
        "base_seed": job.settings["base_seed"],
        "group": group,
        "split": split_of(group),
    }
    if not is_finite:
        row = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
    return identity | row


__all__ = ["COHORT_SIZE", "WEIGHTS", "Job", "forge_cohort", "id_of", "missing_indices", "train_rows"]
