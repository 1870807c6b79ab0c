"""WaveFT: a few trained wavelet coefficients of ΔW, at places drawn once from a seed.

    ΔW = scaling · IDWT₂(S)        S zero but for the trained entries, its quarters the four bands of one level
    without the transform (``use_idwt`` false): ΔW = scaling · S

The places are the first n of torch's random permutation, as for FourierFT. Read is the Haar wavelet (db1, the default):
S is padded with zeros to even sizes, and ΔW is cut back. The longer wavelets are refused by name.

Source: Bilican et al., https://arxiv.org/abs/2505.12532; https://github.com/huggingface/peft,
src/peft/tuners/waveft/layer.py and waverec2d.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Dense
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations._options import seed, switch
from lorascope.formats.parametrisations.fourierft import seeded_places

_SEED = 777
"""``random_loc_seed`` of PEFT where a configuration does not state it."""


def haar(bands: NDArray[Any]) -> NDArray[Any]:
    """One level of the inverse Haar transform of [2n, 2m], whose quarters are the bands.

    >>> haar(np.array([[4.0, 1.0], [2.0, 0.0]])).tolist()
    [[3.5, 1.5], [2.5, 0.5]]
    """
    rows, columns = bands.shape[0] // 2, bands.shape[1] // 2
    smooth, vertical = bands[:rows, :columns], bands[:rows, columns:]
    horizontal, diagonal = bands[rows:, :columns], bands[rows:, columns:]
    result = np.empty_like(bands)
    for i, across in enumerate((1, -1)):
        for j, along in enumerate((1, -1)):
            result[i::2, j::2] = (smooth + across * vertical + along * horizontal + across * along * diagonal) / 2
    return result


@dataclass(frozen=True, eq=False, kw_only=True)
class WaveFT(Dense):
    """ΔW = scaling · IDWT₂(S).

    Args:
        random_seed: the seed of the places.
        is_transformed: whether S holds wavelet coefficients, and not ΔW itself.
    """

    kind: ClassVar[str] = "waveft"
    random_seed: int = _SEED
    is_transformed: bool = True

    def _formed(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        rows, columns = seeded_places(self.dim, self.shape, self.random_seed, self._key)
        out, in_ = self.shape
        bands = np.zeros((out + out % 2, in_ + in_ % 2) if self.is_transformed else self.shape, dtype)
        bands[rows, columns] = self.part("spectrum", dtype)
        return self.scale * (haar(bands)[:out, :in_] if self.is_transformed else bands)


def build_waveft(parts: Parts) -> WaveFT:
    """The update of one site from the role spectrum.

    Raises:
        AdapterError: where the spectrum is not flat, the seed is not known, or the wavelet is another than Haar's.
    """
    count = parts.tensor("spectrum", None).shape[0]
    is_transformed = switch(parts.options, "use_idwt", default=True)
    family = parts.options.get("wavelet_family", "db1")
    if is_transformed and family != "db1":
        raise AdapterError(
            "WaveFT with this wavelet is recognised, but not read by this version",
            key="wavelet_family",
            expected="db1",
            found=ascii(family)[:80],
        )
    return WaveFT(
        stored=parts.named("spectrum"),
        keys=parts.keys,
        shape=(-1, -1),
        dim=count,
        scale=parts.scale_of(count).scale,
        is_transposed=parts.is_transposed,
        random_seed=seed(parts.options, "random_loc_seed", _SEED),
        is_transformed=is_transformed,
    )


PARAMETRISATION = Parametrisation(
    name="waveft",
    title="WaveFT",
    formula="ΔW = scaling · IDWT₂(S), S zero but for trained entries at seeded places",
    reference="https://arxiv.org/abs/2505.12532",
    exactness="dense",
    build=build_waveft,
    defaults="scaling 25, seed 777, wavelet db1",
    oracles=("peft",),
)
