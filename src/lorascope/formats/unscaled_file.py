"""Safetensors files of formats without a scale: two tensors for a site, into one of which the scale is multiplied.

    B' = scale · B        A' = A

A grammar gives the names of the tensors and says which sites it has none for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, LowRank, Update
from lorascope.errors import AdapterError
from lorascope.formats.dtypes import cast_to
from lorascope.formats.folding import unscaled
from lorascope.formats.pairs import convolution_factors
from lorascope.formats.peft_fields import padded
from lorascope.formats.safetensors_file import write_safetensors


class Keys(NamedTuple):
    """The names of the tensors of one site; None for what the format has no place for."""

    B: str
    A: str
    bias: str | None = None
    whole: str | None = None


def write_unscaled(
    adapter: Adapter,
    path: Path,
    dtype: DTypeLike | None,
    *,
    format: str,
    keys_of: Callable[[str, Update], Keys],
    has_convolutions: bool = False,
    metadata_of: Callable[[Mapping[str, Update]], Mapping[str, str]] = lambda sites: {},
) -> None:
    """Write one file; an unedited adapter of the format is written as it was.

    Args:
        adapter: what to write; of an edited adapter of the format the other tensors and metadata are kept.
        path: the file.
        dtype: of the tensors; as stored if None. The product with the scale is rounded once to it.
        format: the name of the format.
        keys_of: site and update → the names of its tensors; it raises where the format has no place for the site.
        has_convolutions: whether a site may be a convolution.
        metadata_of: the sites → metadata that the format asks for.

    Raises:
        AdapterError: naming the site, where the format has no place for it.
        OutputError: where the file cannot be written.
    """
    is_own = adapter.provenance.format == format
    metadata: Mapping[str, str] = adapter.provenance.metadata if is_own else {}
    if adapter.original is not None and is_own and dtype is None:
        write_safetensors(path, adapter.original, metadata)
        return
    if not adapter:
        raise AdapterError("an adapter without sites cannot be written to this format")
    tensors: dict[str, NDArray[Any]] = {}
    for site, update in adapter.items():
        for key, tensor in _tensors(site, update, keys_of(site, update), dtype, has_convolutions).items():
            if key in tensors:
                raise AdapterError("two sites have one name in this format", key=site, found=key)
            tensors[key] = tensor
    write_safetensors(
        path, tensors | (dict(adapter.leftovers) if is_own else {}), {**metadata, **metadata_of(adapter.sites)}
    )


def _tensors(
    site: str, update: Update, keys: Keys, dtype: DTypeLike | None, has_convolutions: bool
) -> dict[str, NDArray[Any]]:
    if keys.whole is not None and update.kind == "replaced":
        weight = update.stored["weight"]
        return {keys.whole: weight if dtype is None else cast_to(weight, dtype)}
    plain = plain_update(site, update, has_convolutions=has_convolutions, has_bias=keys.bias is not None)
    B, A = convolution_factors(unscaled(plain, dtype))
    bias = unscaled(plain, dtype).bias
    return {keys.B: B, keys.A: A} | ({} if keys.bias is None or bias is None else {keys.bias: bias})


def plain_update(site: str, update: Update, *, has_convolutions: bool = False, has_bias: bool = False) -> LowRank:
    """The update, where it is a plain pair of factors of a layer stored as [out, in].

    Raises:
        AdapterError: naming the site, where it is another kind, an embedding, transposed, or has a bias.
    """
    if not isinstance(update, LowRank):
        raise AdapterError("files of this format hold only LoRA", key=site, found=update.kind)
    is_known = update.layer == "linear" or (has_convolutions and bool(update.kernel))
    if not is_known or update.is_transposed:
        expected = "linear, convolution" if has_convolutions else "linear"
        found = f"{'transposed ' * update.is_transposed}{update.layer}"
        raise AdapterError("the format has no LoRA for such a layer", key=site, expected=expected, found=found)
    if update.bias is not None and not has_bias:
        raise AdapterError("the format has no bias beside a LoRA", key=site)
    return padded(update)


def numbered(sites: Mapping[str, Update], number_of: Callable[[str], tuple[str, int]]) -> None:
    """Check that the numbers of each component go from 0 on without a gap, since the format names layers by them.

    Raises:
        AdapterError: naming the first site beyond a gap.
    """
    found: dict[str, dict[int, str]] = {}
    for site in sites:
        component, number = number_of(site)
        found.setdefault(component, {})[number] = site
    for numbers in found.values():
        for place, number in enumerate(sorted(numbers)):
            if place != number:
                raise AdapterError(
                    "the format numbers its layers without a gap, and one before this site is missing",
                    key=numbers[number],
                    expected=f"a site with the number {place}",
                )
