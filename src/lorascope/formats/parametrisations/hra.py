"""HRA: the input of a layer goes through r mirrors (Householder reflections).

    W → W · (I − 2 u_1 u_1ᵀ) ⋯ (I − 2 u_r u_rᵀ)          u [in, r], its columns of length 1
    with ``apply_GS``: W → W · (I − 2 Q Qᵀ), Q from u by Gram-Schmidt

The change has rank r at most. A convolution is the matrix [out, channels · kernel].

Source: Yuan et al., https://arxiv.org/abs/2405.17484; https://github.com/huggingface/peft,
src/peft/tuners/hra/layer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import InPlace
from lorascope.adapter.rows import row_blocks
from lorascope.errors import AdapterError
from lorascope.formats.config_file import flag
from lorascope.formats.parametrisation import Parametrisation, Parts


@dataclass(frozen=True, eq=False, kw_only=True)
class HRA(InPlace):
    """W → W · (I − 2 u_1 u_1ᵀ) ⋯ (I − 2 u_r u_rᵀ).

    Args:
        is_orthogonal: whether the mirrors are made orthogonal to one another first.
    """

    kind: ClassVar[str] = "hra"
    is_orthogonal: bool = False

    @property
    def rank(self) -> int:
        """r, or in where that is less."""
        return min(self.dim, self.shape[1])

    def _mirrors(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The unit vectors as rows [r, in]."""
        mirrors = self.part("u", dtype).T.copy()
        for i, mirror in enumerate(mirrors):
            if self.is_orthogonal:
                for earlier in mirrors[:i]:
                    mirror -= (earlier @ mirror) * earlier
            length = np.linalg.norm(mirror)
            if not length > 0:
                raise AdapterError(f"mirror {i} has no direction", key=self._key, expected="a vector that is not zero")
            mirror /= length
        return mirrors

    def _move(self, weight: NDArray[Any]) -> None:
        mirrors = self._mirrors(weight.dtype)
        turns = [mirrors] if self.is_orthogonal else [mirror[None, :] for mirror in mirrors]
        for block in row_blocks(weight.shape):
            for turn in turns:
                weight[block] -= 2 * (weight[block] @ turn.T) @ turn


def build_hra(parts: Parts) -> HRA:
    """The update of one site from the role u.

    Raises:
        AdapterError: where the mirrors are no matrix, or are more than can be orthogonal.
    """
    in_, dim = parts.tensor("u", None, None).shape
    is_orthogonal = flag(parts.options, "apply_GS")
    if is_orthogonal and dim > in_:
        raise AdapterError("more mirrors than can be orthogonal", key=parts.site, expected=f"up to {in_}", found=dim)
    return HRA(stored=parts.named("u"), keys=parts.keys, shape=(-1, in_), dim=dim, is_orthogonal=is_orthogonal)


PARAMETRISATION = Parametrisation(
    name="hra",
    title="HRA",
    formula="W → W · (I − 2 u_1 u_1ᵀ) ⋯ (I − 2 u_r u_rᵀ)",
    reference="https://arxiv.org/abs/2405.17484",
    exactness="relative to the base weight",
    build=build_hra,
    defaults="apply_GS false",
    oracles=("peft",),
)
