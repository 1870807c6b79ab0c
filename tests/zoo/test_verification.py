"""A zoo against its records: every kind of damage is found and named."""

import json
import sys

import pytest

from lorascope.errors import MissingExtraError, ZooError
from lorascope.zoo import Zoo, pack, verify_zoo

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def problems(zoo):
    return [(one.problem, one.path) for one in verify_zoo(zoo).defects]


def test_a_sound_zoo_has_no_defects(make_zoo):
    found = verify_zoo(make_zoo())
    assert (found.count, found.hashed, found.asked, found.defects, found.hint) == (6, 6, 6, (), None)


def test_without_pyarrow_a_sound_zoo_is_not_called_damaged(make_zoo, monkeypatch, lorascope):
    zoo = make_zoo()
    (zoo / "cohorts").mkdir(exist_ok=True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pyarrow"):
        verify_zoo(zoo)
    code, out, err = lorascope("zoo", "verify", zoo)
    assert code == 2 and not out and "needs pyarrow" in err
    code, _, err = lorascope("zoo", "push", zoo, "owner/name")
    assert code == 2 and "needs pyarrow" in err and "not as recorded" not in err
    code, _, err = lorascope("zoo", "pull", "owner/name", "--out", zoo.parent / "new")
    assert code == 2 and "needs pyarrow" in err


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda zoo: flip(zoo / "adapters/a1" / WEIGHTS), ("damaged", "adapters/a1")),
        (lambda zoo: flip(zoo / "adapters/a1" / CONFIG), ("damaged", "adapters/a1")),
        (lambda zoo: (zoo / "adapters/a1" / CONFIG).unlink(), ("damaged", "adapters/a1")),
        (lambda zoo: (zoo / "adapters/a1" / WEIGHTS).unlink(), ("missing", "adapters/a1")),
        (lambda zoo: (zoo / "adapters/a1").rename(zoo / "gone"), ("missing", "adapters/a1")),
        (lambda zoo: (zoo / "adapters/new").mkdir(), ("extra", "adapters/new")),
        (lambda zoo: (zoo / "manifest.parquet").write_bytes(b"x"), ("manifest", "manifest.parquet")),
    ],
)
def test_damage_is_found_and_named(make_zoo, damage, problem):
    zoo = make_zoo()
    damage(zoo)
    assert problems(zoo) == [problem]


def test_a_damaged_record_is_found_and_what_it_named_is_extra(make_zoo):
    zoo = make_zoo(count=2)
    (zoo / "cohorts/00000000.json").write_text("{")
    assert problems(zoo) == [
        ("record", "cohorts/00000000.json"),
        ("extra", "adapters/a0"),
        ("extra", "adapters/a1"),
    ]


def test_a_row_that_points_outside_is_a_defect_and_not_followed(make_zoo):
    zoo = make_zoo(count=2)
    record = zoo / "cohorts/00000000.json"
    record.write_text(record.read_text().replace('"adapters/a1"', '"../zoo-source/a1"'))
    assert problems(zoo)[0] == ("missing", "../zoo-source/a1")


def test_links_among_the_adapters_are_not_entered(make_zoo, tmp_path):
    zoo = make_zoo(count=2)
    (zoo / "adapters" / "link").symlink_to(tmp_path)
    assert problems(zoo) == [("extra", "adapters/link")]


def test_in_a_forged_zoo_an_adapter_is_its_two_files_and_nothing_else(make_zoo):
    zoo = make_zoo(count=2)
    (zoo / "adapters/a1/README.md").write_text("a model card")
    assert problems(zoo) == []
    header = json.loads((zoo / "zoo.json").read_text())
    (zoo / "zoo.json").write_text(json.dumps(header | {"recipe": "digits-vit", "settings": {}}))
    assert problems(zoo) == [("extra", "adapters/a1/README.md")]
    pack(Zoo.open(zoo))
    assert problems(zoo) == [("extra", "shards/00000000.zip/adapters/a1/README.md")]


def test_the_command_exits_with_1_and_says_where_the_files_were(make_zoo, lorascope):
    zoo = make_zoo(count=2)
    assert lorascope("zoo", "verify", zoo)[0] == 0
    flip(zoo / "adapters/a1" / WEIGHTS)
    code, out, _ = lorascope("zoo", "verify", zoo, "--json")
    found = json.loads(out)
    assert code == 1 and not found["ok"] and found["defects"][0]["id"] == "a1"
    code, out, _ = lorascope("zoo", "verify", zoo)
    assert code == 1 and "damaged: adapters/a1" in out and "zoo-source" in out
    code, _, errors = lorascope("zoo", "repair", zoo)
    assert code == 2 and "not forged" in errors and "zoo-source" in errors


def test_no_zoo_is_an_error_and_no_finding(tmp_path):
    with pytest.raises(ZooError, match="is not a zoo"):
        verify_zoo(tmp_path)
