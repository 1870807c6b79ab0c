"""The rows of a zoo asked in SQL: DuckDB over the Arrow table, with no way to any file.

One mechanism serves both: a simple expression such as ``rank = 4 and test_accuracy > 0.9`` or ``3 in classes`` is the
condition of ``select … from zoo where …``.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

from lorascope.errors import MissingExtraError, ZooError
from lorascope.zoo.store import Row
from lorascope.zoo.zoo import Zoo

MEMORY_LIMIT = "1GB"


def query(zoo: Zoo, sql: str) -> list[Row]:
    """The rows that one ``select`` over the table ``zoo`` gives.

    The data base lives in memory, sees no file and no network, and its settings are locked.

    Raises:
        ZooError: where the SQL is wrong, is no single ``select``, or wants more than the table.
        MissingExtraError: where DuckDB is not installed.
    """
    try:
        duckdb: Any = importlib.import_module("duckdb")  # its annotations are not complete
    except ImportError as error:
        raise MissingExtraError.of("duckdb", "learn", "asking a zoo in SQL") from error
    with duckdb.connect(":memory:") as connection:
        connection.register("zoo", zoo.table)
        for setting in (
            "enable_external_access = false",
            "python_enable_replacements = false",
            f"memory_limit = '{MEMORY_LIMIT}'",
            "lock_configuration = true",
        ):
            connection.execute(f"set {setting}")
        try:
            statements = connection.extract_statements(sql)
            if [one.type for one in statements] != [duckdb.StatementType.SELECT]:
                raise ZooError("is not one select", file=zoo.path, key="--sql", expected="select … from zoo …")
            answer = connection.execute(statements[0])
            names = [column[0] for column in answer.description]
            rows = answer.fetchall()
        except duckdb.Error as error:
            text = str(error).strip().splitlines()[0]
            raise ZooError("the zoo cannot be asked this", file=zoo.path, found=text, hint=_near(zoo, text)) from error
    if len(set(names)) != len(names):
        raise ZooError("two columns have one name", file=zoo.path, found=", ".join(names), hint="name them with `as`")
    return [dict(zip(names, row, strict=True)) for row in rows]


def select(
    zoo: Zoo,
    *,
    where: str | None = None,
    columns: Sequence[str] | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> list[Row]:
    """The rows that meet a condition.

    Args:
        zoo: the zoo; its rows of every status.
        where: an expression over the columns; ``3 in classes`` asks for a member of a list. Where None, all rows.
        columns: what to show; all where None.
        sort: a column, with ``-`` before it for descending order; nulls come last.
        limit: at most so many rows.

    Raises:
        ZooError: for an unknown column, or an expression that is wrong.
        MissingExtraError: where DuckDB is not installed.
    """
    chosen = list(zoo.columns if columns is None else columns)
    key = None if sort is None else sort.removeprefix("-")
    for name in [*chosen, *([] if key is None else [key])]:
        zoo.column(name)
    sql = f"select {', '.join(map(_quoted, chosen))} from zoo"
    if where is not None:
        # the line break ends a comment that the expression may end with
        sql += f" where ({where}\n)"
    if key is not None and sort is not None:
        sql += f" order by {_quoted(key)} {'desc' if sort.startswith('-') else 'asc'} nulls last"
    if limit is not None:
        sql += f" limit {limit:d}"
    return query(zoo, sql)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _near(zoo: Zoo, text: str) -> str | None:
    quoted = [part for part in text.split('"')[1::2] if part not in zoo.columns]
    near = difflib.get_close_matches(quoted[0], zoo.columns, n=1) if quoted else []
    return f"did you mean {near[0]}?" if near else None
