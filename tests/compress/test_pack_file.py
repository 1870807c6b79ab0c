"""Hostile pack files: one clear error each, nothing written outside of the folder, nothing allocated on a promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.compress import Pack, compress, decompress, read_pack, write_pack
from lorascope.compress.names import is_safe, told_apart
from lorascope.compress.pack import PackMember, PackSite
from lorascope.compress.pack_file import KEY
from lorascope.errors import AdapterError
from lorascope.formats.safetensors_file import read_safetensors, write_safetensors


def written(path: Path, bits: int | None = 8) -> Path:
    """A pack of two adapters in two clusters."""
    random = np.random.default_rng(0)
    some = [Adapter({"q": LowRank(random.standard_normal((12, 2)), random.standard_normal((2, 9)))}) for _ in range(2)]
    write_pack(compress(some, ["a", "b"], rank=5, bits=bits, clusters=2).pack, path)
    return path


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Path:
    """The pack with another header or other tensors."""
    file = read_safetensors(path)
    header, tensors = json.loads(file.metadata[KEY]), dict(file.tensors)
    change(header, tensors)
    write_safetensors(path, tensors, {KEY: json.dumps(header)})
    return path


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """A change of one field of the header."""

    def change(header: Any, tensors: Any) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


HOSTILE: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "escaping name": (put("adapters", 0, "name", value="../../etc/x"), "not that of a file"),
    "absolute name": (put("adapters", 0, "name", value="/tmp/x"), "not that of a file"),
    "empty name": (put("adapters", 0, "name", value=""), "not that of a file"),
    "dots": (put("adapters", 0, "name", value=".."), "not that of a file"),
    "name is a list": (put("adapters", 0, "name", value=["a"]), "not that of a file"),
    "line break": (put("adapters", 0, "name", value="a\n"), "not that of a file"),
    "one name twice": (put("adapters", 0, "name", value="B"), "two adapters have one name"),
    "huge rank": (put("adapters", 0, "ranks", value=[1 << 30]), "a rank is impossible"),
    "negative rank": (put("adapters", 0, "ranks", value=[-1]), "not a whole number"),
    "too few ranks": (put("adapters", 0, "ranks", value=[]), "does not fit the sites"),
    "unknown cluster": (put("adapters", 0, "cluster", value=7), "does not fit the sites or clusters"),
    "huge site": (put("sites", 0, "shape", value=[1 << 30, 9]), "is not what the header says"),
    "endless site": (put("sites", 0, "shape", value=[1 << 62, 9]), "not a whole number"),
    "no shape": (put("sites", 0, "shape", value=[12]), "not two numbers"),
    "empty site": (put("sites", 0, "shape", value=[0, 9]), "impossible"),
    "wrong kernel": (put("sites", 0, "kernel", value=[5, 5]), "impossible"),
    "unknown layer": (put("sites", 0, "layer", value="other"), "unknown word"),
    "unhashable layer": (put("sites", 0, "layer", value=[]), "unknown word"),
    "site is a number": (put("sites", 0, value=3), "not an object"),
    "width above the site": (put("widths", 0, 0, value=[13, 5]), "bases do not fit"),
    "width of nothing": (put("widths", 0, 0, value=[0, 5]), "bases do not fit"),
    "no bases": (put("widths", value=[]), "bases for adapters"),
    "too many widths": (put("widths", 0, value=[[5, 5], [5, 5]]), "do not fit|not one width"),
    "too few widths": (put("widths", 0, value=[]), "not one width"),
    "other bits": (put("bits", value=4), "is not what the header says"),
    "no bits": (put("bits", value=None), "not those of the header"),
    "odd bits": (put("bits", value=3), "number of bits"),
    "true bits": (put("bits", value=True), "not a whole number"),
    "version": (put("version", value=2), "another version"),
    "no method": (put("method", value="zip"), "unknown word"),
    "numbers for a name": (put("base_model", value=3), "not a name"),
    "missing tensor": (lambda header, tensors: tensors.pop("adapter.0"), "not those of the header"),
    "another tensor": (lambda header, tensors: tensors.update(x=np.ones(3)), "not those of the header"),
    "shorter tensor": (
        lambda header, tensors: tensors.update({"adapter.0": tensors["adapter.0"][:-1]}),
        "is not what the header says",
    ),
    "other dtype": (
        lambda header, tensors: tensors.update({"adapter.0": tensors["adapter.0"].astype(np.int16)}),
        "is not what the header says",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pack_gives_one_clear_error(case: str, tmp_path: Path) -> None:
    change, text = HOSTILE[case]
    path = changed(written(tmp_path / "p.safetensors"), change)
    with pytest.raises(AdapterError, match=text) as caught:
        read_pack(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (put("adapters", 0, "ranks", value=[1]), "not as wide as its bases"),
        (put("widths", 0, 0, value=[3, 4]), "two widths"),
    ],
)
def test_a_hostile_pack_of_diagonal_cores_gives_one_clear_error(change: Any, text: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    one = Adapter({"q": LowRank(random.standard_normal((12, 3)), random.standard_normal((3, 9)))})
    write_pack(compress([one], ["a"], method="diagonal", rank=3).pack, tmp_path / "p.safetensors")
    with pytest.raises(AdapterError, match=text):
        read_pack(changed(tmp_path / "p.safetensors", change))


def test_what_is_no_pack_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "p.safetensors")
    whole = path.read_bytes()
    for size in (0, 4, 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(AdapterError):
            read_pack(path)
    write_safetensors(path, {"x": np.ones(2)}, {KEY: "["})
    with pytest.raises(AdapterError, match="not JSON"):
        read_pack(path)
    write_safetensors(path, {"x": np.ones(2)}, {KEY: "[" * 100_000})
    with pytest.raises(AdapterError, match="not JSON"):
        read_pack(path)
    write_safetensors(path, {"x": np.ones(2)})
    with pytest.raises(AdapterError, match="not a pack"):
        read_pack(path)
    with pytest.raises(AdapterError, match="no pack here"):
        read_pack(tmp_path / "nothing")


@pytest.mark.parametrize("bits", [None, 8])
def test_numbers_that_are_not_finite_are_told_when_they_are_used(bits: int | None, tmp_path: Path) -> None:
    path = written(tmp_path / "p.safetensors", bits)
    name = "adapter.1" if bits is None else "adapter.1.steps"
    changed(path, lambda header, tensors: tensors.update({name: tensors[name] * np.float32(np.nan)}))
    with pytest.raises(AdapterError, match=r"adapter.1: .*finite"):
        decompress(read_pack(path), tmp_path / "out")


def test_a_small_pack_of_enormous_adapters_is_refused(tmp_path: Path) -> None:
    site = PackSite("q", (1 << 20, 1 << 20))
    numbers = {"basis.0.0.U": np.zeros(1 << 20, np.float16), "basis.0.0.V": np.zeros(1 << 20, np.float16)}
    members = tuple(PackMember(f"a{number}", 0, (1,)) for number in range(1000))
    numbers |= {f"adapter.{number}": np.ones(1, np.float16) for number in range(1000)}
    pack = Pack("joint", None, None, (site,), members, (((1, 1),),), numbers)
    write_pack(pack, tmp_path / "p.safetensors")
    with pytest.raises(AdapterError, match="times as large as the pack") as caught:
        decompress(read_pack(tmp_path / "p.safetensors"), tmp_path / "out")
    assert caught.value.code == "too-large" and not (tmp_path / "out").exists()


def test_names_are_made_safe_and_told_apart() -> None:
    names = ["a", "x/a", "A", "..", "", "con", "é/ü", "b.safetensors", "-x", "y" * 300, "a b"]
    found = told_apart(names)
    assert all(map(is_safe, found)) and len({one.lower() for one in found}) == len(names)
    assert found[:3] == ["a", "a-2", "A-3"]


def test_adapters_come_out_all_or_none(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pairs = [(random.standard_normal((12, 2)), random.standard_normal((2, 9))) for _ in range(2)]
    some = [Adapter({"q": LowRank(scale * B, A)}) for (B, A), scale in zip(pairs, (1.0, 1e12), strict=True)]
    pack = compress(some, ["a", "b"], method="alone").pack
    for room in ("out", "deeper/out"):
        with pytest.raises(AdapterError, match="too large for the dtype"):
            decompress(pack, tmp_path / room, dtype="float16")
        assert not (tmp_path / room).exists()
    (tmp_path / "empty").mkdir()
    written = decompress(pack, tmp_path / "empty")
    assert written == [tmp_path / "empty" / name for name in ("a", "b")] == sorted((tmp_path / "empty").iterdir())


def test_numbers_of_layers_come_out_in_formats_of_numbers_alone(tmp_path: Path) -> None:
    pack = compress([Adapter({"unet:0": LowRank(np.ones((4, 1)), np.ones((1, 3)))})], ["a"], method="alone").pack
    with pytest.raises(AdapterError, match="no model has layers"):
        decompress(pack, tmp_path / "out")
    assert [path.name for path in decompress(pack, tmp_path / "out", to="cloneofsimo")] == ["a.safetensors"]
