"""The one registry of key grammars: every module of ``lorascope.formats.grammars`` lists its ``FORMATS``.

A grammar is recognised by evidence. The strongest evidence wins; two grammars with equally strong evidence make a
file ambiguous, which is an error and never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from numpy.typing import DTypeLike

from lorascope.adapter import Adapter, Update
from lorascope.errors import AdapterError
from lorascope.family import Family
from lorascope.formats.contents import Contents

STATED, SPECIFIC, PLAIN, WEAK = 100, 50, 20, 10
"""Strengths of evidence: the configuration says so; keys of this grammar alone; keys; keys that others share."""


@dataclass(frozen=True)
class Evidence:
    """Why a file is taken for a format, and how strong that is."""

    strength: int
    reason: str


@dataclass(frozen=True)
class Format:
    """A key grammar: how a trainer names the tensors of an adapter.

    Args:
        name: stable name, such as ``peft``.
        title: for people.
        reference: where the grammar is defined.
        recognise: contents → evidence, or None.
        read: contents → adapter; None where this version only recognises the format.
        write: adapter, path, dtype (None: as stored) → writes; None where this version cannot.
        refusals: adapter → an error for each site that ``write`` has no place for, beside the others that there are.
        kept: adapter → the parametrisations that ``write`` keeps for these sites; ``writes`` if None. Others of low
            rank are worked out to plain factors.
        rows_of: an update of some rows of a fused weight → the rows of the whole weight, None where only the base
            knows them.
        names_rows: whether a file can hold some rows of a fused weight.
        kinds: the parametrisations that files of this format can hold.
        writes: those that ``write`` can write from another format; unedited files of its own it writes as they were.
        files: what the files look like, in a few words.
        is_folder: whether ``write`` makes a folder; else a file.
        folder_files: the files in that folder; a format of files that has some makes a folder of a name without suffix.
        suffix: of the file that ``write`` makes.
        other_suffixes: those by which ``write`` makes another container.
        base_field: the field of the configuration that names the base model, None where the files have none.
        needed_metadata: metadata without which the file would mean something else.
        is_numbered: whether its sites are numbers in a trainer's order; else they are names of layers.
        site_examples: names of sites that ``write`` has a place for, where it has not for every name.
    """

    name: str
    title: str
    reference: str
    recognise: Callable[[Contents], Evidence | None]
    read: Callable[[Contents], Adapter] | None = None
    write: Callable[[Adapter, Path, DTypeLike | None], None] | None = None
    refusals: Callable[[Adapter], Iterable[AdapterError]] = lambda adapter: ()
    kept: Callable[[Adapter], tuple[str, ...]] | None = None
    rows_of: Callable[[Update], int | None] = lambda update: None
    names_rows: bool = False
    kinds: tuple[str, ...] = ("lora",)
    writes: tuple[str, ...] = ()
    files: str = ""
    is_folder: bool = False
    folder_files: tuple[str, ...] = ()
    suffix: str = ".safetensors"
    other_suffixes: tuple[str, ...] = ()
    base_field: str | None = None
    needed_metadata: frozenset[str] = frozenset()
    is_numbered: bool = False
    site_examples: tuple[str, ...] = ()

    @property
    def suffixes(self) -> tuple[str, ...]:
        """All suffixes of files that ``write`` makes, in lower case, the usual one first."""
        return self.suffix, *(suffix for suffix in self.other_suffixes if suffix != self.suffix)


GRAMMARS: Family[tuple[Format, ...]] = Family(
    "key grammar", "lorascope.formats.grammars", "FORMATS", "lorascope.formats"
)
"""The files of key grammars; each lists one format or more."""


@cache
def formats() -> tuple[Format, ...]:
    """All registered formats, by name.

    >>> [format.name for format in formats() if "dora" in format.writes]
    ['comfyui', 'diffusers', 'kohya', 'lycoris', 'mlx', 'peft']
    """
    members = [member for listed in GRAMMARS for member in listed]
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        raise RuntimeError(f"two formats have one name: {sorted(names)}")
    return tuple(sorted(members, key=lambda member: member.name))


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        AdapterError: where there is none; it lists those that there are.
    """
    for member in formats():
        if member.name == name:
            return member
    raise AdapterError(
        "no such format", expected=", ".join(member.name for member in formats()), found=ascii(name)[:80]
    )


def written_format(name: str) -> Format:
    """The format of that name, if this version writes it.

    Raises:
        AdapterError: where there is none, or it is only read; it lists those that are written.
    """
    written = {member.name: member for member in formats() if member.write}
    if name in written:
        return written[name]
    expected = ", ".join(written)
    for member in formats():
        if member.name == name:
            raise AdapterError(f"{member.title} is not written by this version", expected=expected, found=name)
    raise AdapterError("no such format", expected=expected, found=ascii(name)[:80])


def recognised(contents: Contents) -> tuple[Format, Evidence]:
    """The format that the evidence speaks for, and that evidence.

    Raises:
        AdapterError: where none is recognised, or where two are with equal strength.
    """
    found = [(evidence, member) for member in formats() if (evidence := member.recognise(contents))]
    if not found and "lorascope.pack" in contents.metadata:  # what `lorascope compress` writes
        raise AdapterError(
            "a pack of adapters, not an adapter",
            file=contents.path,
            hint="lorascope decompress PACK -o DIR gives them back, each as an adapter",
        )
    if not found:
        raise AdapterError(
            "no LoRA tensors in this file: its keys are those of no known adapter format",
            file=contents.path,
            expected="keys such as ….lora_A.weight, ….lora_down.weight or ….to_q_lora.down.weight",
            found=_some_keys(contents),
        )
    top = max(evidence.strength for evidence, _ in found)
    best = [(evidence, member) for evidence, member in found if evidence.strength == top]
    if len(best) > 1:
        raise AdapterError(
            "ambiguous: the file fits more than one format",
            file=contents.path,
            found=" and ".join(f"{member.name} ({evidence.reason})" for evidence, member in best),
            hint="say which one with format= or --format",
        )
    evidence, member = best[0]
    return member, evidence


def _some_keys(contents: Contents) -> str:
    if not contents.tensors:
        return "no tensors"
    names = list(contents.tensors)
    shown = ", ".join(name[:80] for name in names[:3])
    kind = f"{len(names)} tensor{'s' * (len(names) > 1)}"
    return f"{kind}: {shown}{', …' * (len(names) > 3)}"
