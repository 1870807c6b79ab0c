"""Pairs of factor tensors → ``LowRank``: what every grammar of plain LoRA shares, once the key names are parsed.

linear       A [rank, in]               B [out, rank]
convolution  A [rank, channels, *size]  B [out, rank, 1, …]     ΔW [out, channels, *size]
embedding    A [rank, count]            B [dim, rank]           base stored as [count, dim]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Layer, LowRank, Update
from lorascope.adapter.widening import is_floating
from lorascope.errors import AdapterError
from lorascope.formats.contents import Tensors

Half = Literal["A", "B"]

_CONVOLUTIONS: Mapping[int, Layer] = {3: "conv1d", 4: "conv2d", 5: "conv3d"}


class Scale(NamedTuple):
    """The resolved scale of a site, the alpha that the file states, and whether the scale is an assumption."""

    scale: float
    alpha: float | None
    is_assumed: bool = False


class Halves:
    """Sites and the names of their two tensors, in the order of the file.

    >>> halves = Halves(); halves.add("q", "A", "q.lora_A.weight")
    >>> halves.checked()
    Traceback (most recent call last):
    lorascope.errors.AdapterError: q: q.lora_A.weight has no partner: B is missing at this site ...
    """

    def __init__(self) -> None:
        self._keys: dict[str, dict[Half, str]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, site: str, half: Half, key: str) -> None:
        """Record that ``key`` is the ``half`` of ``site``; two tensors for one half are an error."""
        halves = self._keys.setdefault(site, {})
        if half in halves:
            raise AdapterError(
                f"two tensors are the factor {half} of one site",
                key=site,
                found=f"{halves[half]} and {key}",
                code="duplicate-keys",
            )
        halves[half] = key

    def checked(self) -> dict[str, tuple[str, str]]:
        """Site → (name of B, name of A).

        Raises:
            AdapterError: where a half is missing.
        """
        result: dict[str, tuple[str, str]] = {}
        for site, halves in self._keys.items():
            if len(halves) < 2:
                half, key = next(iter(halves.items()))
                other = "B" if half == "A" else "A"
                raise AdapterError(
                    f"{key} has no partner: {other} is missing at this site",
                    key=site,
                    expected="both factors",
                    found=f"only {half}",
                )
            result[site] = (halves["B"], halves["A"])
        return result


def low_rank(
    site: str,
    tensors: Tensors,
    keys: tuple[str, str],
    scale_of: Callable[[int], Scale],
    *,
    is_embedding: bool = False,
    is_transposed: bool = False,
    bias_key: str | None = None,
) -> LowRank:
    """The update of one site from the tensors called ``keys`` (B, A), as views.

    Args:
        scale_of: rank → ``Scale``.
        is_embedding: whether the base is an embedding, stored as [count, dim].
        is_transposed: whether a linear base is stored as [in, out].
        bias_key: the name of a tensor [out] that, times the scale, changes the layer's bias.

    Raises:
        AdapterError: naming the site, where the two shapes do not make an update.
    """
    up, down = tensors[keys[0]], tensors[keys[1]]
    for key, tensor in zip(keys, (up, down), strict=True):
        _check_factor(site, key, tensor)
    shapes = f"{keys[0]} {list(up.shape)} and {keys[1]} {list(down.shape)}"
    layer: Layer = "embedding" if is_embedding else "linear"
    kernel: tuple[int, ...] = ()
    if down.ndim > 2 and not is_embedding:
        layer, kernel = _CONVOLUTIONS[down.ndim], tuple(down.shape[1:])
        columns = _columns(up)
        if up.ndim == down.ndim and columns < down.shape[0] and down.shape[0] % columns == 0:
            raise AdapterError(
                "a convolution in groups is recognised, but not read by this version",
                key=site,
                expected=f"B with {down.shape[0]} columns",
                found=shapes,
            )
        if up.ndim == down.ndim and up.size == up.shape[0] * columns:
            up, down = up.reshape(-1, columns), down.reshape(down.shape[0], -1)
    if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
        raise AdapterError(
            "the two factors do not make a product",
            key=site,
            expected="B [out, rank] and A [rank, in] of one rank",
            found=shapes,
        )
    scale = scale_of(down.shape[0])
    return LowRank(
        up,
        down,
        scale.scale,
        layer=layer,
        kernel=kernel,
        is_transposed=is_embedding or (is_transposed and layer == "linear"),
        alpha=scale.alpha,
        keys=keys,
        bias=None if bias_key is None else tensors[bias_key],
    )


def _columns(matrix: NDArray[Any]) -> int:
    return int(matrix.shape[1])


def _check_factor(site: str, key: str, tensor: NDArray[Any]) -> None:
    if tensor.ndim < 2 or tensor.size == 0:
        raise AdapterError(
            f"{key} is empty or flat, so it is no factor",
            key=site,
            expected="a matrix",
            found=f"shape {list(tensor.shape)}",
            hint="ZeRO-3 and FSDP leave such tensors when a model is saved before its shards are gathered",
        )
    if not is_floating(tensor):
        raise AdapterError(
            f"{key} does not hold floating-point numbers",
            key=site,
            expected="float16, bfloat16, float32 …",
            found=tensor.dtype.name,
        )
    if tensor.ndim > 5:
        raise AdapterError(f"{key} has too many axes", key=site, found=f"shape {list(tensor.shape)}")


def bias_beside(update: Update, site: str) -> NDArray[Any] | None:
    """The bias of an update for a file in which the layer's bias changes by scale · bias, None where there is none.

    Raises:
        AdapterError: where the bias is whole and the scale 0, so that no such bias gives it.
    """
    if update.bias is None or not update.is_bias_whole or update.scale == 1.0:
        return update.bias
    if update.scale == 0.0:
        raise AdapterError("a bias that the scale multiplies cannot express this one: the scale is 0", key=site)
    return update.bias.astype(np.float64) / update.scale


def convolution_factors(update: LowRank) -> tuple[NDArray[Any], NDArray[Any]]:
    """B and A of an update in the shapes that files give a convolution; a plain layer's are as they are."""
    if not update.kernel:
        return update.B, update.A
    ones = (1,) * (len(update.kernel) - 1)
    return update.B.reshape(*update.B.shape, *ones), update.A.reshape(update.rank, *update.kernel)
