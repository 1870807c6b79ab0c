"""Repair: what a forged zoo has lost comes back bit for bit."""

import hashlib
import json
import shutil

import pytest

from lorascope.errors import ForgeError
from lorascope.forge import forge
from lorascope.forge.repair import repair
from lorascope.zoo import Zoo, pack, unpack, verify_zoo

SETTINGS = {"base_steps": 60, "steps": 8}


def state(zoo):
    return {
        path.relative_to(zoo).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in zoo.rglob("*")
        if path.is_file() and path.name not in (".forge.lock", "log.jsonl")
    }


def test_exactly_what_is_lost_comes_back_bit_for_bit(forged, tmp_path):
    zoo = tmp_path / "zoo"
    shutil.copytree(forged.path, zoo)
    ids = [row["id"] for row in forged.rows()]
    (zoo / "adapters" / ids[3] / "adapter_model.safetensors").write_bytes(b"lost")
    shutil.rmtree(zoo / "adapters" / ids[5])
    (zoo / "cohorts" / "00000001.json").write_text("{")
    (zoo / "base" / "model.safetensors").write_bytes(b"lost")
    kept = (zoo / "adapters" / ids[4]).stat()
    assert verify_zoo(zoo).ids() == {ids[3], ids[5]}
    result = repair(zoo)
    assert result.repaired == (ids[3], ids[5], *ids[32:]) and not result.left.defects
    assert (zoo / "adapters" / ids[4]).stat().st_ino == kept.st_ino
    assert state(zoo) == state(forged.path)
    assert repair(zoo).repaired == ()


def test_an_adapter_that_comes_out_otherwise_is_not_put_back(forged, tmp_path):
    zoo = tmp_path / "zoo"
    shutil.copytree(forged.path, zoo)
    record = zoo / "cohorts" / "00000001.json"
    rows = json.loads(record.read_text())
    rows["rows"][0]["sha256"] = "0" * 64  # as if another torch had made it
    record.write_text(json.dumps(rows))
    before = state(zoo)
    with pytest.raises(ForgeError, match="otherwise than it was"):
        repair(zoo)
    assert {name: one for name, one in state(zoo).items() if "manifest" not in name} == {
        name: one for name, one in before.items() if "manifest" not in name
    }


def test_a_packed_zoo_is_repaired_and_extended_like_any_other(forged, tmp_path):
    zoo = tmp_path / "zoo"
    forge("digits-vit", 34, zoo, settings=SETTINGS)
    pack(Zoo.open(zoo), shard_size=20)
    forge("digits-vit", 40, zoo, settings=SETTINGS)
    first, second = sorted((zoo / "shards").iterdir())
    data = bytearray(first.read_bytes())
    data[data.index(b"lora_B") + 3000] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-1])
    lost = verify_zoo(zoo).ids()
    assert len(lost) == 1 + 14
    result = repair(zoo)
    assert set(result.repaired) == lost and not result.left.defects and not second.exists()
    unpack(Zoo.open(zoo))
    assert state(zoo) == state(forged.path)
