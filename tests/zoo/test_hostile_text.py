"""What a zoo of someone else says reaches the terminal without control characters, and is no markup."""

import csv
import io
import json

import pytest

ESCAPE = "\x1b]0;pwn\x07\x1b[31m[/red]"


@pytest.fixture
def hostile(make_zoo):
    """A zoo with control characters in its recipe, a status, a label and the name of a column."""
    zoo = make_zoo(count=3)
    header, record = zoo / "zoo.json", zoo / "cohorts/00000000.json"
    value = json.loads(header.read_text())
    name = f"who{ESCAPE}"
    value |= {"recipe": f"digits{ESCAPE}", "columns": value["columns"] | {name: value["columns"]["who"]}}
    header.write_text(json.dumps(value))
    rows = json.loads(record.read_text())
    rows["rows"][0] |= {"status": f"bad{ESCAPE}"}
    rows["rows"][1] |= {"who": f"one\r\ntwo\t\r{ESCAPE}" + "x" * 1000}
    record.write_text(json.dumps(rows))
    return zoo


@pytest.mark.parametrize("command", [["info"], ["ls"], ["ls", "--csv"], ["verify"], ["pack"], ["info", "--json"]])
def test_no_command_prints_them(hostile, lorascope, command):
    code, out, errors = lorascope("zoo", command[0], hostile, *command[1:])
    assert code in (0, 1) and out and not set("\x1b\x07") & set(out + errors)
    if command in (["info"], ["ls"]):
        assert "[/red]" in out, "which is text and no markup"


def test_csv_keeps_lines_and_length_and_json_every_character(hostile, lorascope):
    _, out, _ = lorascope("zoo", "ls", hostile, "--csv", "--columns", "id,who", "--where", "id = 'a1'")
    (row,) = csv.DictReader(io.StringIO(out, newline=""))
    assert row["who"] == "one\r\ntwo\t�" + ESCAPE.replace("\x1b", "�").replace("\x07", "�") + "x" * 1000
    _, out, _ = lorascope("zoo", "ls", hostile, "--json", "--where", "id = 'a1'")
    assert ESCAPE in json.loads(out)["who"]
