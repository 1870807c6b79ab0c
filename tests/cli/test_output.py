"""What reaches the screen: no control characters of untrusted names, always valid JSON, one line per object."""

import json

import pytest
from typer.testing import CliRunner

from lorascope.cli import app
from lorascope.cli.output import print_error, print_json
from lorascope.errors import AdapterError
from lorascope.version import __version__


def test_control_characters_of_an_error_never_reach_the_terminal(capsys):
    print_error(AdapterError("no partner", key="\x1b[31mred\x1b]0;title\x07\u202e", hint="get\nanother"))
    err = capsys.readouterr().err
    assert not {"\x1b", "\x07", "\u202e"} & set(err)
    assert "no partner" in err
    assert "\n  hint: get" in err


def test_json_is_one_valid_line_whatever_the_names(capsys):
    print_json({"name": "\udcff \u2028 \u00e9", "value": float("nan")})
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    assert json.loads(out) == {"name": "\udcff \u2028 \u00e9", "value": None}


@pytest.mark.parametrize("before", [[], ["zoo"]])
def test_what_each_verb_does_fits_a_terminal(before: list[str]) -> None:
    said = CliRunner().invoke(app, [*before, "--help"], terminal_width=80, env={"COLUMNS": "80"}).stdout
    verbs = said.partition("Commands:\n")[2].splitlines()
    assert len(verbs) >= 12 and all(line.startswith("  ") and not line.startswith("   ") for line in verbs)
    assert [line for line in verbs if line.endswith("...") or not line.endswith((".", "?"))] == []


def test_the_version_is_told_and_a_mistyped_verb_is_guessed() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"lorascope {__version__}\n"
    done = CliRunner().invoke(app, ["comprss"])
    assert done.exit_code == 2 and "compress" in done.stderr
