"""A split of one's own: by another column, in other parts, or afresh; saved, so that it stays.

The split of a group is a pure hash of its name and a salt. The file holds that rule and, for every adapter there was,
its split: adapters that come later follow the rule, and those that were there never move.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.errors import ZooError
from lorascope.zoo.schema import FRACTIONS, SCHEMA_VERSION, SPLITS, check_fractions, split_of
from lorascope.zoo.store import Row, read_json, write_json

if TYPE_CHECKING:
    from lorascope.zoo.zoo import Zoo

SPLIT = "split.json"
"""The file's name in a zoo: there it is the zoo's split."""


@dataclass(frozen=True)
class Splitting:
    """Which adapter is in which split.

    Args:
        by: the column whose equal values are one group; adapters without a value are a group each.
        salt: another one splits afresh.
        fractions: of the groups, for train, validation and test.
        splits: id → split, of the adapters that were there when it was made.
    """

    by: str = "group"
    salt: str = ""
    fractions: tuple[float, float, float] = FRACTIONS
    splits: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, zoo: Zoo, *, by: str = "group", salt: str = "", fractions: Sequence[float] = FRACTIONS) -> Splitting:
        """The splitting of all adapters of a zoo by this rule.

        Raises:
            ZooError: for a column that there is not, fractions that are none, or a split that comes out empty.
        """
        zoo.column(by)
        rule = cls(by, salt, check_fractions(fractions))
        splits = {row["id"]: rule.split(row) for row in zoo.recorded_rows()}
        for name, share in zip(SPLITS, rule.fractions, strict=True):
            if share and name not in splits.values():
                raise ZooError(
                    "a split comes out empty: there are too few groups",
                    file=zoo.path,
                    key=name,
                    found=f"{len({rule.group(row) for row in zoo.recorded_rows()})} groups by {by}",
                    hint="try another --salt or --fractions, or another column",
                )
        return cls(by, salt, rule.fractions, splits)

    def group(self, row: Row) -> str:
        """The group of an adapter: no two splits share one."""
        value = row.get(self.by)
        if self.by == "group":
            return str(value)
        if value is None:
            return f"id={row['id']}"
        return f"{self.by}={json.dumps(value, sort_keys=True, default=str)}"

    def split(self, row: Row) -> str:
        """The split of an adapter: as saved, else by the rule."""
        return self.splits.get(row["id"]) or split_of(self.group(row), self.salt, self.fractions)

    def applied(self, row: Row) -> Row:
        """The row with its ``group`` and ``split`` replaced."""
        return row | {"group": self.group(row), "split": self.split(row)}

    def counts(self) -> dict[str, int]:
        """The number of adapters in each split."""
        counted = Counter(self.splits.values())
        return {name: counted[name] for name in SPLITS}

    @property
    def digest(self) -> str:
        """A hash of the rule and of every adapter's split."""
        return hashlib.blake2b(json.dumps(self._content(), sort_keys=True).encode(), digest_size=16).hexdigest()

    def _content(self) -> dict[str, Any]:
        return {
            "by": self.by,
            "salt": self.salt,
            "fractions": list(self.fractions),
            "splits": dict(self.splits),
        }

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, {"schema_version": SCHEMA_VERSION, "digest": self.digest, **self._content()})

    @classmethod
    def load(cls, path: Path) -> Splitting:
        """Read a file that :meth:`save` wrote.

        Raises:
            ZooError: where it is damaged, or not what its digest says.
        """
        value = read_json(path)
        by, salt, splits = value.get("by"), value.get("salt"), value.get("splits")
        if not (isinstance(by, str) and isinstance(salt, str) and isinstance(splits, dict)):
            raise ZooError("is no saved split", file=path, expected="by, salt, fractions and splits")
        if not all(split in SPLITS for split in splits.values()):
            raise ZooError("an adapter is in no known split", file=path, key="splits", expected=" or ".join(SPLITS))
        found = cls(by, salt, check_fractions(value.get("fractions")), splits)
        if found.digest != value.get("digest"):
            raise ZooError(
                "was changed after it was saved",
                file=path,
                key="digest",
                expected=value.get("digest"),
                found=found.digest,
                hint="make it again with `lorascope zoo split`",
            )
        return found
