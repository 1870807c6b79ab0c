"""A zoo of one's own adapters: a folder of files and a table of what is known of them.

The table is a CSV file with one row per adapter. Its column ``path`` (or ``file``, or ``adapter``) names a file or a
folder, relative to the folder of the adapters; every other column is a label, unless it is declared a hyperparameter.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lorascope.errors import ZooError
from lorascope.formats import find
from lorascope.formats.source import CONFIG_NAME
from lorascope.zoo.assembly import assembled, link_file
from lorascope.zoo.imported import ImportReport, check_target, checked_row, write_files, write_in_place
from lorascope.zoo.paths import inside
from lorascope.zoo.schema import SCHEMA_VERSION, Column, Type, columns_as_dict, columns_with
from lorascope.zoo.store import Row
from lorascope.zoo.values import parse_column

PATH_COLUMNS = ("path", "file", "adapter")
MAXIMUM_ROWS = 5_000_000


def import_zoo(
    folder: str | Path,
    labels: str | Path,
    *,
    out: str | Path | None = None,
    hyperparameters: Sequence[str] = (),
    group: str | None = None,
    track: Callable[[Sequence[str]], Iterable[str]] | None = None,
) -> ImportReport:
    """Make a zoo of the adapters in ``folder`` that the table ``labels`` names.

    Args:
        folder: the adapters, in any tree.
        labels: the CSV file.
        out: a new folder for the zoo, with the adapters hard-linked (or copied) into it; by default the zoo's files
            are written into ``folder`` and refer to the adapters where they lie.
        hyperparameters: columns that were known before training.
        group: the column whose equal values must not straddle a split, such as the person or the data set; by
            default each adapter is its own group.
        track: given all paths, iterates over them, such as under a progress bar.

    Raises:
        ZooError: for a table that is damaged, names no file, or names one twice.
        OutputError: where the zoo cannot be written; nothing is left behind.
    """
    source, table = Path(folder), Path(labels)
    if not source.is_dir():
        raise ZooError("is not a folder of adapters", file=source, found="no such folder")
    names, records = _read_table(table)
    key = _path_column(names, table)
    _check_known("--hyperparameter", hyperparameters, names, table)
    _check_known("--group", [group] if group else [], names, table)
    paths = _paths(source, [record[key] for record in records], table)
    others = [name for name in names if name != key]
    parsed = {name: parse_column(name, [record[name] for record in records], table) for name in others}
    target = source if out is None else Path(out)
    check_target(target, is_new=out is not None)
    types: dict[str, Type] = {name: type_ for name, (type_, _) in parsed.items()}
    columns = columns_with(
        {name: types[name] for name in others if name in hyperparameters},
        {name: types[name] for name in others if name not in hyperparameters},
    )
    rows: list[Row] = []
    unreadable: dict[str, str] = {}
    for index, path in enumerate(paths if track is None else track(paths)):
        values = {name: column[index] for name, (_, column) in parsed.items()}
        name = str(values[group]) if group and values[group] is not None else path
        row, error = checked_row(source / path, path, name, values)
        if error is not None:
            unreadable[path] = error
        rows.append(row)
    named = {(source / path).resolve() for path in paths}
    found = [path for path in find(source) if target not in path.parents or target == source]
    unlabelled = [
        path.relative_to(source).as_posix()
        for path in found
        if path.resolve() not in named and not any((path / name).resolve() in named for name in _files_of(path))
    ]
    _write(source, target, rows, columns, is_new=out is not None)
    return ImportReport(target, len(rows), unreadable, tuple(unlabelled))


def _files_of(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir()] if path.is_dir() else []


def _read_table(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    if not table.is_file():
        raise ZooError("the labels cannot be read", file=table, expected="a CSV file", found="no regular file")
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            names = [name.strip() for name in next(reader, [])]
            if not names or len(set(names)) != len(names) or "" in names:
                raise ZooError(
                    "the header line needs one distinct name per column",
                    file=table,
                    found=", ".join(names) or "nothing",
                )
            records: list[dict[str, str]] = []
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(names) or len(records) >= MAXIMUM_ROWS:
                    raise ZooError(
                        "a line has another number of cells than the header",
                        file=table,
                        key=f"line {reader.line_num}",
                        expected=len(names),
                        found=len(cells),
                    )
                records.append({name: cell.strip() for name, cell in zip(names, cells, strict=True)})
    except OSError as error:
        raise ZooError("the labels cannot be read", file=table, found=error.strerror) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ZooError("is not a CSV file in UTF-8", file=table, found=error) from error
    if not records:
        raise ZooError("the table has no rows", file=table)
    return names, records


def _path_column(names: Sequence[str], table: Path) -> str:
    for name in PATH_COLUMNS:
        if name in names:
            return name
    raise ZooError(
        "no column says which adapter a row is about",
        file=table,
        expected=f"a column named {' or '.join(PATH_COLUMNS)}",
        found=", ".join(names),
    )


def _check_known(option: str, asked: Sequence[str], names: Sequence[str], table: Path) -> None:
    for name in asked:
        if name not in names or name in PATH_COLUMNS:
            raise ZooError(f"{option} names no column", file=table, key=name, expected=", ".join(names))


def _paths(source: Path, stated: Sequence[str], table: Path) -> list[str]:
    """The paths relative to the source, each inside it, present and named once."""
    try:
        missing = [path for path in stated if not inside(source, path).exists()]
    except OSError as error:
        raise ZooError("a path cannot be looked up", file=table, found=error.strerror) from error
    if missing:
        raise ZooError(
            "labels that name no file",
            file=table,
            expected=f"paths relative to {source}",
            found=f"{len(missing)} of {len(stated)}: {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}",
        )
    seen: dict[Path, str] = {}
    for path in stated:
        resolved = (source / path).resolve()
        if resolved in seen:
            raise ZooError("two rows name one adapter", file=table, key=path, found=f"{seen[resolved]} and {path}")
        seen[resolved] = path
    return list(stated)


def _write(source: Path, target: Path, rows: list[Row], columns: dict[str, Column], *, is_new: bool) -> None:
    header = {
        "schema_version": SCHEMA_VERSION,
        "recipe": None,
        **({"source": str(source)} if is_new else {}),
        "count": len(rows),
        "columns": columns_as_dict(columns),
    }
    if not is_new:
        write_in_place(target, header, rows)
        return
    with assembled(target) as temporary:
        for row in rows:
            _link(source, row["path"], temporary / "adapters")
            row["path"] = f"adapters/{row['path']}"
        write_files(temporary, header, rows)


def _link(root: Path, path: str, adapters: Path) -> None:
    """The file or folder at another place: hard links where the file system has them, else copies."""
    source, place = root / path, adapters / path
    if source.is_dir():
        folder, files = place, [source / name for name in _files_of(source) if (source / name).is_file()]
    else:  # a PEFT file is nothing without the scale in its configuration
        config = source.with_name(CONFIG_NAME)
        folder, files = place.parent, [source, *([config] if config.is_file() else [])]
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not (folder / file.name).exists():
            link_file(file, folder / file.name, root=root)
