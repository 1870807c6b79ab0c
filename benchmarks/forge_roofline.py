"""A step of forging against a roofline measured in the same run: each product and each pass over memory at its best.

The bound of an operation is the larger of its multiplications at the machine's peak and the bytes that it must read
and write at the machine's memory bandwidth; the bound of a step is their sum over all operations of the step. Copies
count nothing: a perfect engine makes none. One thread.

Where a step of 24.5 ms goes beyond its bound of 14.4 (32 adapters, operations timed one by one): products of as many
rows as the rank, 4, run at a quarter of the peak (1.7 ms), those of attention over 8 tokens at a sixth (1.5), copies
into and out of heads (1.5), the frozen layers' own products at .85 (1.3), layer norms (0.5), the operations of softmax
(0.4), Python and autograd (about 2). Tried without gain: large pages and a heap that is never given back (no page
faults are left), attention without copies in an operation of its own (a quarter slower), fused attention (slower).
The products alone take 15.6 ms as
the library runs them, so that four fifths would leave 2.4 ms for all else. 64 adapters at a time are 9 % faster, and
would change the bits of every zoo.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorascope.forge.cohort import train_rows
from lorascope.forge.determinism import deterministic
from lorascope.forge.recipes import RECIPES
from report import report

STEPS = 60
REPEATS = 5
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "baddbmm_", "matmul")
FREE = (
    "copy_",
    "clone",
    "_to_copy",
    "_unsafe_view",
    "zeros_like",
    "new_zeros",
    "new_empty",
    "empty",
    "empty_like",
    "zero_",
    "fill_",
)


class Counter(TorchDispatchMode):
    """Multiplications and bytes of every operation that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, float, float]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not function.is_view and name not in FREE:
            inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
            operations = 0.0
            if name in PRODUCTS:
                left = inputs[-2]
                operations = 2.0 * outputs[0].numel() * left.shape[-1]
            different = {(value.data_ptr(), value.numel()): value for value in inputs}
            moved = sum(_bytes(value) for value in (*different.values(), *outputs))
            self.operations.append((name, operations, float(moved)))
        return result


def _bytes(value: Tensor) -> int:
    """Of the memory that holds the values, a number that is repeated counted once."""
    count = 1
    for size, stride in zip(value.shape, value.stride(), strict=True):
        count *= size if stride else 1
    return count * value.element_size()


def peak() -> float:
    """Floating-point operations a second of the best large product."""
    left, right = torch.rand(1024, 1024), torch.rand(1024, 1024)
    return 2 * 1024**3 / best(lambda: left @ right)


def bandwidth() -> float:
    """Bytes a second of an addition of arrays that no cache holds."""
    first, second, third = (torch.ones(1 << 24) for _ in range(3))
    return 3 * 4 * (1 << 24) / best(lambda: torch.add(first, second, out=third))


def best(function: Any) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def figures() -> dict[str, float]:
    """The share of the roofline that is reached, and what it is made of."""
    recipe = RECIPES["digits-vit"]
    with deterministic():
        base = recipe.pretrain({**recipe.option_defaults, "base_steps": 20}).eval().requires_grad_(False)
        everyone = [True] * recipe.cohort

        def seconds(steps: int) -> float:
            rows = [recipe.draw(0, index, {"steps": steps}) for index in range(recipe.cohort)]
            start = time.perf_counter()
            train_rows(recipe, base, rows, everyone)
            return time.perf_counter() - start

        def counted(steps: int) -> list[tuple[str, float, float]]:
            rows = [recipe.draw(0, index, {"steps": steps}) for index in range(recipe.cohort)]
            with Counter() as counter:
                train_rows(recipe, base, rows, everyone)
            return counter.operations

        seconds(3)
        few, many = counted(1), counted(2)
        operations, bytes_ = peak(), bandwidth()
        # the difference of two lengths leaves out what is done once
        took = min(seconds(STEPS + 5) - seconds(5) for _ in range(REPEATS)) / STEPS
        first = sum(max(count / operations, moved / bytes_) for _, count, moved in few)
        both = sum(max(count / operations, moved / bytes_) for _, count, moved in many)
    bound = both - first
    products = sum(count for _, count, _ in many) - sum(count for _, count, _ in few)
    return {
        "share_of_roofline": bound / took,
        "milliseconds_per_step": 1e3 * took,
        "milliseconds_of_roofline": 1e3 * bound,
        "milliseconds_of_products_at_peak": 1e3 * products / operations,
        "peak_gflops": operations / 1e9,
        "bandwidth_gib_s": bytes_ / 2**30,
    }


if __name__ == "__main__":
    report("forge_roofline", figures)
