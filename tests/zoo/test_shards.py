"""Packed zoos: the same rows, hashes and adapters as before, and nothing is ever lost on the way."""

import errno
import json
import shutil
import zipfile

import numpy as np
import pytest

from lorascope.errors import AdapterError, OutputError, ZooError
from lorascope.formats import find
from lorascope.predict import Dataset
from lorascope.zoo import Zoo, import_zoo, pack, shards, unpack, verify_zoo


def files(zoo):
    return {str(path.relative_to(zoo)): path.read_bytes() for path in (zoo / "adapters").rglob("*") if path.is_file()}


def values(zoo):
    dataset = Dataset.of(zoo)
    return dataset.digest, [sample.read()["q"].factors().B.tolist() for sample in dataset.samples]


def test_packing_and_unpacking_gives_the_same_files(make_zoo):
    zoo = make_zoo(count=7)
    (zoo / "adapters/a1/README.md").write_text("kept too")
    before, seen = files(zoo), values(zoo)
    result = pack(Zoo.open(zoo), shard_size=3)
    assert (result.count, result.shards, result.left) == (7, 3, {})
    assert not list((zoo / "adapters").iterdir()) and len(list((zoo / "shards").iterdir())) == 3
    assert values(zoo) == seen and verify_zoo(zoo).hashed == 7 and not verify_zoo(zoo).defects
    again = pack(Zoo.open(zoo))
    assert (again.count, again.shards) == (0, 0)
    assert unpack(Zoo.open(zoo)).count == 7
    assert files(zoo) == before and not (zoo / "shards").exists() and values(zoo) == seen


def test_every_verb_reads_a_packed_zoo(make_zoo, lorascope, tmp_path):
    zoo = make_zoo(count=5)
    _, plain, _ = lorascope("inspect", zoo / "adapters", "--json")
    pack(Zoo.open(zoo))
    assert [path.name for path in find(zoo)] == [f"a{number}" for number in range(5)]
    code, packed, _ = lorascope("inspect", zoo, "--json")
    assert code == 0
    for one, other in zip(plain.splitlines(), packed.splitlines(), strict=True):
        assert json.loads(one)["norm"] == json.loads(other)["norm"]
    assert lorascope("verify", zoo)[0] == 0
    assert lorascope("convert", find(zoo)[0], tmp_path / "a.safetensors", "--to", "kohya")[0] == 0
    assert lorascope("zoo", "info", zoo)[0] == 0 and lorascope("zoo", "verify", zoo)[0] == 0


@pytest.mark.parametrize("step", range(12))
def test_an_interrupted_pack_or_unpack_loses_nothing_and_can_be_repeated(make_zoo, monkeypatch, step):
    zoo = make_zoo(count=4)
    before, seen = files(zoo), values(zoo)

    class Killed(BaseException):
        pass

    for run in (lambda: pack(Zoo.open(zoo), shard_size=2), lambda: unpack(Zoo.open(zoo))):
        left = [step]

        def dies(original, left=left):
            def call(*arguments, **named):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return original(*arguments, **named)

            return call

        with monkeypatch.context() as patched:
            for module, name in (
                (shards, "write_stored"),
                (shards, "sync_folder"),
                (shards.Path, "rename"),
                (shards.Path, "unlink"),
                (shutil, "rmtree"),
            ):
                patched.setattr(module, name, dies(getattr(module, name)))
            try:
                run()
            except Killed:
                assert values(zoo) == seen, "everything is there, in one form or the other"
        run()
        assert values(zoo) == seen and not verify_zoo(zoo).defects and not list(zoo.rglob(".tmp-*"))
    assert files(zoo) == before


def test_what_cannot_be_packed_stays(make_zoo, tmp_path):
    zoo = make_zoo(count=3)
    (zoo / "adapters/a0/link").symlink_to(tmp_path)
    (zoo / "adapters/a1/checkpoint").mkdir()
    result = pack(Zoo.open(zoo))
    assert result.count == 1 and sorted(result.left) == ["adapters/a0", "adapters/a1"]
    assert (zoo / "adapters/a0/link").is_symlink()


