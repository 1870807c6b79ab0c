"""Disjoint tasks of one base, that of digits-vit, which knows all ten upright digits (.95).

*Classes*: each adapter learns some of the ten digits, and no two the same; it answers what it knows and forgets the
rest. *Views*: each adapter learns all digits turned, mirrored, inverted or shuffled in one of eight ways, of which the
base knows hardly any. ``validation`` images choose the scale of a merge, the recipe's own test images judge it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lorascope.adapter import Adapter
from lorascope.forge import AdapterStack, Slot, Training, train
from lorascope.forge.determinism import deterministic
from lorascope.forge.kinds import KINDS
from lorascope.forge.recipes import RECIPES
from lorascope.forge.recipes.digits_vit import Images, digits

RANK, ALPHA, BATCH = 4, 8.0, 32
ALL = tuple(range(10))


def _picture(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda pixels: change(pixels.reshape(*pixels.shape[:-1], 8, 8)).flatten(-2)


_SHUFFLED = torch.from_numpy(np.random.default_rng(0).permutation(64))
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "upright": lambda x: x,
    "left": _picture(lambda x: x.rot90(1, (-2, -1))),
    "over": _picture(lambda x: x.rot90(2, (-2, -1))),
    "right": _picture(lambda x: x.rot90(3, (-2, -1))),
    "mirror": _picture(lambda x: x.flip(-1)),
    "transpose": _picture(lambda x: x.transpose(-2, -1)),
    "negative": lambda x: 1 - x,
    "halves": _picture(lambda x: x.roll(4, -1)),
    "shuffled": lambda x: x[..., _SHUFFLED],
}


class Task(NamedTuple):
    """Digits of some classes in one view."""

    view: str
    classes: tuple[int, ...] = ALL


class Parts(NamedTuple):
    """The images of the pool to learn from and to choose by, and those that judge."""

    train: Images
    validation: Images
    test: Images


def parts() -> Parts:
    """Of the pool of 997 images 697 and 300; the 300 test images of the recipe."""
    pool, test = digits().pool, digits().test
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(pool.pixels)))
    some, rest = order[:-300], order[-300:]
    return Parts(Images(pool.pixels[some], pool.classes[some]), Images(pool.pixels[rest], pool.classes[rest]), test)


def base() -> torch.nn.Module:
    """The frozen base of digits-vit."""
    recipe = RECIPES["digits-vit"]
    return recipe.pretrain(dict(recipe.option_defaults)).eval().requires_grad_(False)


def trained(
    model: torch.nn.Module,
    tasks: Sequence[Sequence[Task]],
    seeds: Sequence[int],
    steps: Sequence[int],
    rate: float,
    rank: int = RANK,
) -> list[Adapter]:
    """One adapter for each list of tasks, all at once; those of several tasks see each as often."""
    recipe, (learn, _, _) = RECIPES["digits-vit"], parts()
    seen = {name: change(learn.pixels) for name, change in VIEWS.items()}
    generators = [np.random.default_rng([seed, *repr(own).encode()]) for own, seed in zip(tasks, seeds, strict=True)]
    classes = learn.classes.numpy()
    known = {own: np.flatnonzero(np.isin(classes, own)) for some in tasks for _, own in some}

    def batch(step: int, part: int) -> tuple[Tensor, Tensor]:
        pixels, answers = [], []
        for own, generator in zip(tasks, generators, strict=True):
            for number, count in enumerate(np.bincount(generator.integers(len(own), size=BATCH), minlength=len(own))):
                chosen = torch.from_numpy(generator.choice(known[own[number].classes], count))
                pixels.append(seen[own[number].view][chosen])
                answers.append(learn.classes[chosen])
        return torch.cat(pixels), torch.cat(answers)

    with deterministic():
        slots = [Slot(rank, ALPHA * rank / RANK, 1000 + seed) for seed in seeds]
        stack = AdapterStack(model, recipe.sites, slots, KINDS["lora"])
        trainings = [Training(learning_rate=rate, steps=count, schedule="cosine") for count in steps]
        train(stack, batch, lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"), trainings)
        return [stack.adapter(number) for number in range(len(slots))]


def accuracies(model: torch.nn.Module, adapter: Adapter | None, tasks: Sequence[Task], images: Images) -> list[float]:
    """The share of the images of each task that the base with the adapter answers rightly, of all ten classes."""
    chosen = [torch.isin(images.classes, torch.tensor(task.classes)) for task in tasks]
    shown = torch.cat([VIEWS[task.view](images.pixels[own]) for task, own in zip(tasks, chosen, strict=True)])
    truth = torch.cat([images.classes[own] for own in chosen])

    def measured() -> list[float]:
        with torch.no_grad():
            right = (model(shown).argmax(-1) == truth).double()
        return [float(part.mean()) for part in right.split([int(own.sum()) for own in chosen])]

    if adapter is None:
        return measured()
    with adapter.apply_to(model):
        return measured()
