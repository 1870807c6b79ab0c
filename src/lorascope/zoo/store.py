"""Writing a zoo: every file appears whole, by a rename, or not at all.

zoo.json            what the zoo is: recipe, seed, settings, columns
cohorts/<k>.json    the truth: the rows of the adapters that are finished
adapters/<id>/      PEFT folders (an imported zoo refers to the files where they lie)
diverged/<id>/      those whose training ended in NaN, apart from the others
base/               the base model, where the recipe made it
manifest.parquet    derived from the cohort records; can be deleted and rebuilt
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.errors import MissingExtraError, OutputError, ZooError
from lorascope.formats.source import CONFIG_NAME, chosen_name, config_beside, weights_at
from lorascope.zoo.durable import sync_file, sync_folder
from lorascope.zoo.regular import open_regular, read_regular
from lorascope.zoo.schema import SCHEMA_VERSION, Column, columns_as_dict, columns_from_dict

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]

HEADER = "zoo.json"
MANIFEST = "manifest.parquet"
COHORTS = "cohorts"
ADAPTERS = "adapters"
DIVERGED = "diverged"
BASE = "base/model.safetensors"


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, sync it to the disk, and rename it into place.

    Raises:
        OutputError: where that is not possible; nothing is left behind.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as stream:  # which follows no link that waits under the name
            stream.write(content)
        sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError("cannot write", file=path, found=error.strerror) from error


def write_json(path: Path, value: Any) -> None:
    """Write one JSON object atomically; a NaN in it is an error, undefined numbers are null."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object of a zoo, whose ``schema_version`` this lorascope knows."""
    try:
        value = json.loads(read_regular(path))
    except RecursionError:
        raise ZooError("is nested too deeply", file=path) from None
    except ValueError as error:
        raise ZooError("is not JSON", file=path, found=error) from error
    check_version(value.get("schema_version") if isinstance(value, dict) else None, path)
    return value


def check_version(version: Any, file: Path) -> None:
    """Refuse a ``schema_version`` that was written by a later lorascope."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ZooError("states no schema version", file=file, key="schema_version", found=version)
    if version > SCHEMA_VERSION:
        raise ZooError(
            "was written by a newer lorascope",
            file=file,
            key="schema_version",
            expected=f"at most {SCHEMA_VERSION}",
            found=version,
            hint="pip install --upgrade lorascope",
        )


def cohort_path(zoo: Path, cohort: int) -> Path:
    """The record of one cohort."""
    return zoo / COHORTS / f"{cohort:08d}.json"


def write_cohort(zoo: Path, cohort: int, rows: list[Row]) -> None:
    """Write the record of a cohort: from here on its adapters are in the zoo."""
    (zoo / COHORTS).mkdir(exist_ok=True)
    write_json(cohort_path(zoo, cohort), {"schema_version": SCHEMA_VERSION, "cohort": cohort, "rows": rows})


def read_cohort(path: Path) -> list[Row]:
    """The rows of one cohort record, or none where there is no such file yet."""
    if not path.exists():
        return []
    rows = read_json(path).get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ZooError("has no rows", file=path, key="rows", expected="a list of objects")
    return rows


def read_records(zoo: Path) -> list[Row]:
    """The rows of all cohort records, in the order of the cohorts."""
    return [row for path in record_files(zoo) for row in read_cohort(path)]


def records_digest(zoo: Path) -> str:
    """A hash of the records: tells a manifest that is behind them.

    Raises:
        ZooError: where one cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in record_files(zoo):
        digest.update(f"{path.name}\0".encode())
        digest.update(read_regular(path))
    return digest.hexdigest()


def record_files(zoo: Path) -> list[Path]:
    """The cohort records, in the order of the cohorts."""
    return sorted(path for path in (zoo / COHORTS).glob("*.json") if not path.name.startswith("."))


def rows_to_table(rows: Iterable[Row], columns: Mapping[str, Column]) -> pyarrow.Table:
    """The rows as an Arrow table; roles ride along in the schema's metadata.

    Raises:
        ZooError: where a value is not of its column's type.
    """
    pa = import_pyarrow()
    types = {
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "string": pa.string(),
        "list<int>": pa.list_(pa.int64()),
        "list<float>": pa.list_(pa.float64()),
        "list<string>": pa.list_(pa.string()),
    }
    rows = list(rows)
    fields, arrays = [], []
    for column in columns.values():
        try:
            arrays.append(pa.array([row.get(column.name) for row in rows], types[column.type]))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError, TypeError) as error:
            raise ZooError(
                "a value is not of the column's type", key=column.name, expected=column.type, found=error
            ) from error
        fields.append(pa.field(column.name, types[column.type], metadata={"role": column.role}))
    metadata = {"lorascope": json.dumps({"columns": columns_as_dict(columns)})}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))


def write_manifest(zoo: Path) -> Path:
    """(Re)build ``manifest.parquet`` from the cohort records, atomically.

    Raises:
        ZooError: where ``zoo`` is not a zoo or a record is damaged.
        MissingExtraError: where pyarrow is not installed.
    """
    pa, parquet = import_pyarrow(), import_parquet()
    columns = columns_from_dict(read_json(zoo / HEADER).get("columns"), zoo / HEADER)
    digest = records_digest(zoo)
    table = rows_to_table(read_records(zoo), columns)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), "records": digest})
    buffer = pa.BufferOutputStream()
    parquet.write_table(table, buffer)
    write_atomically(zoo / MANIFEST, buffer.getvalue().to_pybytes())
    return zoo / MANIFEST


def import_pyarrow() -> Any:
    """pyarrow, or the error that names the extra."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError.of("pyarrow", "learn", "reading or writing a zoo") from error
    return pyarrow


def import_parquet() -> Any:
    """pyarrow.parquet, or the error that names the extra."""
    import_pyarrow()
    import pyarrow.parquet

    return pyarrow.parquet


def hashes_of(location: Path) -> dict[str, str | None]:
    """The two files that an adapter is, as the manifest knows them: ``sha256`` and ``config_sha256``, null where none.

    Raises:
        AdapterError: where there is no adapter at the place.
    """
    weights = weights_at(location)
    config = config_beside(weights)
    return {"sha256": sha256_of(weights), "config_sha256": None if config is None else sha256_of(config)}


def names_of(names: Sequence[str]) -> list[str]:
    """Of the names in an adapter's folder, those that the records know: the weights, and the configuration if any."""
    weights = chosen_name(names)
    config = [CONFIG_NAME] if CONFIG_NAME in names else []
    return config if weights is None else [weights, *config]


def sha256_of(path: Path) -> str:
    """The sha256 of a regular file, in hex, read in blocks."""
    with os.fdopen(open_regular(path, os.O_RDONLY, follow=True), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