def test_adapters_that_lie_where_their_owner_has_them_are_not_packed(make_zoo, tmp_path):
    make_zoo(count=3)
    import_zoo(tmp_path / "zoo-source", tmp_path / "zoo.csv")
    with pytest.raises(ZooError, match="not the zoo's own"):
        pack(Zoo.open(tmp_path / "zoo-source"))


def test_a_folder_wins_over_a_shard_and_a_later_shard_over_an_earlier(make_zoo):
    zoo = make_zoo(count=2)
    pack(Zoo.open(zoo))
    opened = Zoo.open(zoo)
    row = opened.rows()[0]
    old = opened.read(row)["q"].factors().B
    other = make_zoo("other", count=2, seed=1)
    shutil.copytree(other / "adapters/a0", zoo / "adapters/a0")
    new = Zoo.open(zoo).read(row)["q"].factors().B
    assert not np.array_equal(old, new)
    assert [one.path for one in verify_zoo(zoo).defects] == ["adapters/a0"]
    pack(Zoo.open(zoo))
    assert not (zoo / "adapters/a0").exists() and np.array_equal(Zoo.open(zoo).read(row)["q"].factors().B, new)
    unpack(Zoo.open(zoo))
    assert np.array_equal(Zoo.open(zoo).read(row)["q"].factors().B, new)


def test_damage_in_a_shard_is_found(make_zoo):
    zoo = make_zoo(count=3)
    pack(Zoo.open(zoo))
    shard = zoo / "shards/00000000.zip"
    good = shard.read_bytes()
    data = bytearray(good)
    data[good.index(b"lora_B") + 100] ^= 1
    shard.write_bytes(data)
    assert [(one.problem, one.id) for one in verify_zoo(zoo).defects] in ([("damaged", f"a{n}")] for n in range(3))
    shard.write_bytes(good[:-1])
    assert [one.problem for one in verify_zoo(zoo).defects] == ["missing"] * 3 + ["shard"]
    with pytest.raises(AdapterError):
        unpack(Zoo.open(zoo))
    assert shard.exists()


def test_a_hostile_shard_writes_nothing_outside(make_zoo, tmp_path):
    zoo = make_zoo(count=1)
    pack(Zoo.open(zoo))
    for number, name in enumerate(("base/model.safetensors", "zoo.json", "adapters/link/x.safetensors")):
        shard = zoo / f"shards/0000000{number + 1}.zip"
        (zoo / "adapters/link").unlink(missing_ok=True)
        (zoo / "adapters/link").symlink_to(tmp_path)
        with zipfile.ZipFile(shard, "w") as other:
            other.writestr(name, b"x")
        before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*")}
        with pytest.raises(ZooError, match=r"something else|outside"):
            unpack(Zoo.open(zoo))
        assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*") if path != zoo} == {
            path: when for path, when in before.items() if path != zoo
        }
        shard.unlink()


def test_archives_of_others_are_not_looked_into(make_zoo, tmp_path):
    zoo = make_zoo(count=2)
    pack(Zoo.open(zoo))
    shutil.copytree(zoo / "shards", tmp_path / "images" / "shards")
    (tmp_path / "images" / "shards" / "1.zip").write_bytes(b"of something else")
    assert find(tmp_path / "images") == [] and len(find(zoo)) == 2


def test_a_full_disk_leaves_no_half_shard_and_every_file(make_zoo, monkeypatch):
    zoo = make_zoo(count=3)
    before = files(zoo)

    def is_full(path, members):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shards, "write_stored", is_full)
        with pytest.raises(OutputError, match="No space left"):
            pack(Zoo.open(zoo))
    assert files(zoo) == before and not list((zoo / "shards").iterdir())
    assert pack(Zoo.open(zoo)).count == 3
