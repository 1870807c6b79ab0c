"""Splits of one's own: no group straddles, saved ones stay, and models see them."""

import json

import numpy as np
import pytest

from lorascope.errors import ZooError
from lorascope.predict import Dataset
from lorascope.zoo import SPLITS, Splitting, Zoo, split_of, verify_zoo
from lorascope.zoo.schema import FRACTIONS


def test_the_default_fractions_are_the_split_of_a_zoo(make_zoo):
    zoo = Zoo.open(make_zoo(count=20))
    splitting = Splitting.of(zoo)
    assert [splitting.applied(row) for row in zoo.recorded_rows()] == zoo.rows()
    assert FRACTIONS[0] + FRACTIONS[1] == 0.85


def test_fractions_are_kept_in_the_long_run_and_zero_is_none():
    for fractions in ((0.5, 0.3, 0.2), (0.8, 0.0, 0.2), (0.9, 0.1, 0.0), (0.0, 0.0, 1.0)):
        found = [split_of(str(number), "x", fractions) for number in range(4000)]
        shares = [found.count(name) / len(found) for name in SPLITS]
        assert np.abs(np.subtract(shares, fractions)).max() < 4 * 0.5 / np.sqrt(len(found))  # four sigma
        assert all(share == 0 for share, asked in zip(shares, fractions, strict=True) if asked == 0)


def test_no_group_straddles_and_the_dataset_sees_the_groups(make_zoo):
    path = make_zoo(count=30)
    zoo = Zoo.open(path)
    salt = next(salt for salt in map(str, range(100)) if len({split_of(f'who="p{n}"', salt) for n in range(3)}) == 3)
    Splitting.of(zoo, by="who", salt=salt).save(path / "split.json")
    dataset = Dataset.of(path)
    assert set(dataset.groups) == {'who="p0"', 'who="p1"', 'who="p2"'}
    assert len(set(zip(dataset.groups, dataset.splits, strict=True))) == 3 and set(dataset.splits) == set(SPLITS)
    assert {row["group"] for row in zoo.recorded_rows()} != set(dataset.groups)
    assert Zoo.open(path).summary()["split_digest"] == Splitting.load(path / "split.json").digest
    assert verify_zoo(path).defects == ()


def test_a_saved_split_stays_when_the_zoo_changes_and_newcomers_follow_the_rule(make_zoo, tmp_path):
    zoo = Zoo.open(make_zoo(count=10))
    saved = Splitting("who", "s", splits={"a0": "test"})
    assert saved.split({"id": "a0", "who": "p0"}) == "test"
    assert saved.split({"id": "new", "who": "p1"}) == split_of('who="p1"', "s")
    first = saved.applied({"id": "x", "who": None, "group": "x"})
    second = saved.applied({"id": "y", "who": None, "group": "x"})
    assert first["group"] != second["group"]
    saved.save(tmp_path / "s.json")
    assert Splitting.load(tmp_path / "s.json") == saved
    assert next(row for row in Zoo.open(zoo.path, splits=tmp_path / "s.json").rows() if row["id"] == "a0")["split"] == (
        "test"
    )


def test_a_split_that_was_changed_or_cannot_be_is_refused(make_zoo, tmp_path):
    zoo = Zoo.open(make_zoo(count=6))
    Splitting("group", "s", splits={"a0": "test"}).save(tmp_path / "s.json")
    value = json.loads((tmp_path / "s.json").read_text())
    for change, match in (
        ({"splits": {"a0": "train"}}, "changed after"),
        ({"splits": {"a0": "tset"}}, "no known split"),
        ({"splits": []}, "no saved split"),
        ({"fractions": [1, 1, 1]}, "whole"),
    ):
        (tmp_path / "s.json").write_text(json.dumps(value | change))
        with pytest.raises(ZooError, match=match):
            Splitting.load(tmp_path / "s.json")
    with pytest.raises(ZooError, match="no such column"):
        Splitting.of(zoo, by="whom")
    with pytest.raises(ZooError, match="too few groups"):
        Splitting.of(zoo, by="who", fractions=(0.98, 0.01, 0.01))
    for fractions in ((1.2, -0.1, -0.1), (0.5, 0.5), "abc"):
        with pytest.raises(ZooError, match="shares"):
            Splitting.of(zoo, fractions=fractions)


def test_the_command_saves_in_the_zoo_or_a_file(make_zoo, lorascope, tmp_path):
    zoo = make_zoo(count=30)
    code, out, _ = lorascope("zoo", "split", zoo, "--salt", "b", "--fractions", ".5,.25,.25", "--json")
    assert code == 0 and sum(json.loads(out)["splits"].values()) == 30
    assert Zoo.open(zoo).splitting is not None
    assert lorascope("zoo", "split", zoo, "--out", tmp_path / "other.json")[0] == 0
    code, _, err = lorascope("zoo", "split", zoo, "--out", tmp_path / "other.json")
    assert code == 2 and "already there" in err
    assert lorascope("zoo", "split", zoo, "--out", tmp_path / "other.json", "--overwrite")[0] == 0
    code, out, errors = lorascope(
        "fit", zoo, "--target", "n_label", "--out", tmp_path / "p", "--splits", tmp_path / "none.json"
    )
    assert code == 2 and "none.json" in errors
    assert lorascope("zoo", "split", zoo, "--fractions", "a,b,c")[0] == 2
