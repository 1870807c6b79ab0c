"""A zoo asked by expressions and by SQL, which reach nothing but the table."""

import csv
import io
import json

import pytest

from lorascope.errors import ZooError
from lorascope.zoo import Zoo
from lorascope.zoo.query import query, select

pytest.importorskip("duckdb")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("n = 4", ["a4"]),
        ("n >= 2 and who = 'p0'", ["a3"]),
        ("3 in classes", ["a2", "a3"]),
        ("not 3 in classes and n < 3 -- the small ones", ["a0", "a1"]),
        ("n > 99", []),
    ],
)
def test_expressions_choose_rows(make_zoo, where, expected):
    assert [row["id"] for row in select(Zoo.open(make_zoo()), where=where, columns=["id"])] == expected


def test_the_answer_equals_the_rows_of_the_zoo(make_zoo):
    zoo = Zoo.open(make_zoo())
    assert select(zoo) == zoo.rows()
    assert [row["n"] for row in select(zoo, sort="-n", limit=2)] == [5, 4]


@pytest.mark.parametrize(
    ("where", "match"),
    [("m = 3", "did you mean|m"), ("n =", "cannot be asked"), ("true); drop view zoo; select (1", "not one select")],
)
def test_wrong_expressions_are_refused(make_zoo, where, match):
    with pytest.raises(ZooError, match=match):
        select(Zoo.open(make_zoo(count=2)), where=where)


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('{file}')",
        "select * from '{file}'",
        "select content from read_text('{file}')",
        "select * from glob('{folder}/*')",
        "copy zoo to '{folder}/written.csv'",
        "copy (select 1) to '{folder}/written.csv'",
        "attach '{folder}/written.db'",
        "export database '{folder}/written'",
        "set enable_external_access = true",
        "reset lock_configuration",
        "install httpfs",
        "load '{file}'",
        "create table t as select 1",
        "select 1; select 2",
        "",
    ],
)
def test_sql_reaches_no_file(make_zoo, tmp_path, sql):
    zoo = Zoo.open(make_zoo(count=2))
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ZooError):
        query(zoo, sql.format(file=tmp_path / "secret.csv", folder=tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


def test_sql_cannot_see_variables_of_the_caller(make_zoo):
    zoo = Zoo.open(make_zoo(count=2))
    secret = zoo.table
    with pytest.raises(ZooError, match="does not exist"):
        query(zoo, "select * from secret")
    assert secret.num_rows == 2


def test_the_command_prints_tables_csv_and_json(make_zoo, lorascope):
    zoo = make_zoo()
    code, out, _ = lorascope("zoo", "ls", zoo, "--where", "3 in classes", "--json")
    assert code == 0 and [json.loads(line)["id"] for line in out.splitlines()] == ["a2", "a3"]
    code, out, _ = lorascope("zoo", "ls", zoo, "--columns", "id,classes", "--sort", "-n", "--limit", 1, "--csv")
    assert code == 0 and list(csv.reader(io.StringIO(out))) == [["id", "classes"], ["a5", "5;6"]]
    code, out, _ = lorascope("zoo", "ls", zoo, "--sql", "select who, count(*) as many from zoo group by who order by 1")
    assert code == 0 and [line.split() for line in out.splitlines()[1:4]] == [["p0", "2"], ["p1", "2"], ["p2", "2"]]
    code, _, errors = lorascope("zoo", "ls", zoo, "--where", "nn = 1")
    assert code == 2 and "Traceback" not in errors
    assert lorascope("zoo", "ls", zoo, "--sql", "select 1", "--limit", 1)[0] == 2
