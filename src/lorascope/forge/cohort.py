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
from lorascope.errors import OutputError
from lorascope.forge.base import WEIGHTS, load_base
from lorascope.forge.determinism import deterministic
from lorascope.forge.evidence import gather
from lorascope.forge.kinds import KINDS
from lorascope.forge.recipe import Recipe, Row
from lorascope.forge.recipes import RECIPES
from lorascope.forge.stack import AdapterStack
from lorascope.forge.training import train
from lorascope.formats import write
from lorascope.zoo.schema import SCHEMA_VERSION, split_of
from lorascope.zoo.store import ADAPTERS, cohort_path, read_cohort, sha256_of, write_cohort

COHORT_SIZE = 32
"""Slots of a cohort: fewer waste the processor on small products, more no longer fit its cache."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to forge one cohort up to ``count`` adapters in all."""

    zoo: Path
    recipe: str
    zoo_seed: int
    settings: Mapping[str, Any]
    base_hash: str
    cohort: int
    count: int


def id_of(recipe: str, zoo_seed: int, index: int) -> str:
    """The name of an adapter.

    >>> id_of("digits-vit", 0, 17)
    'digits-vit-0-00000017'
    """
    return f"{recipe}-{zoo_seed}-{index:08d}"


def missing_indices(job: Job) -> list[int]:
    """The adapters of the cohort that are asked for and are not in the zoo."""
    done = {row["id"] for row in read_cohort(cohort_path(job.zoo, job.cohort))}
    first = job.cohort * COHORT_SIZE
    asked = range(first, min(first + COHORT_SIZE, job.count))
    return [index for index in asked if id_of(job.recipe, job.zoo_seed, index) not in done]


def forge_cohort(job: Job) -> list[Row]:
    """Train, measure and write the missing adapters of one cohort; gives their rows."""
    with deterministic():
        return _forge_cohort(job)


def _forge_cohort(job: Job) -> list[Row]:
    missing = missing_indices(job)
    if not missing:
        return []
    recipe = RECIPES[job.recipe]
    base = _base(job.zoo, job.base_hash)
    session = recipe.session(base)
    first = job.cohort * COHORT_SIZE
    rows = [recipe.draw(job.zoo_seed, index, job.settings) for index in range(first, first + COHORT_SIZE)]
    kind = job.settings["kind"]
    stack = train_rows(recipe, base, rows, [first + n in missing for n in range(COHORT_SIZE)], kind)
    with stack.attached() as model, torch.no_grad():
        measured = session.measure(model, rows)

    staging = job.zoo / f".tmp-cohort-{job.cohort}-{os.getpid()}"
    finished: list[Row] = []
    try:
        staging.mkdir()
        for index in missing:
            row = rows[index - first] | measured[index - first]
            row = _finished(job, recipe, index, row, stack.is_finite(index - first))
            folder = staging / row["id"]
            _write(stack.adapter(index - first, _provenance(job)), folder)
            row["sha256"] = sha256_of(folder / "adapter_model.safetensors")
            finished.append(row)
        for row in finished:
            target = job.zoo / row["path"]
            if target.exists():  # left by a run that was killed before it wrote the record
                shutil.rmtree(target)
            (staging / row["id"]).rename(target)
        staging.rmdir()
    except OSError as error:
        raise OutputError("cannot write", file=job.zoo, found=error.strerror or error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    before = read_cohort(cohort_path(job.zoo, job.cohort))
    write_cohort(job.zoo, job.cohort, sorted(before + finished, key=lambda row: row["id"]))
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


@cache
def _base(zoo: Path, base_hash: str) -> torch.nn.Module:
    return load_base(zoo)


def _provenance(job: Job) -> Provenance:
    return Provenance(kind=job.settings["kind"], base_model=f"{job.recipe}/{job.base_hash[:12]}")


def _write(adapter: Adapter, folder: Path) -> None:
    write(adapter, folder, format="peft")


def _finished(job: Job, recipe: Recipe, index: int, row: Row, is_finite: bool) -> Row:
    name = id_of(job.recipe, job.zoo_seed, index)
    is_finite = is_finite and all(math.isfinite(v) for v in row.values() if isinstance(v, float))
    group = recipe.group(row)
    identity: Row = {
        "schema_version": SCHEMA_VERSION,
        "id": name,
        "path": f"{ADAPTERS}/{name}",
        "sha256": None,
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
