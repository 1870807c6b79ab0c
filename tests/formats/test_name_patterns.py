"""Patterns over site names: as Python and PEFT match them, and in bounded time whatever they are."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.errors import AdapterError
from lorascope.formats.name_patterns import MAX_WORK, Budget, NamePatterns
from lorascope.formats.peft_scale import PeftScale

ATOMS = ["a", "b", "1", r"\.", ".", "[ab]", "[^a.]", r"\d", r"\w", "[]a-]", "{", "^", "$"]
REPEATS = ["", "", "", "*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "*?"]


def patterns() -> st.SearchStrategy[str]:
    atoms = st.tuples(st.sampled_from(ATOMS), st.sampled_from(REPEATS)).map(
        lambda pair: pair[0] + (pair[1] if pair[0] not in "^$" else "")
    )
    leaves = st.lists(atoms, min_size=0, max_size=3).map("".join)

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        group = st.tuples(st.sampled_from(["(", "(?:", "(?P<n>"]), inner, st.sampled_from(REPEATS))
        return st.one_of(
            group.map(lambda parts: f"{parts[0]}{parts[1]}){parts[2]}"),
            st.tuples(inner, inner).map("|".join),
            st.tuples(inner, inner).map("".join),
        )

    return st.recursive(leaves, grown, max_leaves=4)


@given(st.lists(patterns(), min_size=1, max_size=3), st.text("ab1.{", max_size=7))
def test_the_first_pattern_that_matches_is_the_one_that_python_finds(found: list[str], name: str) -> None:
    try:
        table, whole = NamePatterns(found, "key"), NamePatterns(found[:1], "key", is_whole=True)
    except AdapterError:  # repeats inside of repeats, or no regular expression
        return
    expected = [index for index, one in enumerate(found) if re.match(rf"(.*\.)?({one})$", name)]
    assert table.find(name) == (expected[0] if expected else None)
    assert (whole.find(name) is not None) == (re.fullmatch(found[0], name) is not None)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(a+)+", "too complex"),
        ("(.*)*x", "too complex"),
        (".*a.*b.*c.*d.*e", "too complex"),
        ("(?=a)a", "too complex"),
        (r"(a)\1", "too complex"),
        ("a++", "too complex"),
        (r"\bq", "too complex"),
        ("(?i)q", "too complex"),
        ("a{2000}", "too complex"),
        ("a" * 2000, "too complex"),
        ("(" * 30 + "a" + ")" * 30, "too complex"),
        ("q)(v", "no regular expression"),
        ("[z-a]", "no regular expression"),
        ("a{3,2}", "no regular expression"),
        ("*", "no regular expression"),
    ],
)
def test_what_is_not_read_is_refused_by_name(pattern: str, said: str) -> None:
    with pytest.raises(AdapterError, match=said) as caught:
        NamePatterns([pattern], "alpha_pattern")
    assert caught.value.key == "alpha_pattern"


def test_a_name_with_a_line_break_is_refused() -> None:
    with pytest.raises(AdapterError, match="line break"):
        NamePatterns(["q"], "key").find("a\nq")


MIB = 1 << 20
NAMES = [f"model.layers.{layer}.self_attn.{half}_proj" for layer in range(60) for half in "qkvo"]


def filled(make: Any) -> dict[str, int]:
    """Patterns up to the megabyte that a configuration may have."""
    table: dict[str, int] = {}
    room = MIB
    while (room := room - len(json.dumps(pattern := make(len(table)))) - 5) > 0:
        table[pattern] = 2
    return table


HOSTILE: dict[str, Any] = {
    "many repeats": lambda index: f"a{index}.*b.*c.*d.*e",
    "matches all but the end": lambda index: f"z{index}|.*.*.*.*!",
    "alternatives without repeats": lambda index: f"{index}" + "(?:m|.|l)" * 50,
    "counted copies": lambda index: f"{index}((((.{{9}}){{9}}){{9}}){{9}}){{9}}",
    "optional parts": lambda index: f"{index}" + ".?" * 60 + "p" * 60,
    "classes": lambda index: f"{index}[{'abc' * 150}]*",
    "names": lambda index: f"model.layers.{index}.self_attn.q_proj",
    "short names": lambda index: f"x{index}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_configuration_makes_reading_hang(kind: str) -> None:
    config = {"r": 2, "rank_pattern": filled(HOSTILE[kind])}
    budget = Budget()
    try:
        rule = PeftScale.of(config, budget=budget)
        for name in [*NAMES, "m" * 5000, "." * 5000]:
            rule.stated_rank(name)
    except AdapterError as error:
        assert "too complex" in str(error)
    assert budget.left < MAX_WORK  # what was done was counted: no clock is asked


def test_as_many_names_as_a_configuration_holds_are_found() -> None:
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(60) for expert in range(128)]
    table = NamePatterns([f"^{re.escape(name)}" for name in names], "rank_pattern")
    assert [table.find(name) for name in names] == list(range(len(names)))
    assert table.find("x." + names[0]) is None
