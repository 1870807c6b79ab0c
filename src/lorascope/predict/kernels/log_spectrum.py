"""How far each site went and in how many directions, straight in the logarithms: goes on beyond what training held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from lorascope.features.feature import Change
from lorascope.predict.kernel import Tokens
from lorascope.predict.kernels._spectrum import norm_and_spectra


@dataclass(frozen=True)
class LogSpectrumKernel:
    """Norm and spectrum of a site."""

    name: ClassVar[str] = "log-spectrum"
    formula: ClassVar[str] = "⟨z_s, z_s′⟩, z_s: log ‖ΔW‖, log σ₁ … σ₄, σ₈, σ₁₆, σ₃₂, σ₆₄"
    reference: ClassVar[str] = "the SVD model of Learning on LoRAs (arXiv 2410.04207), as a kernel"
    cost: ClassVar[str] = "k"
    sees: ClassVar[frozenset[Change]] = frozenset({"scale"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"sign", "rotate out", "rotate in"})
    lengths: ClassVar[tuple[float, ...]] = ()
    is_rank_stable: ClassVar[bool] = False

    def __call__(self, tokens: Tokens) -> NDArray[Any]:
        return norm_and_spectra(tokens.S)


KERNEL = LogSpectrumKernel
