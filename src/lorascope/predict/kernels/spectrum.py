"""How far each site went and in how many directions: blind to where. A radial kernel, so it may bend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from lorascope.features.feature import Change
from lorascope.predict.kernel import Tokens
from lorascope.predict.kernels._spectrum import norm_and_spectra


@dataclass(frozen=True)
class SpectrumKernel:
    """Norms and spectra of all sites together."""

    name: ClassVar[str] = "spectrum"
    formula: ClassVar[str] = "exp(−‖z − z′‖² / (2 ℓ² D)), z: log ‖ΔW‖, log σ₁ … σ₄, σ₈, σ₁₆, σ₃₂, σ₆₄ of all sites"
    reference: ClassVar[str] = "the SVD model of Learning on LoRAs (arXiv 2410.04207), as a kernel"
    cost: ClassVar[str] = "k"
    sees: ClassVar[frozenset[Change]] = frozenset({"scale"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"sign", "rotate out", "rotate in"})
    lengths: ClassVar[tuple[float, ...]] = (0.3, 0.7, 1.5, 4.0)
    is_rank_stable: ClassVar[bool] = False

    def __call__(self, tokens: Tokens) -> NDArray[Any]:
        return norm_and_spectra(tokens.S)


KERNEL = SpectrumKernel
