"""``plan``: what a run would take, measured by a few steps of it, before it is begun."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
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
from lorascope.zoo.store import import_parquet

try:
    import resource
except ImportError:  # Windows
    resource = None

_STEPS = 6


def plan(
    recipe: str,
    count: int,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Time, memory and disk that a zoo would take, and the space that it would be drawn from.

    Seconds are those of all cohorts, each with

        set-up and first step + (steps − 1) · one step + labels + files

    on an untrained base, measured on one cohort whose adapters take a few steps only; the middle one of the timed
    steps counts. Set-up is the data, what a kind looks at before it starts, and the trial of the first step. A cohort
    takes the steps of its longest adapter, though with ``fast`` it may be done before. Making the base comes in
    addition, and so does starting the processes. All is of this machine as it is now.

    Memory is the peak of this process so far, with all that it has done before, for each process that trains, and what
    it was before the base was there for the one that starts them; None where the system does not say. It is main
    memory: that of another device is not counted.

    Nothing is written outside of a temporary folder, but for a model that the recipe fetches from a hub: that comes
    into the hub's own cache, as it would for the zoo.

    Raises:
        LorascopeError: for an unknown recipe.
        ForgeError: for an unknown setting.
    """
    member, _ = find_recipe(recipe)
    resolved = resolve(member, settings or {})
    if count < 1 or workers < 1:
        raise ForgeError("must be positive", key="count" if count < 1 else "workers", expected="at least 1")
    kind, size = resolved["kind"], resolved["cohort"]
    device = device_of_process(str((settings or {}).get("device", "cpu")), 0)
    peak_before = _peak_bytes()
    with deterministic(device):
        base = member.architecture(member.options_of(resolved)).eval().requires_grad_(False).to(device)
        rows = [member.draw(seed, index, resolved) for index in range(size)]
        short = [row | {"steps": min(row["steps"], _STEPS)} for row in rows]
        everyone = [True] * size
        train_rows(member, base, short[:1], everyone[:1], resolved)  # the first products of a process are slow
        times = [time.perf_counter()]
        stack = train_rows(
            member, base, short, everyone, resolved, on_step=lambda step: times.append(time.perf_counter())
        )
        if len(times) == 1:  # of adapters that take no steps
            times.append(time.perf_counter())
        set_up, *of_steps = [after - before for before, after in itertools.pairwise(times)]
        per_step = statistics.median(of_steps or [0.0])
        began = time.perf_counter()
        with stack.attached() as model, torch.no_grad():
            member.session(base).measure(model, rows)
        per_measure = time.perf_counter() - began
        began = time.perf_counter()
        import_parquet()  # a run writes its manifest with it, and it takes room
        with tempfile.TemporaryDirectory() as folder:
            write(stack.adapter(0), Path(folder) / "adapter", format="peft")
            per_adapter = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        per_write = time.perf_counter() - began

    peak, memory = _peak_bytes(), None
    cohorts = math.ceil(count / size)
    # slots are masked, not removed: a cohort takes the steps of its longest adapter
    longest = max(row["steps"] for row in rows[:count])
    per_cohort = set_up + max(0, longest - 1) * per_step + per_measure + min(size, count) * per_write
    processes = min(workers, cohorts)
    if peak is not None and peak_before is not None:
        memory = processes * peak + (processes > 1) * peak_before
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": member.name,
        "about": member.about,
        "kind": kind,
        "count": count,
        "workers": workers,
        "seconds": math.ceil(cohorts / workers) * per_cohort,
        "milliseconds_per_adapter_step": 1e3 * per_step / size,
        "adapters_per_minute_per_core": 60 * min(size, count) / per_cohort,
        "memory_bytes": memory,
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


def _peak_bytes() -> int | None:
    """The most main memory that this process has had, None where the system does not say."""
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _bytes_of(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
