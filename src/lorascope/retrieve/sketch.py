"""256 numbers of an adapter whose distances are, about, those of the adapters.

    s_ab = 1/h Σ_sites p_aᵀ ΔW q_b,   a, b = 1 … h = 16,   p and q random signs ±1 keyed by (site, shape, seed)

The map is linear and E‖s‖² = ‖ΔW‖², so ‖s₁ − s₂‖ estimates ‖ΔW₁ − ΔW₂‖. As it is computed from ΔW alone, neither gauge
nor rank padding, scale convention, format or the order of sites change it beyond rounding. For any fixed D, over the
random signs,

    P(‖s(D)‖ > x ‖D‖) ≤ 2 exp(−h/2 (x − 1 − ln x))        which is 1.5e-11 at x = 6

for signs have no larger exponential moments of quadratic forms than Gaussians, E exp(λ‖D q‖²) ≤ Π (1 − 2λσ_i²)^(−1/2) ≤
(1 − 2λ‖D‖²)^(−1/2): Chernoff's bound over the h rows of q, then over those of p. So two adapters whose sketches are
further apart than 6 d are further apart than d themselves, but for one pair in 10^10.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, LowRank, Update
from lorascope.errors import AdapterError
from lorascope.features.projection import signs
from lorascope.retrieve.sites import Key, at_site, keys_of, stacks
from lorascope.symmetry.cores import norm

SIZE = 16
"""h: the sketch has h² numbers."""

REACH = 6.0
"""x: how much larger than the distance of two adapters that of their sketches is taken to be at most."""

LARGEST = 1e37
"""Of norms and of the numbers of a sketch: differences of two have room in float32, in which an index keeps them."""

VERSION = 1
"""Of the sketch: those of different versions cannot be compared."""


class Sketch(NamedTuple):
    """``values`` [h²] and ‖ΔW‖, both float64."""

    values: NDArray[np.float64]
    norm: float


def miss_probability(reach: float = REACH, size: int = SIZE) -> float:
    """The bound on P(‖s(D)‖ > reach · ‖D‖).

    >>> 1e-11 < miss_probability() < 2e-11
    True
    """
    return min(1.0, 2 * math.exp(-size / 2 * (reach - 1 - math.log(reach))))


def sketch_of(adapter: Adapter, *, size: int = SIZE, seed: int = 0) -> Sketch:
    """The sketch of an adapter.

    Raises:
        AdapterError: where ΔW depends on the base weight, is not finite or too large; it names the site.

    >>> from lorascope.adapter import LowRank
    >>> one = Adapter({"unet.q": LowRank(np.ones((40, 2)), np.ones((2, 30)), scale=0.5)})
    >>> same = Adapter({"q": LowRank(np.ones((40, 1)), np.ones((1, 30)))})
    >>> bool(np.allclose(sketch_of(one).values, sketch_of(same).values)), round(sketch_of(same).norm ** 2)
    (True, 1200)
    """
    total = np.zeros((size, size))
    norms: list[float] = []
    keys = keys_of(adapter)
    plain = {key: site for key, site in keys.items() if isinstance(adapter[site], LowRank)}
    for stack in stacks(adapter, plain):
        out, in_ = stack.B.shape[1], stack.A.shape[2]
        P = np.stack([signs(key.name, "out", size, out, seed) for key in stack.keys]).astype(np.float64)
        Q = np.stack([signs(key.name, "in", size, in_, seed) for key in stack.keys]).astype(np.float64)
        left = P @ stack.B
        right = stack.A @ Q.transpose(0, 2, 1)
        total += np.einsum("sar,srb->ab", left, right)
        norms += np.atleast_1d(norm(stack.B, stack.A)).tolist()
    for key, site in keys.items():
        if key not in plain:  # a structured update is applied without its factors, of which it has hundreds of columns
            total += at_site(adapter, site, lambda key=key, site=site: _projected(adapter[site], key, size, seed))
            norms.append(at_site(adapter, site, adapter[site].norm))
    values = total.reshape(-1) / size
    whole = math.hypot(*norms)
    if not (math.isfinite(whole) and np.isfinite(values).all()):
        raise AdapterError("ΔW is beyond the range of float64", file=adapter.provenance.path)
    if max(whole, float(np.abs(values).max())) > LARGEST:
        raise AdapterError(
            "ΔW is too large for a sketch, which is kept in float32",
            file=adapter.provenance.path,
            expected=f"a norm of at most {LARGEST:.0e}",
            found=f"{whole:.3g}",
        )
    return Sketch(values, whole)


def _projected(update: Update, key: Key, size: int, seed: int) -> NDArray[np.float64]:
    """P ΔW Qᵀ [size, size] of a structured update; its shape is known only where its ΔW is."""
    P, Q = (signs(key.name, side, size, n, seed).astype(np.float64) for side, n in (("out", key.out), ("in", key.in_)))
    return P @ update.apply(Q).T
