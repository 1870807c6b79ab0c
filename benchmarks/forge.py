"""Forging 256 digits-vit adapters against training them one at a time with peft: same base, data, steps and rates.

Both ways with one process and with two, one thread each. Interpreters are started, modules imported and one adapter
trained before anything is timed. PEFT's optimiser is PyTorch's fused AdamW, the fastest that it has on a processor.
``--adapters 32`` is quicker; what differs then is noise.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorascope.forge.cohort import train_rows
from lorascope.forge.determinism import deterministic
from lorascope.forge.recipes import RECIPES
from lorascope.forge.recipes.digits_vit import digits
from lorascope.formats import write
from report import print_report

RECIPE = RECIPES["digits-vit"]
OPTIONS = {**RECIPE.option_defaults, "base_steps": 200}
STEPS = 100
PROCESSES = 2
WARM = 3

Part = dict[str, Any]
"""What one process did: when it began and ended, seconds by phase, and the test accuracy of each adapter."""


@cache
def base() -> nn.Module:
    """The frozen base, the same in every process."""
    return RECIPE.pretrain(OPTIONS).eval().requires_grad_(False)


def rows_of(indices: Sequence[int], steps: int = STEPS) -> list[dict[str, Any]]:
    """What the adapters are trained with."""
    return [RECIPE.draw(0, index, {"steps": steps}) for index in indices]


def forged(indices: Sequence[int], steps: int = STEPS) -> Part:
    """The adapters trained cohort by cohort, measured and written."""
    session, size = RECIPE.session(base()), RECIPE.cohort
    training, accuracies, began = 0.0, {}, time.time()
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, len(indices), size):
            chosen = list(indices[first : first + size])
            start = time.perf_counter()
            rows = rows_of(chosen, steps)
            stack = train_rows(RECIPE, base(), rows, [True] * len(rows))
            training += time.perf_counter() - start
            with stack.attached() as model, torch.no_grad():
                measured = session.measure(model, rows)
            for number, index in enumerate(chosen):
                write(stack.adapter(number), Path(folder) / str(index))
                accuracies[index] = measured[number]["test_accuracy"]
    return {"began": began, "ended": time.time(), "training": training, "setup": 0.0, "accuracies": accuracies}


def one_by_one(indices: Sequence[int], steps: int = STEPS) -> Part:
    """The same adapters, each set up, trained, measured and written by peft."""
    from peft import LoraConfig, get_peft_model

    session, test, weights = RECIPE.session(base()), digits().test, base().state_dict()
    rows = rows_of(indices, steps)
    size = RECIPE.cohort
    began, training, setup, accuracies = time.time(), 0.0, 0.0, {}
    starts = [adapter for first in range(0, len(rows), size) for adapter in _untrained(rows[first : first + size])]
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        for index, row, start_of in zip(indices, rows, starts, strict=True):
            start = time.perf_counter()
            fresh = RECIPE.architecture(OPTIONS).eval()
            fresh.load_state_dict(weights)
            config = LoraConfig(r=row["rank"], lora_alpha=row["alpha"], target_modules=list(RECIPE.sites))
            one = get_peft_model(fresh, config)
            with torch.no_grad():
                for site, update in start_of.items():
                    A = one.base_model.model.get_submodule(site).lora_A["default"].weight
                    A.copy_(torch.tensor(update.factors().A))
            one.eval()
            setup += time.perf_counter() - start
            batches = session.batches([row])
            start = time.perf_counter()
            parameters = [value for value in one.parameters() if value.requires_grad]
            optimiser = torch.optim.AdamW(parameters, lr=row["learning_rate"], weight_decay=0.0, fused=True)
            for step in range(row["steps"]):
                images, classes = batches(step, 0)
                session.loss(one(images), classes).mean().backward()
                optimiser.step()
                optimiser.zero_grad()
            training += time.perf_counter() - start
            with torch.no_grad():
                correct = one(test.pixels).argmax(-1) == test.classes
            accuracies[index] = float(correct.double().mean())
            one.save_pretrained(Path(folder) / str(index))
    return {"began": began, "ended": time.time(), "training": training, "setup": setup, "accuracies": accuracies}


def _untrained(rows: list[dict[str, Any]]) -> list[Any]:
    stack = train_rows(RECIPE, base(), rows, [False] * len(rows))
    return [stack.adapter(number) for number in range(len(rows))]


def _in_process(work: Callable[..., Part], indices: Sequence[int], ready: Any, results: Any) -> None:
    with deterministic():
        work(indices[:1], WARM)
        ready.wait()
        results.put(work(indices))


def timed(work: Callable[..., Part], count: int, processes: int) -> Part:
    """The work of all adapters shared by processes that begin at the same moment."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(processes), context.Queue()
    size = min(RECIPE.cohort, -(-count // processes))
    shares = [[i for i in range(count) if i // size % processes == number] for number in range(processes)]
    workers = [context.Process(target=_in_process, args=(work, share, ready, results)) for share in shares]
    for worker in workers:
        worker.start()
    parts = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return {
        "whole": max(part["ended"] for part in parts) - min(part["began"] for part in parts),
        # phases are summed over processes, which run side by side
        **{phase: sum(part[phase] for part in parts) / processes for phase in ("training", "setup")},
        "accuracies": {index: value for part in parts for index, value in part["accuracies"].items()},
    }


def figures(count: int) -> dict[str, float]:
    """Ratios of times of the same adapters, and how far the two ways differ."""
    result: dict[str, float] = {"adapters": count}
    ours: Part = {}
    theirs: Part = {}
    for processes in range(1, PROCESSES + 1):
        ours, theirs = timed(forged, count, processes), timed(one_by_one, count, processes)
        words = "one_process" if processes == 1 else f"{processes}_processes"
        result |= {
            f"seconds_of_forging_{words}": ours["whole"],
            f"seconds_of_peft_{words}": theirs["whole"],
            f"ratio_of_training_{words}": theirs["training"] / ours["training"],
            f"ratio_of_training_and_setup_{words}": (theirs["training"] + theirs["setup"]) / ours["training"],
            f"ratio_of_all_{words}": theirs["whole"] / ours["whole"],
        }
    differences = [abs(ours["accuracies"][index] - theirs["accuracies"][index]) for index in range(count)]
    return result | {
        "test_accuracy_of_forging": sum(ours["accuracies"].values()) / count,
        "test_accuracy_of_peft": sum(theirs["accuracies"].values()) / count,
        "largest_difference_of_test_accuracy": max(differences),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--adapters", type=int, default=256)
    given = parser.parse_args()
    print_report("forge", figures(given.adapters), is_json=given.json)
