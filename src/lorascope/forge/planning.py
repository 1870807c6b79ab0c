"""``plan``: what a run would take, measured by a few steps of it, before it is begun."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lorascope.errors import ForgeError
from lorascope.forge.cohort import train_rows
from lorascope.forge.determinism import deterministic
from lorascope.forge.launch import device_of_process
from lorascope.forge.recipe import Recipe
from lorascope.forge.recipe_file import find_recipe
from lorascope.forge.run import resolve
from lorascope.forge.space import printed
from lorascope.formats import write
from lorascope.zoo.schema import SCHEMA_VERSION

_STEPS = 6
_INTERPRETER_BYTES = 350e6  # of a process that has imported PyTorch and scikit-learn


def plan(
    recipe: str,
    count: int,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Time, memory and disk that a zoo would take, and the space that it would be drawn from.

    A few steps of one cohort on an untrained base are timed, and the measuring of its labels: the estimate is
    of this machine as it is now. Nothing is written outside of a temporary folder.

    Raises:
        LorascopeError: for an unknown recipe.
        ForgeError: for an unknown setting.
    """
    member, _ = find_recipe(recipe)
    resolved = resolve(member, settings or {})
    if count < 1 or workers < 1:
        raise ForgeError("must be positive", key="count" if count < 1 else "workers", expected="at least 1")
    kind, size = resolved["kind"], resolved["cohort"]
    device = device_of_process(resolved["device"], 0)
    with deterministic(device):
        base = member.architecture(member.options_of(resolved)).eval().requires_grad_(False).to(device)
        rows = [member.draw(seed, index, resolved) for index in range(size)]
        short = [row | {"steps": min(row["steps"], _STEPS)} for row in rows]
        everyone = [True] * size
        train_rows(member, base, short[:1], everyone[:1], resolved)  # the first products of a process are slow
        began = time.perf_counter()
        stack = train_rows(member, base, short, everyone, resolved)
        per_step = (time.perf_counter() - began) / max(1, *(row["steps"] for row in short))
        began = time.perf_counter()
        with stack.attached() as model, torch.no_grad():
            member.session(base).measure(model, rows)
        per_measure = time.perf_counter() - began
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            write(stack.adapter(0), Path(folder) / "adapter", format="peft")
            per_adapter = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        per_write = time.perf_counter() - began

    cohorts = math.ceil(count / size)
    # slots are masked, not removed: a cohort takes the steps of its longest adapter
    longest = max(row["steps"] for row in rows)
    per_cohort = longest * per_step + per_measure + size * per_write
    rounds = math.ceil(cohorts / workers)
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": member.name,
        "about": member.about,
        "kind": kind,
        "count": count,
        "workers": workers,
        "seconds": rounds * per_cohort,
        "milliseconds_per_adapter_step": 1e3 * per_step / size,
        "adapters_per_minute_per_core": 60 * size / per_cohort,
        "memory_bytes": int(min(workers, cohorts) * (_INTERPRETER_BYTES + 4 * _bytes_of(stack.values))),
        "disk_bytes": count * per_adapter + _bytes_of(*member.made(base).values()),
        "space": {
            name: {
                "about": drawn.about,
                "from": printed(resolved.get(name, drawn)),
                "is_fixed": name in resolved,
                "role": _role(member, name, kind),
            }
            for name, drawn in member.all_settings(kind).items()
        },
    }


def _role(recipe: Recipe, name: str, kind: str) -> str:
    if name in recipe.labels:
        return "label"
    return "hyperparameter" if name in recipe.hyperparameters(kind) else "zoo"


def _bytes_of(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
