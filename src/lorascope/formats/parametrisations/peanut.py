"""PEANuT: ΔW is a small network of the base weight.

    ΔWᵀ = scaling · (h · Bᵀ)          h_0 = f(Wᵀ Aᵀ),  h_i = f(h_{i−1} E_iᵀ)  for the encoders E_1 … E_d, then
    h ← f(h · D_iᵀ) + h_{d−i}          for the decoders D_1 … D_d          A [r, out]   B [out, r]   E, D [r, r]

The functions f that are read are relu (the default), tanh, sigmoid, silu and linear; others are refused by name.

Source: https://arxiv.org/abs/2410.01870; https://github.com/huggingface/peft, src/peft/tuners/peanut/layer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Relative
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts

MAX_DEPTH = 32

Function = Callable[[NDArray[Any]], NDArray[Any]]


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return (1 + np.tanh(x / 2)) / 2


FUNCTIONS: Mapping[str, Function] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "linear": lambda x: x,
}
"""``act_fn`` → f."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PEANuT(Relative):
    """ΔWᵀ = scaling · (h · Bᵀ), h a small network of the base weight.

    Args:
        depth: d.
        function: the name of f.
    """

    kind: ClassVar[str] = "peanut"
    depth: int = 0
    function: str = "relu"

    @property
    def rank(self) -> int:
        """r."""
        return self.dim

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        dtype, apply = base.dtype, FUNCTIONS[self.function]
        hidden = [apply(base.T @ self.part("A", dtype).T)]
        for i in range(self.depth):
            hidden.append(apply(hidden[-1] @ self.part(f"encoder_{i}", dtype).T))
        last = hidden.pop()
        for i in range(self.depth):
            last = apply(last @ self.part(f"decoder_{i}", dtype).T) + hidden.pop()
        return base + self.scale * (self.part("B", dtype) @ last.T)


def build_peanut(parts: Parts) -> PEANuT:
    """The update of one site from the roles A, B and, up to the depth of the configuration, encoder_i and decoder_i.

    Raises:
        AdapterError: where the shapes do not fit one another, or the network is one that is not read.
    """
    depth = parts.options.get("depth")
    depth = 0 if depth is None else depth
    if isinstance(depth, bool) or not isinstance(depth, int) or not 0 <= depth <= MAX_DEPTH:
        raise AdapterError(
            "the depth is no number of layers", key="depth", expected=f"0 to {MAX_DEPTH}", found=ascii(depth)[:80]
        )
    function = parts.options.get("act_fn", "relu")
    if not isinstance(function, str) or function not in FUNCTIONS:
        raise AdapterError(
            "PEANuT with this function is recognised, but not read by this version",
            key="act_fn",
            expected=", ".join(FUNCTIONS),
            found=ascii(function)[:80],
        )
    dim, out = parts.tensor("A", None, None).shape
    parts.tensor("B", out, dim)
    inner = [f"{name}_{i}" for i in range(depth) for name in ("encoder", "decoder")]
    for role in inner:
        parts.tensor(role, dim, dim)
    if len(parts.tensors) > 2 + len(inner):
        raise AdapterError(
            "more layers than the configuration states",
            key=parts.site,
            expected=f"depth {depth}",
            found=list(parts.keys),
        )
    scale = parts.scale_of(dim)
    return PEANuT(
        stored=parts.named("A", "B", *inner),
        keys=parts.keys,
        shape=(out, -1),
        dim=dim,
        scale=scale.scale,
        depth=depth,
        function=function,
    )


PARAMETRISATION = Parametrisation(
    name="peanut",
    title="PEANuT",
    formula="ΔWᵀ = scaling · (h · Bᵀ), h a small network of Wᵀ",
    reference="https://arxiv.org/abs/2410.01870",
    exactness="relative to the base weight",
    build=build_peanut,
    defaults="scaling 1, depth 0, relu",
    oracles=("peft",),
)
