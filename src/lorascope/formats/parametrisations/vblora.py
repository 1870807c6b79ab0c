"""VB-LoRA: both factors are put together from vectors of one bank that all sites share.

    ΔW = B · A                                   bank [N, v]
    a piece of v entries of a row of A, or of a column of B = Σ_{k of the top K logits} softmax(logits)_k · bank_k
    logits_A [r, in/v, N]   logits_B [out/v, r, N]

Files with ``save_only_topk_weights`` hold the K indices and the first K − 1 weights of each piece; the last weight is
1 minus their sum. Where logits tie for the last place the choice is that of the lowest index.

Source: Li et al., https://arxiv.org/abs/2405.15179; https://github.com/huggingface/peft,
src/peft/tuners/vblora/layer.py and model.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded
from lorascope.adapter.widening import check_room
from lorascope.errors import AdapterError
from lorascope.formats.config_file import positive_integer
from lorascope.formats.parametrisation import Parametrisation, Parts

_TOPK = 2
"""``topk`` of PEFT where a configuration does not state it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class VBLoRA(Expanded):
    """ΔW = B · A with B and A mixed from the bank.

    Args:
        topk: the number of vectors in each mixture.
    """

    kind: ClassVar[str] = "vblora"
    topk: int = _TOPK

    @property
    def rank(self) -> int:
        """r."""
        return self.dim

    def _mixed(self, half: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The pieces of a factor [first axis, second axis, v]."""
        if f"indices_{half}" in self.stored:
            indices = self.stored[f"indices_{half}"].astype(np.int64)
            first = self.part(f"weights_{half}", dtype)
            weights = np.concatenate((first, 1 - first.sum(axis=-1, keepdims=True)), axis=-1)
        else:
            logits = self.part(f"logits_{half}", dtype)
            indices = np.argsort(-logits, axis=-1, kind="stable")[..., : self.topk]
            chosen = np.take_along_axis(logits, indices, axis=-1)
            weights = np.exp(chosen - chosen[..., :1])
            weights /= weights.sum(axis=-1, keepdims=True)
        bank = self.part("bank", dtype)
        pieces = np.zeros((*indices.shape[:2], bank.shape[1]), dtype)
        for k in range(indices.shape[-1]):
            pieces += weights[..., k, None] * bank[indices[..., k]]
        return pieces

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        out, in_ = self.shape
        B = self._mixed("B", dtype).transpose(0, 2, 1).reshape(out, self.dim)
        return B, self._mixed("A", dtype).reshape(self.dim, in_)


def build_vblora(parts: Parts) -> VBLoRA:
    """The update of one site from the bank and either the logits, or the indices and weights.

    Raises:
        AdapterError: where the shapes do not fit one another, or an index is not in the bank.
    """
    count, length = parts.tensor("bank", None, None).shape
    topk = positive_integer(parts.options, "topk", _TOPK) or _TOPK
    sizes: dict[str, tuple[int, int]] = {}
    for half in ("A", "B"):
        if f"logits_{half}" in parts:
            first, second, _ = parts.tensor(f"logits_{half}", None, None, count).shape
            if topk > count:
                raise AdapterError(
                    "topk is more than the vectors of the bank", key=parts.site, expected=f"up to {count}", found=topk
                )
        else:
            first, second = _checked_choice(parts, half, count)
        sizes[half] = (first, second)
    (dim, in_pieces), (out_pieces, other) = sizes["A"], sizes["B"]
    if dim != other:
        raise AdapterError("the two factors have different ranks", key=parts.site, expected=dim, found=other)
    shape = (out_pieces * length, in_pieces * length)
    check_room(max(shape), dim, what="a factor of ΔW", key=parts.site)
    return VBLoRA(
        stored=parts.named("logits_A", "logits_B", "indices_A", "weights_A", "indices_B", "weights_B", "bank"),
        keys=parts.keys,
        shape=shape,
        dim=dim,
        is_transposed=parts.is_transposed,
        topk=topk,
    )


def _checked_choice(parts: Parts, half: str, count: int) -> tuple[int, int]:
    """The first two axes of the chosen indices, after checking them and their weights."""
    role = f"indices_{half}"
    indices = parts.tensors.get(role)
    if indices is None:
        parts.tensor(f"logits_{half}")
        raise AssertionError  # the line above has raised
    key = parts.keys.get(role, role)
    if indices.ndim != 3 or indices.size == 0 or indices.dtype.kind not in "iu":
        raise AdapterError(
            f"{key} does not hold integers along three axes",
            key=parts.site,
            found=f"{indices.dtype.name} {list(indices.shape)}",
        )
    if int(indices.min()) < 0 or int(indices.max()) >= count:
        raise AdapterError(
            f"{key} points outside the bank",
            key=parts.site,
            expected=f"0 to {count - 1}",
            found=f"{int(indices.min())} to {int(indices.max())}",
        )
    first, second, topk = (int(axis) for axis in indices.shape)
    weights = parts.tensors.get(f"weights_{half}")
    if topk == 1 and weights is not None and weights.shape == (first, second, 0):
        return first, second  # one vector has the weight 1, and nothing is stored for it
    parts.tensor(f"weights_{half}", first, second, topk - 1)
    return first, second


PARAMETRISATION = Parametrisation(
    name="vblora",
    title="VB-LoRA",
    formula="ΔW = B · A, pieces of both mixed from a shared bank by the softmax of the top logits",
    reference="https://arxiv.org/abs/2405.15179",
    exactness="low rank, expanded",
    build=build_vblora,
    defaults="topk 2",
    oracles=("peft",),
)
