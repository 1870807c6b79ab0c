"""FourierFT: a few trained entries of the spectrum of ΔW, at places drawn once from a seed.

    ΔW = scaling · Re IDFT₂(S)        S [out, in] zero but for the trained entries

The places are the first n of a random permutation of out · in numbers: they follow from the seed in the configuration
and the shape of the base weight. The permutation is torch's (``torch.randperm`` on the CPU), and is drawn with it.

Source: Gao et al., https://arxiv.org/abs/2405.03003; https://github.com/huggingface/peft,
src/peft/tuners/fourierft/layer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Dense
from lorascope.adapter.widening import check_room
from lorascope.errors import AdapterError, MissingExtraError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations._options import seed

_SEED = 777
"""``random_loc_seed`` of PEFT where a configuration does not state it."""


def seeded_places(count: int, shape: tuple[int, int], random_seed: int, key: str) -> NDArray[np.int64]:
    """The first ``count`` of torch's random permutation of the places of a matrix, as rows and columns [2, count].

    Raises:
        AdapterError: where there are fewer places.
        MissingExtraError: where torch is not installed.
    """
    total = shape[0] * shape[1]
    if count > total:
        raise AdapterError("more entries than places in ΔW", key=key, expected=f"up to {total}", found=count)
    check_room(*shape, key=key)
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError.of("torch", "learn", "drawing the places of the trained entries") from error
    places = torch.randperm(total, generator=torch.Generator().manual_seed(random_seed))[:count].numpy()
    return np.stack(np.divmod(places, shape[1]))


@dataclass(frozen=True, eq=False, kw_only=True)
class FourierFT(Dense):
    """ΔW = scaling · Re IDFT₂(S).

    Args:
        random_seed: the seed of the places.
    """

    kind: ClassVar[str] = "fourierft"
    random_seed: int = _SEED

    def _formed(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        rows, columns = seeded_places(self.dim, self.shape, self.random_seed, self._key)
        spectrum = np.zeros(self.shape, dtype)
        spectrum[rows, columns] = self.part("spectrum", dtype)
        return self.scale * np.fft.ifft2(spectrum).real.astype(dtype, copy=False)


def build_fourierft(parts: Parts) -> FourierFT:
    """The update of one site from the role spectrum.

    Raises:
        AdapterError: where the spectrum is not flat or the seed is not known.
    """
    count = parts.tensor("spectrum", None).shape[0]
    return FourierFT(
        stored=parts.named("spectrum"),
        keys=parts.keys,
        shape=(-1, -1),
        dim=count,
        scale=parts.scale_of(count).scale,
        is_transposed=parts.is_transposed,
        random_seed=seed(parts.options, "random_loc_seed", _SEED),
    )


PARAMETRISATION = Parametrisation(
    name="fourierft",
    title="FourierFT",
    formula="ΔW = scaling · Re IDFT₂(S), S zero but for trained entries at seeded places",
    reference="https://arxiv.org/abs/2405.03003",
    exactness="dense",
    build=build_fourierft,
    defaults="scaling 150, seed 777",
    oracles=("peft",),
)
