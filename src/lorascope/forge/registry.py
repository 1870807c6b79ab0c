"""Members of a family: each is one module of a package, found by its file name and imported when it is used."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import Any

from lorascope.errors import ForgeError, MissingExtraError

_HERE = Path(__file__).parent


def names(family: str) -> list[str]:
    """The names of the members of ``recipes`` or ``kinds``; nothing is imported.

    >>> "digits-vit" in names("recipes"), "lora" in names("kinds")
    (True, True)
    """
    return sorted(member.name.replace("_", "-") for member in pkgutil.iter_modules([str(_HERE / family)]))


def member(family: str, name: str) -> Any:
    """The object ``MEMBER`` of the module of that name.

    Raises:
        ForgeError: where there is none of that name; the message names the nearest one.
        MissingExtraError: where the member needs a package that is not installed.
    """
    known = names(family)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise ForgeError(
            f"there is no {family.removesuffix('s')} of that name",
            key=name,
            expected=" or ".join(known),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    try:
        module = importlib.import_module(f"lorascope.forge.{family}.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lorascope"):
            raise
        raise MissingExtraError.of(error.name.split(".")[0], "learn", f"forging {name}") from error
    return module.MEMBER
