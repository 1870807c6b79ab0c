"""Many invariant kernels of one set of adapters: what each compares, its Gram matrix, and a sum of them as a function.

A *part* is a linear kernel at one site, or a radial kernel at one length over all sites. Every part is centred on the
training adapters and has mean diagonal 1 among them, so that weights compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.kernel import Kernel, Sites, Tokens
from lorascope.predict.leave_one_out import centred_gram
from lorascope.predict.model import Inputs

Matrix = NDArray[np.float64]

ROOM = 1 << 18
"""Entries of features that are there at once: 2 MB, which a cache holds."""

ROUNDING = 1e-4
"""Features that vary by less, relative to their length, are constant: a gauge of condition 100 stored in float32 moves
ΔW by about 1e-5, and brought to unit variance that would be a part of nothing but rounding."""


class Part(NamedTuple):
    """``site``: its number, −1 for a radial kernel; ``length``: ℓ, 0 for a linear one."""

    kernel: str
    site: int
    length: float


class Centre(NamedTuple):
    """Training statistics of features: φ ↦ (φ − mean) · scale, ``scale`` a number or one for each column.

    Of a constant column the scale is 0: finite, as what is saved has to be.
    """

    mean: Matrix
    scale: Matrix

    @property
    def varying(self) -> int:
        """How many columns are not constant: the D of a radial kernel."""
        return max(1, int(np.count_nonzero(self.scale)))

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        return (values - self.mean.astype(values.dtype)) * self.scale.astype(values.dtype)


@dataclass(frozen=True)
class Comparison:
    """The parts of a choice of kernels over sites, with the statistics of the training adapters.

    ``centres``: of each linear part that varies at all, and under ``(kernel, -1)`` of each radial kernel.
    """

    kernels: Mapping[str, Kernel]
    sites: Sites
    centres: Mapping[tuple[str, int], Centre]

    @classmethod
    def of(cls, kernels: Sequence[Kernel], sites: Sites, inputs: Inputs) -> Comparison:
        """Learn the statistics; what is constant among the adapters says nothing and is left out."""
        centres: dict[tuple[str, int], Centre] = {}
        for kernel in kernels:
            if kernel.lengths:
                values = all_sites(kernel, sites, inputs)
                spread = values.std(axis=0)
                varies = spread > ROUNDING
                centres[kernel.name, -1] = Centre(values.mean(axis=0), varies / np.where(varies, spread, 1.0))
                continue
            for site in sites:
                values = kernel(sites.tokens(inputs, site))
                mean = values.mean(axis=0)
                square = float(((values - mean) ** 2).sum(axis=1).mean())
                if square > ROUNDING**2:
                    centres[kernel.name, site] = Centre(mean, np.asarray(1.0 / np.sqrt(square)))
        return cls({kernel.name: kernel for kernel in kernels}, sites, centres)

    def features(
        self, name: str, site: int, inputs: Inputs, rows: Any = slice(None), dtype: Any = np.float64
    ) -> NDArray[Any]:
        """The centred features of a linear kernel at a site, or of a radial one over all sites (``site`` −1)."""
        kernel = self.kernels[name]
        if site < 0:
            return self.centres[name, site](all_sites(kernel, self.sites, inputs, rows))
        return self.centres[name, site](kernel(self.sites.tokens(inputs, site, rows, dtype)))

    def grams(self, inputs: Inputs, rows: Any = slice(None)) -> Iterator[tuple[Part, NDArray[np.float32]]]:
        """Every part with its Gram matrix [n, n] among these rows; the radial ones are centred on these rows."""
        for name, site in self.centres:
            if site >= 0:
                X = self.features(name, site, inputs, rows, np.float32)
                yield Part(name, site, 0.0), X @ X.T
                continue
            X = self.features(name, site, inputs, rows)
            distances = squared_distances(X, X) / self.centres[name, site].varying
            for length in self.kernels[name].lengths:
                K, _ = centred(np.exp(-distances / (2 * length * length)))
                yield Part(name, site, length), K.astype(np.float32)


def all_sites(kernel: Kernel, sites: Sites, inputs: Inputs, rows: Any = slice(None)) -> NDArray[Any]:
    """φ of every site side by side, [n, S · d]."""
    count = max(stack for stack, _ in sites.places) + 1
    parts = [_of_stack(kernel, inputs, stack, rows) for stack in range(count)]
    return np.concatenate(parts, axis=1).reshape(len(parts[0]), -1)


def _of_stack(
    kernel: Kernel, inputs: Inputs, stack: int, rows: Any = slice(None), places: Any = slice(None)
) -> NDArray[Any]:
    """φ of these sites of a stack in one call, [n, S, d]: a kernel takes each site of each adapter by itself."""
    parts = [np.asarray(inputs[f"{part}{stack}"][rows][:, places], np.float64) for part in ("left", "S", "right")]
    n, count = parts[1].shape[:2]
    values = kernel(Tokens(*(part.reshape(n * count, *part.shape[2:]) for part in parts)))
    return values.reshape(n, count, -1)


def _run(places: list[int]) -> slice | list[int]:
    """The places as a slice where they are one run, so that what is taken of a stack is no copy."""
    run = slice(places[0], places[-1] + 1)
    return run if list(range(run.start, run.stop)) == places else places


def squared_distances(X: Matrix, Y: Matrix) -> Matrix:
    """‖x − y‖², [n, m]; of standardised features, where the difference of squares is exact enough: a radial kernel
    moves by its rounding, eps · ‖x‖², at most."""
    squares = (X * X).sum(axis=1)[:, None] + (Y * Y).sum(axis=1) - 2.0 * (X @ Y.T)
    return np.maximum(squares, 0.0)


class Centring(NamedTuple):
    """What makes a radial kernel centred and of mean diagonal 1: k ↦ (k − mean_i − mean_j + whole) / unit."""

    mean: Matrix
    whole: float
    unit: float


def centred(K: Matrix) -> tuple[Matrix, Centring]:
    """The Gram matrix of the features less their mean, divided by its mean diagonal; as it is where that is zero."""
    rest, mean = centred_gram(K)
    unit = float(np.trace(rest)) / len(K)
    unit = unit if unit > 1e-12 else 1.0
    return rest / unit, Centring(mean, float(mean.mean()), unit)


@dataclass(frozen=True)
class Machine:
    """f(x) = intercept + Σ_parts w ⟨k(x, ·), a⟩, with the sum over the training adapters already taken where it can be.

    ``slopes``: (kernel, site) → [d, t] for φ itself, not centred; ``intercept`` [t].
    ``radial``: kernel → its training features [n, D], and for each length the coefficients [n, t].
    ``means``: (kernel, site) → [t], what a linear part adds to the values of the training adapters in the mean.
    """

    comparison: Comparison
    slopes: Mapping[tuple[str, int], Matrix]
    radial: Mapping[str, tuple[Matrix, Mapping[float, Matrix]]]
    intercept: Matrix
    means: Mapping[tuple[str, int], Matrix]

    @classmethod
    def of(
        cls, comparison: Comparison, weights: Mapping[Part, float], inputs: Inputs, a: Matrix, shift: Matrix
    ) -> Machine:
        """From the weight of each part and the dual coefficients a [n, t]; ``shift`` [t] is added to every value."""
        slopes: dict[tuple[str, int], Matrix] = {}
        means: dict[tuple[str, int], Matrix] = {}
        radial: dict[str, tuple[Matrix, Mapping[float, Matrix]]] = {}
        intercept = np.array(shift, np.float64)
        for name, site in comparison.centres:
            mine = {part.length: w for part, w in weights.items() if (part.kernel, part.site) == (name, site) and w > 0}
            if not mine:
                continue
            X = comparison.features(name, site, inputs)
            if site >= 0:
                centre = comparison.centres[name, site]
                slopes[name, site] = mine[0.0] * (X.T @ a) * centre.scale
                means[name, site] = centre.mean @ slopes[name, site]
                intercept -= means[name, site]
                continue
            distances = squared_distances(X, X) / comparison.centres[name, site].varying
            coefficients: dict[float, Matrix] = {}
            for length, weight in mine.items():
                _, (mean, whole, unit) = centred(np.exp(-distances / (2 * length * length)))
                coefficients[length] = (weight / unit) * (a - a.mean(axis=0))
                intercept += (weight / unit) * (whole * a.sum(axis=0) - mean @ a)
            radial[name] = (X, coefficients)
        return cls(comparison, slopes, radial, intercept, means)

    @cached_property
    def _stacked(self) -> list[tuple[str, int, slice | list[int], Matrix]]:
        """(kernel, stack, its places, their slopes side by side [t, S · d]): one call instead of one for each site."""
        groups: dict[tuple[str, int], list[int]] = {}
        for name, site in self.slopes:
            groups.setdefault((name, self.comparison.sites.places[site][0]), []).append(site)
        return [
            (
                name,
                stack,
                _run([self.comparison.sites.places[site][1] for site in own]),
                np.ascontiguousarray(np.concatenate([self.slopes[name, site] for site in own]).T),
            )
            for (name, stack), own in groups.items()
        ]

    def __call__(self, inputs: Inputs) -> Matrix:
        """[n, t] in float64."""
        total: Matrix = np.zeros((len(inputs["S0"]), len(self.intercept))) + self.intercept
        for name, stack, places, slope in self._stacked:
            step = max(1, ROOM // slope.shape[1])
            for start in range(0, len(total), step):
                rows = slice(start, start + step)
                values = _of_stack(self.comparison.kernels[name], inputs, stack, rows, places)
                total[rows] += values.reshape(len(values), -1) @ slope.T
        for name, (X, coefficients) in self.radial.items():
            varying = self.comparison.centres[name, -1].varying
            distances = squared_distances(self.comparison.features(name, -1, inputs), X) / varying
            for length, coefficient in coefficients.items():
                total += np.exp(-distances / (2 * length * length)) @ coefficient
        return total

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Slopes by kernel and site, radial training features and coefficients."""
        arrays: dict[str, NDArray[Any]] = {"intercept": self.intercept}
        for (name, site), slope in self.slopes.items():
            arrays[f"slope.{name}.{site}"], arrays[f"mean.{name}.{site}"] = slope, self.means[name, site]
        for name, (X, coefficients) in self.radial.items():
            centre = self.comparison.centres[name, -1]
            arrays[f"radial.{name}.features"] = X
            arrays[f"radial.{name}.mean"], arrays[f"radial.{name}.scale"] = centre.mean, centre.scale
            for place, coefficient in enumerate(coefficients.values()):
                arrays[f"radial.{name}.{place}"] = coefficient
        return arrays, {"lengths": {name: list(coefficients) for name, (_, coefficients) in self.radial.items()}}

    @classmethod
    def restored(
        cls,
        kernels: Sequence[Kernel],
        sites: Sites,
        columns: Callable[[str, int], int],
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
    ) -> Machine:
        """From ``state``.

        Args:
            kernels, sites: of the model and its structure.
            columns: (kernel, site) → d, the number of columns of φ.
            arrays, values: the state.

        Raises:
            ValueError: where an array is missing, is nobody's, or has another shape than the others call for.
        """
        left = dict(arrays)

        def taken(name: str, shape: tuple[int, ...]) -> Matrix:
            array = left.pop(name)
            if array.shape != shape or array.dtype != np.float64:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not float64 {shape}")
            return array

        width = len(arrays["intercept"])
        intercept = taken("intercept", (width,))
        slopes: dict[tuple[str, int], Matrix] = {}
        means: dict[tuple[str, int], Matrix] = {}
        for kernel in kernels:
            for site in sites:
                if f"slope.{kernel.name}.{site}" in arrays:
                    place = (kernel.name, site)
                    slopes[place] = taken(f"slope.{kernel.name}.{site}", (columns(*place), width))
                    means[place] = taken(f"mean.{kernel.name}.{site}", (width,))
        centres: dict[tuple[str, int], Centre] = {}
        radial: dict[str, tuple[Matrix, Mapping[float, Matrix]]] = {}
        lengths: Mapping[str, Sequence[float]] = values["lengths"]
        for name, own in lengths.items():
            if not all(0 < length < np.inf for length in own) or len(set(own)) < len(own):
                raise ValueError(f"impossible lengths of {name}: {own}")
            whole = sum(columns(name, site) for site in sites)
            count = len(arrays[f"radial.{name}.features"])
            X = taken(f"radial.{name}.features", (count, whole))
            centre = Centre(*(taken(f"radial.{name}.{part}", (whole,)) for part in Centre._fields))
            if (centre.scale < 0).any():
                raise ValueError(f"a negative scale of {name}")
            centres[name, -1] = centre
            radial[name] = (
                X,
                {float(one): taken(f"radial.{name}.{place}", (count, width)) for place, one in enumerate(own)},
            )
        if left:
            raise ValueError(f"arrays that belong to no part: {', '.join(list(left)[:3])}")
        comparison = Comparison({kernel.name: kernel for kernel in kernels}, sites, centres)
        return cls(comparison, slopes, radial, intercept, means)
