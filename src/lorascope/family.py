"""Families: the one mechanism by which members (features, models, recipes, formats …) are found.

A member is one file of the family's package, named after the member (``log-norm`` lives in ``log_norm.py``), which
defines one object under the family's attribute. Listing imports nothing and using a member imports its file alone,
so a member may need an extra that others do not. Other packages add members by entry points.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from lorascope.errors import LorascopeError

Member = TypeVar("Member")


class Family(Generic[Member]):
    """A family of members.

    Args:
        noun: what a member is called in messages, such as ``recipe``.
        package: the package whose files are the members.
        attribute: the name of the object that each file defines.
        group: the entry-point group in which other packages announce theirs.

    >>> features = Family("feature", "lorascope.features.invariants", "FEATURE", "lorascope.features")
    >>> "log-norm" in features.names()
    True
    >>> features["log-nrom"]
    Traceback (most recent call last):
    ...
    lorascope.errors.LorascopeError: there is no feature 'log-nrom' (expected one of ...)
      hint: did you mean 'log-norm'?
    """

    def __init__(self, noun: str, package: str, attribute: str, group: str) -> None:
        self.noun = noun
        self._package = package
        self._attribute = attribute
        self._group = group

    def names(self) -> list[str]:
        """The names of all members, sorted; nothing is imported but the package itself."""
        return sorted({*self._files(), *self._announced()})

    def __iter__(self) -> Iterator[Member]:
        return (self[name] for name in self.names())

    def __getitem__(self, name: str) -> Member:
        """The member of that name.

        Raises:
            LorascopeError: where there is none; names the nearest.
        """
        if name in self._files():
            module = importlib.import_module(f"{self._package}.{name.replace('-', '_')}")
            return getattr(module, self._attribute)
        announced = self._announced()
        if name in announced:
            return announced[name].load()
        near = difflib.get_close_matches(name, self.names(), n=1)
        raise LorascopeError(
            f"there is no {self.noun} {name!r}",
            expected=f"one of {', '.join(self.names())}",
            hint=f"did you mean {near[0]!r}?" if near else None,
        )

    def _files(self) -> list[str]:
        path = importlib.import_module(self._package).__path__
        return [m.name.replace("_", "-") for m in pkgutil.iter_modules(path) if not m.name.startswith("_")]

    def _announced(self) -> dict[str, Any]:
        return {point.name: point for point in entry_points(group=self._group)}
