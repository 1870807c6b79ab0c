"""Milliseconds per adapter and step of every kind on digits-vit, and each against lora; one thread, one process.

Time of the processor, so that what else the machine does matters little.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time

from lorascope.forge.cohort import train_rows
from lorascope.forge.determinism import deterministic
from lorascope.forge.kinds import KINDS
from lorascope.forge.recipes import RECIPES
from report import report

STEPS, RUNS = 20, 3


def figures() -> dict[str, float]:
    """The median of several runs, the kinds taking turns; what is done once before the first step is taken off."""
    recipe = RECIPES["digits-vit"]
    everyone = [True] * recipe.cohort
    times: dict[str, list[float]] = {name: [] for name in KINDS.names()}
    with deterministic():
        base = recipe.architecture({}).eval().requires_grad_(False)
        for turn in range(RUNS + 1):
            for name, own in times.items():
                rows = [recipe.draw(0, index, {"kind": name}) for index in range(recipe.cohort)]
                seconds = []
                for steps in (1, 1 + STEPS):
                    start = time.process_time()
                    train_rows(recipe, base, [row | {"steps": steps} for row in rows], everyone, {"kind": name})
                    seconds.append(time.process_time() - start)
                if turn:  # the first turn warms up
                    own.append(1e3 * (seconds[1] - seconds[0]) / STEPS / recipe.cohort)
    each = {name: statistics.median(own) for name, own in times.items()}
    found: dict[str, float] = {}
    for name, milliseconds in each.items():
        found[f"{name}_milliseconds_per_adapter_step"] = milliseconds
        found[f"{name}_against_lora"] = milliseconds / each["lora"]
    return found


if __name__ == "__main__":
    report("forge_kinds", figures)
