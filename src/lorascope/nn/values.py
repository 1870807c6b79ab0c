"""``GLFeatures``: what flows between equivariant layers, for the sites of one shape of a batch of adapters.

    out  [N, S, c_out, rank]   rows b ↦ b M⁻¹      (B is one: c_out = out)
    in_  [N, S, rank, c_in]    columns a ↦ M a     (A is one: c_in = in)
    inv  [N, S, c_inv]         numbers that stay

for N adapters and S sites, each site of each adapter with its own M in GL(rank). A whole adapter is one such
value per distinct site shape.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float

from lorascope.symmetry import FeatureType, SiteStack, act, balance


@dataclass(frozen=True, eq=False)
class GLFeatures:
    """Features of the type ``self.type`` over N adapters and S sites.

    Raises:
        ValueError: where the shapes of the parts do not go together.

    >>> B, A = torch.ones(5, 2, 8, 4), torch.ones(5, 2, 4, 6)      # 5 adapters, 2 sites, rank 4
    >>> x = GLFeatures.from_factors(B, A)
    >>> print(x.type)
    8×out ⊕ 6×in
    >>> len(x), x.sites, x.rank, len(x[:3])
    (5, 2, 4, 3)
    """

    out: Float[torch.Tensor, "N S c_out rank"]
    in_: Float[torch.Tensor, "N S rank c_in"]
    inv: Float[torch.Tensor, "N S c_inv"]

    def __post_init__(self) -> None:
        out, in_, inv = (tuple(part.shape) for part in (self.out, self.in_, self.inv))
        fits = (len(out), len(in_), len(inv)) == (4, 4, 3)
        if not (fits and out[:2] == in_[:2] == inv[:2] and out[3] == in_[2]):
            raise ValueError(
                "features must be out [N, S, c_out, rank], in_ [N, S, rank, c_in] and inv [N, S, c_inv], "
                f"found {list(out)}, {list(in_)} and {list(inv)}"
            )

    @classmethod
    def from_factors(
        cls, B: Float[torch.Tensor, "N S out rank"], A: Float[torch.Tensor, "N S rank in_"]
    ) -> "GLFeatures":
        """The factors themselves as features: out×out ⊕ in×in; a scale must have gone into B."""
        return cls(B, A, B.new_zeros(*B.shape[:2], 0))

    @classmethod
    def from_stack(
        cls,
        stack: SiteStack,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        balanced: bool = False,
    ) -> "GLFeatures":
        """The sites of one shape of some adapters as features.

        Args:
            stack: from ``symmetry.stack_adapters``, NumPy or PyTorch.
            balanced: take (U √S, √S Vh) of ΔW for (B, A): what an invariant network computes does not
                change, but its rounding no longer depends on the condition of the gauge.

        >>> import numpy as np
        >>> stack = SiteStack(("q",), np.ones((5, 1, 8, 4)), np.ones((5, 1, 4, 6)))
        >>> GLFeatures.from_stack(stack, balanced=True).in_.shape
        torch.Size([5, 1, 4, 6])
        """
        B, A = balance(stack.B, stack.A) if balanced else (stack.B, stack.A)
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        return cls.from_factors(torch.as_tensor(B, **place), torch.as_tensor(A, **place))

    @property
    def type(self) -> FeatureType:
        """How many channels of each kind."""
        return FeatureType(out=self.out.shape[2], in_=self.in_.shape[3], inv=self.inv.shape[2])

    @property
    def sites(self) -> int:
        """S."""
        return self.out.shape[1]

    @property
    def rank(self) -> int:
        """The rank, that of the largest adapter where smaller ones are padded."""
        return self.out.shape[3]

    def __len__(self) -> int:
        return self.out.shape[0]

    def __getitem__(self, adapters: Any) -> "GLFeatures":
        """A part of the batch, by a slice, a list of indices or a mask."""
        return replace(self, out=self.out[adapters], in_=self.in_[adapters], inv=self.inv[adapters])

    def to(self, *args: Any, **kwargs: Any) -> "GLFeatures":
        """In another dtype or on another device, as ``torch.Tensor.to``."""
        return GLFeatures(*(part.to(*args, **kwargs) for part in (self.out, self.in_, self.inv)))

    def act(self, M: Float[torch.Tensor, "*sites rank rank"]) -> "GLFeatures":
        """In another gauge: (out M⁻¹, M in_, inv), with M [rank, rank] or [N, S, rank, rank]."""
        M = M.expand(*self.out.shape[:2], *M.shape[-2:])
        out, in_ = act(M, self.out, self.in_)
        return GLFeatures(out, in_, self.inv)

    def product(self) -> Float[torch.Tensor, "N S c_out c_in"]:
        """S = out · in_, the c_out·c_in invariants of every site that are bilinear in the features."""
        return self.out @ self.in_
