"""A zoo that came from anyone: no link in it leads a command to change, delete or give away a file outside."""

import json
import os

import pytest

from lorascope.errors import LorascopeError, OutputError, ZooError
from lorascope.forge import forge
from lorascope.zoo import Zoo, import_zoo, merge_zoos, pack, unpack
from lorascope.zoo.lock import LOCK, OWN, locked
from lorascope.zoo.log import LOG, logged, read_log


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
