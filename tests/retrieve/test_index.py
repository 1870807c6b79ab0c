"""Indexes: incremental, resumable, safe; and what is found in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lorascope.adapter import Adapter, LowRank
from lorascope.cli import app
from lorascope.compare import pairwise_reference
from lorascope.compress import compress, write_pack
from lorascope.errors import LorascopeError, MissingExtraError
from lorascope.formats import read, write
from lorascope.formats.safetensors_file import read_safetensors, write_safetensors
from lorascope.retrieve import adapters_in, build_index, duplicates, nearest, read_index, write_index
from lorascope.retrieve import indexing as indexing_module
from retrieve.test_sketch import planted
from retrieve.variants import written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve unrelated adapters."""
    for seed in range(12):
        write(planted(seed), tmp_path / "zoo" / f"a{seed}", format="peft", dtype="float32")
    return tmp_path / "zoo"


def indexed(folder: Path) -> Any:
    return build_index(adapters_in([folder])).index


def test_nearest_are_those_of_all_pairs(folder: Path) -> None:
    index = indexed(folder)
    own = read(folder / "a3")
    names = [Path(entry.path).name for entry in index.readable]
    truth = pairwise_reference([own, *(read(folder / name) for name in names)]).distance[0, 1:]
    for is_approximate in (False, True):
        found = nearest(own, index, k=3, is_approximate=is_approximate)
        assert Path(found.found[0].entry.path).name == "a3"
        assert [one.distance for one in found.found][1:] == pytest.approx(
            np.sort(truth)[1:3], rel=1e-9
        ) or is_approximate
    assert nearest(own, index, k=3, is_approximate=True).read <= 13
    close = nearest(own, index, k=None, within=0.01)
    assert [Path(one.entry.path).name for one in close.found] == ["a3"] and close.read == 1
    without = nearest(own, index, k=1, without=str(folder / "a3"))
    assert Path(without.found[0].entry.path).name != "a3"


def test_an_index_is_brought_up_to_date_and_reads_nothing_twice(folder: Path, monkeypatch: Any) -> None:
    first = build_index(adapters_in([folder]))
    assert (first.read, first.kept, first.gone) == (12, 0, 0)
    shutil.rmtree(folder / "a0")
    write(planted(99), folder / "a1", format="peft", dtype="float32")
    config = folder / "a2" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": ', '"lora_alpha": 1'))
    write(planted(50), folder / "new", format="peft", dtype="float32")
    seen: list[str] = []
    real = indexing_module.read
    monkeypatch.setattr(indexing_module, "read", lambda path: seen.append(Path(path).name) or real(path))
    second = build_index(adapters_in([folder]), first.index)
    assert sorted(seen) == ["a1", "a2", "new"]
    assert (second.read, second.kept, second.gone) == (3, 9, 1)
    assert len(second.index) == 12


