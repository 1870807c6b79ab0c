"""One cohort: adapters that train together, and are in the zoo together or not at all.

Which adapters a cohort has is a pure function of their index, and all its slots are always there: those that are
not asked for, or are in the zoo already, take part with no steps. So an adapter comes out the same, bit for bit
on one machine, whatever was done before, at once, or by how many workers. There are 32 slots unless the recipe or the
user says otherwise: with small bases fewer waste the processor on small products, and more no longer fit its cache.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from lorascope.adapter import Adapter, Provenance
from lorascope.errors import ForgeError, LorascopeError, OutputError
from lorascope.forge.base import frozen_base
from lorascope.forge.determinism import deterministic
from lorascope.forge.evidence import STEPS as EVIDENCE_STEPS
from lorascope.forge.evidence import gather
from lorascope.forge.kinds import KINDS
from lorascope.forge.launch import device_of_process
from lorascope.forge.recipe import Recipe, Row, Session
from lorascope.forge.recipe_file import RecipeFile, failure_of, recipe_of
from lorascope.forge.stack import AdapterStack
from lorascope.forge.training import train
from lorascope.formats import write
from lorascope.formats.base_names import forged_base_name
from lorascope.zoo.durable import sync_folder, sync_tree
from lorascope.zoo.schema import SCHEMA_VERSION, columns_with, split_of
from lorascope.zoo.store import ADAPTERS, DIVERGED, cohort_path, hashes_of, read_cohort, rows_to_table, write_cohort


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to forge one cohort up to ``count`` adapters in all.

    Args:
        device: as the user named it; without a number it is one of several, by the number of the process.

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
    device: str = "cpu"

    @property
    def indices(self) -> range:
        """The adapters that have a slot in the cohort."""
        size = self.settings["cohort"]
        return range(self.cohort * size, (self.cohort + 1) * size)


def id_of(recipe: str, zoo_seed: int, index: int) -> str:
    """The name of an adapter.

    >>> id_of("digits-vit", 0, 17)
    'digits-vit-0-00000017'
    """
    return f"{recipe}-{zoo_seed}-{index:08d}"


def missing_indices(job: Job) -> list[int]:
    """The adapters of the cohort that are asked for and are not in the zoo, and those to forge anew."""
    done = {row["id"] for row in read_cohort(cohort_path(job.zoo, job.cohort))}
    named = [(index, id_of(job.recipe, job.zoo_seed, index)) for index in job.indices]
    return [index for index, name in named if name in job.again or (index < job.count and name not in done)]


def forge_cohort(job: Job, process: int = 0) -> list[Row]:
    """Train, measure and write the missing adapters of one cohort, in process ``process``; gives their rows."""
    device = device_of_process(job.device, process)
    try:
        with deterministic(device):
            return _forge_cohort(job, device)
    except (LorascopeError, OSError):
        raise
    except (Exception, SystemExit) as error:
        if job.recipe_file is None:
            raise
        raise failure_of(job.recipe_file, error) from error


def _forge_cohort(job: Job, device: torch.device) -> list[Row]:
    missing = missing_indices(job)
    if not missing:
        return []
    recipe = recipe_of(job.recipe, job.recipe_file)
    options = recipe.options_of(job.settings)
    base = _base(recipe, json.dumps(options), job.zoo, job.base_hash, device)
    session = recipe.session(base)
    rows = [recipe.draw(job.zoo_seed, index, job.settings) for index in job.indices]
    first = job.indices[0]
    active = set(missing)
    if job.settings["fast"] and job.again:
        # bits depend on who trains together, so all do that did
        done = {row["id"] for row in read_cohort(cohort_path(job.zoo, job.cohort))}
        active |= {index for index in job.indices if id_of(job.recipe, job.zoo_seed, index) in done}
    stack = train_rows(recipe, base, rows, [index in active for index in job.indices], job.settings)
    with stack.attached() as model, torch.no_grad():
        measured = _measured(recipe, session, model, rows)

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
        _check_rows(recipe, job, finished)
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


def _measured(recipe: Recipe, session: Session, model: Any, rows: Sequence[Row]) -> list[Row]:
    measured = session.measure(model, rows)
    if len(measured) != len(rows):
        raise ForgeError(
            "the recipe does not measure every adapter", key="measure", expected=len(rows), found=len(measured)
        )
    for row, own in zip(rows, measured, strict=True):
        strange = sorted(set(own) - set(recipe.labels))
        missing = sorted(set(recipe.labels) - set(own) - set(row))
        if strange or missing:
            raise ForgeError(
                "what the recipe measures is not what it declares as its labels",
                key="measure",
                expected=", ".join(recipe.labels),
                found=", ".join([*strange, *(f"no {name}" for name in missing)]),
            )
    return measured


def _check_rows(recipe: Recipe, job: Job, rows: Sequence[Row]) -> None:
    """See that the rows can be recorded and read again, before the zoo has them."""
    try:
        json.dumps(rows, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ForgeError(
            "a label is not a plain number, text, list or None", key="measure", found=str(error), hint="use float(…)"
        ) from error
    rows_to_table(rows, columns_with(recipe.hyperparameters(job.settings["kind"]), recipe.labels))


def train_rows(
    recipe: Recipe,
    base: torch.nn.Module,
    rows: Sequence[Row],
    active: Sequence[bool],
    settings: Mapping[str, Any] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> AdapterStack:
    """The adapters of these rows, trained together; those that are not active stay as they were initialised.

    Args:
        settings: of the zoo; its kind, precision and speed are looked at, each with its default.
        on_step: called after each step with its number.
    """
    settings = settings or {}
    session, member = recipe.session(base), KINDS[settings.get("kind", recipe.kind)]
    batches, sites = session.batches(rows), recipe.sites_of(base)
    looked_at = batches
    if not any(row["steps"] for row in rows):  # there are no data for steps that none takes
        looked_at = session.batches([row | {"steps": EVIDENCE_STEPS} for row in rows])
    evidence = gather(base, sites, member, looked_at, session.loss, len(rows))
    slots = [recipe.slot(row, member.name) for row in rows]
    stack = AdapterStack(base, sites, slots, member, evidence=evidence)
    trainings = [
        recipe.training(row if is_active else {**row, "steps": 0}) for row, is_active in zip(rows, active, strict=True)
    ]
    precision, is_fast = settings.get("precision", "float32"), bool(settings.get("fast", 0))
    train(stack, batches, session.loss, trainings, precision=precision, is_fast=is_fast, on_step=on_step)
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
                hint="forge with the versions of lorascope and torch, and on the kind of machine, that made the zoo; a "
                "fast zoo that grew in steps cannot be repaired",
            )


@lru_cache(maxsize=1)
def _base(recipe: Recipe, options: str, zoo: Path, base_hash: str, device: torch.device) -> torch.nn.Module:
    """The base on the device; that of the last zoo is kept, for its next cohort."""
    return frozen_base(recipe, json.loads(options), zoo, base_hash).to(device)


def _provenance(job: Job, recipe: Recipe) -> Provenance:
    published = recipe.found(recipe.options_of(job.settings)).get("model")
    return Provenance(kind=job.settings["kind"], base_model=published or forged_base_name(job.recipe, job.base_hash))


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
        "base_seed": job.settings.get("base_seed"),  # none where nothing of the base is made
        "group": group,
        "split": split_of(group),
    }
    if not is_finite:
        row = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
    return identity | row | identity  # no label of a recipe takes the place of what names the adapter
