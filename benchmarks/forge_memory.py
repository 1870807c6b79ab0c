"""Memory of one more adapter in a cohort, against what it cannot do without.

That is its parameters, their gradients and the two moments of AdamW, and the activations that the backward pass keeps
for its examples, counted as they are saved. The peak of processes with few and with many adapters is what the system
says; their difference leaves out the interpreter, the libraries and the base.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing
import resource
import sys

import torch

from lorascope.forge.cohort import train_rows
from lorascope.forge.determinism import deterministic
from lorascope.forge.recipes import RECIPES
from report import report

FEW, MANY, STEPS = 64, 256, 3


def peak(count: int, results: multiprocessing.Queue) -> None:
    """Put the largest memory of this process, in bytes, and what the backward pass of the last step kept."""
    recipe, kept = RECIPES["digits-vit"], {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return value

    with deterministic():
        base = recipe.architecture({}).eval().requires_grad_(False)
        rows = [recipe.draw(0, index, {"steps": STEPS}) for index in range(count)]
        stack = train_rows(recipe, base, rows, [True] * count)
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        inputs, targets = recipe.session(base).batches(rows)(0, 0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), stack.attached() as model:
            recipe.session(base).loss(model(inputs), targets).sum()
        own = {value.untyped_storage().data_ptr() for value in (*base.parameters(), stack.values)}
        results.put((largest, sum(size for place, size in kept.items() if place not in own), stack.values.nbytes))


def figures() -> dict[str, float]:
    """Bytes of one more adapter."""
    context, found = multiprocessing.get_context("spawn"), {}
    for count in (FEW, MANY):
        results = context.Queue()
        process = context.Process(target=peak, args=(count, results))
        process.start()
        found[count] = results.get()
        process.join()
    largest, activations, values = (
        (many - few) / (MANY - FEW) for few, many in zip(found[FEW], found[MANY], strict=True)
    )
    needed = 4 * values + activations
    return {
        "bytes_per_adapter": largest,
        "bytes_per_adapter_needed": needed,
        "ratio": largest / needed,
        "bytes_of_parameters": values,
        "bytes_of_activations": activations,
        "megabytes_of_a_cohort_of_64": found[FEW][0] / 1e6,
    }


if __name__ == "__main__":
    report("forge_memory", figures)