def test_interrupted_work_is_saved_and_goes_on(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "index"
    real, count = indexing_module.read, [0]

    def interrupted(place: str) -> Adapter:
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        return real(place)

    monkeypatch.setattr(indexing_module, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_index(adapters_in([folder]), save=lambda index: write_index(index, path))
    rest = build_index(adapters_in([folder]), read_index(path))
    assert (rest.kept, rest.read) == (5, 7)


def test_damaged_files_are_counted_and_the_others_go_on(folder: Path) -> None:
    (folder / "bad.safetensors").write_bytes(b"no")
    nan = planted(7).with_sites({"layers.0.q": LowRank(np.full((4, 1), np.nan), np.ones((1, 4)))})
    write_safetensors(
        folder / "nan.safetensors",
        {
            "base_model.model.q.lora_A.weight": np.ones((1, 4), np.float32),
            "base_model.model.q.lora_B.weight": np.full((4, 1), np.nan, np.float32),
        },
    )
    assert not np.isfinite(nan["layers.0.q"].stored["B"]).any()
    found = build_index(adapters_in([folder]))
    assert len(found.index) == 12 and len(found.index.failures) == 2
    assert "non-finite" in " ".join(entry.error or "" for entry in found.index.failures)
    again = build_index(adapters_in([folder]), found.index)
    assert (again.read, again.kept) == (0, 14)


def test_an_index_moves_with_its_folder_and_misses_what_is_gone(folder: Path, tmp_path: Path) -> None:
    write_index(indexed(folder), folder / "i")
    moved = tmp_path / "moved"
    folder.rename(moved)
    index = read_index(moved / "i")
    own = read(moved / "a3")
    assert nearest(own, index, k=1).found[0].entry.path == str(moved / "a3")
    shutil.rmtree(moved / "a3")
    found = nearest(own, index, k=None, within=0.01)
    assert not found.found and list(found.unread) == [str(moved / "a3")]


def test_what_is_no_sound_index_is_one_error(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "index"
    write_index(indexed(folder), path)
    whole, file = path.read_bytes(), read_safetensors(path)
    tensors, metadata = dict(file.tensors), dict(file.metadata)
    records = json.loads(tensors["records"].tobytes())

    def refuses(match: str) -> None:
        with pytest.raises(LorascopeError, match=match) as caught:
            read_index(path)
        assert str(path) in str(caught.value)

    path.write_bytes(whole[:-10])
    refuses("truncated")
    for text in (b"nothing", b"no header of safetensors, whose first eight bytes would be a length"):
        path.write_bytes(text)
        refuses("is no index")
    path.unlink()
    refuses("no such index")
    write_safetensors(path, {"x": np.ones(2)})
    refuses("is no index")
    write_safetensors(path, tensors, metadata | {"schema_version": "2"})
    refuses("another version")
    changes: list[dict[str, Any]] = [
        {"sketches": tensors["sketches"][:3]},
        {"norms": np.full(12, np.nan)},
        {"sketches": tensors["sketches"].astype(np.float64)},
        {"records": np.frombuffer(b"[" * 100_000, np.uint8)},
        {"records": np.frombuffer(b'{"records": [1]}', np.uint8)},
        {"records": np.frombuffer(json.dumps(records | {"records": records["records"][:5]}).encode(), np.uint8)},
    ]
    for key, value in (("path", 7), ("path", "a\0b"), ("size", "x"), ("error", ["x"]), ("error", "bad")):
        bad = [record | {key: value} for record in records["records"]]
        changes.append({"records": np.frombuffer(json.dumps({"records": bad}).encode(), np.uint8)})
    for change in changes:
        write_safetensors(path, tensors | change, metadata)
        refuses("damaged")


def test_variants_are_found_to_be_one_and_others_are_not(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for seed in range(6):
        folder = tmp_path / f"f{seed}"
        folder.mkdir()
        written(planted(seed), folder, random)
    found = duplicates(indexed(tmp_path))
    assert sorted(len(group) for group in found.groups) == [9] * 6
    for group in found.groups:
        assert len({Path(one.entry.path).parent for one in group}) == 1


def test_zero_updates_of_other_layers_are_no_duplicates(tmp_path: Path) -> None:
    for name, sites in (("a", "q"), ("b", "q"), ("c", "k")):
        write(Adapter({sites: LowRank(np.zeros((4, 1)), np.ones((1, 4)))}), tmp_path / name, format="peft")
    [group] = duplicates(indexed(tmp_path)).groups
    assert [Path(one.entry.path).name for one in group] == ["a", "b"]


def test_adapters_without_a_common_site_are_never_near(folder: Path) -> None:
    small = {"other": LowRank(np.full((4, 1), 1e-3), np.ones((1, 4)))}
    write(Adapter(small), folder / "small", format="peft")
    own = Path(folder / "a3")
    found = nearest(read(own), indexed(folder), k=12, without=str(own))
    assert found.apart == 1 and len(found.found) == 11 == found.read - 1
    done = CliRunner().invoke(app, ["find", str(own), "--in", str(folder)])
    assert "1 adapter of those read has no site in common" in done.stdout and "small" not in done.stdout
    distances = [float(line.split()[0]) for line in done.stdout.splitlines()[1:11]]
    assert distances == sorted(distances)


def test_each_duplicate_is_told_by_itself(folder: Path) -> None:
    shutil.copytree(folder / "a4", folder / "copy")
    write(read(folder / "a4"), folder / "rounded", format="peft", dtype="float16")
    done = CliRunner().invoke(app, ["find", "--duplicates", str(folder), "--json"])
    [group] = json.loads(done.stdout)["groups"]
    assert {Path(one["path"]).name: one["kind"] for one in group["members"]} == {
        "a4": "same", "copy": "same", "rounded": "near",
    }  # fmt: skip
    lines = CliRunner().invoke(app, ["find", "--duplicates", str(folder)]).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["first", "same", "near"]
    assert lines[4] == "1 group; 2 of 14 adapters could go"


def test_where_nothing_can_be_searched_is_an_error(folder: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    write_pack(compress([read(folder / "a1")], method="alone").pack, pack)
    for arguments in ([str(folder / "a1"), "--in", str(pack)], ["--duplicates", str(pack)]):
        done = CliRunner().invoke(app, ["find", *arguments])
        assert isinstance(done.exception, LorascopeError) and "a pack of adapters" in str(done.exception)


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    run = CliRunner()
    shutil.copytree(folder / "a4", folder / "copy")
    place = str(tmp_path / "i")

    def said(*arguments: str, code: int = 0) -> dict[str, Any]:
        result = run.invoke(app, [*arguments, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout.splitlines()[-1])

    assert said("index", str(folder), "-o", place)["read"] == 13
    assert said("index", str(folder), "-o", place)["read"] == 0
    near = said("find", str(folder / "a4"), "--in", place, "-k", "2")
    assert near["schema_version"] == 1 and Path(near["found"][0]["path"]).name == "copy"
    assert near["found"][0]["relative_distance"] < 1e-12
    for where in (place, str(folder)):
        groups = said("find", "--duplicates", where)["groups"]
        assert [[Path(m["path"]).name for m in group["members"]] for group in groups] == [["a4", "copy"]]
    (folder / "bad.safetensors").write_bytes(b"no")
    assert len(said("find", "--duplicates", str(folder), code=1)["failures"]) == 1
    assert "1 group;" in run.invoke(app, ["find", "--duplicates", place]).stdout
    assert "copy" in run.invoke(app, ["find", str(folder / "a4"), "--in", place]).stdout
    for arguments in (["find", str(folder / "a4")], ["find", "--duplicates", place, "-k", "2"]):
        assert isinstance(run.invoke(app, arguments).exception, LorascopeError)


def with_what_has_no_sketch(folder: Path) -> tuple[Path, Path]:
    """Adds an IA3 adapter, which does not tell the shape of its layers, and one whose ΔW is beyond float32."""
    gates, large = folder / "gates", folder / "large"
    gates.mkdir()
    config = {"peft_type": "IA3", "target_modules": ["q"], "feedforward_modules": []}
    (gates / "adapter_config.json").write_text(json.dumps(config))
    write_safetensors(
        gates / "adapter_model.safetensors", {"base_model.model.q.ia3_l": np.ones((8, 1), np.float32)}, {"format": "pt"}
    )
    factors = [np.full(shape, 1e25, np.float32) for shape in ((8, 2), (2, 6))]
    write(Adapter({"q": LowRank(*factors)}), large, format="peft", dtype="float32")
    return gates, large


def test_what_has_no_sketch_is_counted_and_spoils_no_index(folder: Path, tmp_path: Path) -> None:
    gates, large = with_what_has_no_sketch(folder)
    index = indexed(folder)
    told = {Path(entry.path): entry.error for entry in index.failures}
    assert len(index) == 12 and set(told) == {gates, large}
    assert "relative to the base weight" in str(told[gates]) and "too large for a sketch" in str(told[large])
    write_index(index, tmp_path / "index")
    again = read_index(tmp_path / "index")
    assert np.array_equal(again.sketches, index.sketches) and len(again.failures) == 2
    for path, words in ((gates, "relative to the base weight"), (large, "too large for a sketch")):
        with pytest.raises(LorascopeError, match=words):
            nearest(read(path), index)


@pytest.mark.parametrize("verb", ["lineage", "explain-merge"])
def test_adapters_without_a_sketch_stop_no_others(verb: str, folder: Path) -> None:
    pytest.importorskip("scipy")
    gates, large = with_what_has_no_sketch(folder)
    given = [str(folder / "a0"), "--among"] if verb == "explain-merge" else []
    done = CliRunner().invoke(app, [verb, *given, str(folder), "--json"])
    assert done.exit_code == 1 and set(json.loads(done.stdout)["failures"]) == {str(gates), str(large)}
    done = CliRunner().invoke(app, [verb, *given, str(gates)])
    assert "none of the adapters can be used" in str(done.exception) and "relative to the base" in str(done.exception)


def test_an_adapter_is_not_its_own_neighbour_however_its_path_is_written(folder: Path, monkeypatch: Any) -> None:
    inside = folder / "a1"
    monkeypatch.chdir(inside)
    run = CliRunner()
    for place in (str(inside), "../a1", "../a2/../a1", "../a1/adapter_model.safetensors", "."):
        for where in ("..", str(inside / "adapter_model.safetensors")):
            result = run.invoke(app, ["find", place, "--in", where, "--within", "0.5", "--json"])
            assert json.loads(result.stdout)["found"] == [], (place, where)
            among = ["--among", where, "--among", str(folder / "a2"), "--json"]
            result = run.invoke(app, ["explain-merge", place, *among])
            assert not any("a1" in Path(one["path"]).parts for one in json.loads(result.stdout)["members"])


def test_an_approximate_search_without_k_is_refused(folder: Path) -> None:
    with pytest.raises(LorascopeError, match="approximate"):
        nearest(read(folder / "a1"), indexed(folder), k=None, within=0.1, is_approximate=True)


def test_a_file_that_has_changed_into_what_cannot_be_compared_is_counted(folder: Path) -> None:
    shutil.copytree(folder / "a4", folder / "copy")
    index = indexed(folder)
    weights = folder / "copy" / "adapter_model.safetensors"
    file = read_safetensors(weights)
    broken = {name: np.full_like(tensor, np.nan) for name, tensor in file.tensors.items()}
    write_safetensors(weights, broken, dict(file.metadata))
    found = duplicates(index)
    assert found.groups == () and list(found.unread) == [str(folder / "copy")]


def test_what_an_extra_was_missing_for_is_read_once_it_is_there(folder: Path, monkeypatch: Any) -> None:
    real = indexing_module.read

    def without(place: str) -> Adapter:
        if Path(place).name == "a1":
            raise MissingExtraError.of("torch", "learn", "reading pickled files")
        return real(place)

    monkeypatch.setattr(indexing_module, "read", without)
    first = build_index(adapters_in([folder]))
    assert len(first.index.failures) == 1
    monkeypatch.setattr(indexing_module, "read", real)
    second = build_index(adapters_in([folder]), first.index)
    assert (second.read, second.kept, len(second.index.failures)) == (1, 11, 0)
