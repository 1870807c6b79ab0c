"""Principal directions: where the adapters of training write and read most, and tokens reduced to these.

    C_s = Σ_i U_i f(S_i) U_iᵀ  (out side; V_i on the in side),    U ↦ E_sᵀ U,    E_s: the m leading eigenvectors of C_s

What finetunes of one base have in common lies in few directions of a layer; what is peculiar to one of them, the noise
of its start and of its data, is spread over all. So the directions that many share tell more, and the rest is left out.
Nothing here sees a label. E_s is learned once, from adapters that are then left out in turn, as the means are that
centre a kernel. Tokens are taken site by site, so that they may lie on disk (``stored_tokens``).

Where the m-th eigenvalue equals the next, all directions of that value are left out: which of them are the first m is
rounding. Where the two are apart by g, relative to the largest eigenvalue, rounding moves E_s by itself divided by g.

Source: Hotelling (1933), principal components.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.kernels._side import filtered
from lorascope.predict.model import Inputs

SIDES = ("left", "right")
NOTHING = 1e-12
"""Eigenvalues below this share of the largest are of directions in which no adapter of training has anything."""
TIE = 1e-9
"""Eigenvalues that differ by less than this share of the largest are equal. Of five zoos of digits-vit the gap at the
cut was 8e-6 or more, with 12 to 600 adapters, wherever there was anything beyond it."""
NUMBERS = 1 << 23
"""Of the tokens that are taken at once, 64 MB."""


@dataclass(frozen=True)
class Principal:
    """``bases``: ``left0``, ``right0``, … → E [S, h, m], for each side of more than m dimensions."""

    bases: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, inputs: Inputs, size: int) -> Principal:
        """The ``size`` leading directions of each side, from the tokens of training adapters."""
        bases: dict[str, NDArray[np.float64]] = {}
        for name, tokens in inputs.items():
            side = next((side for side in SIDES if name.startswith(side)), None)
            if side is None or tokens.shape[2] <= size:
                continue
            weights = np.sqrt(filtered(inputs[name.replace(side, "S")]))
            bases[name] = np.stack([_leading(tokens, weights, site, size) for site in range(tokens.shape[1])])
        return cls(bases)

    def __call__(self, inputs: Inputs) -> Inputs:
        """The tokens in the principal directions; sides that have no more are as they were."""
        reduced = dict(inputs)
        for name, array in inputs.items():
            if name not in self.bases:
                reduced[name] = np.asarray(array)
                continue
            basis = self.bases[name]
            reduced[name] = np.empty((*array.shape[:2], basis.shape[2], array.shape[3]))
            for site, own in enumerate(basis):
                for rows in _runs(array):
                    reduced[name][rows, site] = own.T @ array[rows, site]
        return reduced

    def state(self) -> dict[str, NDArray[Any]]:
        """The bases as arrays."""
        return {f"principal.{name}": np.ascontiguousarray(basis) for name, basis in self.bases.items()}

    @classmethod
    def restored(cls, arrays: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, int, int]]) -> Principal:
        """From ``state`` among other arrays.

        Raises:
            ValueError: where a basis is missing or has another shape than it should.
        """
        bases: dict[str, NDArray[np.float64]] = {}
        for name, shape in shapes.items():
            basis = arrays.get(f"principal.{name}", np.zeros(0))
            if basis.shape != shape or basis.dtype != np.float64:
                raise ValueError(
                    f"the principal directions of {name} are {basis.dtype} {basis.shape}, not float64 {shape}"
                )
            bases[name] = basis
        return cls(bases)


def _leading(tokens: NDArray[Any], weights: NDArray[Any], site: int, size: int) -> NDArray[np.float64]:
    """The leading eigenvectors [h, size] of Σ U diag(w²) Uᵀ at a site; zero where nothing is left, or
    none stands out."""
    h = tokens.shape[2]
    energy = np.zeros((h, h))
    for rows in _runs(tokens):
        weighted = (tokens[rows, site] * weights[rows, site, None, :]).swapaxes(0, 1).reshape(h, -1)
        energy += weighted @ weighted.T
    values, vectors = np.linalg.eigh(energy)
    largest = max(float(values[-1]), 0.0)
    first = h - size
    while first < h and values[first - 1] > NOTHING * largest and values[first] - values[first - 1] <= TIE * largest:
        first += 1  # of a cluster that the cut goes through all directions are left out
    is_kept = (np.arange(h) >= first) & (values > NOTHING * largest)
    return vectors[:, -size:] * is_kept[-size:]


def _runs(tokens: NDArray[Any]) -> Iterator[slice]:
    """The adapters in runs that have no more than ``NUMBERS`` at one site, or one."""
    step = max(1, NUMBERS // (tokens.shape[2] * tokens.shape[3]))
    yield from (slice(start, start + step) for start in range(0, len(tokens), step))
