"""Pipes among the files of a zoo: each command says that they are no regular files, and waits for none."""

import os
import signal

import pytest

from lorascope.zoo import Zoo, import_zoo, verify_zoo

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def impatient():
    """Ends a test that waits for a pipe."""

    def stop(*_):
        raise AssertionError("a pipe is waited for")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ["cohorts/zzz.json", "cohorts/00000000.json", "zoo.json"])
@pytest.mark.parametrize("command", [["info"], ["ls"], ["ls", "--csv"], ["pack"], ["verify"], ["split"]])
def test_records_and_header(make_zoo, lorascope, name, command):
    zoo = make_zoo(count=9)
    (zoo / name).unlink(missing_ok=True)
    os.mkfifo(zoo / name)
    code, out, errors = lorascope("zoo", command[0], zoo, *command[1:])
    assert code in (1, 2) and ("regular" in out + errors or "is not a zoo" in errors)


@pytest.mark.parametrize("name", ["manifest.parquet", "split.json", "log.jsonl"])
def test_what_a_zoo_can_do_without(make_zoo, name):
    zoo = make_zoo(count=3)
    (zoo / name).unlink(missing_ok=True)
    os.mkfifo(zoo / name)
    assert len(Zoo.open(zoo)) == 3


def test_adapters(make_zoo, lorascope, tmp_path):
    zoo = make_zoo(count=3)
    (zoo / "adapters/a1" / WEIGHTS).unlink()
    os.mkfifo(zoo / "adapters/a1" / WEIGHTS)
    found = verify_zoo(zoo)
    assert found.ids() == {"a1"}
    assert [one.what for one in found.defects] == ["the weights are a named pipe, not a regular file"]
    code, _, _ = lorascope("zoo", "pack", zoo)
    assert code == 0 and (zoo / "adapters/a1").exists()


def test_an_adapter_that_is_a_file(make_zoo, lorascope, tmp_path):
    make_zoo(count=2)
    source = tmp_path / "zoo-source"
    (source / "a0" / WEIGHTS).rename(source / "a.safetensors")
    (tmp_path / "one.csv").write_text("path,n\na.safetensors,1\n")
    import_zoo(source, tmp_path / "one.csv", out=tmp_path / "one")
    place = tmp_path / "one/adapters/a.safetensors"
    place.unlink()
    os.mkfifo(place)
    assert verify_zoo(tmp_path / "one").ids() == {"a.safetensors"}
    code, out, _ = lorascope("zoo", "pack", tmp_path / "one")
    assert code == 0 and "not a regular file" in out
    code, _, errors = lorascope("zoo", "merge", tmp_path / "one", tmp_path / "one", "--out", tmp_path / "merged")
    assert code == 2 and "regular" in errors
    (source / "a.safetensors").unlink()
    os.mkfifo(source / "a.safetensors")
    code, _, errors = lorascope("zoo", "import", source, "--labels", tmp_path / "one.csv", "--out", tmp_path / "two")
    assert code == 2 and "regular" in errors
