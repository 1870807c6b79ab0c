"""Merged zoos: unique ids, kept origins, groups by the declared rule, the same bytes."""

import json

import pytest

from lorascope.errors import OutputError, ZooError
from lorascope.zoo import Zoo, merge_zoos, pack, split_of, verify_zoo


def test_ids_are_unique_and_every_adapter_is_the_one_it_was(make_zoo, tmp_path):
    first, second = make_zoo("first", 3), make_zoo("second", 4, seed=1)
    pack(Zoo.open(second))
    result = merge_zoos([first, second], tmp_path / "merged")
    merged = Zoo.open(tmp_path / "merged")
    assert (result.count, result.renamed) == (7, 6)
    assert [row["id"] for row in merged.rows()] == ["0/a0", "0/a1", "0/a2", "1/a0", "1/a1", "1/a2", "a3"]
    assert not verify_zoo(merged.path).defects
    sources = [(Zoo.open(zoo), row) for zoo in (first, second) for row in Zoo.open(zoo).rows()]
    for (zoo, row), new in zip(sources, merged.rows(), strict=True):
        assert (row["sha256"], row["n"], row["classes"]) == (new["sha256"], new["n"], new["classes"])
        assert (zoo.read(row)["q"].factors().B == merged.read(new)["q"].factors().B).all()
    origins = [one["source"] for one in merged.header["merged"]]
    assert origins == [str(tmp_path / "first-source"), str(tmp_path / "second-source")]
    assert merged.hyperparameters() == ["n"] and merged.labels() == ["who", "classes"]


def test_groups_are_joined_or_kept_apart(make_zoo, tmp_path):
    zoos = [make_zoo("first", 2), make_zoo("second", 2)]
    merge_zoos(zoos, tmp_path / "joined")
    merge_zoos(zoos, tmp_path / "apart", groups="apart")
    joined, apart = (Zoo.open(tmp_path / name).rows() for name in ("joined", "apart"))
    assert [row["group"] for row in joined] == ["a0", "a1"] * 2
    assert [row["group"] for row in apart] == ["0/a0", "0/a1", "1/a0", "1/a1"]
    assert all(row["split"] == split_of(row["group"]) for row in (*joined, *apart))


def test_other_columns_need_union_and_other_types_are_refused(make_zoo, tmp_path):
    zoos = [make_zoo("first", 2), make_zoo("second", 2, extra="good")]
    with pytest.raises(ZooError, match="union"):
        merge_zoos(zoos, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merge_zoos(zoos, tmp_path / "merged", union=True)
    assert [row["good"] for row in Zoo.open(tmp_path / "merged").rows()] == [None, None, 1, 1]
    header = json.loads((zoos[1] / "zoo.json").read_text())
    header["columns"]["n"]["role"] = "label"
    (zoos[1] / "zoo.json").write_text(json.dumps(header))
    with pytest.raises(ZooError, match="another thing"):
        merge_zoos(zoos, tmp_path / "other", union=True)


def test_nothing_is_replaced_or_left_behind(make_zoo, tmp_path, lorascope):
    zoos = [make_zoo("first", 2), make_zoo("second", 2)]
    with pytest.raises(OutputError, match="something else"):
        merge_zoos(zoos, zoos[0])
    with pytest.raises(ZooError, match="two zoos"):
        merge_zoos(zoos[:1], tmp_path / "merged")
    (zoos[1] / "adapters/a1/adapter_model.safetensors").unlink()
    (zoos[1] / "adapters/a1/adapter_config.json").unlink()
    (zoos[1] / "adapters/a1").rmdir()
    before = sorted(tmp_path.iterdir())
    assert lorascope("zoo", "merge", *zoos, "--out", tmp_path / "merged")[0] == 2
    assert sorted(tmp_path.iterdir()) == before
    assert lorascope("zoo", "merge", zoos[0], zoos[0], "--out", tmp_path / "merged", "--json")[0] == 0
    merge_zoos([tmp_path / "merged", zoos[0]], tmp_path / "again")
    assert Zoo.open(tmp_path / "again").header["merged"][0]["merged"][0]["source"].endswith("first-source")
