"""OFT: the input of a layer is rotated, block by block.

    W → W · blockdiag(R_1, …)ᵀ          R_k [b, b] from b(b − 1)/2 numbers above the diagonal of a skew Q_k
    exact:     R = (I − Q)(I + Q)⁻¹
    otherwise: R = I + 2Q + 2Q² + … + 2Qᵗ⁻² + Qᵗ⁻¹          (Cayley-Neumann, t terms; note the other sign of Q)

Before 0.18 PEFT took the last term twice; files say their version since then. One block may be shared by all. With
``coft`` each Q is first cut to the length eps/√blocks. An embedding's rows are turned instead: W → W · blockdiag(R).
A convolution is turned as the matrix [out, channels · kernel], which is what PEFT merges; its forward pass is another
map where the kernel is larger than 1 × 1 (it turns unfolded patches and adds them up again where they overlap).

Source: Qiu et al., https://arxiv.org/abs/2306.07280 and https://arxiv.org/abs/2506.19847;
https://github.com/huggingface/peft, src/peft/tuners/oft/layer.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import InPlace
from lorascope.adapter.rows import row_blocks
from lorascope.adapter.widening import check_room
from lorascope.errors import AdapterError
from lorascope.formats.config_file import flag, positive_integer
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations._options import number, switch

_MAX_TERMS = 256
_CHANGED = (0, 18)


def cayley(skew: NDArray[Any], key: str) -> NDArray[Any]:
    """(I − Q)(I + Q)⁻¹ of a batch of skew matrices [n, b, b]."""
    one = np.eye(skew.shape[-1], dtype=skew.dtype)
    try:
        return np.linalg.solve((one + skew).swapaxes(-1, -2), (one - skew).swapaxes(-1, -2)).swapaxes(-1, -2)
    except np.linalg.LinAlgError as error:
        raise AdapterError("a rotation cannot be worked out: its numbers are too large", key=key) from error


def neumann(skew: NDArray[Any], terms: int, *, is_old: bool = False) -> NDArray[Any]:
    """The Cayley-Neumann series of a batch of skew matrices [n, b, b], as PEFT cuts it off; ``is_old``: before 0.18.

    >>> neumann(np.array([[[0.0, 1.0], [-1.0, 0.0]]]), 5).tolist()
    [[[0.0, 0.0], [0.0, 0.0]]]
    """
    result = np.eye(skew.shape[-1], dtype=skew.dtype) + np.zeros_like(skew)
    last = terms - 1 if is_old or terms < 3 else max(terms - 1, 3)
    power = skew
    for exponent in range(1, last + 1):
        power = power if exponent == 1 else power @ skew
        is_halved = exponent == last and terms > 2 and not is_old
        result += power if is_halved else 2 * power
    return result


@dataclass(frozen=True, eq=False, kw_only=True)
class OFT(InPlace):
    """W → W · blockdiag(R)ᵀ.

    Args:
        size: b.
        terms: of the series; 0 for the exact rotation.
        is_old_series: whether the series is that of PEFT before 0.18.
        eps: the bound on Q of ``coft``, or None.
    """

    kind: ClassVar[str] = "oft"
    size: int
    terms: int = 0
    is_old_series: bool = False
    eps: float | None = None

    def _rotations(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        upper = self.part("R", dtype)
        skew = np.zeros((upper.shape[0], self.size, self.size), dtype)
        rows, columns = np.triu_indices(self.size, 1)
        skew[:, rows, columns] = upper
        skew -= skew.swapaxes(1, 2)
        if self.eps is not None:
            bound = self.eps / math.sqrt(len(skew))
            lengths = np.linalg.norm(skew, axis=(1, 2), keepdims=True)
            skew *= np.divide(bound, lengths, out=np.ones_like(lengths), where=lengths > bound)
        if self.terms:
            return neumann(skew, self.terms, is_old=self.is_old_series)
        return cayley(skew, self._key)

    def _move(self, weight: NDArray[Any]) -> None:
        rotations = self._rotations(weight.dtype)
        if self.layer == "embedding":
            rotations, weight = rotations.swapaxes(1, 2), weight.T
        if weight.shape[1] % self.size or len(rotations) not in (1, weight.shape[1] // self.size):
            raise AdapterError(
                "the update does not fit the base weight",
                key=self._key,
                expected=f"{len(rotations)} blocks of {self.size}, or one for all",
                found=f"{weight.shape[1]} inputs",
            )
        for block in row_blocks(weight.shape):
            parts = weight[block].reshape(-1, weight.shape[1] // self.size, self.size).swapaxes(0, 1)
            turned = parts @ rotations.swapaxes(1, 2)
            weight[block] = turned.swapaxes(0, 1).reshape(-1, weight.shape[1])


def build_oft(parts: Parts) -> OFT:
    """The update of one site from the role R, or R_embedding.

    Raises:
        AdapterError: where the tensor is not one of upper triangles, or an option is not what it must be.
    """
    is_embedding = "R_embedding" in parts
    role = "R_embedding" if is_embedding else "R"
    upper = parts.tensor(role, None, None)
    blocks, count = upper.shape
    size = (1 + math.isqrt(1 + 8 * count)) // 2
    if size * (size - 1) // 2 != count:
        raise AdapterError(
            "the entries above a diagonal are 1, 3, 6, 10 … numbers", key=parts.site, found=f"{count} per block"
        )
    check_room(blocks, size, size, what="the rotation", key=parts.site)
    turned = -1 if switch(parts.options, "block_share", default=False) else blocks * size
    is_series = switch(parts.options, "use_cayley_neumann", default=True)
    terms = positive_integer(parts.options, "num_cayley_neumann_terms", 5) or 5
    if is_series and terms > _MAX_TERMS:
        raise AdapterError(
            "too many terms of the series",
            key="num_cayley_neumann_terms",
            expected=f"at most {_MAX_TERMS}",
            found=terms,
        )
    return OFT(
        stored={"R": upper},
        keys={"R": parts.keys.get(role, role)},
        shape=(turned, -1) if is_embedding else (-1, turned),
        dim=blocks,
        layer="embedding" if is_embedding else parts.layer,
        is_transposed=is_embedding,
        size=size,
        terms=terms if is_series else 0,
        is_old_series=is_series and _is_before_change(parts.options),
        eps=number(parts.options, "eps", 6e-5) if flag(parts.options, "coft") else None,
    )


def _is_before_change(options: Mapping[str, Any]) -> bool:
    """Whether the file is of a PEFT before 0.18, which wrote no version."""
    version = options.get("peft_version")
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", version) if isinstance(version, str) else None
    return match is None or (int(match[1]), int(match[2])) < _CHANGED


PARAMETRISATION = Parametrisation(
    name="oft",
    title="OFT",
    formula="W → W · blockdiag(R)ᵀ, R a rotation by the Cayley transform or its series",
    reference="https://arxiv.org/abs/2306.07280",
    exactness="relative to the base weight",
    build=build_oft,
    defaults="the Cayley-Neumann series of 5 terms",
    oracles=("peft",),
)
