"""Archives of stored files: exact, readable by every ZIP tool, and safe whatever the bytes say."""

import os
import struct
import zipfile

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError
from lorascope.formats.headers import read_headers
from lorascope.formats.stored_zip import ALIGNMENT, open_stored, write_stored


@pytest.fixture
def archive(tmp_path):
    """Two adapters in an archive, and the folders that they came from."""
    files = []
    for name in ("a", "b"):
        rng = np.random.default_rng(ord(name))
        adapter = Adapter({"q": LowRank(rng.standard_normal((4, 2)), rng.standard_normal((2, 3)), scale=0.5)})
        formats.write(adapter, tmp_path / name)
        files += [(f"adapters/{name}/{file.name}", file) for file in sorted((tmp_path / name).iterdir())]
    write_stored(tmp_path / "x.zip", files)
    return tmp_path / "x.zip"


def test_members_are_aligned_slices_and_other_tools_read_them(archive, tmp_path):
    stored = open_stored(archive)
    data = np.frombuffer(archive.read_bytes(), np.uint8)
    with zipfile.ZipFile(archive) as other:
        assert other.testzip() is None and other.namelist() == list(stored.members)
        for name, view in stored.members.items():
            assert other.read(name) == bytes(view) == (tmp_path / name.removeprefix("adapters/")).read_bytes()
    whole = next(iter(stored.members.values())).obj
    for view in stored.members.values():
        begin = np.frombuffer(view, np.uint8).ctypes.data - np.frombuffer(whole, np.uint8).ctypes.data
        assert begin % ALIGNMENT == 0 and data[begin] == view[0]


def test_an_adapter_is_read_through_the_archive_as_from_its_folder(archive, tmp_path):
    for name in ("a", "b"):
        packed, plain = formats.read(archive / "adapters" / name), formats.read(tmp_path / name)
        assert packed["q"].scale == plain["q"].scale == 0.5
        assert np.array_equal(packed["q"].factors().B, plain["q"].factors().B)
        assert packed.provenance.config_text == plain.provenance.config_text
        formats.write(packed, tmp_path / "again" / name)
        for file in (tmp_path / name).iterdir():
            assert (tmp_path / "again" / name / file.name).read_bytes() == file.read_bytes()
    assert read_headers(archive / "adapters" / "a")["q"].shape == (4, 3)
    for wrong in ("adapters", "adapters/c", "adapters/a/adapter_config.json", ""):
        with pytest.raises(AdapterError):
            formats.read(archive / wrong)


def test_every_flipped_byte_of_the_structure_is_an_error_or_changes_no_slice(archive):
    good = {name: bytes(view) for name, view in open_stored(archive).members.items()}
    data = archive.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x11
        target = archive.with_name("y.zip")
        target.write_bytes(damaged)
        os.utime(target, ns=(place, place))  # another file for the cache
        try:
            found = open_stored(target).members
        except AdapterError:
            continue
        # names, and the data themselves, carry no check here: the hashes of the zoo are theirs
        assert [len(view) for view in found.values()] == [len(value) for value in good.values()]


@pytest.mark.parametrize("size", [0, 1, 21, 22, 60, -1, -22, -23, -100])
def test_cut_archives_are_refused(archive, size):
    archive.write_bytes(archive.read_bytes()[:size])
    with pytest.raises(AdapterError):
        open_stored(archive)


@pytest.mark.parametrize("name", ["../a", "/a", "a//b", "a/./b", "c:/a", "a\\b", "a/../../b", "a/"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as other:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        other.writestr(info, b"x")
    with pytest.raises(AdapterError, match="plain relative path"):
        open_stored(tmp_path / "x.zip")


def test_compressed_members_comments_and_strange_counts_are_refused(archive, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as other:
        other.writestr("adapters/a/adapter_model.safetensors", bytes(10_000_000))
    with pytest.raises(AdapterError, match="compressed"):
        open_stored(tmp_path / "bomb.zip")
    good = archive.read_bytes()
    for damaged in (
        good[:-2] + struct.pack("<H", 3) + b"abc",
        good[:-14] + struct.pack("<2H", 65_535, 65_535) + good[-10:],
        b"junk" + good,
    ):
        target = tmp_path / f"{len(damaged)}-{damaged[:1].hex()}.zip"
        target.write_bytes(damaged)
        with pytest.raises(AdapterError):
            open_stored(target)
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as other, pytest.warns(UserWarning, match="Duplicate"):
        other.writestr("a", b"1")
        other.writestr("a", b"2")
    with pytest.raises(AdapterError, match="one name"):
        open_stored(tmp_path / "twice.zip")
