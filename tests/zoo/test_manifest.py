"""A manifest that is not what the records say: found by ``verify``, and never a traceback."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from lorascope.errors import ZooError
from lorascope.zoo import Zoo, verify_zoo


def changed(zoo, change, **metadata):
    """Writes the manifest anew, with the digest of the records unless it is among the changes."""
    table = parquet.read_table(zoo / "manifest.parquet")
    kept = {**table.schema.metadata, **{name.encode(): value for name, value in metadata.items()}}
    parquet.write_table(change(table).replace_schema_metadata(kept), zoo / "manifest.parquet")


def column(name, values, type_=None):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values, type_))


def problems(zoo):
    return [(one.problem, one.path) for one in verify_zoo(zoo).defects]


LIES = {
    "a value": column("n", [123, 1, 2]),
    "null": column("n", [None] * 3, pa.int64()),
    "a split": column("split", ["test", "test", "other"]),
    "no rows": lambda table: table.slice(0, 0),
    "a row twice": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
}
MISFITS = {
    "text": column("n", ["x"] * 3),
    "version": column("schema_version", ["x"] * 3),
    "status": column("status", [1] * 3),
    "path": column("path", [["x"]] * 3),
    "float": column("n", [0.0, 1.0, 2.0]),
    "missing": lambda table: table.drop_columns(["n"]),
    "twice": lambda table: table.append_column("n", pa.array([1.0] * 3)),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_manifest_that_lies_is_found(make_zoo, lie):
    zoo = make_zoo(count=3)
    changed(zoo, lie)
    assert problems(zoo) == [("manifest", "manifest.parquet")]
    (zoo / "manifest.parquet").unlink()
    assert problems(zoo) == []


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_where_the_columns_are_not_as_declared_the_records_are_read(make_zoo, misfit, lorascope):
    zoo = make_zoo(count=3)
    rows = Zoo.open(zoo).rows()
    changed(zoo, misfit)
    is_behind = misfit is MISFITS["missing"]  # as when a recipe has gained a column: no defect
    assert Zoo.open(zoo).rows() == rows
    assert problems(zoo) == ([] if is_behind else [("manifest", "manifest.parquet")])
    assert lorascope("zoo", "info", zoo)[0] == 0
    shutil.rmtree(zoo / "cohorts")
    with pytest.raises(ZooError, match=r"manifest.parquet"):
        Zoo.open(zoo).rows()


def test_a_digest_that_is_no_text_is_another_digest(make_zoo):
    zoo = make_zoo(count=3)
    rows = Zoo.open(zoo).rows()
    changed(zoo, column("n", [123] * 3), records=b"\xff")
    assert Zoo.open(zoo).rows() == rows and problems(zoo) == []


def test_text_that_is_not_utf8_is_damage(make_zoo):
    zoo = make_zoo(count=3)
    bad = pa.array([b"\xff"] * 3).view(pa.string())
    changed(zoo, lambda table: table.set_column(table.column_names.index("who"), "who", bad))
    with pytest.raises(ZooError, match="delete it"):
        Zoo.open(zoo).rows()
    assert problems(zoo) == [("manifest", "manifest.parquet")]


def test_the_name_of_a_folder_above_is_no_column(make_zoo, tmp_path):
    zoo = make_zoo(count=3)
    rows = Zoo.open(zoo).rows()
    (tmp_path / "n=9").mkdir()
    zoo.rename(tmp_path / "n=9/zoo")
    assert Zoo.open(tmp_path / "n=9/zoo").rows() == rows and problems(tmp_path / "n=9/zoo") == []


def test_a_header_that_declares_the_columns_of_every_zoo_otherwise_is_refused(make_zoo, lorascope):
    zoo = make_zoo(count=3)
    header = (zoo / "zoo.json").read_text()
    for name in ("base", "group"):
        value = json.loads(header)
        value["columns"][name]["type"] = "list<string>"
        (zoo / "zoo.json").write_text(json.dumps(value))
        code, _, errors = lorascope("zoo", "info", zoo)
        assert code == 2 and name in errors and "declared otherwise" in errors
