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

from lorascope.errors import LorascopeError, MissingExtraError

Member = TypeVar("Member")


class Family(Generic[Member]):
    """A family of members.

    Args:
        noun: what a member is called in messages, such as ``recipe``.
        package: the package whose files are the members.
        attribute: the name of the object that each file defines.
        group: the entry-point group in which other packages announce theirs.
        extra: the extra to name where a member needs a package that is not installed.

    >>> features = Family("feature", "lorascope.features.invariants", "FEATURE", "lorascope.features")
    >>> "log-norm" in features.names()
    True
    >>> features["log-nrom"]
    Traceback (most recent call last):
    ...
    lorascope.errors.LorascopeError: there is no feature 'log-nrom' (expected one of ...)
      hint: did you mean 'log-norm'?
    """

    def __init__(self, noun: str, package: str, attribute: str, group: str, *, extra: str = "learn") -> None:
        self.noun = noun
        self._extra = extra
        self._package = package
        self._attribute = attribute
        self._group = group
        self._loaded: dict[str, Member] = {}

    def names(self) -> list[str]:
        """The names of all members, sorted; nothing is imported but the package itself."""
        return sorted({*self._files(), *self._announced()})

    def __iter__(self) -> Iterator[Member]:
        return (self[name] for name in self.names())

    def __getitem__(self, name: str) -> Member:
        """The member of that name.

        Raises:
            LorascopeError: where there is none; names the nearest.
            MissingExtraError: where the member needs a package that is not installed.
        """
        if name in self._loaded:
            return self._loaded[name]
        if name in self._files():
            member: Member = getattr(self._imported(name), self._attribute)
            self._loaded[name] = member
            return member
        announced = self._announced()
        if name in announced:
            return announced[name].load()
        near = difflib.get_close_matches(name, self.names(), n=1)
        raise LorascopeError(
            f"there is no {self.noun} {name!r}",
            expected=f"one of {', '.join(self.names())}",
            hint=f"did you mean {near[0]!r}?" if near else None,
        )

    def _imported(self, name: str) -> Any:
        try:
            return importlib.import_module(f"{self._package}.{name.replace('-', '_')}")
        except ModuleNotFoundError as error:
            package = (error.name or "lorascope").partition(".")[0]
            if package == "lorascope":
                raise
            raise MissingExtraError.of(package, self._extra, f"the {self.noun} {name}") from error

    def _files(self) -> list[str]:
        path = importlib.import_module(self._package).__path__
        return [m.name.replace("_", "-") for m in pkgutil.iter_modules(path) if not m.name.startswith("_")]

    def _announced(self) -> dict[str, Any]:
        return {point.name: point for point in entry_points(group=self._group)}
