"""A zoo that came from anyone: no link in it leads a command to change, delete or give away a file outside."""

import json
import os

import pytest

from lorascope.errors import LorascopeError, OutputError, ZooError
from lorascope.forge import forge
from lorascope.zoo import Zoo, import_zoo, merge_zoos, pack, unpack, verify_zoo
from lorascope.zoo.lock import LOCK, OWN, locked
from lorascope.zoo.log import LOG, logged, read_log
from lorascope.zoo.remote import _local_files


def content(folder):
    """Every file and folder below, with what is in it."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def outside(tmp_path):
    """A file and a folder that are not the zoo's."""
    folder = tmp_path / "outside"
    (folder / "inner").mkdir(parents=True)
    (folder / "file").write_text("not the zoo's")
    (folder / "inner" / "file").write_text("not the zoo's either")
    return folder


@pytest.mark.parametrize("name", [LOCK, LOG])
@pytest.mark.parametrize("to", ["file", "new"])
def test_the_lock_and_the_log_are_no_links(make_zoo, outside, name, to):
    zoo = make_zoo(count=1)
    (zoo / name).unlink(missing_ok=True)
    (zoo / name).symlink_to(outside / to)
    before = content(outside)
    with pytest.raises(LorascopeError, match="link") as caught:
        pack(Zoo.open(zoo))
    assert name in str(caught.value) and content(outside) == before
    opened = {LOCK: locked(zoo), LOG: logged(zoo, "pack", {})}[name]
    with pytest.raises(OutputError, match="link"), opened:
        pass
    assert content(outside) == before


@pytest.mark.parametrize("name", [LOCK, LOG])
def test_the_lock_and_the_log_are_no_pipes(make_zoo, name):
    zoo = make_zoo(count=1)
    (zoo / name).unlink(missing_ok=True)
    os.mkfifo(zoo / name)
    assert read_log(zoo) == []
    with pytest.raises(OutputError, match="regular"):
        pack(Zoo.open(zoo))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("command", ["pack", "unpack", "merge"])
def test_own_files_and_folders_that_are_links_are_refused(make_zoo, tmp_path, outside, name, command):
    zoo, other = make_zoo(count=2), make_zoo("other", count=1)
    if command == "unpack" or name == "shards":
        pack(Zoo.open(zoo))
    if (zoo / name).exists():
        (zoo / name).rename(outside / "moved")
    (zoo / name).symlink_to(outside / ("moved" if (outside / "moved").exists() else "inner"))
    if name == "base" and command == "merge":
        assert merge_zoos([zoo, other], tmp_path / "merged").count == 3
        return
    before = content(outside)
    with pytest.raises(LorascopeError, match="link") as caught:
        {
            "pack": lambda: pack(Zoo.open(zoo)),
            "unpack": lambda: unpack(Zoo.open(zoo)),
            "merge": lambda: merge_zoos([zoo, other], tmp_path / "merged"),
        }[command]()
    assert name in str(caught.value) and content(outside) == before


def test_leftovers_that_are_links_are_deleted_and_not_followed(make_zoo, outside):
    zoo = make_zoo(count=1)
    (zoo / ".tmp-link").symlink_to(outside)
    before = content(outside)
    assert pack(Zoo.open(zoo)).count == 1
    assert content(outside) == before and not (zoo / ".tmp-link").is_symlink()


def test_no_link_waits_under_the_name_of_a_temporary_file(make_zoo, outside, lorascope, monkeypatch):
    zoo = make_zoo(count=9)
    monkeypatch.setattr("os.getpid", lambda: 7)
    (zoo / ".tmp-split.json-7").symlink_to(outside / "file")
    before = content(outside)
    assert lorascope("zoo", "split", zoo, "--fractions", "1,0,0")[0] == 0
    assert content(outside) == before and (zoo / "split.json").is_file()


def test_the_folder_of_a_zoo_may_be_a_link(make_zoo, tmp_path):
    (tmp_path / "link").symlink_to(make_zoo(count=2))
    assert pack(Zoo.open(tmp_path / "link")).count == 2
    assert unpack(Zoo.open(tmp_path / "link")).count == 2


