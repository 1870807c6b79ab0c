"""What reaches the screen: no control characters of untrusted names, always valid JSON, one line per object."""

import json

from lorascope.cli.output import print_error, print_json
from lorascope.errors import AdapterError


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
