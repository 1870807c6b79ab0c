"""How large an update is, and how its energy is spread over its directions: statistics of the singular values alone.

With E = Σ σ² = ‖ΔW‖_F², ε the floor of ``log-norm`` and p_i = σ_i² / (E + ε²):

    sizes        logarithms of ‖ΔW‖_F, of the nuclear norm Σ σ, of σ₁ and of the Schatten-4 norm
    relative     ½ log(p_i + δ²), i ≤ ``count``: log σ_i / ‖ΔW‖_F, with the floor of ``log-spectrum``
    shares       p₁ + … + p_i, i ≤ ``count``
    ranks        stable E/σ₁², nuclear (Σ σ)²/E, participation E²/Σ σ⁴, entropy −Σ p log p and its exponential,
                 and Σ σ²/(σ² + t² E) for t = 0.03, 0.1, 0.3: how many directions are above t of the norm

All are continuous at ΔW = 0 and where singular values meet or vanish, and none sees a zero that was appended.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from lorascope.features.feature import Change
from lorascope.features.invariants.log_norm import FLOOR
from lorascope.symmetry import SiteStack
from lorascope.symmetry.arrays import namespace

THRESHOLDS = (0.03, 0.1, 0.3)


@dataclass(frozen=True)
class SpectralStatistics:
    """12 + 2 · ``count`` numbers per site: 24 by default."""

    count: int = 6
    delta: float = 0.02
    name: ClassVar[str] = "spectral-statistics"
    formula: ClassVar[str] = "log norms, ½ log(p_i + δ²), Σ_{j≤i} p_j, effective ranks; p_i = σ_i² / (‖ΔW‖_F² + ε²)"
    reference: ClassVar[str] = (
        "effective ranks: Roy & Vetterli (2007); stable rank: Rudelson & Vershynin (2007); the rest is standard"
    )
    sees: ClassVar[frozenset[Change]] = frozenset({"scale"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"sign", "rotate out", "rotate in"})

    def __call__(self, stack: SiteStack) -> Any:
        xp = namespace(stack.svd.S)
        most = float(xp.finfo(stack.svd.S.dtype).max) ** 0.24  # σ⁴ is summed: a σ beyond is as good as this one
        S = xp.where(stack.svd.S > most, xp.full_like(stack.svd.S, most), stack.svd.S)

        def total(values: Any) -> Any:
            return xp.sum(values, axis=-1, keepdims=True)

        S2, floor = S * S, FLOOR * FLOOR
        E, nuclear, quartic = total(S2), total(S), total(S2 * S2)
        largest = S2[..., :1]
        sizes = [
            0.5 * xp.log(E + floor),
            xp.log(nuclear + FLOOR),
            0.5 * xp.log(largest + floor),
            0.25 * xp.log(quartic + floor * floor),
        ]
        p = S2 / (E + floor)
        absent = xp.zeros_like(E) + xp.zeros((max(0, self.count - p.shape[-1]),), dtype=p.dtype)
        leading = xp.concat([p[..., : self.count], absent], axis=-1)
        # p log p is 0 at p = 0, and the smallest positive float keeps the logarithm finite there
        entropy = -total(p * xp.log(p + xp.finfo(p.dtype).smallest_normal))
        ranks = [
            E / (largest + floor),
            nuclear * nuclear / (E + floor),
            E * E / (quartic + floor * floor),
            entropy,
            xp.exp(entropy),
            *(total(S2 / (S2 + t * t * E + floor)) for t in THRESHOLDS),
        ]
        shares = xp.stack([xp.sum(leading[..., : i + 1], axis=-1) for i in range(self.count)], axis=-1)
        return xp.concat([*sizes, 0.5 * xp.log(leading + self.delta**2), shares, *ranks], axis=-1)


FEATURE = SpectralStatistics
