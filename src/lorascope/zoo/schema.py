"""What a zoo's manifest holds: column names, types and roles, and the split of a group.

Three roles, so that a model can never be given as input what it is to predict:

- ``identity``: which adapter this is and where it lies;
- ``hyperparameter``: what was chosen before training;
- ``label``: what the training data were, or what was measured afterwards.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from lorascope.errors import ZooError

SCHEMA_VERSION = 1
"""Version of ``zoo.json``, of the cohort records and of the manifest."""

Role = Literal["identity", "hyperparameter", "label"]
Type = Literal["int", "float", "bool", "string", "list<int>", "list<float>", "list<string>"]
Status = Literal["ok", "diverged", "unreadable"]
Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Column:
    """One column of the manifest."""

    name: str
    role: Role
    type: Type


IDENTITY = {
    column.name: column
    for column in (
        Column("schema_version", "identity", "int"),
        Column("id", "identity", "string"),
        Column("path", "identity", "string"),
        Column("sha256", "identity", "string"),
        Column("config_sha256", "identity", "string"),
        Column("status", "identity", "string"),
        Column("recipe", "identity", "string"),
        Column("kind", "identity", "string"),
        Column("base", "identity", "string"),
        Column("base_hash", "identity", "string"),
        Column("base_seed", "identity", "int"),
        Column("group", "identity", "string"),
        Column("split", "identity", "string"),
    )
}
"""The columns that every new zoo has."""

REQUIRED = frozenset(IDENTITY) - {"config_sha256"}
"""The columns without which a folder is no zoo; zoos of before ``config_sha256`` are read, theirs is null."""


def columns_with(hyperparameters: Mapping[str, Type], labels: Mapping[str, Type]) -> dict[str, Column]:
    """All columns of a zoo: identity first, then the hyperparameters, then the labels.

    >>> list(columns_with({"rank": "int"}, {"loss": "float"}))[-2:]
    ['rank', 'loss']
    """
    columns = dict(IDENTITY)
    named_by_role: dict[Role, Mapping[str, Type]] = {"hyperparameter": hyperparameters, "label": labels}
    for role, named in named_by_role.items():
        for name, type_ in named.items():
            if name in columns:
                raise ZooError(f"{name!r} is declared twice or is a name that every zoo uses", key=name)
            columns[name] = Column(name, role, type_)
    return columns


def columns_as_dict(columns: Mapping[str, Column]) -> dict[str, dict[str, str]]:
    """The columns as JSON: name → {role, type}."""
    return {column.name: {"role": column.role, "type": column.type} for column in columns.values()}


def columns_from_dict(value: Any, file: object) -> dict[str, Column]:
    """The inverse of :func:`columns_as_dict`, for a file that may have been made by anyone."""
    columns: dict[str, Column] = {}
    if not isinstance(value, dict):
        raise ZooError("the columns are not declared", file=file, key="columns", expected="an object")
    for name, declared in value.items():
        role = declared.get("role") if isinstance(declared, dict) else None
        type_ = declared.get("type") if isinstance(declared, dict) else None
        if role not in get_args(Role) or type_ not in get_args(Type):
            raise ZooError(
                "a column has no known role and type",
                file=file,
                key=str(name),
                expected=f"role in {list(get_args(Role))}, type in {list(get_args(Type))}",
                found=declared,
            )
        columns[name] = Column(name, cast(Role, role), cast(Type, type_))
        if name in IDENTITY and columns[name] != IDENTITY[name]:
            raise ZooError(
                "a column of every zoo is declared otherwise",
                file=file,
                key=name,
                expected=f"{IDENTITY[name].role} {IDENTITY[name].type}",
                found=f"{role} {type_}",
            )
    missing = sorted(REQUIRED - columns.keys())
    if missing:
        raise ZooError("columns that every zoo has are missing", file=file, key=", ".join(missing))
    return columns


FRACTIONS = (0.70, 0.15, 0.15)
"""The shares of the groups that train, validation and test have."""


def check_fractions(fractions: Any) -> tuple[float, float, float]:
    """Three shares that make a whole.

    Raises:
        ZooError: where they are not.

    >>> check_fractions([0.8, 0, 0.2])
    (0.8, 0.0, 0.2)
    """
    is_three = isinstance(fractions, Sequence) and len(fractions) == 3
    if not is_three or not all(isinstance(one, int | float) and 0 <= one <= 1 for one in fractions):
        raise ZooError("are not three shares", key="fractions", expected="train, validation, test", found=fractions)
    if not math.isclose(sum(fractions), 1, rel_tol=1e-9):
        raise ZooError("do not make a whole", key="fractions", expected="a sum of 1", found=sum(fractions))
    train, validation, test = map(float, fractions)
    return train, validation, test


def split_of(group: str, salt: str = "", fractions: tuple[float, float, float] = FRACTIONS) -> Split:
    """The split of a group, 70/15/15: a pure hash of its name, so it never changes when the zoo grows.

    Another ``salt`` gives another, independent split, for spreads over seeds.

    >>> split_of("digits-vit/17") == split_of("digits-vit/17")
    True
    >>> sum(split_of(str(number)) == "train" for number in range(1000))
    697
    """
    digest = hashlib.blake2b(f"{salt}\0{group}".encode(), digest_size=8).digest()
    fraction = int.from_bytes(digest, "big") / 2**64
    if fraction < fractions[0]:
        return "train"
    is_validation = fraction < fractions[0] + fractions[1] or not fractions[2]
    return "validation" if is_validation and fractions[1] else "test" if fractions[2] else "train"
