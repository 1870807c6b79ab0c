"""OSF: the small singular values of a weight and their vectors are trained, the large ones kept.

    W → W_k + U · diag(S) · V          W_k: the k largest singular values of W and their vectors
    U [out, n]   S [n]   V [n, in]          k = min(out, in) − n

W_k depends on W continuously as long as the k-th singular value is larger than the next one.

Source: Nayak et al., https://arxiv.org/abs/2504.07097; https://github.com/huggingface/peft,
src/peft/tuners/osf/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Relative
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts


class OSF(Relative):
    """W → W_k + U · diag(S) · V."""

    kind: ClassVar[str] = "osf"

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        try:
            left, values, right = np.linalg.svd(base, full_matrices=False)
        except np.linalg.LinAlgError as error:
            raise AdapterError("the base weight has no singular values", key=self._key) from error
        kept = len(values) - self.dim
        low = (self.part("U", base.dtype) * self.part("S", base.dtype)) @ self.part("V", base.dtype)
        return (left[:, :kept] * values[:kept]) @ right[:kept] + low


def build_osf(parts: Parts) -> OSF:
    """The update of one site from the roles U, S and V.

    Raises:
        AdapterError: where the shapes do not fit one another, or are more than there are singular values.
    """
    dim = parts.tensor("S", None).shape[0]
    out = parts.tensor("U", None, dim).shape[0]
    in_ = parts.tensor("V", dim, None).shape[1]
    if dim > min(out, in_):
        raise AdapterError(
            "more vectors than the weight has", key=parts.site, expected=f"up to {min(out, in_)}", found=dim
        )
    return OSF(stored=parts.named("U", "S", "V"), keys=parts.keys, shape=(out, in_), dim=dim)


PARAMETRISATION = Parametrisation(
    name="osf",
    title="OSF",
    formula="W → W_k + U · diag(S) · V, W_k the large singular values of W",
    reference="https://arxiv.org/abs/2504.07097",
    exactness="relative to the base weight",
    build=build_osf,
    defaults="k = min(out, in) − the vectors stored",
    oracles=("peft",),
)
