"""``Zoo``: a folder of adapters with labels and splits, opened for reading."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lorascope.adapter import Adapter
from lorascope.errors import ZooError
from lorascope.formats import read
from lorascope.zoo.paths import inside
from lorascope.zoo.schema import SPLITS, Column, Role, columns_from_dict, split_of
from lorascope.zoo.shards import Shards, packed_hashes
from lorascope.zoo.splitting import SPLIT, Splitting
from lorascope.zoo.store import (
    COHORTS,
    HEADER,
    MANIFEST,
    Row,
    check_version,
    hashes_of,
    import_pyarrow,
    read_json,
    read_records,
    records_digest,
    rows_to_table,
)

if TYPE_CHECKING:
    import pyarrow


class Zoo:
    """A folder of adapters with labels and splits; open one with :meth:`Zoo.open`.

    The rows come from ``manifest.parquet`` where it is up to date, else from the cohort records, so a zoo that
    is still being forged, or whose run was killed, can be read at any time.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, Any],
        columns: Mapping[str, Column],
        splitting: Splitting | None = None,
    ) -> None:
        self.path = path
        self.header = header
        self.columns = columns
        self.splitting = splitting

    @classmethod
    def open(cls, path: str | Path, *, splits: str | Path | None = None) -> Zoo:
        """Open the zoo at ``path``.

        Args:
            path: its folder.
            splits: a saved split, in place of that of the zoo.

        Raises:
            ZooError: where there is no zoo, it is damaged, or a newer lorascope wrote it.
        """
        folder = Path(path)
        if not (folder / HEADER).is_file():
            raise ZooError(
                "is not a zoo",
                file=folder,
                expected=f"a folder with {HEADER} and {MANIFEST} or {COHORTS}/",
                found="no such folder" if not folder.exists() else f"no {HEADER}",
                hint="make one with `lorascope forge RECIPE --count N --out ZOO`, or from your own adapters "
                "with `lorascope zoo import DIR --labels FILE.csv`",
            )
        if not (folder / MANIFEST).is_file() and not (folder / COHORTS).is_dir():
            raise ZooError(
                "the zoo has no manifest and no cohort records",
                file=folder,
                expected=f"{MANIFEST} or {COHORTS}/",
                hint="run the command that made it again: it continues where it stopped",
            )
        header = read_json(folder / HEADER)
        columns = columns_from_dict(header.get("columns"), folder / HEADER)
        saved = Path(splits) if splits is not None else folder / SPLIT
        splitting = Splitting.load(saved) if splits is not None or saved.is_file() else None
        if splitting is not None and splitting.by not in columns:
            raise ZooError("splits by a column that the zoo has not", file=saved, key=splitting.by)
        return cls(folder, header, columns, splitting)

    def __repr__(self) -> str:
        return f"Zoo({str(self.path)!r}, {self.table.num_rows} adapters, labels {self.labels()})"

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def table(self) -> pyarrow.Table:
        """All rows, of every status, as an Arrow table in the order of the cohorts, with the saved split if any."""
        if self.splitting is None:
            return self._recorded
        return rows_to_table(map(self.splitting.applied, self.recorded_rows()), self.columns)

    def recorded_rows(self) -> list[Row]:
        """All rows as they were recorded: of every status, and with the group and split of their making."""
        return cast(list[Row], self._recorded.to_pylist())

    @cached_property
    def _recorded(self) -> pyarrow.Table:
        if self._manifest is not None:
            try:
                self._check_columns(self._manifest)
                return self._manifest.select(list(self.columns))
            except ZooError:
                if not self._has_records:
                    raise
        return rows_to_table(read_records(self.path), self.columns)

    @property
    def _has_records(self) -> bool:
        return (self.path / COHORTS).is_dir()

    @cached_property
    def _manifest(self) -> pyarrow.Table | None:
        """The manifest, or None where there is none that was made of the records and columns as they are now."""
        pa = import_pyarrow()
        import pyarrow.parquet as parquet

        manifest = self.path / MANIFEST
        if not manifest.is_file():
            return None
        try:
            with parquet.ParquetFile(manifest) as file:  # read_table takes a folder above named n=9 for a column
                table = file.read()
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ZooError(
                "is not a Parquet file",
                file=manifest,
                found=str(error).splitlines()[0] if str(error) else None,
                hint="delete it: it is rebuilt from the cohort records",
            ) from error
        # a recipe that has gained columns declares them before a new manifest is written
        is_whole = set(self.columns) <= set(table.column_names)
        return table if not self._has_records or (is_whole and self._is_of_records(table)) else None

    def _is_of_records(self, table: pyarrow.Table) -> bool:
        return (table.schema.metadata or {}).get(b"records", b"") == records_digest(self.path).encode()

    def _check_columns(self, table: pyarrow.Table) -> None:
        manifest = self.path / MANIFEST
        missing = [name for name in self.columns if name not in table.column_names]
        if missing:
            raise ZooError("declared columns are missing", file=manifest, key=", ".join(missing))
        for field in rows_to_table((), self.columns).schema:
            found = [table.schema.types[at] for at, name in enumerate(table.column_names) if name == field.name]
            if found != [field.type]:
                raise ZooError(
                    "a column is not as declared",
                    file=manifest,
                    key=field.name,
                    expected=field.type,
                    found=", ".join(map(str, found)),
                    hint="delete it: it is rebuilt from the cohort records" if self._has_records else None,
                )
        for version in set(table.column("schema_version").to_pylist()):
            check_version(version, manifest)

    def check_manifest(self) -> None:
        """Compare the manifest with the records that it states to be made of; one that is behind them is not used.

        Raises:
            ZooError: where it is damaged, or says something else.
        """
        if self._manifest is None or not self._has_records:
            return
        self._check_columns(self._manifest)
        records = rows_to_table(read_records(self.path), self.columns)
        is_same = self._manifest.select(list(self.columns)).equals(records)
        if not is_same and self._is_of_records(self._manifest):  # still: a run may have added a record meanwhile
            raise ZooError(
                "does not say what the records say: delete it, and it is rebuilt from them", file=self.path / MANIFEST
            )

    def rows(self, *, only_usable: bool = True) -> list[Row]:
        """The rows as dictionaries; those whose ``status`` is not ``ok`` only if asked for."""
        rows = cast(list[Row], self.table.to_pylist())
        return [row for row in rows if row["status"] == "ok"] if only_usable else rows

    def split(self, name: str, salt: str = "") -> list[Row]:
        """The usable rows of ``train``, ``validation`` or ``test``; a ``salt`` splits the groups afresh.

        Raises:
            ZooError: for another name.
        """
        if name not in SPLITS:
            raise ZooError("is not a split", key=name, expected=" or ".join(SPLITS), found=name)
        return [row for row in self.rows() if (split_of(row["group"], salt) if salt else row["split"]) == name]

    def labels(self) -> list[str]:
        """The names of the label columns."""
        return self._names("label")

    def hyperparameters(self) -> list[str]:
        """The names of the hyperparameter columns."""
        return self._names("hyperparameter")

    def _names(self, role: Role) -> list[str]:
        return [column.name for column in self.columns.values() if column.role == role]

    def column(self, name: str) -> Column:
        """The declaration of a column.

        Raises:
            ZooError: where there is none of that name; the message names the nearest one.
        """
        if name in self.columns:
            return self.columns[name]
        near = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.5)
        raise ZooError(
            "the zoo has no such column",
            file=self.path,
            key=name,
            expected=f"a label ({', '.join(self.labels())}) or a hyperparameter ({', '.join(self.hyperparameters())})",
            hint=f"did you mean {near[0]}?" if near else None,
        )

    @cached_property
    def shards(self) -> Shards:
        """The archives of a packed zoo; none in others."""
        return Shards(self.path)

    def read(self, row: Row) -> Adapter:
        """The adapter of a row, wherever its files are.

        Raises:
            ZooError: as :meth:`adapter_path`.
            AdapterError: where the files are no adapter that can be read.
        """
        return read(self.adapter_path(row))

    def adapter_path(self, row: Row) -> Path:
        """Where the adapter of a row lies: a file or a folder inside the zoo, or a place in one of its shards.

        :func:`lorascope.read` takes either.

        Raises:
            ZooError: where the row points outside of the zoo, as a hostile manifest may, or to nothing.
        """
        stated = row["path"]
        path = inside(self.path, stated)
        if not path.exists():
            shard = self.shards.find(stated)
            if shard is not None:
                return shard.path / stated
            raise ZooError(
                "the adapter of a row is missing",
                file=self.path / stated,
                key=str(row["id"]),
                hint="forge the zoo again with the same command, or import it again",
            )
        return path

    def hashes(self, row: Row) -> dict[str, str | None]:
        """The ``sha256`` and ``config_sha256`` of a row's files as they are now.

        Raises:
            ZooError: as :meth:`adapter_path`.
            AdapterError: where no adapter is at the place.
        """
        path = self.adapter_path(row)
        if path.exists():
            return hashes_of(path)
        shard = self.shards.find(row["path"])
        if shard is None:
            raise ZooError("the adapter of a row is missing", file=path, key=str(row["id"]))
        return packed_hashes(shard, row["path"])

    @property
    def is_forged(self) -> bool:
        """Whether a recipe made the zoo, and can make any of its adapters again."""
        return self.header.get("recipe") is not None and "settings" in self.header

    def summary(self) -> dict[str, Any]:
        """Counts, columns and splits, as ``lorascope zoo info --json`` prints them."""
        rows = self.rows(only_usable=False)
        usable = [row for row in rows if row["status"] == "ok"]
        splits = Counter(row["split"] for row in usable)
        return {
            "schema_version": self.header["schema_version"],
            "path": str(self.path),
            "recipe": self.header.get("recipe"),
            "seed": self.header.get("seed"),
            "count": len(rows),
            "asked": self.header.get("count"),
            "status": dict(Counter(row["status"] for row in rows)),
            "bases": sorted({row["base"] for row in rows if row["base"] is not None}),
            "groups": len({row["group"] for row in usable}),
            "splits": {name: splits[name] for name in SPLITS},
            "split_digest": None if self.splitting is None else self.splitting.digest,
            "columns": {
                column.name: {
                    "role": column.role,
                    "type": column.type,
                    **_described([row[column.name] for row in usable], column),
                }
                for column in self.columns.values()
                if column.role != "identity"
            },
        }


def _described(values: list[Any], column: Column) -> dict[str, Any]:
    present = [value for value in values if value is not None]
    described: dict[str, Any] = {"missing": len(values) - len(present)}
    if column.type in ("int", "float") and present:
        mean = sum(present) / len(present)
        described |= {
            "mean": mean,
            "sd": (sum((value - mean) ** 2 for value in present) / len(present)) ** 0.5,
            "min": min(present),
            "max": max(present),
        }
    return described
