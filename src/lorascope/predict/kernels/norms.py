"""How far each site went: a radial kernel of norm and largest singular value alone, with few columns to agree in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from lorascope.features.feature import Change
from lorascope.predict.kernel import Tokens
from lorascope.predict.kernels._spectrum import norm_and_spectrum


@dataclass(frozen=True)
class NormsKernel:
    """Norms and largest singular values of all sites together."""

    name: ClassVar[str] = "norms"
    formula: ClassVar[str] = "exp(−‖z − z′‖² / (2 ℓ² D)), z: log ‖ΔW‖ and log σ₁ of all sites"
    reference: ClassVar[str] = "the SVD model of Learning on LoRAs (arXiv 2410.04207), as a kernel"
    cost: ClassVar[str] = "k"
    sees: ClassVar[frozenset[Change]] = frozenset({"scale"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"sign", "rotate out", "rotate in"})
    lengths: ClassVar[tuple[float, ...]] = (0.3, 0.7, 1.5, 4.0)
    is_rank_stable: ClassVar[bool] = False

    def __call__(self, tokens: Tokens) -> NDArray[Any]:
        return norm_and_spectrum(tokens.S, 1)


KERNEL = NormsKernel