def test_records_of_an_import_in_place_are_not_written_through_a_link(make_zoo, tmp_path, outside):
    make_zoo(count=2)
    source = tmp_path / "zoo-source"
    (source / "cohorts").symlink_to(outside)
    before = content(outside)
    with pytest.raises(ZooError, match="link"):
        import_zoo(source, tmp_path / "zoo.csv")
    assert content(outside) == before
    (source / "cohorts").unlink()
    (source / "base").symlink_to(outside)  # of its owner
    assert import_zoo(source, tmp_path / "zoo.csv").count == 2 and len(Zoo.open(source)) == 2


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["base", "diverged", "cohorts"])
def test_the_forge_refuses_them_before_anything_is_deleted(tmp_path, outside, name, fresh):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    (zoo / "zoo.json").write_text(json.dumps({"schema_version": 1, "settings": {}}))
    (zoo / name).symlink_to(outside)
    before = content(outside)
    with pytest.raises(ZooError, match="link"):
        forge("digits-vit", 1, zoo, fresh=fresh)
    assert content(outside) == before and (zoo / "zoo.json").exists()


@pytest.fixture
def leaking(make_zoo, tmp_path, outside):
    """A zoo, and the folder that it was imported from, in both of which an adapter has a link to a file outside."""
    zoo = make_zoo(count=3)
    for folder in (zoo / "adapters", tmp_path / "zoo-source"):
        (folder / "a1/notes.txt").symlink_to(outside / "file")
    return zoo


def test_links_of_adapters_are_extra_and_not_pushed(leaking):
    assert [(one.problem, one.path) for one in verify_zoo(leaking).defects] == [("extra", "adapters/a1/notes.txt")]
    assert not [name for name in _local_files(leaking) if "notes" in name]
    weights = leaking / "adapters/a1/adapter_model.safetensors"
    weights.rename(leaking / "elsewhere")
    weights.symlink_to(leaking / "elsewhere")
    assert ("extra", str(weights.relative_to(leaking))) in [
        (one.problem, one.path) for one in verify_zoo(leaking).defects
    ]
    with pytest.raises(ZooError, match="link"):
        _local_files(leaking)


def test_only_what_records_name_is_pushed(make_zoo):
    zoo = make_zoo(count=1)
    for name in ("adapters/a0/private.txt", "adapters/a0/inner/x", "cohorts/1.json", "private.txt", "adapters/x"):
        (zoo / name).parent.mkdir(exist_ok=True)
        (zoo / name).write_text('{"schema_version": 1, "rows": []}')
    (zoo / "manifest.parquet").unlink()
    assert list(_local_files(zoo)) == [
        "adapters/a0/adapter_config.json",
        "adapters/a0/adapter_model.safetensors",
        "cohorts/00000000.json",
        "zoo.json",
    ]


def test_links_that_lead_out_are_neither_merged_nor_imported(leaking, make_zoo, tmp_path):
    other = make_zoo("other", count=1)
    with pytest.raises(ZooError, match=r"notes.txt.* leads out"):
        merge_zoos([other, leaking], tmp_path / "merged")
    with pytest.raises(ZooError, match=r"notes.txt.* leads out"):
        import_zoo(tmp_path / "zoo-source", tmp_path / "zoo.csv", out=tmp_path / "out")
    assert not (tmp_path / "merged").exists() and not (tmp_path / "out").exists()
    assert import_zoo(tmp_path / "zoo-source", tmp_path / "zoo.csv").count == 3  # nothing is copied


def test_links_that_stay_inside_and_those_of_the_cache_of_the_hub_are_copied(make_zoo, tmp_path):
    make_zoo(count=1)
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots/0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (tmp_path / "zoo-source/a0").rename(snapshot / "a0")
    for number, file in enumerate(sorted((snapshot / "a0").iterdir())):
        file.rename(cache / f"blobs/{number}")
        file.symlink_to(f"../../../blobs/{number}")
    table = tmp_path / "labels.csv"
    table.write_text("path,n\na0,1\n")
    import_zoo(snapshot, table, out=tmp_path / "first")
    table.write_text("path,n\nsnapshots/0123/a0,1\n")
    import_zoo(cache, table, out=tmp_path / "second")
    for zoo in (tmp_path / "first", tmp_path / "second"):
        assert not verify_zoo(zoo).defects
        files = [path for path in (zoo / "adapters").rglob("*") if path.is_file()]
        assert len(files) == 2
        assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in files)
