"""Safetensors files of formats without a scale: two tensors for a site, into one of which the scale is multiplied.

    B' = scale · B        A' = A

A grammar gives the names of the tensors and says which sites it has none for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, LowRank, Update
from lorascope.errors import AdapterError
from lorascope.formats.dtypes import cast_to
from lorascope.formats.folding import unscaled
from lorascope.formats.pairs import convolution_factors
from lorascope.formats.peft_fields import padded
from lorascope.formats.plain_factors import outlined, worked_out
from lorascope.formats.refusals import at_site, check
from lorascope.formats.stream_file import Unit, site_unit, units_of, write_units
from lorascope.formats.unedited_file import is_unedited


class Keys(NamedTuple):
    """The names of the tensors of one site; None for what the format has no place for."""

    B: str
    A: str
    bias: str | None = None
    whole: str | None = None


KeysOf = Callable[[str, Update], Keys]
"""Site and update → the names of its tensors; it raises where the format has no place for the site."""

NumberOf = Callable[[str], tuple[str, int]]
"""Site → its component and its number there, for formats that name layers by numbers alone."""


def write_unscaled(
    adapter: Adapter,
    path: Path,
    dtype: DTypeLike | None,
    *,
    format: str,
    keys_of: KeysOf,
    has_convolutions: bool = False,
    number_of: NumberOf | None = None,
    metadata_of: Callable[[Mapping[str, Update]], Mapping[str, str]] = lambda sites: {},
) -> None:
    """Write one file; an unedited adapter of the format is written as it was.

    Args:
        adapter: what to write; of an edited adapter of the format the other tensors and metadata are kept.
        path: the file.
        dtype: of the tensors; as stored if None. The product with the scale is rounded once to it.
        format: the name of the format.
        keys_of, number_of: as above.
        has_convolutions: whether a site may be a convolution.
        metadata_of: the sites → metadata that the format asks for.

    Raises:
        AdapterError: naming the site, where the format has no place for it.
        OutputError: where the file cannot be written.
    """
    is_own = adapter.provenance.format == format
    metadata: Mapping[str, str] = adapter.provenance.metadata if is_own else {}
    if is_unedited(adapter, (format,), dtype):
        write_units(path, units_of(adapter.original or {}), metadata)
        return
    if not adapter:
        raise AdapterError("an adapter without sites cannot be written to this format")
    check(unscaled_refusals(adapter, keys_of=keys_of, has_convolutions=has_convolutions, number_of=number_of))
    units: list[Unit] = [
        site_unit(site, _tensors, update, keys_of(site, update), dtype) for site, update in adapter.items()
    ]
    if is_own:
        units += units_of(adapter.leftovers)
    write_units(path, units, {**metadata, **metadata_of(adapter.sites)})


def unscaled_refusals(
    adapter: Adapter, *, keys_of: KeysOf, has_convolutions: bool = False, number_of: NumberOf | None = None
) -> Iterator[AdapterError]:
    """An error for each site that the format has no place for, beside the others that there are."""
    owners: dict[str, str] = {}
    known: list[str] = []
    for site, update in adapter.items():
        try:
            keys = keys_of(site, update)
            if keys.whole is None or update.kind != "replaced":
                check_plain(update, has_convolutions=has_convolutions, has_bias=keys.bias is not None)
            if owners.setdefault(keys.B, site) != site:
                raise AdapterError("two sites have one name in this format", found=keys.B)
        except AdapterError as error:
            yield at_site(error, site)
        else:
            known.append(site)
    if number_of is not None:
        yield from refused_numbers(known, number_of)


def _tensors(update: Update, keys: Keys, dtype: DTypeLike | None) -> dict[str, NDArray[Any]]:
    if keys.whole is not None and update.kind == "replaced":
        weight = update.stored["weight"]
        return {keys.whole: weight if dtype is None else cast_to(weight, dtype)}
    plain = unscaled(plain_update(update), dtype)
    B, A = convolution_factors(plain)
    return {keys.B: B, keys.A: A} | ({} if keys.bias is None or plain.bias is None else {keys.bias: plain.bias})


def plain_update(update: Update) -> LowRank:
    """The plain pair that an update is, or is worked out to.

    Raises:
        AdapterError: where it is another kind.
    """
    plain = worked_out(update)
    if not isinstance(plain, LowRank):
        raise AdapterError("files of this format hold only LoRA", found=update.kind)
    return padded(plain)


def check_plain(update: Update, *, has_convolutions: bool = False, has_bias: bool = False) -> None:
    """Check that an update is, or can be worked out to, a plain pair of factors of a layer stored as [out, in].

    Raises:
        AdapterError: where it is another kind, an embedding, transposed, or has a bias.
    """
    plain = outlined(update)
    if not isinstance(plain, LowRank):
        raise AdapterError("files of this format hold only LoRA", found=update.kind)
    is_known = plain.layer == "linear" or (has_convolutions and bool(plain.kernel))
    if not is_known or plain.is_transposed:
        expected = "linear, convolution" if has_convolutions else "linear"
        found = f"{'transposed ' * plain.is_transposed}{plain.layer}"
        raise AdapterError("the format has no LoRA for such a layer", expected=expected, found=found)
    if plain.bias is not None and not has_bias:
        raise AdapterError("the format has no bias beside a LoRA")


def refused_numbers(sites: Iterable[str], number_of: NumberOf) -> Iterator[AdapterError]:
    """An error for each site beyond a gap, or with the number of another: the format names by numbers from 0 on."""
    found: dict[str, dict[int, str]] = {}
    for site in sites:
        component, number = number_of(site)
        other = found.setdefault(component, {}).setdefault(number, site)
        if other != site:
            yield AdapterError("two sites have one number", key=site, found=other)
    for numbers in found.values():
        first = next((place for place, number in enumerate(sorted(numbers)) if place != number), None)
        for number, site in sorted(numbers.items()):
            if first is not None and number > first:
                yield AdapterError(
                    "the format numbers its layers without a gap, and one before this site is missing",
                    key=site,
                    expected=f"a site with the number {first}",
                )
