"""Weights of kernels and sites, from coarse to fine: for each kernel, then its kinds of site, then thirds of the depth.

A kind of site is its name without numbers. Each level starts from the weights of the one before and is held to them;
the first starts from weights that are all alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.kernel import Sites
from lorascope.predict.kernel_learning import Learned, learn_weights
from lorascope.predict.kernel_machine import Part
from lorascope.predict.leave_one_out import Blocks, Matrix

PULL = 1.4
"""How strongly weights are held to where they start, in log error per square of a logarithm, adapter and target column.

With n adapters log error of one target is known to about 1/n, so a pull that did not fall with n would be nothing to
few adapters, whose weights then fit their own left-out residuals. From 50 adapters of digits-vit, in twelve draws,
accuracy was told with R² of .45 ± .23 without a pull, .48 ± .19 with one of .002 whatever n is, and .61 ± .04 with
this one (mean and deviation over the draws, on adapters outside them). Leave-one-out said .25, .49 and .57; intervals
of 90 % held 93 % (85 to 99), 90 % (70 to 97) and 93 % (89 to 97), at widths of .55, .46 and .39.

Each class is a target of its own and says as much again of which kernels tell them: of 50 adapters, held by n alone,
the ten classes of digits-vit were told with AUROC .70 ± .03, held by n and columns with .79 ± .02; 26 characters of
glyph-diffusion with .60 and .82. From 400 on it is nothing or little (.001, .005; all on the validation splits).
"""


class Bundle(NamedTuple):
    """Parts that have one weight at every level, and the mean of their Gram matrices."""

    parts: list[Part]
    gram: NDArray[np.float32]


class Level(NamedTuple):
    """Weights of all parts, and the noise that they were learned with."""

    weights: Mapping[Part, float]
    noise: float


def subset_of_groups(groups: Sequence[str], size: int, seed: int) -> NDArray[np.int64]:
    """Groups in a random order, whole but for the last, until ``size`` samples are there; as sorted indices."""
    if len(groups) <= size:
        return np.arange(len(groups))
    names = sorted(set(groups))
    order = {names[k]: place for place, k in enumerate(np.random.default_rng(seed).permutation(len(names)))}
    return np.sort(np.argsort([order[group] for group in groups], kind="stable")[:size])


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def levels_of(sites: Sites) -> list[list[str]]:
    """For each level, the class of every site: none, its kind, its kind and third of the depth.

    Thirds that part no further than kinds do are left out.
    """
    kinds = [_kind(name) for name in sites.names]
    thirds: list[str] = []
    for number, kind in enumerate(kinds):
        place = kinds[:number].count(kind)
        thirds.append(f"{kind} {3 * place // kinds.count(kind)}")
    parts_further = [thirds.index(name) for name in thirds] != [kinds.index(name) for name in kinds]
    return [[""] * len(kinds), kinds, *([thirds] if parts_further else [])]


def _class_of(part: Part, classes: Sequence[str]) -> tuple[str, str, float]:
    return part.kernel, classes[part.site] if part.site >= 0 else "", part.length


def bundles_of(grams: Iterable[tuple[Part, NDArray[np.float32]]], finest: Sequence[str]) -> list[Bundle]:
    """One bundle for each class of the finest level: the matrices of hundreds of sites would not fit into memory."""
    found: dict[tuple[str, str, float], Bundle] = {}
    for part, gram in grams:
        parts, mean = found.get(_class_of(part, finest), Bundle([], np.zeros_like(gram)))
        mean += (gram - mean) / (len(parts) + 1)
        found[_class_of(part, finest)] = Bundle([*parts, part], mean)
    return list(found.values())


def weights_by_level(
    bundles: Sequence[Bundle], Y: Matrix, blocks: Blocks, levels: Sequence[Sequence[str]]
) -> list[Level]:
    """Weights on the subset, from coarse to fine, each level starting from the one before."""
    found: list[Level] = []
    if not bundles:  # all adapters are alike: nothing but the mean can be said
        return [Level({}, 1.0)]
    for classes in levels:
        members: dict[tuple[str, str, float], list[Bundle]] = {}
        for bundle in bundles:
            members.setdefault(_class_of(bundle.parts[0], classes), []).append(bundle)
        parts = [[part for bundle in own for part in bundle.parts] for own in members.values()]
        stack = np.stack([_mean_gram(own) for own in members.values()])
        start = None
        if found:
            before, noise = found[-1]
            sums = [sum(before[part] for part in own) for own in parts]
            start = np.log([*np.maximum(sums, 1e-12), noise])
        learned: Learned = learn_weights(stack, Y, blocks, start=start, pull=PULL / Y.size)
        weights = {
            part: float(weight) / len(own) for weight, own in zip(learned.weights, parts, strict=True) for part in own
        }
        found.append(Level(weights, learned.noise))
    return found


def _mean_gram(bundles: Sequence[Bundle]) -> NDArray[np.float32]:
    count = sum(len(bundle.parts) for bundle in bundles)
    return np.add.reduce([np.float32(len(bundle.parts) / count) * bundle.gram for bundle in bundles])
